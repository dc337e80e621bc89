"""What pruning adds to a loss, whoever computes that loss, in the share that gradient accumulation demands."""

import inspect
import logging
from collections.abc import Mapping, Sequence
from typing import Any, final

import torch
from torch import Tensor, nn
from transformers import Trainer

from patchers.discovery.source_code import calls_super, raises_if
from sparse_trainer.errors import ArgumentError
from sparse_trainer.inputs.labels import IGNORED, unwrapped
from sparse_trainer.training.distillation.teacher import carries_gradient
from sparse_trainer.training.distillation.tokens import real_tokens

_COUNT = "num_items_in_batch"
logger = logging.getLogger(__name__)


@final
class PruningLoss:
    """Stands in for `compute_loss` of a Trainer, overridden or not: in training it adds distillation and penalty.

    Args:
        trainer: A `SparseTrainer`.
        of_nn_pruning: Whether a loss that takes `**kwargs` instead of `num_items_in_batch` counts as one of three
            arguments, too.
    """

    def __init__(self, trainer: Any, *, of_nn_pruning: bool = False) -> None:
        self.trainer, self.written = trainer, trainer.compute_loss
        known = inspect.signature(self.written).parameters
        forwards = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in known.values()) and not of_nn_pruning
        self.takes_count = _COUNT in known or forwards
        self._step_tokens: Tensor | None = None
        self.runs_again = False
        """Whether the teacher is compared with a forward pass of its own: the loss returns nothing to learn from."""
        if not self.takes_count:
            # Such a loss is an average over its batch: Trainer then has to divide it by the accumulation count.
            trainer.model_accepts_loss_kwargs = False

    def begin_step(self, batches: Sequence[Any]) -> None:
        """Count the real tokens of the batches that make up an optimizer step, in all processes, without a wait."""
        distiller, accelerator = self.trainer.coordinator.distiller, self.trainer.accelerator
        self._step_tokens = None
        if distiller is None or not distiller.needs_hidden_states or not batches:
            return
        counts = [real_tokens(batch) if isinstance(batch, Mapping) else None for batch in batches]
        known = [count for count in counts if count is not None]
        if len(known) == len(counts):
            here = torch.stack(known).sum().to(accelerator.device)
            self._step_tokens = accelerator.reduce(here) if accelerator.num_processes > 1 else here

    def __call__(
        self,
        model: nn.Module,
        inputs: Mapping[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
        **more: Any,
    ) -> Any:
        """Return the loss to train on, or, in evaluation, the task loss."""
        if self.takes_count:
            more[_COUNT] = num_items_in_batch
        else:
            more = {}
        if not model.training:
            return self.written(model, inputs, return_outputs, **more)
        coordinator = self.trainer.coordinator
        asked = dict(inputs)
        if coordinator.needs_hidden_states:
            asked["output_hidden_states"] = True
        # Some losses return none, and say so by an error (GRPO, RLOO of trl): only distillation asks for outputs.
        asks = coordinator.distiller is not None and not self.runs_again
        result = self.written(model, asked, return_outputs or asks, **more)
        task_loss, outputs = result if isinstance(result, tuple) else (result, None)
        if coordinator.distiller is not None and (self.runs_again or not carries_gradient(outputs)):
            outputs = self._outputs_again(model, asked, outputs)
        without = outputs is None or (isinstance(outputs, Mapping) and not outputs)
        if without and coordinator.distiller is not None:
            raise ArgumentError(
                f"{type(self.trainer).__name__}.compute_loss",
                "returned a loss without the outputs, which are compared with the teacher's.",
                "Return (loss, outputs) when return_outputs is true, or train without a teacher.",
            )
        extra = coordinator.extra_losses(inputs, outputs)
        even = 1.0 if divides(self.trainer, num_items_in_batch) else 1.0 / _steps(self.trainer)
        share = share_of_step(self.trainer, inputs, num_items_in_batch)
        loss = coordinator.task_weight * task_loss
        if extra.distilled is not None:
            part = even if share is None else share
            for distilled, weight in (
                (extra.distilled.logits, part),
                (extra.distilled.hidden, self._token_share(inputs, num_items_in_batch, part)),
            ):
                loss = loss if distilled is None else loss + distilled * weight
        if extra.penalty is not None:
            loss = loss + extra.penalty * even
        return (loss, outputs) if return_outputs else loss

    def _token_share(self, inputs: Mapping[str, Any], num_items: Any, part: Tensor | float) -> Tensor | float:
        """Return the weight of this batch's mean over real tokens in its optimizer step, whoever divides by steps.

        Args:
            part: The weight of a mean over labels, for batches of which the tokens cannot be counted.
        """
        tokens = None if self._step_tokens is None else real_tokens(inputs)
        if tokens is None or self._step_tokens is None:
            return part
        steps = _steps(self.trainer) if divides(self.trainer, num_items) else 1
        share: Tensor = tokens / self._step_tokens * (steps * self.trainer.accelerator.num_processes)
        return share

    def _outputs_again(self, model: nn.Module, asked: Mapping[str, Any], outputs: Any) -> Any:
        """Return outputs that carry gradient, if the batch is one that the model reads (SFT of trl); else those given.

        A fused loss builds no logits, and what it returns beside itself was computed for metrics.
        """
        inner = unwrapped(self.trainer.accelerator.unwrap_model(model))
        if not set(asked) <= inspect.signature(inner.forward).parameters.keys():
            return outputs
        if not self.runs_again:
            logger.warning(
                "The loss builds no logits: a forward pass of its own is compared with the teacher."
            )
        self.runs_again = True
        return model(**asked)

    def check_returns_outputs(self) -> None:
        """Raise `ArgumentError` where a teacher is to be compared with outputs that the loss does not return."""
        written = [
            vars(base)["compute_loss"] for base in type(self.trainer).__mro__ if "compute_loss" in vars(base)
        ]
        own = next((n for n, loss in enumerate(written) if not calls_super(loss)), len(written) - 1)
        returns_none = any(raises_if(loss, "return_outputs") for loss in written[: own + 1])
        if self.trainer.coordinator.distiller is not None and returns_none:
            raise ArgumentError(
                f"{type(self.trainer).__name__}.compute_loss",
                "returns no outputs, and a teacher is compared with them.",
                "Train without a teacher.",
            )


SAYS_WHO_DIVIDES = "loss_is_scaled_for_ga" in vars(Trainer)
"""Whether this release of transformers asks a Trainer whether its loss is divided already."""


def divides(trainer: Any, num_items: Any) -> bool:
    """Tell whether `Trainer.training_step` divides the loss by the accumulation count: its rule in 5.23."""
    # Older versions know no such attribute, and pass over it where a script sets it.
    said: bool | None = trainer.loss_is_scaled_for_ga if SAYS_WHO_DIVIDES else None
    if said is not None:
        return not said
    counted = trainer.model_accepts_loss_kwargs and num_items is not None
    return not counted and trainer.compute_loss_func is None


def share_of_step(trainer: Any, inputs: Mapping[str, Any], num_items: Any) -> Tensor | None:
    """Return the weight of this batch's average loss in its optimizer step, or None where Trainer knows better."""
    if num_items is None or divides(trainer, num_items):
        return None
    if "shift_labels" in inputs:
        labels = inputs["shift_labels"]
    elif "labels" in inputs:
        labels = inputs["labels"][..., 1:] if trainer._loss_shifts_labels else inputs["labels"]
    else:
        return None
    share: Tensor = (labels != IGNORED).sum() / num_items
    if trainer.args.average_tokens_across_devices:
        share = share * trainer.accelerator.num_processes
    return share


def _steps(trainer: Any) -> int:
    count: int = trainer.current_gradient_accumulation_steps
    return count
