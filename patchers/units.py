"""What a model is made of, for pruning: kinds of unit, slices of tensors, groups of units, the structure of a model."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Final, Literal, Self, final

import torch
from torch import Tensor

from patchers.errors import SparseTrainerError

# Shape legend: U = units of a group, W = features of one unit along one axis.

Gated = Literal["input", "router", "output", "block", "norm"]


@final
class Kind(str):
    """A kind of unit, e.g. `HEADS`. It equals its name: plans, options and keys of mappings may write "heads".

    Args:
        name: In the plural.
        gated: What its gate multiplies: the input of a linear, the logits of a router, the output of a branch, what a
            block adds to its input, or the output of norms.
        is_width: Whether a block has many of these units, of which any may go.
        is_whole: Whether a group is a single unit: a branch or a layer.
        contains: Kinds of unit that lie inside one of these.
    """

    def __new__(cls, name: str, **traits: object) -> Self:
        return super().__new__(cls, name)

    def __init__(
        self,
        name: str,
        *,
        gated: Gated,
        is_width: bool = False,
        is_whole: bool = False,
        contains: tuple["Kind", ...] = (),
    ) -> None:
        self.gated: Final = gated
        self.is_width: Final = is_width
        self.is_whole: Final = is_whole
        self.contains: Final = contains

    def __reduce__(self) -> tuple[Callable[[str], "Kind"], tuple[str]]:
        """Stay the same object in a copy, and in another process."""
        return kind_named, (str(self),)

    @property
    def floor(self) -> int:
        """Units that a group keeps where nobody asks for more."""
        return 0 if self.is_whole else 1


HEADS = Kind("heads", gated="input", is_width=True)
CHANNELS = Kind("channels", gated="input", is_width=True)
EXPERTS = Kind("experts", gated="router", is_width=True, contains=(CHANNELS,))
ATTENTION = Kind("attention", gated="output", is_whole=True, contains=(HEADS,))
FFN = Kind("ffn", gated="output", is_whole=True, contains=(CHANNELS,))
LAYERS = Kind("layers", gated="block", is_whole=True, contains=(HEADS, CHANNELS, EXPERTS, ATTENTION, FFN))
BLOCK_KINDS = (HEADS, CHANNELS, EXPERTS, ATTENTION, FFN, LAYERS)
"""Kinds of unit that lie in blocks: those that `discover` looks for where nobody says."""
HIDDEN = Kind("hidden", gated="norm", contains=BLOCK_KINDS)
KINDS = (*BLOCK_KINDS, HIDDEN)
WIDTH_KINDS = tuple(kind for kind in KINDS if kind.is_width)
"""Kinds with many units in a block; the others are whole branches and layers, and the features that run through all."""


def kind_named(text: str) -> Kind:
    """Return the kind of this name.

    >>> kind_named("heads").is_width, kind_named("heads") == "heads"
    (True, True)

    Raises:
        SparseTrainerError: there is no such kind.
    """
    known = next((kind for kind in KINDS if kind == text), None)
    if known is None:
        raise SparseTrainerError(
            "kinds", f"{text!r} is no kind of unit.", f"Give some of {', '.join(KINDS)}."
        )
    return known


def unit_name(kind: Kind, *, is_shared: bool) -> str:
    """Return what units of a kind are called, in the plural.

    Args:
        is_shared: Of heads: whether query heads share KV heads, so that a unit is a KV group.

    >>> unit_name(HEADS, is_shared=True), unit_name(CHANNELS, is_shared=True)
    ('KV groups', 'channels')
    """
    return "KV groups" if is_shared and kind == HEADS else str(kind)


@dataclass(frozen=True, kw_only=True)
class Features:
    """Which entries along one axis belong to each unit of a group."""

    units: int
    width: int
    """Entries of one unit."""
    index: tuple[tuple[int, ...], ...] | None = None
    """Entries of each unit; None = contiguous runs of `width`, in order."""

    @cached_property
    def index_UW(self) -> Tensor:
        """Entries of each unit, shape [U, W]."""
        if self.index is not None:
            return torch.tensor(self.index, device="cpu")
        return torch.arange(self.units * self.width, device="cpu").view(self.units, self.width)

    def features(self, keep_U: Tensor) -> Tensor:
        """Return the kept entries in their original order, shape [kept units * W]."""
        return self.index_UW[keep_U.cpu()].flatten().sort().values


@dataclass(frozen=True, kw_only=True)
class Slice(Features):
    """Which features of one linear belong to each unit of a group."""

    path: str
    """Module path of the linear."""
    axis: Literal["out", "in"]
    """Output features (rows of the weight, entries of the bias) or input features (columns)."""
    is_value: bool = False
    """True for producers that, once zero, make the unit constant: value rows of a head, rows of a channel."""


@dataclass(frozen=True, kw_only=True)
class TensorSlice(Features):
    """Which entries of a parameter that is no linear's belong to each unit: sinks, position tables, experts."""

    name: str
    """Path of the parameter."""
    dim: int
    is_consumer: bool = False
    """True for the tensor that reads the units, where no linear does: the down projections of experts."""


@dataclass(frozen=True, kw_only=True)
class Edit:
    """An attribute that follows the number of kept units: `module.attribute = kept * per_unit`.

    `config.NAME` stands for a field of the module's config, of which the module then gets a view of its own.
    """

    path: str
    attribute: str
    per_unit: int


