"""Writes golden.json: what Hugging Face transformers' own rotary embeddings give. Needs transformers and torch; the tests need neither.

python tests/rope/of_transformers.py
"""

from __future__ import annotations

import importlib
import json
from pathlib import Path

HEAD_DIM = 64
POSITIONS = [0, 1, 17, 3000]
GRID = [[0, 1, 17, 3000], [0, 5, 2, 700], [0, 9, 1, 12]]
LLAMA = {"hidden_size": 4 * HEAD_DIM, "num_attention_heads": 4, "max_position_embeddings": 1024}

# name: arguments of Rope; of transformers the config, the embedding, the model, and rope_parameters
YARN = {"factor": 8.0, "original_max_position_embeddings": 256}
CASES = {
    "default": ({"kind": "default"}, "LlamaConfig", "LlamaRotaryEmbedding", "llama", {"rope_type": "default"}),
    "linear": ({"kind": "linear", "factor": 2.5}, "LlamaConfig", "LlamaRotaryEmbedding", "llama", {"rope_type": "linear", "factor": 2.5}),
    "dynamic": (
        {"kind": "dynamic", "factor": 2.0, "max_position": 1024},
        "LlamaConfig",
        "LlamaRotaryEmbedding",
        "llama",
        {"rope_type": "dynamic", "factor": 2.0},
    ),
    "yarn": (
        {"kind": "yarn", "factor": 8.0, "max_position": 256, "base": 50000.0},
        "LlamaConfig",
        "LlamaRotaryEmbedding",
        "llama",
        {"rope_type": "yarn", "rope_theta": 50000.0, **YARN},
    ),
    "yarn-mscale": (
        {"kind": "yarn", "factor": 8.0, "max_position": 256, "mscale": 0.7, "mscale_all_dim": 1.3, "beta_fast": 20.0, "truncate": False},
        "LlamaConfig",
        "LlamaRotaryEmbedding",
        "llama",
        {"rope_type": "yarn", "mscale": 0.7, "mscale_all_dim": 1.3, "beta_fast": 20.0, "truncate": False, **YARN},
    ),
    "llama3": (
        {"kind": "llama3", "base": 500000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "max_position": 512},
        "LlamaConfig",
        "LlamaRotaryEmbedding",
        "llama",
        {
            "rope_type": "llama3",
            "rope_theta": 500000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 512,
        },
    ),
    "partial": (
        {"kind": "default", "dim": 32},
        "PhiConfig",
        "PhiRotaryEmbedding",
        "phi",
        {"rope_type": "default", "partial_rotary_factor": 0.5},
    ),
    "interleaved-partial": (
        {"kind": "default", "dim": 32, "interleaved": True},
        "Glm4Config",
        "Glm4RotaryEmbedding",
        "glm4",
        {"rope_type": "default", "partial_rotary_factor": 0.5},
    ),
    "mrope": (
        {"kind": "mrope", "mrope_section": [8, 12, 12], "base": 1000000.0},
        "Qwen2VLTextConfig",
        "Qwen2VLRotaryEmbedding",
        "qwen2_vl",
        {"rope_type": "default", "rope_theta": 1000000.0, "mrope_section": [8, 12, 12]},
    ),
    "mrope-interleaved": (
        {"kind": "mrope", "mrope_section": [12, 10, 10], "mrope_interleaved": True},
        "Qwen3VLTextConfig",
        "Qwen3VLTextRotaryEmbedding",
        "qwen3_vl",
        {"rope_type": "default", "mrope_section": [12, 10, 10]},
    ),
}


def main() -> None:
    torch, transformers = (importlib.import_module(name) for name in ("torch", "transformers"))
    x = torch.cos(torch.arange(HEAD_DIM) * 0.7 + 0.3).to(torch.float16).float()
    found = {}
    for name, (arguments, config, embedding, model, parameters) in CASES.items():
        module = importlib.import_module(f"transformers.models.{model}.modeling_{model}")
        extra = {} if model == "phi" else {"head_dim": HEAD_DIM}
        made = getattr(transformers, config)(**LLAMA, **extra, rope_parameters={"rope_theta": 10000.0, **parameters})
        rope = getattr(module, embedding)(made)
        positions = torch.tensor(GRID if "mrope" in name else POSITIONS)[..., None, :]
        rows = x.expand(1, 1, len(POSITIONS), HEAD_DIM)
        cos, sin = rope(rows, positions)
        dim = cos.shape[-1]
        if model == "phi":  # its attention splits the head itself
            turned = torch.cat([module.apply_rotary_pos_emb(rows[..., :dim], rows[..., :dim], cos, sin)[0], rows[..., dim:]], -1)
        else:
            turned = module.apply_rotary_pos_emb(rows, rows, cos, sin)[0]
        found[name] = {
            "rope": arguments,
            "attention_factor": float(rope.attention_scaling),
            "inv_freq": [float(f) for f in rope.inv_freq],
            "turned": turned[0, 0].tolist(),
        }
    text = {"head_dim": HEAD_DIM, "x": x.tolist(), "positions": POSITIONS, "grid": GRID, "cases": found}
    rounded = json.loads(json.dumps(text), parse_float=lambda s: float(f"{float(s):.9g}"))
    Path(__file__).with_name("golden.json").write_text(json.dumps(rounded, separators=(",", ":")) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
