"""Arguments of several commands' tests: a small kernel's name, what compiles it alone, and a call to explain."""

from __future__ import annotations

NAME = "merge_f16_kvf16_d64_sm80"
ONE = ("--arch", "sm_80", "--dtype", "float16", "--head-dim", "64", "--op", "merge")
EXPLAIN = ("explain", "--num-heads", "8", "--num-kv-heads", "2", "--head-dim", "64", "--device", "interpreter:sm_90")