@dataclass(frozen=True, kw_only=True)
class Select:
    """An argument with one entry per unit that comes from outside the block (a shared table of position biases)."""

    path: str
    """Module whose forward receives it."""
    argument: str
    position: int
    """Positional index of the argument, self not counted."""
    dim: int
    """Dimension of the argument that runs over the units, or over rows x units."""
    units: int
    width: int = 1
    """Entries of one unit: query heads of a KV group."""
    returned: int | None = None
    """Where in the module's output the argument is passed to the next layer; None = it is not."""


@dataclass(frozen=True, kw_only=True)
class Core:
    """The module that computes attention: replaced by a no-op when no head is left."""

    path: str
    outputs: int
    """0 = a bare tensor, n = a tuple of n."""
    owns_output: bool
    """True when the output linear lies inside, so that the no-op must return full hidden states."""


@dataclass(frozen=True, kw_only=True)
class Group:
    """All units of one kind at one place."""

    name: str
    kind: Kind
    layer: int
    """Position of the block in its stack."""
    stack: str
    """Path of the list of blocks."""
    block: str
    """Path of the block."""
    num_units: int
    consumer: str
    """Linear whose input the units feed; of a branch, its last; of a layer, the block; of experts, the router; of
    hidden features, the first norm."""
    slices: tuple[Slice, ...] = ()
    tensors: tuple[TensorSlice, ...] = ()
    edits: tuple[Edit, ...] = ()
    selects: tuple[Select, ...] = ()
    core: Core | None = None
    inner: str | None = None
    """Of a branch: the group of its heads or channels."""
    min_units: int = 0
    """Units that must stay: 1 where the module cannot run without any."""
    multiple_of: int = 1
    """Kept counts are multiples of this, or the whole group, where nobody asks for others: what fast kernels read."""
    least_multiple: int = 1
    """The same in the dtype and with the kernels that the model has now: its module cannot run with other counts."""
    is_shared: bool = False
    """Of heads: whether a unit is a KV group, a KV head with the query heads that share it."""
    active: float = 1.0
    """Share of the parameters in `tensors` that a token meets: experts chosen / experts."""
    sort: str = ""
    """Of a layer: what mixes tokens in it."""
    heads_width: int = 0
    """Of a layer: features of all its query heads together."""
    norms: tuple[str, ...] = ()
    """Of hidden features: the norms behind which all that reads them stands, or the linear that first writes them."""

    @property
    def unit_name(self) -> str:
        """What its units are called."""
        return unit_name(self.kind, is_shared=self.is_shared)

    def fits(self, num_kept: int) -> bool:
        """Tell whether the module can run with so many units."""
        return num_kept % self.least_multiple == 0 or num_kept == self.num_units

    @property
    def peers(self) -> tuple[str, str]:
        """Return what a layer has in common with those of its stack and sort: one of them stays."""
        return self.stack, self.sort

    @property
    def consumer_slice(self) -> Features:
        """Return the slice over what the consumer reads."""
        inputs = (s for s in self.slices if s.path == self.consumer and s.axis == "in")
        return next(inputs, None) or next(t for t in self.tensors if t.is_consumer)

    @property
    def consumer_tensor(self) -> TensorSlice | None:
        """Return the parameter that reads the units where no linear does, else None."""
        return next((t for t in self.tensors if t.is_consumer), None)


@dataclass(frozen=True, kw_only=True)
class Stack:
    """A list of blocks that a model runs in order."""

    path: str
    size: int
    forms: tuple[str, ...] = ()
    """Names of the forms that its blocks follow."""
    sorts: tuple[str, ...] = ()
    """What mixes tokens in each block."""
    fixed_layers: Mapping[int, str] = field(default_factory=dict)
    """Layers that cannot be taken away as a whole, with the reason."""


@dataclass(frozen=True, kw_only=True)
class Structure:
    """What of a model can be pruned, and what cannot."""

    groups: tuple[Group, ...]
    stacks: tuple[Stack, ...]
    untouched: Mapping[str, str] = field(default_factory=dict)
    """Path of every linear, expert tensor, attention or block that belongs to no group of its own, with the reason."""

    refused_hidden: Mapping[str, str] = field(default_factory=dict)
    """Name of the hidden features that were asked for and cannot go, with the reason."""

    def __getitem__(self, name: str) -> Group:
        return self._by_name[name]

    def __contains__(self, name: str) -> bool:
        return name in self._by_name

    @cached_property
    def _by_name(self) -> dict[str, Group]:
        return {group.name: group for group in self.groups}

    @cached_property
    def kinds(self) -> Mapping[str, Kind]:
        """Kind of each group, by its name."""
        return {group.name: group.kind for group in self.groups}

    @property
    def forms(self) -> tuple[str, ...]:
        """Names of the forms met, in order, once each."""
        return tuple(dict.fromkeys(form for stack in self.stacks for form in stack.forms))

    def of(self, kinds: Iterable[str]) -> tuple[Group, ...]:
        """Return the groups of these kinds, in model order."""
        wanted = set(kinds)
        return tuple(group for group in self.groups if group.kind in wanted)
