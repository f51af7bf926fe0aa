"""Train the model of `pagedattn demo` with PyTorch, and write its weights. The text is the running Python's own standard library.

PYTHONPATH=. python examples/train_demo_model.py --log training.json                    # one GPU; ends within 3 minutes
PYTHONPATH=. python examples/train_demo_model.py --seconds 5 --tiny --out weights.npz   # anywhere, to see that it runs
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from pagedattn.demo import corpus, dense, weights
from pagedattn.demo.model import Config, Model, rope_tables

SYNC_STEPS = 20  # the GPU runs ahead of the clock by at most so many steps
EVALUATIONS = 20
EXPORT_WINDOWS = 8
EXPORT_TOLERANCE = 0.01  # bits per byte


class TorchModel(nn.Module):
    """pagedattn.demo.model.Model, batched and differentiable: the same names, shapes and order of operations."""

    def __init__(self, config: Config, dropout: float = 0.0) -> None:
        super().__init__()
        self.config, self.dropout = config, dropout
        depth = math.sqrt(2 * config.num_layers)
        self.tensors = nn.ParameterDict()
        for name, shape in config.shapes().items():
            deviation = 0.02 if name == "embedding" else shape[0] ** -0.5 / (depth if name.endswith(("attention_out", "down")) else 1)
            self.tensors[name.replace(".", "/")] = nn.Parameter(torch.ones(shape) if len(shape) == 1 else torch.randn(shape) * deviation)
        for name, table in zip(("cos", "sin"), rope_tables(config), strict=True):
            self.register_buffer(name, torch.from_numpy(table), persistent=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Logits, float32 (batch, length, 256)."""
        c = self.config
        x = F.embedding(tokens, self.tensors["embedding"])
        for i in range(c.num_layers):
            w = {name.rpartition("/")[2]: tensor for name, tensor in self.tensors.items() if name.startswith(f"layers/{i}/")}
            qkv = (self.norm(x, w["attention_norm"]) @ w["qkv"]).unflatten(-1, (-1, c.head_dim)).transpose(1, 2)
            qk, v = qkv.split((c.num_heads + c.num_kv_heads, c.num_kv_heads), dim=1)
            q, k = self.rotate(qk).to(v.dtype).split((c.num_heads, c.num_kv_heads), dim=1)
            out = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True).transpose(1, 2).flatten(2)
            x = x + F.dropout(out @ w["attention_out"], self.dropout, self.training)
            gate, up = (self.norm(x, w["hidden_norm"]) @ w["gate_up"]).chunk(2, dim=-1)
            x = x + F.dropout((F.silu(gate) * up) @ w["down"], self.dropout, self.training)
        return (self.norm(x, self.tensors["norm"]) @ self.tensors["embedding"].T).float()

    def norm(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        x = x.float()
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.config.norm_eps) * weight

    def rotate(self, x: torch.Tensor) -> torch.Tensor:
        a, b = x.float().chunk(2, dim=-1)
        cos, sin = self.cos[: x.shape[-2]], self.sin[: x.shape[-2]]
        return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)

    def export(self) -> dict[str, np.ndarray[Any, Any]]:
        """float32 arrays, named as Config.shapes() says."""
        return {name: self.tensors[name.replace(".", "/")].detach().float().cpu().numpy() for name in self.config.shapes()}


def windows(text: np.ndarray[Any, Any], length: int, count: int) -> np.ndarray[Any, Any]:
    """`count` windows (fewer in a short text) of length + 1 bytes, spread evenly: int64 (count, length + 1)."""
    starts = np.arange(0, len(text) - length - 1, length)
    starts = starts[np.linspace(0, len(starts) - 1, min(count, len(starts))).astype(int)]
    return text[starts[:, None] + np.arange(length + 1)].astype(np.int64)


