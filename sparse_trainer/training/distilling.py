"""Learn from a teacher while nothing is pruned: how a model that was cut recovers."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any, final

from torch import nn
from transformers import Trainer

from sparse_trainer.training.distillation.teacher import Distiller, TeacherSource, make_distiller
from sparse_trainer.training.extra_losses import Averages, ExtraLosses
from sparse_trainer.training.loss import PruningLoss
from sparse_trainer.training.options import DistillationOptions


@final
class Lesson:
    """What a loss asks of a coordinator, where there is a teacher and nothing else.

    Args:
        distiller: Compares the student with the teacher.
        context: In which the teacher is called, e.g. the autocast of an accelerator.
    """

    def __init__(self, distiller: Distiller, context: Callable[[], AbstractContextManager[Any]]) -> None:
        self.distiller, self._context = distiller, context
        self.averages = Averages()
        self.needs_hidden_states = distiller.needs_hidden_states
        self.task_weight = distiller.options.alpha_task

    def extra_losses(self, inputs: Mapping[str, Any], outputs: Any) -> ExtraLosses:
        """Return how far the answers to one batch are from the teacher's."""
        distilled = self.distiller.losses(inputs, outputs, context=self._context)
        self.averages.add("distillation_loss", distilled.total)
        return ExtraLosses(distilled=distilled, penalty=None)


def distilling_trainer(
    base: type[Trainer], teacher: nn.Module, options: DistillationOptions
) -> type[Trainer]:
    """Return a Trainer that does what `base` does, and learns from a teacher.

    Args:
        teacher: Of the same task and vocabulary; it is put into evaluation mode and moved to the Trainer's device.
        options: How the losses are weighed; they name no teacher.
    """

    class DistillingTrainer(base):  # type: ignore[misc, valid-type]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            distiller = make_distiller(self.model, options, teacher, TeacherSource())
            assert distiller is not None
            teacher.to(self.args.device)
            self.coordinator = Lesson(distiller, self.accelerator.autocast)
            loss = PruningLoss(self)
            loss.check_returns_outputs()
            self.compute_loss = loss  # in its place, whoever wrote it

        def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
            """Return the batches of the next step, of which the loss counts the tokens."""
            batches, count = super().get_batch_samples(*args, **kwargs)
            self.compute_loss.begin_step(batches)
            return batches, count

        def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
            """Add the distillation loss to what training logs."""
            if "loss" in logs:
                logs.update(self.coordinator.averages.take())
            super().log(logs, *args, **kwargs)

    return DistillingTrainer
