"""The vocabulary of the tables: where the parts of a block are, by module path. Tables only, no behaviour."""

from dataclasses import dataclass
from typing import Literal

FusedOrder = Literal["concatenated", "grouped"]
"""Rows of a fused q/k/v: all queries, all keys, all values; or group by group (queries, key, value of a KV group)."""
PairOrder = Literal["halves", "pairs"]
"""Rows of a fused gate/up: all gates, then all ups; or gate, up, gate, up …"""


@dataclass(frozen=True, kw_only=True)
class AttentionForm:
    """How an attention module names its parts. Paths are relative to that module."""

    name: str
    output: str
    """Consumer: its input is the heads, one after the other."""
    query: str | None = None
    key: str | None = None
    value: str | None = None
    """None beside a key: the key's linear holds keys and values, head by head."""
    fused: str | None = None
    """Queries, keys and values in one linear, instead of the three above."""
    fused_order: FusedOrder = "concatenated"
    shared: tuple[str, ...] = ()
    """Linears before the heads that stay whole (a latent space). Absent ones are skipped."""
    extras: tuple[str, ...] = ()
    """More linears with rows per query head (a position or gate projection). Absent ones are skipped."""
    core: str = ""
    """Module that a no-op replaces when no head is left; "" = the attention module itself."""
    core_outputs: int | None = None
    """What it returns: 0 = a bare tensor, n = a tuple of n; None = what the source of its forward says."""
    can_be_empty: bool = True
    """False where other layers need something that this module computes."""
    selects: tuple[tuple[str, int, int], ...] = ()
    """Per-head arguments of `core`: (name, positional index, dimension)."""
    returned: int | None = None
    """Where in its output the first of these arguments is passed to the next layer."""
    marker: str | None = None
    """An attribute that sets the module apart from others with the same names."""
    shared_table: str | None = None
    """A table of position biases that feeds the other layers too: a module that has it keeps all its heads."""


@dataclass(frozen=True, kw_only=True)
class FfnForm:
    """How a feed-forward module names its parts. Paths are relative to that module."""

    name: str
    up: tuple[str, ...]
    """Producers: a row per channel."""
    down: str
    """Consumer: a column per channel."""
    fused: PairOrder | None = None
    """Set where a producer with twice the rows holds gates and ups."""


@dataclass(frozen=True, kw_only=True)
class StreamForm:
    """Where the norms of a residual stream stand. Everything that reads hidden features stands behind one of them."""

    name: str
    norms: tuple[str, ...]
    """All norms over hidden features in a block, by their path in it."""
    first: tuple[str, ...] = ()
    """Where blocks normalise what they return: what the first block reads, by the end of its path; one is enough."""
    last: tuple[str, ...] = ()
    """Where blocks normalise what they read: the norm behind the last one, by its path beside the list of blocks."""
