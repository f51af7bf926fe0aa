"""Hugging Face models over PagedCache: the tokens and logits of their own attention, whatever `generate` does with the cache."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest

import pagedattn as pa

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
transformers = pytest.importorskip("transformers", reason="transformers is not installed")
pytestmark = pytest.mark.filterwarnings("default")  # of transformers, about its own future

from pagedattn import transformers as hf  # noqa: E402

EXAMPLE = runpy.run_path(str(Path(__file__).parents[2] / "examples" / "huggingface.py"))
NAMES = list(EXAMPLE["CONFIGS"])
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)]
TOLERANCE = 0.02  # of logits, which spread over 1: rows of float16 instead of float32


def generate(name: str, attention: str, device: str = "cpu", cache: dict[str, Any] | None = None, **options: Any) -> tuple[Any, Any, Any]:
    """Tokens, logits and the cache."""
    model = EXAMPLE["model"](name, attention, device)
    keywords = {"max_new_tokens": 24, "do_sample": False, "output_logits": True, "return_dict_in_generate": True, **options}
    made = None
    if attention == hf.NAME:
        made = keywords["past_key_values"] = hf.PagedCache(model, **{"num_blocks": 16, **(cache or {})})
    found = model.generate(**EXAMPLE["prompts"](device), **keywords)
    return found.sequences.cpu(), torch.stack(found.logits).float().cpu() if found.logits else None, made


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", NAMES)
def test_the_same_tokens(name: str, device: str) -> None:
    expected, logits, _ = generate(name, "eager", device)
    found, own, cache = generate(name, hf.NAME, device)
    best = logits.topk(2).values
    assert (best[..., 0] - best[..., 1]).min() > (own - logits).abs().max(), "choose a seed whose tokens rounding does not decide"
    assert torch.equal(found, expected)
    assert (own - logits).abs().max() < TOLERANCE
    assert [cache.kv.seqlen(s) for s in cache.sequences] == [13 + 23, 20 + 23, 7 + 23]  # no padding
    assert (cache.batch_size, cache.get_seq_length()) == (3, 43)
    cache.reset()
    assert (cache.kv.num_free_blocks, cache.batch_size, cache.get_seq_length()) == (16, -1, 0)


@pytest.mark.parametrize(
    ("name", "option"), [("Gemma2", "softcap"), ("Gemma2", "sliding_window"), ("GptOss", "s_aux"), ("GptOss", "sliding_window")]
)
def test_what_a_model_asks_for_counts(name: str, option: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without it, the tolerance of the test above does not hold."""
    _, logits, _ = generate(name, "eager", max_new_tokens=2)
    mapping = transformers.AttentionInterface._global_mapping
    monkeypatch.setitem(mapping, hf.NAME, lambda *arguments, **keywords: hf.attention(*arguments, **{**keywords, option: None}))
    _, own, _ = generate(name, hf.NAME, max_new_tokens=2)
    assert (own[0] - logits[0]).abs().max() > 2 * TOLERANCE


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_model_of_16_bits(dtype: str) -> None:
    model = EXAMPLE["model"]("Llama", hf.NAME).to(getattr(torch, dtype))
    cache = hf.PagedCache(model, 16)
    assert cache.kv.layout.dtype == dtype
    with torch.no_grad():
        found = model(**EXAMPLE["prompts"](), past_key_values=cache).logits
        expected = EXAMPLE["model"]("Llama", "eager")(**EXAMPLE["prompts"]()).logits
    assert found.dtype is model.dtype
    assert (found - expected)[EXAMPLE["prompts"]()["attention_mask"].bool()].abs().max() < (0.15 if dtype == "bfloat16" else TOLERANCE)


def test_a_cache_of_codes() -> None:
    _, logits, _ = generate("Llama", "eager", max_new_tokens=1)
    _, own, cache = generate("Llama", hf.NAME, max_new_tokens=1, cache={"kv_dtype": "int8", "block_len": 32})
    assert (cache.kv.layout.kv_dtype, cache.kv.layout.block_len) == ("int8", 32)
    assert 0 < (own - logits).abs().max() < 4 * TOLERANCE


@pytest.mark.parametrize("name", ["Llama", "GptOss"])
def test_beams(name: str) -> None:
    """They are reordered every step, share their prompt's full blocks, and in the end none is lost."""
    options = {"num_beams": 3, "output_logits": False, "max_new_tokens": 12}
    expected, _, _ = generate(name, "eager", **options)
    found, _, cache = generate(name, hf.NAME, cache={"num_blocks": 32}, **options)
    assert torch.equal(found, expected)
    assert cache.batch_size == 9
    cache.reset()
    assert cache.kv.num_free_blocks == 32


