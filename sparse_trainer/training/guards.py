"""Callbacks that end a training: by the clock, where losses are no numbers any more; and zeros that stay zero."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, final

import torch
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from sparse_trainer.errors import NonFiniteError

_WATCHED = ("loss", "grad_norm")
_CALMER = "Lower the learning rate, or train in float32 (bf16=False)."


@final
class StopWhenNonFinite(TrainerCallback):
    """Ends a training by an error when a loss or the norm of the gradients is NaN or infinite.

    It looks where Trainer logs, which is where the host waits for the device anyway; one bad step leaves NaN in the
    weights, so that the next look finds it. Set `logging_nan_inf_filter=False`: Trainer hides such losses by default.

    Args:
        tell: Called with one line per log.
    """

    def __init__(self, tell: Callable[[str], object]) -> None:
        self._tell = tell

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Check what is logged.

        Raises:
            NonFiniteError: It is no number.
        """
        logged = logs or {}
        found = {name: float(logged[name]) for name in _WATCHED if name in logged}
        for name, value in found.items():
            if not math.isfinite(value):
                raise NonFiniteError(
                    "recovery",
                    f"{name} is {value} at step {state.global_step}; nothing was written.",
                    _CALMER,
                )
        if "loss" in found:
            self._tell(f"step {state.global_step}: loss {found['loss']:.4g}")


@final
class Clock(TrainerCallback):
    """Ends a training after a time, and tells how much of it is over, by steps or by minutes, whichever is further."""

    def __init__(self, steps: int, minutes: float | None) -> None:
        self._steps, self._seconds = steps, None if minutes is None else 60 * minutes
        self._start = time.monotonic()

    def share(self, step: int) -> float:
        """Return which share of the training is over after a step, in [0, 1]."""
        by_steps = step / self._steps
        by_time = 0.0 if self._seconds is None else self.seconds / self._seconds
        return min(1.0, max(by_steps, by_time))

    @property
    def seconds(self) -> float:
        """Seconds since training began."""
        return time.monotonic() - self._start

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start to count."""
        self._start = time.monotonic()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Stop when the time is over."""
        if self._seconds is not None and self.seconds >= self._seconds:
            control.should_training_stop = True


@final
class KeepZeros(TrainerCallback):
    """Puts back zeros that masks left in weights: after each step, and when it is called.

    Args:
        weights: The masked ones; what is zero in them now stays zero.
    """

    def __init__(self, weights: Sequence[nn.Parameter]) -> None:
        self._masked: list[tuple[nn.Parameter, Tensor]] = [
            (weight, weight.detach() == 0) for weight in weights
        ]

    @torch.no_grad()
    def __call__(self) -> None:
        """Write the zeros."""
        for weight, is_zero in self._masked:
            weight.masked_fill_(is_zero.to(weight.device), 0)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Write the zeros into weights that an optimizer has moved; under adapters the weights lie still."""
        if any(weight.requires_grad for weight, _ in self._masked):
            self()


def check_learned(model: nn.Module) -> None:
    """Raise `NonFiniteError` where a parameter of a trained model is NaN or infinite: the host waits once."""
    found = torch.stack([parameter.isfinite().all() for parameter in model.parameters()])
    if not bool(found.all()):
        bad = next(name for name, p in model.named_parameters() if not bool(p.isfinite().all()))
        raise NonFiniteError("recovery", f"{bad} is NaN or infinite; nothing was written.", _CALMER)
