"""What closes units over a training: gates under one budget, or weight masks."""

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from typing import Any, Final, Protocol

from torch import Tensor, nn

from patchers.patching.gates import Gate
from patchers.units import Structure
from sparse_trainer.budget.schedule import Schedule
from sparse_trainer.training.gate_driver import GateDriver
from sparse_trainer.training.mask_driver import MaskDriver
from sparse_trainer.training.mask_options import MaskOptions
from sparse_trainer.training.options import GateOptions


class Driver(Protocol):
    """Opens and closes the gates or masks of one model; all state that a restart needs lives in the model."""

    schedule: Schedule
    """When the budget tightens; of the training that `begin` was called for."""

    @property
    def gates(self) -> dict[str, Gate]:
        """The gates by group name."""

    @property
    def wants_calibration(self) -> bool:
        """Whether scores are still to be taken on a calibration set."""

    @property
    def finished(self) -> bool:
        """Whether the structure is final."""

    def score_parameters(self) -> list[nn.Parameter]:
        """Return the parameters of gates or masks: scores, learned or merely read, and scales."""

    def score_groups(self) -> list[dict[str, Any]]:
        """Return the optimizer groups of learned scores and of scales, if any are."""

    def calibrate(self, batches: Iterable[Mapping[str, Any]]) -> None:
        """Take the scores that a criterion of one-shot pruning needs from a calibration set."""

    def refitted_parameters(self) -> list[nn.Parameter]:
        """Return the weights and biases that `calibrate` may change."""

    def begin(self, total_steps: int, step: int, warmup_steps: int) -> None:
        """Start, or go on at `step`: then gates and masks are those that came with the model."""

    def observe(self, loss_scale: Tensor | None = None) -> None:
        """Read the mask gradients of one optimizer step; `loss_scale` as in `Observes.observe`."""

    def step(self, progress: float, *, due: bool) -> None:
        """Move to the state after an optimizer step, and select anew where that is due."""

    def decided(self) -> dict[str, Tensor]:
        """Return the masks as they are now, by what they are the mask of."""

    def penalty(self) -> Tensor | None:
        """Return what is added to the loss at this moment."""

    def final(self) -> AbstractContextManager[None]:
        """Show masks as they will be in the end, for a `with` block."""

    def end(self) -> None:
        """Finish, once training has reached its end."""

    def density(self) -> float:
        """Return the fraction that is kept now."""

    def log(self) -> dict[str, float]:
        """Return what to log beside the density."""

    def check_finite(self, step: int) -> None:
        """Raise `NonFiniteError` if a score was NaN or infinite at any selection so far."""

    def report(self) -> dict[str, Any]:
        """Return what was asked and reached."""


DRIVERS: Final[dict[type, Callable[[nn.Module, Structure, Any], Driver]]] = {
    GateOptions: GateDriver,
    MaskOptions: MaskDriver,
}
"""What drives a model, by the class of its options."""


def make_driver(model: nn.Module, structure: Structure, options: GateOptions | MaskOptions) -> Driver:
    """Return the driver that the options ask for, with its gates or masks on the model, all open.

    Raises:
        BudgetError: the budget cannot be met.
    """
    return DRIVERS[type(options)](model, structure, options)
