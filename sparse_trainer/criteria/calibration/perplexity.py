"""Perplexity: the layers without which the model loses least, found one after the other (SLEB, arXiv 2402.09025).

Every round tries the model without each layer that is left, on the calibration set, and takes away the one whose
absence costs least. Nothing is assumed of what layers do to each other; in return there are passes per layer and round.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from torch import Tensor

from patchers.units import LAYERS, Group, Kind, Structure
from sparse_trainer.criteria.calibration.base import Evidence, Trials, leaves_one
from sparse_trainer.errors import ArgumentError
from sparse_trainer.statistics.block_states import BlockStates
from sparse_trainer.statistics.requests import Statistic


@final
@dataclass(frozen=True, kw_only=True)
class LossWithout:
    """Mean loss per label of the model without a layer, and without those that went before it."""

    kinds: ClassVar[tuple[Kind, ...]] = (LAYERS,)
    standardize: ClassVar[str] = "none"

    def requests(self) -> tuple[Statistic[Any], ...]:
        """Return what tells that every layer is reached."""
        return (BlockStates(),)

    def scores(self, evidence: Evidence) -> dict[str, Tensor]:
        """Raise `ArgumentError`: what a layer is worth depends on those that are gone."""
        raise ArgumentError(
            "criterion", "perplexity tries whole models: it has no scores to be mixed or shared out by.",
            "Let it stand alone, or take block_influence.",
        )  # fmt: skip

    def search(self, structure: Structure, trials: Trials, count: int) -> dict[str, Tensor]:
        """Return 0, 1, 2 ... of the layers in the order in which they go, and `count` + the mean loss of the others."""
        layers = structure.of((LAYERS,))
        gone: list[Group] = []
        scores: dict[str, Tensor] = {}
        while len(gone) < count:
            possible = [g for g in layers if g not in gone and leaves_one([*gone, g], structure)]
            if not possible:
                break
            found = trials.losses(gone, possible)
            scores |= {g.name: count + found[g.name].reshape(1) for g in possible}
            cheapest = min(possible, key=lambda g: float(found[g.name]))
            scores[cheapest.name] = found[cheapest.name].new_full((1,), len(gone))
            gone.append(cheapest)
        # A layer that is the only one of its sort may never go.
        stays = torch.full((1,), count + 1 + max((float(each) for each in scores.values()), default=0.0))
        return {g.name: scores.get(g.name, stays) for g in layers}
