"""What the readers of modules return: units, or why there are none."""

import re
from dataclasses import dataclass

from patchers.units import Core, Edit, Kind, Select, Slice, TensorSlice

ONE_HEAD = "its one head serves all queries"
"""Why a linear stays whole that makes the only key or value head."""


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """A module that was recognised and cannot be cut soundly."""

    path: str
    reason: str
    pins_layer: bool = False
    """True where other layers need what this module computes, so that its layer cannot go."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """What one module gives to a group of heads, channels or experts."""

    path: str
    form: str
    kind: Kind
    units: int
    """Channels; experts; KV groups, or query heads where one KV head serves all of them."""
    consumer: str
    slices: tuple[Slice, ...] = ()
    tensors: tuple[TensorSlice, ...] = ()
    edits: tuple[Edit, ...] = ()
    selects: tuple[Select, ...] = ()
    core: Core | None = None
    min_units: int = 0
    multiple_of: int = 1
    least_multiple: int = 1
    active: float = 1.0
    is_shared: bool = False
    """Whether a unit is a KV group: a KV head with the query heads that share it."""
    branch: Kind | None = None
    """The kind of the whole branch as a unit; None where it cannot go."""
    entry: str | None = None
    """Linear that reads the hidden states; None where a latent space or a router lies between."""
    left: tuple[Refusal, ...] = ()
    """Linears of the module that every unit reads, which stay as they are."""


def starred(path: str) -> str:
    """Return a path with its numbers starred, so that all layers read alike.

    >>> starred("encoder.layer.11.output.dense")
    'encoder.layer.*.output.dense'
    """
    return re.sub(r"\.\d+(?=\.|$)", ".*", path)
