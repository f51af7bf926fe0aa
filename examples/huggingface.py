"""Hugging Face models on a paged cache: four small ones with random weights generate the same tokens as with their own attention.

Needs PyTorch and transformers. On a GPU where there is one: python examples/huggingface.py
"""

from __future__ import annotations

from typing import Any

import torch
import transformers

from pagedattn.transformers import PagedCache  # registers the attention implementation "pagedattn"

SIZES = {"vocab_size": 16, "hidden_size": 128, "intermediate_size": 96, "num_hidden_layers": 3, "max_position_embeddings": 512}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64}
OTHER = {"initializer_range": 0.08, "tie_word_embeddings": False, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": None}

# What each has that the others have not: Qwen2 biases in its projections, Gemma 2 softcap and windows, GPT-OSS sinks and windows.
CONFIGS = {
    "Llama": (transformers.LlamaConfig, HEADS),
    "Qwen2": (transformers.Qwen2Config, {"num_attention_heads": 2, "num_key_value_heads": 1}),
    "Gemma2": (transformers.Gemma2Config, {**HEADS, "sliding_window": 8, "attn_logit_softcapping": 5.0, "query_pre_attn_scalar": 64}),
    "GptOss": (transformers.GptOssConfig, {**HEADS, "sliding_window": 8, "num_local_experts": 4, "num_experts_per_tok": 2}),
}


def model(name: str, attention: str, device: str = "cpu") -> Any:
    """A model with the same random weights each time."""
    kind, own = CONFIGS[name]
    torch.manual_seed(0)
    config = kind(**SIZES, **OTHER, **own, attn_implementation=attention)
    made = getattr(transformers, f"{name}ForCausalLM")(config).eval()
    for parameter, values in made.named_parameters():
        if parameter.endswith(("bias", "sinks")):
            torch.nn.init.normal_(values, std=0.5)
    return made.to(device)


def prompts(device: str = "cpu", seed: int = 7) -> dict[str, Any]:
    """Three prompts of 13, 20 and 7 tokens, padded on the left."""
    ids = torch.randint(2, SIZES["vocab_size"], (3, 20), generator=torch.Generator().manual_seed(seed))
    mask = torch.arange(20) >= torch.tensor([[7], [0], [13]])
    return {"input_ids": (ids * mask).to(device), "attention_mask": mask.long().to(device)}


def main(device: str | None = None) -> None:
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    for name in CONFIGS:
        given = prompts(device)
        expected = model(name, "eager", device).generate(**given, max_new_tokens=24, do_sample=False)
        paged = model(name, "pagedattn", device)
        cache = PagedCache(paged, num_blocks=16)
        found = paged.generate(**given, past_key_values=cache, max_new_tokens=24, do_sample=False)
        print(f"{name:7} {'the same tokens' if torch.equal(found, expected) else 'OTHER TOKENS'}; {cache.kv}")


if __name__ == "__main__":
    main()
