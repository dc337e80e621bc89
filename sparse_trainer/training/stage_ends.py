"""What is done where a stage of a training ends: the model is as asked, and training goes on as if nothing was."""

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, final

import numpy as np
import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from sparse_trainer.budget.stages import StagedSchedule
from sparse_trainer.errors import ArgumentError
from sparse_trainer.training.coordinator import ModelPatchingCoordinator


@final
class StageEnds(TrainerCallback):
    """Calls a function at the end of each stage of `speedups` or `densities`, and has a checkpoint saved there.

    `trainer.add_callback(StageEnds(trainer.coordinator, export))`: add it after the Trainer is made, so that the gates
    are those of the step. What the function does to random numbers is undone; the model it must leave as it is:
    `optimize_model(model)` cuts a copy.

    Args:
        coordinator: Of the training.
        at_end: Called with the number of the stage, from 0, and the Trainer's state.
        at_start: Called when training begins, with the stages that one which goes on is past.

    Raises:
        ArgumentError: the training has one budget.
    """

    def __init__(
        self,
        coordinator: ModelPatchingCoordinator,
        at_end: Callable[[int, TrainerState], None],
        at_start: Callable[[Sequence[int]], None] | None = None,
    ) -> None:
        schedule = coordinator.pruner.schedule
        if not isinstance(schedule, StagedSchedule):
            raise ArgumentError(
                "speedups, densities", "name no stage.", "Give one of them, e.g. `speedups=[1.5, 2]`."
            )
        self.schedule, self.at_end, self.at_start = schedule, at_end, at_start

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Tell which stages are past."""
        if self.at_start is not None:
            ends = (self.schedule.ends(step, state.max_steps) for step in range(1, state.global_step + 1))
            self.at_start([stage for stage in ends if stage is not None])

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Call the function where a stage ends with this step."""
        stage = self.schedule.ends(state.global_step, state.max_steps)
        if stage is None:
            return
        with random_numbers_kept():
            self.at_end(stage, state)
        control.should_save = True


@contextmanager
def random_numbers_kept() -> Iterator[None]:
    """Leave the random numbers that follow a `with` block as they would have been without it."""
    python, arrays = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        random.setstate(python)
        np.random.set_state(arrays)
