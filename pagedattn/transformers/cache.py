"""PagedCache: what transformers' models append to, over a KVCache."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from transformers import Cache
from transformers.cache_utils import CacheLayerMixin

from pagedattn.batch import Batch
from pagedattn.cache import KVCache
from pagedattn.errors import ArgumentError, UnsupportedError
from pagedattn.ops import paged_attention

_LAYER_TYPES = {"full_attention", "sliding_attention"}


class _Step(NamedTuple):
    """What one forward pass adds: `columns` tokens a sequence, of which those count that `kept` marks; None: all do."""

    batch: Batch
    columns: int
    kept: np.ndarray[Any, np.dtype[np.bool_]] | None  # (sequences, columns)
    rows: Any  # indices of the kept ones among all (sequences * columns), on the model's device


class _Layer(CacheLayerMixin):
    """One layer, as transformers sees it. New rows pass through `update` on their way to the attention function, which appends them."""

    is_croppable = True
    is_sliding = False
    supports_early_init = False

    def __init__(self, cache: PagedCache, index: int) -> None:
        super().__init__()
        self.cache, self.index = cache, index

    def lazy_initialization(self, key_states: Any, value_states: Any) -> None: ...

    def update(self, key_states: Any, value_states: Any, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        key_states.pagedattn_layer = self
        return key_states, value_states

    def get_seq_length(self) -> int:
        return self.cache.columns(self.index)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.get_seq_length() + query_length, 0

    def get_max_length(self) -> int:
        return -1


class PagedCache(Cache):
    """A cache for `generate` and for a model's `past_key_values`, all layers of it in one `KVCache`.

    Sequences have lengths of their own: padding is neither stored nor attended to. Beams and repeated sequences share full blocks.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        Its configuration tells layers, heads and head_dim.
    num_blocks : int
        Blocks of the pool; a sequence of n tokens takes ceil(n / block_len).
    block_len : int
        Tokens of a block.
    dtype : str, optional
        "float16" or "bfloat16". None: the model's, float16 for a float32 model, whose rows are rounded on their way.
    kv_dtype : str, optional
        "int8" or "int4" stores codes.
    device : str, optional
        None: where the model is.

    Attributes
    ----------
    kv : KVCache
    sequences : list of int
        The ids in `kv` of the rows of the model's batch.

    Raises
    ------
    UnsupportedError
        A model whose layers are not plain or sliding-window attention with keys and values of one size.

    Examples
    --------
    >>> import torch, transformers, pagedattn.transformers
    >>> config = transformers.LlamaConfig(
    ...     vocab_size=64, hidden_size=128, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2
    ... )
    >>> model = transformers.LlamaForCausalLM._from_config(config, attn_implementation="pagedattn").eval()
    >>> cache = pagedattn.transformers.PagedCache(model, num_blocks=8)
    >>> tokens = model.generate(torch.tensor([[1, 2, 3]]), past_key_values=cache, max_new_tokens=4, min_new_tokens=4)
    >>> tuple(tokens.shape), cache.get_seq_length()
    ((1, 7), 6)
    """

    def __init__(
        self,
        model: Any,
        num_blocks: int,
        *,
        block_len: int = 16,
        dtype: str | None = None,
        kv_dtype: str | None = None,
        device: str | None = None,
    ) -> None:
        config = model.config.get_text_config(decoder=True)
        others = set(getattr(config, "layer_types", None) or ()) - _LAYER_TYPES
        if others or getattr(config, "num_kv_shared_layers", None):
            what = ", ".join(sorted(others)) or "layers that share keys and values"
            raise UnsupportedError(
                f"`model` must have only layers of {' and '.join(sorted(_LAYER_TYPES))}; {config.model_type} has {what}."
            )
        heads = config.num_attention_heads
        found = str(model.dtype).rpartition(".")[2]
        self.kv = KVCache(
            num_blocks,
            num_kv_heads=getattr(config, "num_key_value_heads", None) or heads,
            head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
            block_len=block_len,
            num_layers=config.num_hidden_layers,
            dtype=dtype or ("float16" if found == "float32" else found),
            kv_dtype=kv_dtype,
            device=device or str(model.device),
        )
        self._dtype = getattr(torch, self.kv.layout.dtype)
        self.sequences: list[int] = []
        self._steps: list[_Step] = []
        self._done: set[int] = set()  # layers that have had the last step
        super().__init__(layers=[_Layer(self, i) for i in range(config.num_hidden_layers)])

    def columns(self, layer: int = 0) -> int:
        """Tokens a sequence that a layer has seen, padding included: the width of the attention mask so far."""
        seen = self._steps if layer in self._done else self._steps[:-1]
        return sum(step.columns for step in seen)

    def attend(self, layer: int, q: Any, k: Any, v: Any, kept: Any, **options: Any) -> Any:
        """Append k and v, (sequences, KV heads, columns, head_dim), and attend with q: (sequences, columns, heads, head_dim).

        Parameters
        ----------
        kept : bool tensor (sequences, columns), optional
            False where a token is padding, whose result is 0.
        options
            Those of `pagedattn.paged_attention`.
        """
        size, heads, columns, dim = q.shape
        step = self._steps[-1] if self._done and layer not in self._done else self._begin(size, columns, kept)
        rows = [x.transpose(1, 2).reshape(size * columns, x.shape[1], x.shape[3]).to(self._dtype) for x in (q, k, v)]
        if step.rows is not None:
            rows = [x[step.rows] for x in rows]
        result = paged_attention(rows[0], self.kv, step.batch, k=rows[1], v=rows[2], layer=layer, **options).to(q.dtype)
        if step.rows is not None:
            result = q.new_zeros((size * columns, heads, dim)).index_copy_(0, step.rows, result)
        self._done.add(layer)
        return result.view(size, columns, heads, dim)

    def _begin(self, size: int, columns: int, kept: Any) -> _Step:
        """Blocks for the new tokens; the first layer's attention asks for them."""
        if self.sequences and len(self.sequences) != size:
            raise ArgumentError(
                f"`past_key_values` holds {len(self.sequences)} sequences; got a batch of {size}. Reset it, or make another."
            )
        marks = rows = None
        counts = [columns] * size
        if kept is not None:
            marks = kept.cpu().numpy()
            counts = marks.sum(axis=1).tolist()
            rows = kept.flatten().nonzero().flatten()
        new = self.sequences or [self.kv.new_sequence() for _ in range(size)]
        try:
            step = _Step(self.kv.extend(new, counts), columns, marks, rows)
        except BaseException:
            for sequence in () if self.sequences else new:
                self.kv.free(sequence)
            raise
        self.sequences, self._done = new, set()
        self._steps.append(step)
        return step

    def reset(self) -> None:
        """Forget every sequence; their blocks are free."""
        for sequence in self.sequences:
            self.kv.free(sequence)
        self.sequences, self._steps, self._done = [], [], set()

    def crop(self, tokens_to_remove: int) -> None:
        """Remove the last tokens of each sequence: `tokens_to_remove` is minus their number."""
        if tokens_to_remove > 0 or -tokens_to_remove > self.columns():
            raise ArgumentError(f"`tokens_to_remove` must be from {-self.columns()} to 0, minus the number; got {tokens_to_remove}.")
        left = -tokens_to_remove
        while left:
            step = self._steps.pop()
            keep = max(0, step.columns - left)
            left -= step.columns - keep
            for i, sequence in enumerate(self.sequences):
                gone = step.columns - keep if step.kept is None else int(step.kept[i, keep:].sum())
                self.kv.truncate(sequence, self.kv.seqlen(sequence) - gone)
            if keep:
                self._steps.append(step._replace(columns=keep, kept=None if step.kept is None else step.kept[:, :keep]))

    def reorder_cache(self, beam_idx: Any) -> None:
        """The sequences become those that `beam_idx` names."""
        self._choose(beam_idx.tolist())

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Each sequence `repeats` times."""
        self._choose([i for i in range(len(self.sequences)) for _ in range(repeats)])

    def batch_select_indices(self, indices: Any) -> None:
        """Only some of the sequences."""
        self._choose(indices.tolist())

    def _choose(self, indices: list[int]) -> None:
        old, taken = self.sequences, set(indices)
        for i in set(range(len(old))) - taken:
            self.kv.free(old[i])
        self.sequences = []
        for i in indices:
            self.sequences.append(old[i] if i in taken else self.kv.fork(old[i]))
            taken.discard(i)
        self._steps = [s if s.kept is None else s._replace(kept=s.kept[indices]) for s in self._steps]

    @property
    def batch_size(self) -> int:
        """Sequences; -1 before the first forward pass."""
        return len(self.sequences) or -1
