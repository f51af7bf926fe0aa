"""Rope: how queries and keys turn with their positions, and the exact table of turns that every device works from."""

from __future__ import annotations

import math
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from pagedattn import rope_kinds
from pagedattn.errors import ArgumentError
from pagedattn.rope_kinds import AXES, OWN, STRETCHED, check
from pagedattn.values import flag, whole

if TYPE_CHECKING:
    from pagedattn.devices.base import Device

Array = np.ndarray[Any, Any]


class Rope:
    """Rotary position embedding: pairs of the first `dim` elements of q and k turn by position * frequency.

    Immutable; make one and pass it to every call as `rope=`. Angles are computed from a 64-bit fraction of a turn for each pair, times the
    integer position: exact at any position, then cos and sin to float32, and one rounding to the cache's dtype.

    Parameters
    ----------
    kind : str
        "none", "default", "linear", "dynamic" (NTK), "yarn", "llama3" or "mrope" (several position axes).
    dim : int, optional
        Elements that turn, the first ones of a head: a multiple of 4. None: all.
    base : float
        Pair d turns with base**(-2d / dim) radians a token, before the kind changes that.
    factor : float
        By how much the context is stretched: linear, dynamic, yarn, llama3.
    interleaved : bool
        Pairs are (2i, 2i + 1), as in GPT-J and TurboMind; False: (i, i + dim / 2), as in Hugging Face.
    max_position : int
        dynamic: Hugging Face's `max_position_embeddings`; yarn, llama3: its `original_max_position_embeddings`.
    beta_fast, beta_slow, truncate, attention_factor, mscale, mscale_all_dim
        yarn, as in Hugging Face; cos and sin are multiplied by `attention_factor`, None: 0.1 * ln(factor) + 1.
    low_freq_factor, high_freq_factor
        llama3.
    mrope_section : sequence of int
        mrope, and any other kind but dynamic: how many pairs follow the axes 0, 1, 2, 0, ... in turn; they sum to dim / 2.
        The positions come with the call: `rope.at(positions)`.
    mrope_interleaved : bool
        The axes alternate pair by pair (Qwen3-VL) instead of section by section (Qwen2-VL).

    Raises
    ------
    ArgumentError
        A kind that does not exist, a keyword that is not the kind's, or a number out of range.

    Notes
    -----
    Su et al., 2021 (RoPE); Peng et al., 2023 (YaRN); Wang et al., 2024 (mrope, Qwen2-VL). A dynamic rope takes each sequence's base from
    its length: the tokens that the batch says it has, or, so that it does not change while a sequence grows, the lengths of `at`.

    Examples
    --------
    >>> rope = Rope("llama3", base=500000.0, factor=8.0, max_position=8192)
    >>> rope
    Rope('llama3', base=500000.0, factor=8.0, max_position=8192)
    >>> [round(float(x), 6) for x in Rope(base=100.0).frequencies(8)]
    [1.0, 0.316228, 0.1, 0.031623]
    """

    __slots__ = ("_hash", "_key", "_tables", "base", "dim", "factor", "interleaved", "kind", "own")

    def __init__(
        self,
        kind: str = "default",
        dim: int | None = None,
        base: float = 10000.0,
        factor: float = 1.0,
        interleaved: bool = False,
        **own: Any,
    ) -> None:
        if not isinstance(kind, str) or kind not in OWN:
            raise ArgumentError(f"`kind` must be one of {', '.join(OWN)}; got {kind!r}.")
        turning = whole(dim)
        if dim is not None and (turning is None or turning < 4 or turning % 4):
            raise ArgumentError(f"`dim` must be a positive multiple of 4, or None for the whole head; got {dim!r}.")
        for name in own:
            if name not in OWN[kind]:
                allowed = ", ".join(OWN[kind]) or "none"
                raise ArgumentError(f"`{name}` is no keyword of kind {kind!r}, whose own are: {allowed}.")
        values = {**OWN[kind], **own}
        for name, value in values.items():
            if value is ...:
                raise ArgumentError(f"kind {kind!r} needs `{name}`; it has no default.")
        for name, value in {"base": base, "factor": factor, **values}.items():
            check(name, value)
        if factor != 1 and kind not in STRETCHED:
            raise ArgumentError(f"kind {kind!r} stretches nothing: `factor` must be 1; got {factor!r}. {', '.join(STRETCHED)} do.")
        if kind == "llama3" and values["high_freq_factor"] <= values["low_freq_factor"]:
            raise ArgumentError(
                f"`high_freq_factor` must be above low_freq_factor, {values['low_freq_factor']}; got {values['high_freq_factor']}."
            )
        if values.get("mrope_section") is not None:
            values["mrope_section"] = tuple(int(n) for n in values["mrope_section"])
        self.kind, self.dim, self.base, self.factor = kind, turning, float(base), float(factor)
        self.interleaved = flag(interleaved, "interleaved")
        self.own = MappingProxyType({name: value for name, value in values.items() if value != OWN[kind][name]})
        self._key = (kind, self.dim, self.base, self.factor, self.interleaved, tuple(sorted(values.items())))
        self._hash = hash(self._key)
        self._tables: dict[tuple[str, int], Any] = {}

    def __setattr__(self, name: str, value: Any) -> None:
        if hasattr(self, name):  # __init__ gives each of them once
            raise AttributeError(f"a Rope is immutable, so that what it was asked for holds; make another with {name}={value!r}.")
        object.__setattr__(self, name, value)

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"a Rope is immutable: `{name}` stays.")

    def __reduce__(self) -> tuple[Any, tuple[()]]:
        return partial(Rope, self.kind, self.dim, self.base, self.factor, self.interleaved, **self.own), ()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Rope) and self._key == other._key

    def __hash__(self) -> int:
        return self._hash

    def __repr__(self) -> str:
        shown = {
            "dim": (self.dim, None),
            "base": (self.base, 10000.0),
            "factor": (self.factor, 1.0),
            "interleaved": (self.interleaved, False),
        }
        parts = [f"{name}={value!r}" for name, (value, default) in shown.items() if value != default]
        parts += [f"{name}={value!r}" for name, value in self.own.items()]
        return f"Rope({', '.join([repr(self.kind), *parts])})"

    def at(self, positions: Any = None, *, seqlens: Any = None) -> RopeCall:
        """This rope with what a call brings.

        Parameters
        ----------
        positions : integers (num_tokens,) or (3, num_tokens), optional
            Where the batch's new tokens stand. None: query j of sequence b at seqlens_k[b] - seqlens_q[b] + j. A rope with
            `mrope_section` wants three rows: time, height, width. Only the rotation follows them; masks count tokens.
        seqlens : integers (batch_size,), optional
            dynamic: the length that sets each sequence's base, the prompt's say.

        Examples
        --------
        >>> Rope().at([0, 1, 1, 2]).positions
        [0, 1, 1, 2]
        """
        if seqlens is not None and self.kind != "dynamic":
            raise ArgumentError(f"`seqlens` means something for kind 'dynamic' only; this rope's is {self.kind!r}.")
        return RopeCall(self, positions, seqlens)

    @property
    def axes(self) -> int:
        """Position axes that pairs follow: 1, or 3."""
        return 1 if self.keyword("mrope_section") is None else AXES

    @property
    def attention_factor(self) -> float:
        """What cos and sin are multiplied by."""
        return rope_kinds.attention_factor(self)

    def frequencies(self, head_dim: int, seqlen: int = 0) -> Array:
        """Radians a token of each pair, float64 (dim / 2,); `seqlen` sets the base of kind "dynamic".

        Raises
        ------
        ArgumentError
            `dim` passes `head_dim`, or `mrope_section` does not sum to dim / 2.
        """
        dim = self._dim(head_dim)
        freq = self.base ** (-np.arange(0, dim, 2, dtype=np.float64) / dim) if dim else np.zeros(0)
        return rope_kinds.changed(self, freq, dim, seqlen)

    def turns(self, head_dim: int, seqlen: int = 0) -> Array:
        """The table that devices read: of each pair, turns a token as a 64-bit fraction; the two lowest bits name its position axis."""
        fractions = [round(f / (2 * math.pi) * 2.0**64) % 2**64 & ~3 for f in self.frequencies(head_dim, seqlen).tolist()]
        return np.array(fractions, np.uint64) | self._axis_of_pairs(len(fractions))

    def table(self, device: Device, head_dim: int) -> Any:
        """`turns` on a device, uploaded once."""
        key = device.name, head_dim
        found = self._tables.get(key)
        if found is None:
            found = device.asarray(self.turns(head_dim))
            device.to_host(found)  # it has arrived, whatever stream reads it later
            self._tables[key] = found
        return found

    def keyword(self, name: str) -> Any:
        """One of the kind's own keywords, as given or by default; None if the kind has none of that name."""
        return self.own.get(name, OWN[self.kind].get(name))

    def _dim(self, head_dim: int) -> int:
        if self.kind == "none":
            return 0
        dim = head_dim if self.dim is None else self.dim
        if dim > head_dim:
            raise ArgumentError(f"the rope's `dim` must not pass the cache's head_dim, {head_dim}; got {dim}.")
        return dim

    def _axis_of_pairs(self, pairs: int) -> Array:
        section = self.keyword("mrope_section")
        if section is None:
            return np.zeros(pairs, np.uint64)
        if sum(section) != pairs:
            raise ArgumentError(f"`mrope_section` must sum to the {pairs} pairs that turn; got {section}, {sum(section)} in all.")
        if not self.keyword("mrope_interleaved"):
            return np.repeat(np.arange(len(section)) % AXES, section).astype(np.uint64)
        axis = np.zeros(pairs, np.uint64)
        for i in range(1, AXES):
            axis[i : section[i] * AXES : AXES] = i
        return axis


class RopeCall:
    """A rope, and the positions or lengths that one call brings; made by `Rope.at`."""

    __slots__ = ("positions", "rope", "seqlens")

    def __init__(self, rope: Rope, positions: Any, seqlens: Any) -> None:
        self.rope, self.positions, self.seqlens = rope, positions, seqlens

    def __repr__(self) -> str:
        return f"{self.rope!r}.at(...)"
