"""`SparseTrainer`: the mixin that makes any `Trainer` prune while it fine-tunes."""

import dataclasses
import inspect
import json
import os
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import torch
from accelerate.utils import broadcast
from torch import Tensor, nn
from torch.utils.data import IterableDataset, Subset
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from sparse_trainer.args import SparseTrainingArguments
from sparse_trainer.coordinator import ModelPatchingCoordinator
from sparse_trainer.distillation.teacher import IGNORED
from sparse_trainer.errors import ArgumentError
from sparse_trainer.files import write_text

STATE_FILE = "pruning_state.json"


class SparseTrainer:
    """Mixin for `transformers.Trainer`: `class PruningTrainer(SparseTrainer, Trainer)`.

    As in nn_pruning, a subclass may also call `Trainer.__init__(self, …)` and then `SparseTrainer.__init__(self,
    sparse_args)`, and hand over a coordinator that has patched the model: `trainer.set_patch_coordinator(coordinator)`.

    Args:
        sparse_args: What to prune and how.
        teacher: A model to learn from.
        args, kwargs: Go to the Trainer. The model is patched before the Trainer sees it.
    """

    _coordinator: ModelPatchingCoordinator | None = None
    metrics: dict[str, float]
    """Sums that a `compute_loss` of your own may add to; logged as means over `loss_counter`."""
    loss_counter: int = 0

    def __init__(
        self,
        *args: Any,
        sparse_args: SparseTrainingArguments | None = None,
        teacher: nn.Module | None = None,
        **kwargs: Any,
    ) -> None:
        self.metrics = defaultdict(float)
        if args and isinstance(args[0], SparseTrainingArguments):
            self.sparse_args = args[0]
            self._accept_older_scripts()
            return
        coordinator = ModelPatchingCoordinator(sparse_args, teacher=teacher)
        self._coordinator = coordinator
        model = args[0] if args else kwargs.get("model")
        if model is not None:
            coordinator.patch_model(model)
        super().__init__(*args, **kwargs)
        self.set_patch_coordinator(coordinator)

    @property
    def coordinator(self) -> ModelPatchingCoordinator:
        """What patches and prunes the model."""
        if self._coordinator is None:
            raise ArgumentError(
                type(self).__name__, "has no coordinator.", "Call set_patch_coordinator(…) before train()."
            )
        return self._coordinator

    def set_patch_coordinator(self, coordinator: ModelPatchingCoordinator) -> None:
        """Prune with this coordinator, which has patched the model."""
        self._coordinator = coordinator
        if self.args.n_gpu > 1:  # type: ignore[attr-defined]
            raise ArgumentError(
                "n_gpu",
                f"{self.args.n_gpu} GPUs in one process mean torch.nn.DataParallel, whose replicas share no gates.",  # type: ignore[attr-defined]
                "Start one process per GPU (torchrun or accelerate launch), or set CUDA_VISIBLE_DEVICES.",
            )
        self.add_callback(_Schedule(coordinator, self._calibrate))  # type: ignore[attr-defined]
        self._place_scores()

    def _accept_older_scripts(self) -> None:
        """Serve what scripts written for transformers 4 rely on: `args.past_index`, and losses of three arguments."""
        vars(self.args).setdefault("past_index", -1)  # type: ignore[attr-defined]
        written = self.compute_loss
        if "num_items_in_batch" in inspect.signature(written).parameters:
            return
        # Such a loss is an average over its batch: Trainer then has to divide it by the accumulation count.
        vars(self)["model_accepts_loss_kwargs"] = False

        def without_count(
            model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, **more: Any
        ) -> Any:
            return written(model, inputs, return_outputs)

        vars(self)["compute_loss"] = without_count

    def call_model_init(self, trial: Any = None) -> nn.Module:
        """Patch each model that `model_init` makes."""
        model = super().call_model_init(trial)  # type: ignore[misc]
        return self.coordinator.patch_model(model)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Give learned scores a group of their own; scores that are only read get none."""
        optimizer: torch.optim.Optimizer = super().create_optimizer(model)  # type: ignore[misc]
        self._place_scores()
        return optimizer

    def _place_scores(self) -> None:
        """Take the scores out of the optimizer's other groups, once, and add the group they belong to."""
        optimizer = self.optimizer  # type: ignore[attr-defined]
        if optimizer is None or any(group.get("holds_scores") for group in optimizer.param_groups):
            return
        scores = {id(p) for p in self.coordinator.score_parameters()}
        for group in optimizer.param_groups:
            group["params"] = [p for p in group["params"] if id(p) not in scores]
        for group in self.coordinator.score_groups():
            optimizer.add_param_group({**group, "holds_scores": True})

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """Train on one batch; read the mask gradients after the last batch of an optimizer step, before clipping."""
        loss: Tensor = super().training_step(model, inputs, num_items_in_batch)  # type: ignore[misc]
        if self.accelerator.sync_gradients:  # type: ignore[attr-defined]
            self.coordinator.observe()
        return loss

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
        **kwargs: Any,
    ) -> Any:
        """Add distillation and penalty to the task loss, each divided as gradient accumulation demands.

        Transformers 5.23 leaves a loss undivided when the model takes loss arguments, also where the model ignores
        them (the sequence classifiers average over the batch at hand). So the plain average is asked for, and weighted
        by the share of this batch in the accumulated one: 1 x 8 then equals 4 x 2.
        """
        if not model.training:
            return super().compute_loss(  # type: ignore[misc]
                model, inputs, return_outputs, num_items_in_batch=num_items_in_batch, **kwargs
            )
        share = self._share_of_step(inputs, num_items_in_batch)
        asked = (
            {**inputs, "output_hidden_states": True} if self.coordinator.needs_hidden_states else dict(inputs)
        )
        passed = None if share is not None else num_items_in_batch
        loss, outputs = super().compute_loss(  # type: ignore[misc]
            model, asked, return_outputs=True, num_items_in_batch=passed, **kwargs
        )
        extra = self.coordinator.extra_losses(inputs, outputs)
        loss = self.coordinator.task_weight * loss
        accumulation = self.current_gradient_accumulation_steps  # type: ignore[attr-defined]
        divided = share is None and num_items_in_batch is not None
        if extra.distillation is not None:
            loss = loss + (extra.distillation / accumulation if divided else extra.distillation)
        if share is not None:
            loss = loss * share
        if extra.penalty is not None:
            loss = loss + (extra.penalty / accumulation if divided or share is not None else extra.penalty)
        return (loss, outputs) if return_outputs else loss

    def _share_of_step(self, inputs: dict[str, Any], num_items: Any) -> Tensor | None:
        """Return the weight of this batch's average loss in its optimizer step, or None where Trainer knows better."""
        own_loss = self.compute_loss_func is not None or self.label_smoother is not None  # type: ignore[attr-defined]
        if num_items is None or own_loss or not self.model_accepts_loss_kwargs:  # type: ignore[attr-defined]
            return None
        labels = inputs["labels"][..., 1:] if self._loss_shifts_labels else inputs["labels"]  # type: ignore[attr-defined]
        share: Tensor = (labels != IGNORED).sum() / num_items
        if self.args.average_tokens_across_devices:  # type: ignore[attr-defined]
            share = share * self.accelerator.num_processes  # type: ignore[attr-defined]
        return share

    def _calibrate(self) -> None:
        """Score units on rows of the training set, drawn by the seed of the training; on rank 0, for all."""
        rows: Any = self.train_dataset  # type: ignore[attr-defined]
        if isinstance(rows, IterableDataset | datasets.IterableDataset):
            raise ArgumentError(
                "scoring",
                "rows of a streamed training set cannot be drawn.",
                "Call coordinator.calibrate(batches).",
            )
        generator = torch.Generator().manual_seed(self.args.seed)  # type: ignore[attr-defined]
        drawn = torch.randperm(len(rows), generator=generator)[
            : self.coordinator.args.calibration_samples
        ].tolist()
        rows = rows.select(drawn) if isinstance(rows, datasets.Dataset) else Subset(rows, drawn)
        with torch.random.fork_rng():
            self.coordinator.calibrate(dict(batch) for batch in self.get_eval_dataloader(rows))  # type: ignore[attr-defined]
        for gate in self.coordinator.gates.values():
            for score_U in gate.buffers():
                broadcast(score_U)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Add density, threshold and the extra losses to what training logs."""
        if self.loss_counter:
            logs.update({name: total / self.loss_counter for name, total in self.metrics.items()})
            self.metrics, self.loss_counter = defaultdict(float), 0
        if "loss" in logs:
            logs.update(self.coordinator.metrics())
        super().log(logs, *args, **kwargs)  # type: ignore[misc]

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """Judge weight masks and cheaper layers by what they will be in the end."""
        with self.coordinator.final_masks():
            return super().evaluation_loop(*args, **kwargs)  # type: ignore[misc]

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save, and write beside the weights what rebuilds the gates; refuse to save NaN scores."""
        self.coordinator.check_finite()
        super().save_model(output_dir, _internal_call)  # type: ignore[misc]
        folder = Path(output_dir or self.args.output_dir)  # type: ignore[attr-defined]
        if self.args.should_save:  # type: ignore[attr-defined]
            save_state(folder, self.coordinator)