class Trainer:
    """One training run against the clock."""

    def __init__(self, args: argparse.Namespace, config: Config) -> None:
        torch.manual_seed(args.seed)
        self.args, self.device = args, torch.device(args.device)
        self.model = TorchModel(config, args.dropout).to(self.device)
        self.run_model = self.model if args.no_compile else torch.compile(self.model)
        matrices, vectors = ([p for p in self.model.parameters() if (p.ndim == 1) is flat] for flat in (False, True))
        groups = [{"params": matrices, "weight_decay": args.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.95), fused=self.device.type == "cuda")
        training, held_out = corpus.read()
        self.text = torch.from_numpy(training.copy()).to(self.device)
        self.held_out = windows(held_out, args.window, args.held_out_windows)
        self.text_bytes = {"training": len(training), "held_out": len(held_out)}
        self.curve: list[tuple[int, float, float]] = []
        self.held_out_curve: list[tuple[int, float, float]] = []
        self.best: dict[str, torch.Tensor] = {}

    def autocast(self) -> Any:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda")

    def step(self, rate: float) -> torch.Tensor:
        """One step on random windows; the loss in bits per byte, still on the device."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        starts = torch.randint(len(self.text) - self.args.window, (self.args.batch, 1), device=self.device)
        batch = self.text[starts + torch.arange(self.args.window + 1, device=self.device)].long()
        with self.autocast():
            logits = self.run_model(batch[:, :-1])
        loss = F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        return loss.detach() / math.log(2)

    @torch.no_grad()
    def evaluate(self, texts: np.ndarray[Any, Any]) -> float:
        """Bits per byte in the precision of training."""
        self.model.eval()
        total = 0.0
        for part in np.array_split(texts, max(1, len(texts) // 64)):
            batch = torch.from_numpy(part).to(self.device)
            with self.autocast():
                logits = self.model(batch[:, :-1])
            total += F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten(), reduction="sum").item()
        self.model.train()
        return total / math.log(2) / texts[:, 1:].size

    def first_step(self) -> None:
        """Compile, or go on without where torch.compile cannot."""
        try:
            self.step(0.0).item()
        except Exception as error:
            if self.run_model is self.model:
                raise
            print(f"torch.compile failed ({type(error).__name__}: {str(error).splitlines()[0]}); going on without it", flush=True)
            self.run_model = self.model
            self.step(0.0).item()

    def train(self, start: float) -> int:
        """Steps until args.seconds after `start`; the best of the held-out curve stays in `best`. Returns the steps."""
        self.first_step()
        begin, steps, evaluated = time.perf_counter(), 0, 0
        duration = max(1.0, start + self.args.seconds - begin)
        print(f"compiled and ready after {begin - start:.1f} s; training for {duration:.0f} s", flush=True)
        while (progress := (time.perf_counter() - begin) / duration) < 1:
            warm_up, cosine = progress / 0.02, 0.5 * (1 + math.cos(math.pi * progress))
            loss = self.step(self.args.lr * max(0.01, min(warm_up, cosine)))
            steps += 1
            if steps % SYNC_STEPS == 0:
                self.curve.append((steps, round(time.perf_counter() - begin, 2), round(loss.item(), 4)))
            if progress * EVALUATIONS >= evaluated + 1:
                evaluated = int(progress * EVALUATIONS)
                self.note(steps, time.perf_counter() - begin, loss.item())
        self.note(steps, time.perf_counter() - begin, loss.item())
        self.model.load_state_dict(self.best)
        return steps

    def note(self, steps: int, seconds: float, loss: float) -> None:
        bits = self.evaluate(self.held_out)
        if not self.held_out_curve or bits < min(b for _, _, b in self.held_out_curve):
            self.best = {name: tensor.clone() for name, tensor in self.model.state_dict().items()}
        self.held_out_curve.append((steps, round(seconds, 2), round(bits, 4)))
        print(f"{seconds:6.1f} s  step {steps:6d}  training {loss:.3f}  held out {bits:.4f} bits per byte", flush=True)


def main() -> None:
    start = time.perf_counter()
    args = parse()
    torch.set_float32_matmul_precision("high")
    config = Config()
    trainer = Trainer(args, config)
    print(f"{config.num_parameters:,} parameters; bytes of text: {trainer.text_bytes}; {args.batch} x {args.window} a step", flush=True)
    steps = trainer.train(start)

    sample = trainer.held_out[:: max(1, len(trainer.held_out) // EXPORT_WINDOWS)][:EXPORT_WINDOWS]
    best = min(bits for _, _, bits in trainer.held_out_curve)
    about = {
        "text": f"the standard library of Python {platform.python_version()}: sources and help() pages, PSF licence",
        "text_bytes": trainer.text_bytes,
        "bits_per_byte": best,
        "steps": steps,
        "tokens": steps * args.batch * args.window,
        "seconds": round(time.perf_counter() - start, 1),
        "machine": torch.cuda.get_device_name() if trainer.device.type == "cuda" else "CPU",
        "torch": torch.__version__,
        "arguments": {name: value for name, value in vars(args).items() if name not in ("out", "log", "device")},
    }
    weights.save(args.out, config, trainer.model.export(), about)
    shipped = weights.load(args.out)
    in_training, in_float16 = trainer.evaluate(sample), dense.bits_per_byte(Model(config, shipped.arrays, "cpu"), sample)
    print(f"sample of {len(sample)} windows: {in_training:.4f} bits per byte in training precision, {in_float16:.4f} as the demo computes")
    if args.log:
        curves = {"training": trainer.curve, "held_out": trainer.held_out_curve}
        export = {"training_precision": in_training, "float16": in_float16, "windows": len(sample)}
        args.log.write_text(json.dumps({**about, "curves": curves, "export": export}, indent=1) + "\n")
    if not abs(in_float16 - in_training) < EXPORT_TOLERANCE:
        raise SystemExit(f"float16 inference must be within {EXPORT_TOLERANCE} bits per byte of training; see the line above.")
    print(f"wrote {args.out} ({args.out.stat().st_size:,} bytes) after {time.perf_counter() - start:.0f} s")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=150, help="wall clock until training ends, compiling included")
    parser.add_argument("--out", type=Path, default=weights.SHIPPED)
    parser.add_argument("--log", type=Path, help="write the curves and figures here, JSON")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--batch", type=int, default=128, help="windows a step")
    parser.add_argument("--window", type=int, default=Config().context, help="bytes a window")
    parser.add_argument("--held-out-windows", type=int, default=512)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--weight-decay", type=float, default=0.4)
    parser.add_argument("--dropout", type=float, default=0.15)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--tiny", action="store_true", help="small steps, for a machine without a GPU")
    args = parser.parse_args()
    if args.tiny:
        args.batch, args.window, args.held_out_windows, args.no_compile = 8, 128, 16, True
    return args


if __name__ == "__main__":
    main()
