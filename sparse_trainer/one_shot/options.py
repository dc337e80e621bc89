"""What a user can ask of one-shot pruning, checked once, before any work is done."""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from patchers.discovery.discover import matches
from patchers.units import WIDTH_KINDS, Kind, Structure
from sparse_trainer.budget.options import Budget, keeps_all
from sparse_trainer.budget.standardize import ACROSS_LAYERS, STANDARDIZERS
from sparse_trainer.criteria.calibration.mixture import CriterionLike, criterion_of, name_of
from sparse_trainer.criteria.calibration.scorable import criteria_for, scored_kinds
from sparse_trainer.errors import ArgumentError, BudgetError, one_of
from sparse_trainer.one_shot.repairs.reconstruct import REPAIRS

logger = logging.getLogger(__name__)

Protect = str | int
DAMPING = 0.1
"""Of the repair, unless another is asked for."""
MOST_STEPS = 1000
"""Rounds of scoring and cutting that somebody may wait for."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Everything that `prune` was asked for."""

    criterion: CriterionLike
    budget: Budget
    allocation: CriterionLike | None
    normalize: str
    protect: tuple[Protect, ...]
    reconstruct: str | None
    reconstruct_bias: bool | None
    damping: float
    sequential: bool
    by_block: bool
    device: torch.device | str | None
    steps: int
    max_prune: float

    def __post_init__(self) -> None:
        if self.reconstruct is not None:
            one_of("reconstruct", self.reconstruct, REPAIRS)
        if self.allocation is not None and self.budget.scope == "uniform":
            raise ArgumentError(
                "allocation", "uniform widths leave nothing to share out.", "Use `scope='global'`."
            )
        if not 1 <= self.steps <= MOST_STEPS:
            raise ArgumentError(
                "steps", f"{self.steps} is not positive, or endless.", f"Give 1 to {MOST_STEPS} rounds."
            )
        if not 0 < self.max_prune <= 1:
            raise ArgumentError(
                "max_prune", f"{self.max_prune} is not in (0, 1].", "Give the share a layer may lose."
            )
        if not (math.isfinite(self.damping) and self.damping >= 0):
            raise ArgumentError(
                "damping", f"{self.damping} is negative or endless.", "Give 0.1, or 0 for none."
            )
        if self.damping != DAMPING and self.reconstruct in (None, "bias"):
            raise ArgumentError(
                "damping",
                "nothing is solved that it damps.",
                "Set `reconstruct='least_squares'`, or drop it.",
            )
        if self.reconstruct_bias is not None and self.reconstruct is None:
            raise ArgumentError(
                "reconstruct_bias", "there is nothing to repair.", "Set `reconstruct`, or drop it."
            )
        one_of("normalize", self.normalize, STANDARDIZERS)
        if self.sequential and self.reconstruct is None:
            raise ArgumentError("sequential", "there is nothing to repair.", "Set `reconstruct`.")
        if self.reconstruct_bias and self.reconstruct == "scale":
            raise ArgumentError(
                "reconstruct_bias", "'scale' moves no bias.", "Use 'least_squares' or 'bias'."
            )
        if self.device is not None and not self.by_block:
            raise ArgumentError(
                "device", "only blocks are moved there.", "Set `by_block=True`, or move the model."
            )
        for where, asked in (("criterion", self.criterion), ("allocation", self.allocation)):
            if asked is not None:
                self._check_criterion(where, asked)

    def _check_criterion(self, where: str, asked: CriterionLike) -> None:
        try:
            criterion = criterion_of(asked, self.normalize)
            requests, scored = criterion.requests(), scored_kinds(criterion)
        except TypeError as error:
            raise ArgumentError(
                where, str(error), "Give a name, an instance or names with weights."
            ) from error
        unscored = [kind for kind in self.kinds if kind not in scored]
        if unscored:
            raise ArgumentError(
                where,
                f"{name_of(asked)} does not score {unscored[0]}.",
                f"Take {', '.join(criteria_for(self.kinds))}; or other units.",
            )
        if not self.by_block:
            return
        if any(request.loss is not None for request in requests):
            raise ArgumentError(
                where, "it needs gradients, through the whole model.", "Drop `by_block`, or take wanda or obs."
            )  # fmt: skip
        if isinstance(asked, Mapping) and self.normalize in ACROSS_LAYERS:
            raise ArgumentError(
                where, f"{self.normalize!r} compares all layers.", "Take `normalize='zscore_layer'` with `by_block`."
            )  # fmt: skip

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """Kinds of unit to prune."""
        return self.budget.kinds

    def at(self, density: Any) -> "Options":
        """Return the same options with another density."""
        return replace(self, budget=replace(self.budget, density=density))


