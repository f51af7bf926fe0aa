"""Peers: what is not installed, what is wrong and what cannot do a row is said so, and the fastest right form counts."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from benchmarks import peers
from benchmarks.peers import Form, Peer, UnfitError

HEADS, KV_HEADS, DIM = 8, 2, 16


def test_nothing_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise ImportError(f"No module named {name.rsplit('.', 1)[1]!r}")

    monkeypatch.setattr(peers, "import_module", absent)
    found, missing = peers.available()
    assert found == []
    assert missing == {name: f"not installed: No module named {name!r}" for name in peers.MODULES}


def test_the_fastest_right_form_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("cupy", reason="CuPy is not installed")
    from benchmarks import comparison
    from benchmarks.measure import Effort

    def breaks(i: int) -> None:
        raise RuntimeError("No available kernel. Aborting execution.\nand more")

    forms = [
        Form("slow", lambda i: 3.0, float),
        Form("fast", lambda i: 2.0, float),
        Form("wrong", lambda i: 1.0, float),
        Form("none", breaks, float),
    ]
    monkeypatch.setattr(comparison, "_error", lambda form, work: 0.5 if form.call(0) == 1.0 else 1e-4)
    monkeypatch.setattr(comparison, "_timed", lambda form, work, effort: form.call(0))
    work: Any = SimpleNamespace(dtype="float16")
    assert comparison.fastest(Peer("p", "1", True, lambda w: forms), work, Effort()) == ("fast", 2.0)
    with pytest.raises(
        UnfitError, match=r"wrong: relative error 5.0e-01 against float64: not timed; none: RuntimeError: No available kernel[^\n]*$"
    ):
        comparison.fastest(Peer("p", "1", True, lambda w: forms[2:]), work, Effort())
    with pytest.raises(UnfitError, match="no form for this row"):
        comparison.fastest(Peer("p", "1", True, lambda w: []), work, Effort())


class Work:
    """A workload as the peers see it, on the host, in float32."""

    head_dim, layers = DIM, 2

    def __init__(self, seqlens_q: tuple[int, ...], seqlens_k: tuple[int, ...]) -> None:
        rng = np.random.default_rng(0)
        uniform = len(set(seqlens_k)) == len(set(seqlens_q)) == 1
        self.row = SimpleNamespace(
            seqlens_q=seqlens_q, seqlens_k=seqlens_k, num_heads=HEADS, num_kv_heads=KV_HEADS, uniform=uniform, decode=max(seqlens_q) == 1
        )
        self.kv = [[rng.standard_normal((sum(seqlens_k), KV_HEADS, DIM), dtype=np.float32) for _ in "kv"] for _ in range(self.layers)]
        self.q = rng.standard_normal((sum(seqlens_q), HEADS, DIM), dtype=np.float32)
        self.batch = SimpleNamespace(cu_seqlens_k=np.cumsum([0, *seqlens_k]).astype(np.int32))

    def keys_and_values(self, layer: int) -> list[Any]:
        return self.kv[layer]

    def expected(self, layer: int) -> Any:
        (k, v), rows, first = self.kv[layer], [], 0
        for new, n in zip(self.row.seqlens_q, self.row.seqlens_k, strict=True):
            for j in range(new):
                for h in range(HEADS):
                    keys, kv_head = slice(first, first + n - new + j + 1), h // (HEADS // KV_HEADS)
                    s = k[keys, kv_head] @ self.q[len(rows) // HEADS, h] * DIM**-0.5
                    p = np.exp(s - s.max())
                    rows.append(p / p.sum() @ v[keys, kv_head])
            first += n
        return np.array(rows).reshape(self.q.shape)


@pytest.mark.parametrize(
    ("seqlens_q", "seqlens_k"),
    [((1,) * 3, (9,) * 3), ((7,) * 2, (7,) * 2), ((4,), (9,))],
    ids=["decode", "prompts", "a chunk"],
)
def test_sdpa_is_asked_for_the_same(seqlens_q: tuple[int, ...], seqlens_k: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """Every backend's forms, computed by PyTorch on the host: heads, masks and layouts are those of the row."""
    pytest.importorskip("torch", reason="torch is not installed")
    from benchmarks.peers import sdpa

    monkeypatch.setattr(sdpa, "sdpa_kernel", lambda backend: nullcontext())
    work: Any = Work(seqlens_q, seqlens_k)
    asked = 0
    for name, backend in sdpa.BACKENDS.items():
        if seqlens_q[0] not in (1, seqlens_k[0]) and name != "SDPA flash":
            with pytest.raises(UnfitError, match="no chunks"):
                sdpa._forms(backend, work)
            continue
        for form in sdpa._forms(backend, work):
            for i in range(3):
                np.testing.assert_allclose(form.rows(form.call(i)).numpy(), work.expected(i % 2), atol=1e-5)
            asked += 1
    assert asked == {1: 5, 7: 3, 4: 1}[seqlens_q[0]]


def test_varlen_is_asked_for_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    pytest.importorskip("torch.nn.attention.varlen", reason="this torch has no varlen_attn")
    from benchmarks.peers import sdpa

    def varlen_attn(q: Any, k: Any, v: Any, cu_q: Any, cu_k: Any, max_q: int, max_k: int) -> Any:
        assert (int(cu_q.diff().max()), int(cu_k.diff().max())) == (max_q, max_k)
        out = torch.zeros_like(q)
        for b in range(len(cu_q) - 1):
            new, keys = slice(cu_q[b], cu_q[b + 1]), slice(cu_k[b], cu_k[b + 1])
            p = torch.softmax(torch.einsum("qhd,khd->hqk", q[new], k[keys]) * DIM**-0.5, -1)
            out[new] = torch.einsum("hqk,khd->qhd", p, v[keys])
        return out

    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", varlen_attn)
    work: Any = Work((1,) * 3, (9, 4, 5))
    with pytest.raises(UnfitError, match="ragged"):
        sdpa._forms(sdpa.SDPBackend.FLASH_ATTENTION, work)
    (form,) = sdpa._varlen(work)
    np.testing.assert_allclose(form.rows(form.call(1)).numpy(), work.expected(1), atol=1e-5)
