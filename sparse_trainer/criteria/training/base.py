"""What a criterion of fine-pruning has to offer, and what it may offer beside.

Its options are its fields: a frozen dataclass, made by a name such as `taylor(order=2)`. What must survive a restart it
keeps in the gates (parameters and buffers), never in itself.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn

from patchers.patching.gates import Gate
from patchers.units import Group, Kind, Structure
from sparse_trainer.budget.nesting import Constraint
from sparse_trainer.budget.schedule import Schedule
from sparse_trainer.statistics.requests import Statistic, Statistics

Gates = Mapping[str, Gate]


class TrainingCriterion(Protocol):
    """Scores units while a model trains."""

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """Kinds of unit it can score."""

    @property
    def default_units(self) -> tuple[Kind, ...]:
        """Kinds of unit to prune when the user names none."""

    @property
    def standardize(self) -> str:
        """Normaliser that suits its scores when the user names none."""

    @property
    def learns(self) -> bool:
        """Whether `score_U` of the gates is trained by the optimizer."""

    def make_gate(self, group: Group) -> Gate:
        """Return the gate that the criterion needs on a group."""

    def scores(self, model: nn.Module, structure: Structure, gates: Gates) -> dict[str, Tensor]:
        """Return the score of each unit, shape [U], higher = keep, by group name."""


@runtime_checkable
class Observes(Protocol):
    """Reads the gradients of an optimizer step."""

    def observe(self, gates: Gates, loss_scale: Tensor | None = None) -> None:
        """Read what the backward passes of one optimizer step left in the gates.

        Args:
            loss_scale: What a GradScaler has multiplied the gradients by, a scalar; None = nothing.
        """


@runtime_checkable
class ReadsGradients(Protocol):
    """Reads what backward passes leave in the model's own parameters: more than gates have."""

    def check_model(self, model: nn.Module, structure: Structure) -> None:
        """Raise `UnsupportedModelError` for a model without these parameters: before training, adapters in place."""

    def read_gradients(
        self, model: nn.Module, structure: Structure, gates: Gates, loss_scale: Tensor | None = None
    ) -> None:
        """Read the gradients of one optimizer step; `loss_scale` as in `Observes.observe`."""


class Penalty(Protocol):
    """A term of the loss that pulls gates towards the budget."""

    def __call__(self, gates: Gates, density: float, remaining: float) -> Tensor:
        """Return a scalar to add to the loss.

        Args:
            density: Fraction of the whole cost that is allowed now.
            remaining: Part of the way to the budget that is still to go, in [0, 1].
        """


@runtime_checkable
class Penalizes(Protocol):
    """Adds a term to the loss."""

    def make_penalty(self, costs: Mapping[str, int], constraints: Sequence[Constraint]) -> Penalty:
        """Return the term, which may observe optimizer steps as well.

        Args:
            costs: Cost of one unit, by group name.
            constraints: What the budget demands.
        """


@runtime_checkable
class FollowsSchedule(Protocol):
    """Changes its gates as training goes on."""

    def advance(self, gates: Gates, progress: float, schedule: Schedule) -> None:
        """Move the gates to `progress` in [0, 1], after an optimizer step."""


@runtime_checkable
class StartsAt(Protocol):
    """Can let its learned scores start where a criterion of one-shot pruning says."""

    def start(self, gates: Gates, odds: Mapping[str, Tensor]) -> None:
        """Set the scores.

        Args:
            odds: Log-odds, shape [U], by group name: above 0 what would stay, below 0 what would go.
        """


@runtime_checkable
class OwnSchedule(Protocol):
    """Tightens the budget in a way of its own."""

    def make_schedule(self, warmup: float, cooldown: float) -> Schedule:
        """Return the schedule between a dense start and a final structure, as fractions of training."""


@runtime_checkable
class OwnOptimizer(Protocol):
    """Has its scores trained with options of its own."""

    @property
    def optimizer_options(self) -> Mapping[str, Any]:
        """Options of the scores' optimizer group that differ from `score_learning_rate` and no decay."""


@runtime_checkable
class Calibrates(Protocol):
    """Scores on a calibration set, before training."""

    def requests(self) -> tuple[Statistic[Any], ...]:
        """Return what has to be collected; nothing, for a criterion that looks at weights only."""

    def calibrate(self, model: nn.Module, structure: Structure, statistics: Statistics, gates: Gates) -> None:
        """Read what was collected."""
