"""Models with less in them, tried on the calibration set: without blocks, or behind gates that learn."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

from torch import Tensor

from patchers.units import Group, Structure
from sparse_trainer.criteria.calibration.base import LearnsGates
from sparse_trainer.one_shot.gate_learning import learn_gates
from sparse_trainer.statistics.calibration import Batches
from sparse_trainer.statistics.replay import Replay


@final
@dataclass(frozen=True)
class Tried:
    """The `Trials` of one model: what a criterion that searches may have done with it."""

    model: Any
    structure: Structure
    """The groups that may go."""
    batches: Batches
    costs: Mapping[str, int]
    """Cost of one unit, by group name."""
    density: float
    """Fraction of their whole cost that stays."""

    def losses(self, gone: Sequence[Group], candidates: Sequence[Group]) -> Mapping[str, Tensor]:
        """Return the mean loss per label, scalar, without what is gone and one candidate more, by its name."""
        return Replay(self.model, self.structure, self.batches).losses(gone, candidates)

    def learned_gates(self, options: LearnsGates) -> Mapping[str, Tensor]:
        """Return the score, shape [U], that the gates of each group learned on frozen weights, by its name."""
        return learn_gates(
            self.model, self.structure, self.batches, options, costs=self.costs, density=self.density
        )
