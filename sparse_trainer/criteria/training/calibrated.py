"""Criteria of one-shot pruning as scores of fine-pruning: taken once, on a calibration set, before training.

While the budget tightens the weights change, and make up for the units that go; the order of the units stays.
"""

from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from patchers.patching.gates import Gate, SaliencyGate
from patchers.units import Group, Structure
from sparse_trainer.criteria.calibration.base import Evidence, WidthCriterion
from sparse_trainer.criteria.training.base import Criterion, Gates, Plain
from sparse_trainer.statistics.requests import Statistic, Statistics, collectable_kinds


class Calibrated(Plain):
    """Scores of a one-shot criterion, kept in the gates."""

    width: ClassVar[type[WidthCriterion]]
    standardize: ClassVar[str]
    learns: ClassVar[bool] = False

    def __init__(self, args: Any) -> None:
        super().__init__(args)
        self._width = self.width()

    def make_gate(self, group: Group) -> Gate:
        """Return a gate that remembers a score and learns none."""
        return SaliencyGate(group.num_units, scored=False)

    def requests(self) -> tuple[Statistic[Any], ...]:
        """Return what has to be collected on the calibration set."""
        return self._width.requests()

    @torch.no_grad()
    def calibrate(self, model: nn.Module, structure: Structure, statistics: Statistics, gates: Gates) -> None:
        """Score the units."""
        evidence = Evidence(model=model, structure=structure, statistics=statistics)
        for name, score_U in self._width.scores(evidence).items():
            gate = gates[name]
            assert isinstance(gate, SaliencyGate)
            gate.saliency_U.copy_(score_U)

    def scores(self, model: nn.Module, structure: Structure, gates: Gates) -> dict[str, Tensor]:
        """Return the scores as they were taken."""
        return {name: gate.saliency_U for name, gate in gates.items() if isinstance(gate, SaliencyGate)}


def calibrated(width: type[WidthCriterion]) -> type[Criterion]:
    """Return a one-shot criterion as a criterion of fine-pruning."""
    body = {"width": width, "standardize": width.standardize, "scored": collectable_kinds(width().requests())}
    made = type(width.__name__, (Calibrated,), body)
    return cast(type[Criterion], made)
