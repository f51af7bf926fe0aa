"""The helpers for users' own checks find what is wrong, and count."""

from __future__ import annotations

import numpy as np
import pytest

import pagedattn as pa
from pagedattn.testing import assert_matches_reference, counting


def attended(device: str, **keywords: object) -> tuple[np.ndarray, np.ndarray, pa.KVCache, pa.Batch]:
    cache = pa.KVCache(8, num_kv_heads=1, head_dim=64, block_len=16, device=device)
    batch = cache.extend([cache.new_sequence(), cache.new_sequence()], [20, 5])
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((25, h, 64)).astype(np.float16) for h in (2, 1, 1))
    return pa.paged_attention(q, cache, batch, k=k, v=v, **keywords), q, cache, batch


def test_a_right_result_passes_and_a_wrong_one_is_named() -> None:
    out, q, cache, batch = attended("cpu", window_size=7)
    assert assert_matches_reference(out, q, cache, batch, window_size=7) < 1e-3
    with pytest.raises(AssertionError, match="sequence 0 differs"):
        assert_matches_reference(out, q, cache, batch)
    out[21] *= 1.01
    with pytest.raises(AssertionError, match="sequence 1 differs"):
        assert_matches_reference(out, q, cache, batch, window_size=7)
    with pytest.raises(pa.ArgumentError, match="shape of q"):
        assert_matches_reference(out[1:], q, cache, batch)
    with pytest.raises(pa.ArgumentError, match="new tokens, 25; got 24"):
        assert_matches_reference(out[1:], q[1:], cache, batch)


def test_a_mask_is_cut_by_sequences() -> None:
    mask = np.random.default_rng(1).random(20 * 20 + 5 * 5) < 0.5
    out, q, cache, batch = attended("cpu", mask=mask)
    assert assert_matches_reference(out, q, cache, batch, mask=mask, num_splits="fixed:16") < 1e-3
    with pytest.raises(AssertionError, match="differs"):
        assert_matches_reference(out, q, cache, batch)
    with pytest.raises(pa.ArgumentError, match=r"`mask` must be bool of shape \(425,\), flat as in the call; got bool \(424,\)"):
        assert_matches_reference(out, q, cache, batch, mask=mask[1:])
    with pytest.raises(pa.ArgumentError, match="`rope` is no keyword of assert_matches_reference, whose own are: softmax_scale"):
        assert_matches_reference(out, q, cache, batch, rope=None)


def test_finished_sequences_are_not_compared() -> None:
    cache = pa.KVCache(8, num_kv_heads=1, head_dim=64, block_len=16, device="cpu")
    whole = cache.extend([cache.new_sequence(), cache.new_sequence()], [20, 5])
    batch = pa.Batch(whole.block_table, whole.seqlens_q, whole.seqlens_k, finished=[True, False], device="cpu")
    q, k, v = (np.random.default_rng(0).standard_normal((25, h, 64)).astype(np.float16) for h in (2, 1, 1))
    out = pa.paged_attention(q, cache, batch, k=k, v=v)
    assert assert_matches_reference(out, q, cache, batch) < 1e-3
    out[:20] = 7
    assert assert_matches_reference(out, q, cache, batch) < 1e-3
    out[20] *= 1.01
    with pytest.raises(AssertionError, match="sequence 1 differs"):
        assert_matches_reference(out, q, cache, batch)


@pytest.mark.nvrtc
@pytest.mark.parametrize("softcap", [1.0, 1e3, 1e6, 1e12])
def test_a_softcap_far_above_the_scores_changes_nothing_on_the_way(softcap: float) -> None:
    out, q, cache, batch = attended("interpreter", softcap=softcap)
    assert assert_matches_reference(out, q, cache, batch, softcap=softcap) < 1e-3


@pytest.mark.nvrtc
def test_counting() -> None:
    out, q, cache, batch = attended("interpreter")
    with counting(cache) as launches:
        pa.paged_attention(q, cache, batch)
    assert len(launches) == 1
    assert "pool" in str(launches[0])
    pa.paged_attention(q, cache, batch)
    assert len(launches) == 1, "counting has ended"
    assert assert_matches_reference(out, q, cache, batch) < 1e-3


def test_a_device_that_counts_nothing_is_refused() -> None:
    with pytest.raises(pa.ArgumentError, match="'interpreter', which counts"), counting(attended("cpu")[2]):
        pass
