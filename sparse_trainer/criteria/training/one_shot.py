"""Criteria of one-shot pruning as scores of fine-pruning.

One that looks at weights alone is asked anew at every selection. Any other scores once, on a calibration set, before
training: while the budget tightens the weights change, and make up for the units that go; the order of the units stays.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from torch import Tensor, nn

from patchers.patching.gates import Gate, SaliencyGate
from patchers.units import CHANNELS, HEADS, Group, Kind, Structure
from sparse_trainer.criteria.calibration.base import Evidence, WidthCriterion, scores_of
from sparse_trainer.criteria.calibration.scorable import scored_kinds
from sparse_trainer.criteria.training.base import Gates
from sparse_trainer.statistics.requests import Statistic, Statistics


@final
@dataclass(frozen=True, kw_only=True)
class OneShot:
    """A criterion of one-shot pruning, whose scores the gates remember."""

    learns: ClassVar[bool] = False
    criterion: WidthCriterion
    name: str
    """What the user calls it."""

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """Kinds of unit it can score."""
        return scored_kinds(self.criterion)

    @property
    def default_units(self) -> tuple[Kind, ...]:
        """Heads and channels, or what else it scores."""
        return tuple(kind for kind in (HEADS, CHANNELS) if kind in self.kinds) or self.kinds

    @property
    def standardize(self) -> str:
        """Normaliser of the one-shot criterion."""
        return self.criterion.standardize

    def requests(self) -> tuple[Statistic[Any], ...]:
        """Return what has to be collected on the calibration set."""
        return self.criterion.requests()

    def make_gate(self, group: Group) -> Gate:
        """Return a gate that learns no score; one that remembers it, where it is taken once."""
        kind = SaliencyGate if self.requests() else Gate
        return kind(group.num_units, scored=False)

    @torch.no_grad()
    def calibrate(self, model: nn.Module, structure: Structure, statistics: Statistics, gates: Gates) -> None:
        """Score the units."""
        evidence = Evidence(model=model, structure=structure, statistics=statistics)
        for name, score_U in scores_of(self.criterion, evidence, self.name).items():
            gate = gates[name]
            assert isinstance(gate, SaliencyGate)
            gate.saliency_U.copy_(score_U)

    def scores(self, model: nn.Module, structure: Structure, gates: Gates) -> dict[str, Tensor]:
        """Return the scores as they were taken, or those of the weights as they are now."""
        if self.requests():
            return {name: gate.saliency_U for name, gate in gates.items() if isinstance(gate, SaliencyGate)}
        evidence = Evidence(model=model, structure=structure, statistics=Statistics())
        found = self.criterion.scores(evidence)
        return {name: score_U.to(gates[name].keep_U.device) for name, score_U in found.items()}