class PruningTrainer(SparseTrainer, Trainer):
    """`Trainer` that prunes while it fine-tunes."""


def save_state(folder: str | os.PathLike[str], coordinator: ModelPatchingCoordinator) -> None:
    """Write what `load_patched` needs to hang the same gates again."""
    state = {
        "format": 1,
        "sparse_args": dataclasses.asdict(coordinator.args),
        "step": coordinator.current_step,
        "total_steps": coordinator.total_steps,
    }
    write_text(Path(folder) / STATE_FILE, json.dumps(state, indent=2) + "\n")


class _Schedule(TrainerCallback):
    """Moves the coordinator with the Trainer. Holds no state of its own."""

    def __init__(self, coordinator: ModelPatchingCoordinator, calibrate: Callable[[], None]) -> None:
        self.coordinator, self.calibrate = coordinator, calibrate

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.coordinator.wants_calibration and state.global_step == 0:
            self.calibrate()
        self.coordinator.begin(state.max_steps, state.global_step, args.get_warmup_steps(state.max_steps))

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.coordinator.step(state.global_step)
        if not self.coordinator.finished:
            # A half-pruned model scores better than the one asked for: it must not become "the best".
            state.best_metric = state.best_model_checkpoint = state.best_global_step = None

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.coordinator.end()
