"""Figures: what a cache says of itself, in a line and as a table in Jupyter."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pagedattn.cache import KVCache


def of(cache: KVCache) -> dict[str, str]:
    """Device, types, shape and content of a cache, as text by name."""
    layout, used = cache.layout, cache.num_blocks - cache.num_free_blocks
    quantised = layout.quantised
    wide = 4 * layout.num_layers * layout.num_kv_heads * layout.head_dim  # bytes of a token's K and V in 16 bits
    return {
        "device": cache.device.name,
        "dtype": f"{layout.dtype} stored as {layout.kv_dtype}" if quantised else layout.dtype,
        "shape": f"{layout.num_kv_heads} KV heads x {layout.head_dim}, {_number(layout.num_layers, 'layer')}",
        "content": f"{_number(cache.num_sequences, 'sequence')}, {_number(cache.num_tokens, 'token')}",
        "blocks": f"{used} of {cache.num_blocks} blocks of {layout.block_len} used",
        "memory": f"{_mib(used * layout.block_bytes)} of {_mib(cache.num_blocks * layout.block_bytes)} MiB",
        "token": f"{layout.token_bytes} bytes a token"
        + (f", {wide / layout.token_bytes:.2f}x the tokens of {layout.dtype}" if quantised else ""),
    }


def line(cache: KVCache) -> str:
    """The figures of a cache as its repr."""
    f = of(cache)
    return f"KVCache({f['device']}, {f['dtype']}, {f['shape']}: {f['content']}; {f['blocks']}, {f['memory']}, {f['token']})"


def table(cache: KVCache) -> str:
    """The figures of a cache as HTML, with a bar of the blocks that are used."""
    share = 100 * (cache.num_blocks - cache.num_free_blocks) / cache.num_blocks
    bar = f"<div style='width:16em;background:#ddd'><div style='width:{share:.1f}%;background:#59a14f;height:.6em'></div></div>"
    from html import escape  # here and not above: `import pagedattn` stays quick

    rows = "".join(f"<tr><th style='text-align:left'>{name}</th><td>{escape(text)}</td></tr>" for name, text in of(cache).items())
    return f"<b>KVCache</b>{bar}<table>{rows}</table>"


def _number(count: int, noun: str) -> str:
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def _mib(size: int) -> str:
    return f"{size / 2**20:,.{1 if size >= 10 * 2**20 else 3}f}"
