"""Hugging Face transformers on a paged cache: attention implementation "pagedattn", and the cache that goes with it.

Importing this module registers the implementation. It needs PyTorch and transformers 5.
"""

from __future__ import annotations

from typing import Any

from transformers import AttentionInterface, AttentionMaskInterface

from pagedattn.errors import ArgumentError, UnsupportedError
from pagedattn.transformers.cache import PagedCache

__all__ = ["NAME", "PagedCache", "attention", "new_tokens"]

NAME = "pagedattn"


def attention(
    module: Any,
    query: Any,
    key: Any,
    value: Any,
    attention_mask: Any,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Any = None,
    **kwargs: Any,
) -> tuple[Any, None]:
    """The attention function that transformers calls in each layer, of implementation "pagedattn".

    Parameters are those of transformers' AttentionInterface; `s_aux` are sinks. Attention weights are never made: None stands for them.

    Raises
    ------
    ArgumentError
        The keys did not come through a PagedCache.
    UnsupportedError
        Dropout, or a mask of the caller's own.
    """
    layer = getattr(key, "pagedattn_layer", None)
    if layer is None:
        raise ArgumentError(
            f"attention {NAME!r} needs its own cache; got {kwargs.get('past_key_values') and type(kwargs['past_key_values']).__name__}. "
            "Pass past_key_values=pagedattn.transformers.PagedCache(model, num_blocks)."
        )
    if dropout:
        raise UnsupportedError(f"attention {NAME!r} has no dropout; got {dropout}. Call model.eval().")
    if attention_mask is not None and attention_mask.ndim != 2:
        raise UnsupportedError(
            f"`attention_mask` must be (sequences, tokens), which marks padding; got shape {tuple(attention_mask.shape)}."
        )
    causal = kwargs.get("is_causal")
    out = layer.cache.attend(
        layer.index,
        query,
        key,
        value,
        attention_mask,
        softmax_scale=scaling,
        causal=getattr(module, "is_causal", True) if causal is None else causal,
        window_size=sliding_window,
        softcap=softcap,
        sinks=None if s_aux is None else s_aux.detach().float(),
    )
    return out, None


def new_tokens(
    *, q_length: int, attention_mask: Any = None, use_vmap: bool = False, allow_is_causal_skip: bool = True, **kwargs: Any
) -> Any:
    """The mask function that transformers calls before the layers: which of the new tokens are no padding; None: all of them.

    Raises
    ------
    UnsupportedError
        A mask that is more than causal or a window.
    """
    if use_vmap or not allow_is_causal_skip:
        raise UnsupportedError(f"attention {NAME!r} masks what is not causal, outside the window, or padding; this model asks for more.")
    if attention_mask is None:
        return None
    new = attention_mask[:, -q_length:]
    return None if new.all() else new


AttentionInterface.register(NAME, attention)
AttentionMaskInterface.register(NAME, new_tokens)