def test_drafted_tokens_are_taken_back() -> None:
    """Assisted generation crops the cache where drafts were wrong."""
    model = EXAMPLE["model"]("Gemma2", hf.NAME)
    cache = hf.PagedCache(model, 16)
    ids = torch.arange(2, 14).repeat(3)[None]
    options = {"max_new_tokens": 20, "do_sample": False, "attention_mask": torch.ones_like(ids)}
    found = model.generate(ids, past_key_values=cache, prompt_lookup_num_tokens=3, **options)
    assert torch.equal(found, EXAMPLE["model"]("Gemma2", "eager").generate(ids, **options))
    assert cache.kv.seqlen(cache.sequences[0]) == cache.get_seq_length() == 36 + 19


def test_a_second_turn() -> None:
    """More tokens for a cache that holds the first turn."""
    model, eager = EXAMPLE["model"]("Qwen2", hf.NAME), EXAMPLE["model"]("Qwen2", "eager")
    cache, options = hf.PagedCache(model, 16), {"max_new_tokens": 6, "do_sample": False}
    first = model.generate(**EXAMPLE["prompts"](), past_key_values=cache, **options)
    ids = torch.cat([first, torch.randint(2, 16, (3, 5), generator=torch.Generator().manual_seed(0))], dim=1)
    mask = torch.cat([EXAMPLE["prompts"]()["attention_mask"], torch.ones((3, 11), dtype=torch.long)], dim=1)
    found = model.generate(ids, attention_mask=mask, past_key_values=cache, **options)
    assert torch.equal(found, eager.generate(ids, attention_mask=mask, **options))
    assert cache.kv.seqlen(cache.sequences[2]) == 7 + 6 + 5 + 5


def test_crop_knows_padding() -> None:
    model = EXAMPLE["model"]("Llama", hf.NAME)
    cache = hf.PagedCache(model, 16)
    ids = torch.full((2, 8), 3)
    mask = torch.tensor([[0, 0, 1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 0, 0, 0]])
    with torch.no_grad():
        model(ids, attention_mask=mask, past_key_values=cache)
        model(ids[:, :1], attention_mask=torch.ones((2, 9)), past_key_values=cache)
    assert [cache.kv.seqlen(s) for s in cache.sequences] == [7, 6]
    cache.crop(-3)
    assert [cache.kv.seqlen(s) for s in cache.sequences] == [4, 5]
    cache.crop(0)
    assert cache.get_seq_length() == 6
    cache.batch_repeat_interleave(2)
    cache.batch_select_indices(torch.tensor([3, 0, 0]))
    assert [cache.kv.seqlen(s) for s in cache.sequences] == [5, 4, 4]
    cache.crop(-6)
    assert [cache.kv.seqlen(s) for s in cache.sequences] == [0, 0, 0]
    with pytest.raises(pa.ArgumentError, match="from 0 to 0, minus the number; got 4"):
        cache.crop(4)


def test_what_does_not_fit_is_said() -> None:
    model = EXAMPLE["model"]("Llama", hf.NAME)
    ids = torch.full((2, 8), 3)
    with torch.no_grad(), pytest.raises(pa.ArgumentError, match=r"Pass past_key_values=pagedattn\.transformers\.PagedCache"):
        model(ids)
    cache = hf.PagedCache(model, 2)
    with torch.no_grad(), pytest.raises(pa.UnsupportedError, match=r"must be \(sequences, tokens\)"):
        model(ids, attention_mask=torch.zeros((2, 1, 8, 8)), past_key_values=cache)
    with torch.no_grad(), pytest.raises(pa.OutOfBlocksError):
        model(torch.full((2, 17), 3), past_key_values=cache)
    assert (cache.batch_size, cache.get_seq_length(), cache.kv.num_free_blocks) == (-1, 0, 2)
    with torch.no_grad():
        model(ids, past_key_values=cache)
        with pytest.raises(pa.ArgumentError, match="holds 2 sequences; got a batch of 1"):
            model(ids[:1], past_key_values=cache)
    model.train()
    model.model.layers[0].self_attn.attention_dropout = 0.5
    with torch.no_grad(), pytest.raises(pa.UnsupportedError, match=r"no dropout; got 0.5. Call model.eval\(\)"):
        model(ids, past_key_values=cache)
    with pytest.raises(pa.UnsupportedError, match="this model asks for more"):
        hf.new_tokens(q_length=1, use_vmap=True)


def test_models_of_other_layers() -> None:
    config = transformers.Qwen3NextConfig(num_hidden_layers=4)
    model = type("Model", (), {"config": config, "dtype": torch.float16, "device": torch.device("cpu")})()
    with pytest.raises(pa.UnsupportedError, match="must have only layers of full_attention and sliding_attention; qwen3_next has linear_"):
        hf.PagedCache(model, 4)


@pytest.mark.parametrize("device", DEVICES)
def test_the_example(device: str, capsys: pytest.CaptureFixture[str]) -> None:
    EXAMPLE["main"](device)
    assert capsys.readouterr().out.count("the same tokens") == len(NAMES)
