"""What moves the coordinator along with a Trainer."""

import logging
from collections.abc import Callable
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from sparse_trainer.training.coordinator import ModelPatchingCoordinator
from sparse_trainer.training.restart import Restart

logger = logging.getLogger(__name__)


class PruningCallback(TrainerCallback):
    """Moves the coordinator with the Trainer. Holds no state of its own."""

    def __init__(
        self,
        coordinator: ModelPatchingCoordinator,
        calibrate: Callable[[], None],
        check_rows: Callable[[], None],
        restart: Restart,
    ) -> None:
        self.coordinator, self.restart = coordinator, restart
        self.calibrate, self.check_rows = calibrate, check_rows

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        optimizer: Any = None,
        **kwargs: Any,
    ) -> None:
        """Start, or go on."""
        if self.coordinator.wants_calibration and state.global_step == 0:
            self.calibrate()
        self.coordinator.begin(state.max_steps, state.global_step, args.get_warmup_steps(state.max_steps))
        if self.coordinator.args.reconstruct is not None:
            self.check_rows()
        if args.auto_find_batch_size:
            model, scores = self.coordinator.model, self.coordinator.score_parameters()
            refits = self.coordinator.args.reconstruct is not None
            self.restart.begin(model, optimizer, scores, dict(model.named_parameters()) if refits else {})

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Select anew; what was measured of a structure that is not final makes no model the best one."""
        was_finished = self.coordinator.finished
        self.coordinator.step(state.global_step)
        if self.coordinator.wants_calibration:
            self.calibrate()
        if control.should_log or control.should_evaluate or control.should_save:
            self.coordinator.check_agreement()
        if not was_finished:
            # A half-pruned model scores better than the one asked for: it must not become "the best".
            state.best_metric = state.best_model_checkpoint = state.best_global_step = None

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Compare with the other processes before what epochs end with."""
        self.coordinator.check_agreement()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Finish, and say where the best model was none to choose."""
        self.coordinator.check_agreement()
        self.coordinator.end()
        if args.load_best_model_at_end and self.coordinator.finished:
            _tell_of_choice(state, self.coordinator.final_from)


def _tell_of_choice(state: TrainerState, final_from: int) -> None:
    """Warn where fewer than two evaluations saw the final structure, so that there was no best model to choose."""
    choices = {
        entry["step"]
        for entry in state.log_history
        if entry["step"] >= final_from and any(name.startswith("eval_") for name in entry)
    }
    if len(choices) < 2:
        logger.warning(
            "load_best_model_at_end: the structure is final from step %d of %d on, and %s evaluated from there: %s. "
            "Evaluate more often (eval_steps), or let the structure be final earlier (a larger cooldown_ratio; beside "
            "reconstruct a smaller pruning_warmup_ratio; of masks final_warmup).",
            final_from, state.max_steps, "one model was" if choices else "no model was",
            "there was nothing to choose" if state.best_model_checkpoint else "the model of the last step stays",
        )  # fmt: skip
