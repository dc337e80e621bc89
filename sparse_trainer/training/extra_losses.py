"""What fine-pruning adds to a task loss, and the means of it that are logged."""

from dataclasses import dataclass
from typing import final

from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class ExtraLosses:
    """What fine-pruning adds to a task loss."""

    distillation: Tensor | None
    penalty: Tensor | None

    def added_to(self, task_loss: Tensor) -> Tensor:
        """Return the sum."""
        parts = (part for part in (self.distillation, self.penalty) if part is not None)
        return sum(parts, start=task_loss)


@final
class Averages:
    """Sums of scalars by name, over the batches since the last log; reading them is where the host waits."""

    def __init__(self) -> None:
        self._sums: dict[str, tuple[Tensor, int]] = {}

    def add(self, name: str, value: Tensor | None) -> None:
        """Take in the value of one batch; None = there is none."""
        if value is not None:
            total, count = self._sums.get(name, (0.0, 0))
            self._sums[name] = (total + value.detach(), count + 1)

    def take(self) -> dict[str, float]:
        """Return the means, and begin anew."""
        means = {name: float(total) / count for name, (total, count) in self._sums.items()}
        self._sums = {}
        return means
