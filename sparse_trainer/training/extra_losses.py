"""What fine-pruning adds to a task loss, and the means of it that are logged."""

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class DistillationLosses:
    """How far a student is from its teacher, each part times its weight; None = that part is not compared."""

    logits: Tensor | None
    """A mean over what labels are counted of: answers, or labelled tokens."""
    hidden: Tensor | None
    """A mean over real tokens, labelled or not."""

    @property
    def total(self) -> Tensor:
        """Return the sum; one part at least is compared."""
        return torch.stack([part for part in (self.logits, self.hidden) if part is not None]).sum()


@dataclass(frozen=True, kw_only=True)
class ExtraLosses:
    """What fine-pruning adds to a task loss."""

    distilled: DistillationLosses | None
    penalty: Tensor | None

    @property
    def distillation(self) -> Tensor | None:
        """Return the sum of what is compared with a teacher; None without one."""
        return None if self.distilled is None else self.distilled.total

    def added_to(self, task_loss: Tensor) -> Tensor:
        """Return the sum, for a batch that is a whole optimizer step."""
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
