"""A decision as a value: which units of a model stay, and who said so. `cut.carry_out` takes it, a plan records it."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
from torch import Tensor

from patchers.units import BLOCK_KINDS, HEADS, HIDDEN, KINDS, Group, Kind, Structure
from sparse_trainer.budget.cost import Target
from sparse_trainer.plan.document import Density
from sparse_trainer.plan.parts import Speed

# Shape legend: U = units of a group, K = hidden features that stay.


class KnowsTime(Protocol):
    """Knows what the units of a model take (`cut.speed.Timed`)."""

    def unit_of(self, group: Group) -> int:
        """Return nanoseconds of one unit."""

    def speed(self, keep: Mapping[str, Tensor]) -> Speed:
        """Return what a plan says of the time with these units; booleans, shape [U], by group name."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """What was asked for, beside the decision itself: what plans and cards quote."""

    method: str
    target: Target = "params"
    scope: str = "global"
    density: Density = None
    sequence_length: int = 128
    timing: KnowsTime | None = None
    """Where a time was asked for: what the units take."""


@dataclass(frozen=True, kw_only=True)
class Decision:
    """Which units of one model stay, and who said so."""

    structure: Structure
    """All that was found in the model, also groups that were not to be pruned."""
    keep: Mapping[str, Tensor]
    """Booleans, shape [U], by group name; a group that is not named stays whole."""
    request: Request
    scores: Mapping[str, Tensor] = field(default_factory=dict)
    """Of a one-shot criterion, before any normaliser: shape [U], higher = keep, by group name."""
    compared: Mapping[str, Tensor] = field(default_factory=dict)
    """Of a one-shot criterion that shares out the budget: its scores as `standardize` made them comparable."""
    standardize: str = "none"
    """How `compared` was made of the scores."""
    folds: bool = False
    """Whether removed units may leave constants behind: of weights that are zero, not of gates."""

    @property
    def groups(self) -> tuple[Group, ...]:
        """The groups that were decided on, in model order."""
        return tuple(g for g in self.structure.groups if g.name in self.keep)

    @property
    def scored(self) -> tuple[Group, ...]:
        """The groups of them that a criterion scored: not layers that a search tried."""
        return tuple(g for g in self.groups if g.name in self.scores)

    @property
    def reaches_heads(self) -> bool:
        """Whether task heads are cut too: they read hidden features."""
        return bool(self.structure.of([HIDDEN]))

    @property
    def hidden_K(self) -> Tensor | None:
        """Hidden features that stay, where some may go."""
        group = next(iter(self.structure.of([HIDDEN])), None)
        if group is None:
            return None
        return self.keep.get(group.name, torch.ones(group.num_units)).nonzero().flatten()

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """Kinds of unit that were looked for."""
        return KINDS if self.reaches_heads else BLOCK_KINDS

    def of_heads(self) -> "Decision":
        """Return what it says of heads, nothing else."""
        heads = {g.name for g in self.structure.of([HEADS])}
        return replace(self, keep={name: keep_U for name, keep_U in self.keep.items() if name in heads})

    def naming(self, more: str) -> "Decision":
        """Return the same decision, its method named with something that was done beside it, if anything."""
        if not more:
            return self
        return replace(self, request=replace(self.request, method=f"{self.request.method}, {more}"))
