"""`pagedattn demo`, of which tests/demo sees the rest."""

from __future__ import annotations

import json


def test_demo(run) -> None:
    status, out, _ = run("demo", "--device", "cpu", "--max-new-tokens", "8", "--json")
    assert status == 0
    assert json.loads(out)


def test_demo_refuses(run) -> None:
    status, _, err = run("demo", "--device", "cpu", "--max-new-tokens", "0")
    assert status == 1
    assert "max_new_tokens" in err
