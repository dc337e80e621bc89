"""What a criterion for fine-pruning has to offer."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar, Protocol

from torch import Tensor, nn

from patchers.patching.gates import Gate
from patchers.units import CHANNELS, HEADS, KINDS, Group, Kind, Structure
from sparse_trainer.budget.nesting import Constraint
from sparse_trainer.statistics.requests import Statistic, Statistics

Gates = Mapping[str, Gate]


class Criterion(Protocol):
    """Scores units while a model trains.

    A criterion is built from the `SparseTrainingArguments`. What must survive a restart it keeps in the gates
    (parameters and buffers), never in itself.
    """

    kinds: ClassVar[tuple[Kind, ...]]
    """Kinds of unit it prunes when the user names none."""
    scored: ClassVar[tuple[Kind, ...]]
    """Kinds of unit it can score."""
    standardize: ClassVar[str]
    """Normaliser that suits its scores when the user names none."""
    learns: ClassVar[bool]
    """Whether `score_U` of the gates is trained by the optimizer."""

    @property
    def optimizer_options(self) -> Mapping[str, Any]:
        """Options of the scores' optimizer group that differ from `score_learning_rate` and no decay."""

    def __init__(self, args: Any) -> None: ...

    def make_gate(self, group: Group) -> Gate:
        """Return the gate that the criterion needs on a group."""

    def constrain(self, constraints: Sequence[Constraint]) -> None:
        """Take note of what the budget demands, once, before training."""

    def requests(self) -> tuple[Statistic[Any], ...]:
        """Return what has to be collected on a calibration set before training, if anything."""

    def calibrate(self, model: nn.Module, structure: Structure, statistics: Statistics, gates: Gates) -> None:
        """Read what was collected."""

    def observe(self, gates: Gates, loss_scale: Tensor | None = None) -> None:
        """Read what the backward passes of one optimizer step left in the gates.

        Args:
            loss_scale: What a GradScaler has multiplied the gradients by, a scalar; None = nothing.
        """

    def scores(self, model: nn.Module, structure: Structure, gates: Gates) -> dict[str, Tensor]:
        """Return the score of each unit, shape [U], higher = keep, by group name."""

    def penalty(
        self, gates: Gates, costs: Mapping[str, int], density: float, remaining: float
    ) -> Tensor | None:
        """Return a scalar to add to the loss, or None.

        Args:
            density: Fraction of the whole cost that is allowed now.
            remaining: Part of the way to the budget that is still to go, in [0, 1].
        """

    def advance(self, gates: Gates, progress: float, frozen: bool) -> None:
        """Follow the schedule: `progress` in [0, 1]; `frozen` = the structure is final."""


class Plain:
    """The parts of a criterion that most do not need."""

    kinds: ClassVar[tuple[Kind, ...]] = (HEADS, CHANNELS)
    scored: ClassVar[tuple[Kind, ...]] = KINDS
    optimizer_options: Mapping[str, Any] = MappingProxyType({})

    def __init__(self, args: Any) -> None:
        self.args = args

    def constrain(self, constraints: Sequence[Constraint]) -> None:
        """Leave the budget to the selector."""

    def requests(self) -> tuple[Statistic[Any], ...]:
        """Ask for no calibration set."""
        return ()

    def calibrate(self, model: nn.Module, structure: Structure, statistics: Statistics, gates: Gates) -> None:
        """Read nothing."""

    def observe(self, gates: Gates, loss_scale: Tensor | None = None) -> None:
        """Read nothing."""

    def penalty(
        self, gates: Gates, costs: Mapping[str, int], density: float, remaining: float
    ) -> Tensor | None:
        """Add nothing to the loss."""
        return None

    def advance(self, gates: Gates, progress: float, frozen: bool) -> None:
        """Follow no schedule."""