def options_of(
    *,
    criterion: CriterionLike,
    allocation: CriterionLike | None,
    normalize: str,
    protect: Sequence[Protect],
    reconstruct: str | None,
    reconstruct_bias: bool | None,
    damping: float,
    sequential: bool,
    by_block: bool,
    device: torch.device | str | None,
    steps: int,
    max_prune: float,
    units: Sequence[str] | None,
    **budget: Any,
) -> Options:
    """Check what `prune` was asked for. `budget` goes to `Budget`.

    Raises:
        ArgumentError: an option cannot be meant.
    """
    asked = Budget(units=None if units is None else tuple(units), **budget)
    asked.check_disjoint()
    deep = [kind for kind in asked.kinds if not kind.is_width]
    if deep:
        raise ArgumentError(
            "units", f"{deep[0]} are no widths of blocks.", f"Give {' and '.join(WIDTH_KINDS)}."
        )
    if keeps_all(asked.density):
        logger.warning("density %s keeps all: nothing is pruned.", asked.density)
    return Options(
        criterion=criterion,
        budget=asked,
        allocation=allocation,
        normalize=normalize,
        protect=tuple(protect),
        reconstruct=reconstruct,
        reconstruct_bias=reconstruct_bias,
        damping=damping,
        sequential=sequential,
        by_block=by_block,
        device=device,
        steps=steps,
        max_prune=max_prune,
    )


def prunable(model: nn.Module, found: Structure, options: Options) -> Structure:
    """Return what is found in a model, with only the groups that may be pruned.

    Raises:
        BudgetError: everything is protected.
    """
    asked = replace(found, groups=found.of(options.kinds))
    names = protected(asked, options.protect)
    left = tuple(g for g in asked.groups if g.name not in names)
    if not left:
        what = "everything is protected" if names else f"has no {' or '.join(options.kinds)} to prune"
        raise BudgetError(
            "protect" if names else type(model).__name__, f"{what}.", "Protect less, or name other units."
        )
    return replace(asked, groups=left)


def protected(structure: Structure, protect: Sequence[Protect]) -> set[str]:
    """Return the names of the groups that `first`, `last`, `3`, `3-5` or patterns of names protect."""
    names: set[str] = set()
    for entry in protect:
        found = {g.name for g in structure.groups if g.layer in _layers(structure, g.stack, entry)}
        if not found:
            found = _matching(structure, str(entry))
        if not found:
            layers = max((stack.size for stack in structure.stacks), default=0)
            raise ArgumentError(
                "protect", f"{entry!r} matches no group.",
                f"Give first, last, layers such as 3 or 3-5 (below {layers}), or a pattern of group names.",
            )  # fmt: skip
        names |= found
    return names


def _layers(structure: Structure, stack: str, entry: Protect) -> range:
    size = next((s.size for s in structure.stacks if s.path == stack), 0)
    text = str(entry)
    if text in ("first", "last"):
        return range(1) if text == "first" else range(size - 1, size)
    first, _, last = text.partition("-")
    if not first.isdigit() or not (last or first).isdigit():
        return range(0)
    return range(int(first), int(last or first) + 1)


def _matching(structure: Structure, pattern: str) -> set[str]:
    return {g.name for g in structure.groups if matches(pattern, g.name)}
