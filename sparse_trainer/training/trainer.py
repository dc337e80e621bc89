"""`SparseTrainer`: the mixin that makes any `Trainer` prune while it fine-tunes."""

import os
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import torch
from accelerate.utils import broadcast
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, Subset
from transformers import Trainer
from transformers.trainer_pt_utils import LengthGroupedSampler

from patchers.modeling_pruned import is_no_norm
from patchers.patching.blends import BlendedNorm
from patchers.patching.merging import has_adapters
from sparse_trainer.errors import ArgumentError
from sparse_trainer.files.names import STATE_FILE
from sparse_trainer.files.writing import writing
from sparse_trainer.training.adapter_files import lie_apart, restore_adapters
from sparse_trainer.training.arguments.arguments import SparseTrainingArguments
from sparse_trainer.training.callback import PruningCallback
from sparse_trainer.training.checkpoint import (
    EARLIER,
    check_resumed,
    find_checkpoint,
    is_over,
    open_again,
    save_state,
)
from sparse_trainer.training.coordinator import ModelPatchingCoordinator
from sparse_trainer.training.finished import check_evaluates, check_unfinished, save_finished, write_card
from sparse_trainer.training.gate_file import restore_gates
from sparse_trainer.training.loss import PruningLoss, share_of_step
from sparse_trainer.training.optimizer_groups import check_loads_names, check_match, place_scores
from sparse_trainer.training.restart import Restart
from sparse_trainer.training.sampling import GroupedByEpoch
from sparse_trainer.training.search import SearchSpace, Space
from sparse_trainer.training.sharding import (
    average_gradients,
    check_sharing,
    is_fsdp,
    keep_whole,
    saves_shards,
    set_apart,
)
from sparse_trainer.training.widths_report import WidthsReport
from sparse_trainer.training.wrapped_model import has_whole, load_whole, save_whole

__all__ = ["STATE_FILE", "PruningTrainer", "SparseTrainer", "save_state"]


class SparseTrainer:
    """Mixin for `transformers.Trainer`: `class PruningTrainer(SparseTrainer, Trainer)`.

    As in nn_pruning, a subclass may also call `Trainer.__init__(self, …)` and then `SparseTrainer.__init__(self,
    sparse_args)`, and hand over a coordinator that has patched the model: `trainer.set_patch_coordinator(coordinator)`.

    Args:
        sparse_args: What to prune and how.
        teacher: A model to learn from.
        args, kwargs: Go to the Trainer. The model is patched before the Trainer sees it; one that the Trainer loads
            itself, by name (trl), right afterwards.
    """

    _coordinator: ModelPatchingCoordinator | None = None
    _search: SearchSpace | None = None
    sparse_args: SparseTrainingArguments | None = None
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
        self._restart = Restart()
        if args and isinstance(args[0], SparseTrainingArguments):
            self.sparse_args = args[0]
            # Scripts written for transformers 4 read it.
            vars(self.args).setdefault("past_index", -1)  # type: ignore[attr-defined]
            vars(self)["compute_loss"] = PruningLoss(self, of_nn_pruning=True)
            return
        coordinator = ModelPatchingCoordinator(sparse_args, teacher=teacher)
        self._coordinator = coordinator
        model = args[0] if args else kwargs.get("model")
        if isinstance(model, nn.Module):
            coordinator.patch_model(model)
        elif model is not None:
            check_loads_names(type(self), SparseTrainer, model)
        super().__init__(*args, **kwargs)
        if isinstance(model, str | os.PathLike):
            coordinator.patch_model(self.model)  # type: ignore[attr-defined]
        vars(self)["compute_loss"] = PruningLoss(self)
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
        """Prune with this coordinator, which has patched the model.

        Raises:
            ArgumentError: it has patched no model or another one, or was made of other arguments.
        """
        check_match(coordinator, self.model, self.sparse_args)  # type: ignore[attr-defined]
        coordinator.follow_adapters(self.model)  # type: ignore[attr-defined]
        self._coordinator = coordinator
        vars(self)["compute_loss"].check_returns_outputs()
        # Each trial of a search has an accelerator of its own.
        coordinator.teacher_context = lambda: self.accelerator.autocast()  # type: ignore[attr-defined]
        if self.args.n_gpu > 1:  # type: ignore[attr-defined]
            raise ArgumentError(
                "n_gpu",
                f"{self.args.n_gpu} GPUs in one process mean torch.nn.DataParallel, whose replicas share no gates.",  # type: ignore[attr-defined]
                "Start one process per GPU (torchrun or accelerate launch), or set CUDA_VISIBLE_DEVICES.",
            )
        check_sharing(self.accelerator, self.model, coordinator.args.driver_options)  # type: ignore[attr-defined]
        self._keep_whole()
        self.remove_callback(PruningCallback)  # type: ignore[attr-defined]
        self.add_callback(PruningCallback(coordinator, self._calibrate, self._check_rows, self._restart))  # type: ignore[attr-defined]
        handler = self.callback_handler  # type: ignore[attr-defined]
        handler.remove_callback(WidthsReport)
        # Those that report close when training ends: the picture has to come before.
        handler.callbacks.insert(0, WidthsReport(coordinator, handler))
        self._place_scores()

    def call_model_init(self, trial: Any = None) -> nn.Module:
        """Patch each model that `model_init` makes, in a search by the options of the trial."""
        if self._search is not None:
            self.coordinator.args = self._search.pruning(trial)
        model = super().call_model_init(trial)  # type: ignore[misc]
        if not isinstance(model, nn.Module):
            raise ArgumentError("model_init", f"returned {model!r}, which is no model.", "Return a model.")
        return self.coordinator.patch_model(model)

    def hyperparameter_search(self, hp_space: Space | None = None, *args: Any, **kwargs: Any) -> Any:
        """Search options; with optuna also those of pruning, by the names that they have in `sparse_args`.

        Each trial patches a model from `model_init` anew. Afterwards the Trainer has its own `sparse_args` again.
        """
        asked = self.coordinator.args
        if hp_space is not None:
            self._search = SearchSpace(hp_space, asked, lambda: self.hp_search_backend)  # type: ignore[attr-defined]
        space = None if self._search is None else self._search.training
        try:
            return super().hyperparameter_search(space, *args, **kwargs)  # type: ignore[misc]
        finally:
            self._search, self.coordinator.args = None, asked

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """Leave out the scales of cheaper norms: Trainer knows norms by class, or by a name such as LayerNorm."""
        names: list[str] = super().get_decay_parameter_names(model)  # type: ignore[misc]
        norms = {path for path, m in model.named_modules() if isinstance(m, BlendedNorm) or is_no_norm(m)}
        return [name for name in names if name.rpartition(".")[0] not in norms]

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Give learned scores a group of their own; scores that are only read get none."""
        optimizer: torch.optim.Optimizer = super().create_optimizer(model)  # type: ignore[misc]
        self._place_scores()
        if is_fsdp(self.accelerator):  # type: ignore[attr-defined]
            self._keep_whole()
            set_apart(optimizer, self.coordinator.attached_parameters())
        return optimizer

    def _keep_whole(self) -> None:
        """Let FSDP leave what was attached to the model whole."""
        if is_fsdp(self.accelerator):  # type: ignore[attr-defined]
            keep_whole(self.accelerator, self.model)  # type: ignore[attr-defined]

    def _place_scores(self) -> None:
        """Give the scores the optimizer groups they belong to, once."""
        place_scores(self.optimizer, self.lr_scheduler, self.coordinator)  # type: ignore[attr-defined]

    def train(
        self, resume_from_checkpoint: str | os.PathLike[str] | bool | None = None, *args: Any, **kwargs: Any
    ) -> Any:
        """Train; a checkpoint to go on from must be complete, and pruned by the same arguments.

        Raises:
            ArgumentError: The model was cut in its place.
            CheckpointError: It is not; the arguments that differ are named.
        """
        if self.model_init is None:  # type: ignore[attr-defined]
            check_unfinished(self.model)  # type: ignore[attr-defined]
        checkpoint = find_checkpoint(resume_from_checkpoint, self.args.output_dir)  # type: ignore[attr-defined]
        if checkpoint is not None:
            check_resumed(checkpoint, self.model, self.coordinator.args)  # type: ignore[attr-defined]
        resumed = None if checkpoint is None else str(checkpoint)
        self._restart.forget()
        return super().train(resumed, *args, **kwargs)  # type: ignore[misc]

    def _get_train_sampler(self, *args: Any, **kwargs: Any) -> Any:
        """Return Trainer's sampler; rows of like length in the same order where a training is resumed."""
        sampler = super()._get_train_sampler(*args, **kwargs)  # type: ignore[misc]
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed  # type: ignore[attr-defined]
        return GroupedByEpoch(sampler, seed) if isinstance(sampler, LengthGroupedSampler) else sampler

    def restore(self, checkpoint: str | os.PathLike[str]) -> None:
        """Set model and gates to those that a training of the same arguments saved, without training.

        Raises:
            CheckpointError: The arguments differ, or what lies there is damaged.
        """
        check_resumed(Path(checkpoint), self.model, self.coordinator.args)  # type: ignore[attr-defined]
        self._load_from_checkpoint(os.fspath(checkpoint))

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """Return the batches of the next step: none where all steps are taken, as in a checkpoint of the last one."""
        over = is_over(self.state, self.callback_handler.callbacks)  # type: ignore[attr-defined]
        batches, count = ([], None) if over else super().get_batch_samples(*args, **kwargs)  # type: ignore[misc]
        vars(self)["compute_loss"].begin_step(batches)
        return batches, count

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """Train on one batch; read the mask gradients after the last batch of an optimizer step, before clipping."""
        loss: Tensor = super().training_step(model, inputs, num_items_in_batch)  # type: ignore[misc]
        if self.accelerator.sync_gradients:  # type: ignore[attr-defined]
            if is_fsdp(self.accelerator):  # type: ignore[attr-defined]
                average_gradients(self.coordinator.attached_parameters())
            self.coordinator.observe(self._loss_scale())
        return loss

    def _loss_scale(self) -> Tensor | None:
        """Return what fp16 training multiplies gradients by until they are clipped, without waiting for it."""
        scaler = self.accelerator.scaler  # type: ignore[attr-defined]
        if scaler is None:
            return None
        scale: Tensor = scaler.scale(torch.ones((), device=self.args.device))  # type: ignore[attr-defined]
        return scale

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
        **kwargs: Any,
    ) -> Any:
        """Return the task loss, weighted as gradient accumulation demands; `PruningLoss` adds the rest around it.

        Transformers 5.23 leaves a loss undivided when the model takes loss arguments, also where the model ignores
        them (the sequence classifiers average over the batch at hand). So the plain average is asked for, and weighted
        by the share of this batch in the accumulated one: 1 x 8 then equals 4 x 2. Losses that a Trainer computes on
        outputs, a smoothed one or `compute_loss_func`, are given the number of items and divide by it.
        """
        is_own = self.label_smoother is not None or self.compute_loss_func is not None  # type: ignore[attr-defined]
        share = share_of_step(self, inputs, num_items_in_batch) if model.training and not is_own else None
        passed = num_items_in_batch if share is None else None
        result = super().compute_loss(  # type: ignore[misc]
            model, inputs, return_outputs, num_items_in_batch=passed, **kwargs
        )
        if share is None:
            return result
        return (result[0] * share, result[1]) if return_outputs else result * share

    def _calibrate(self) -> None:
        """Score units on rows of the training set, drawn by the seed of the training; on rank 0, for all."""
        with torch.random.fork_rng():
            self.coordinator.calibrate(self._batches_of(self._drawn_rows()))
        for gate in self.coordinator.gates.values():
            for score_U in (*gate.buffers(), *(p.data for p in gate.parameters())):
                broadcast(score_U)
        for weight in self.coordinator.refitted_parameters():
            broadcast(weight.data)

    def _check_rows(self) -> None:
        """Refuse, before training, a calibration set that would be too small when the time comes."""
        with torch.random.fork_rng():
            self.coordinator.check_calibration(self._batches_of(self._drawn_rows()))

    def _drawn_rows(self) -> Any:
        """Return the rows of the training set that units are scored on, the same whenever it is asked."""
        rows: Any = self.train_dataset  # type: ignore[attr-defined]
        if isinstance(rows, IterableDataset | datasets.IterableDataset):
            repairs = self.coordinator.args.reconstruct is not None
            raise ArgumentError(
                "scoring",
                "rows of a streamed training set cannot be drawn.",
                "Give one with a length." if repairs else "Call coordinator.calibrate(batches).",
            )
        generator = torch.Generator().manual_seed(self.args.seed)  # type: ignore[attr-defined]
        drawn = torch.randperm(len(rows), generator=generator)[
            : self.coordinator.args.calibration_samples
        ].tolist()
        return rows.select(drawn) if isinstance(rows, datasets.Dataset) else Subset(rows, drawn)

    def _batches_of(self, rows: Any) -> Iterator[dict[str, Any]]:
        """Yield all rows on every rank; Trainer's own loaders share them out, and may stay for later evaluations."""
        collate = self.data_collator  # type: ignore[attr-defined]
        if isinstance(rows, datasets.Dataset):
            rows = self._remove_unused_columns(rows)  # type: ignore[attr-defined]
        else:
            collate = self._get_collator_with_removed_columns(collate)  # type: ignore[attr-defined]
        for batch in DataLoader(rows, self.args.eval_batch_size, collate_fn=collate):  # type: ignore[attr-defined]
            yield dict(self._prepare_inputs(batch))  # type: ignore[attr-defined]

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
        check_evaluates(self.model, self.coordinator.model)  # type: ignore[attr-defined]
        with self.coordinator.final_masks():
            return super().evaluation_loop(*args, **kwargs)  # type: ignore[misc]

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save, and write beside the weights what rebuilds the gates; of one that was cut, its plan; no NaN scores.

        Called by a user it saves the whole model, also where FSDP keeps checkpoints in shards.
        """
        self.coordinator.check_finite()
        folder = Path(output_dir or self.args.output_dir)  # type: ignore[attr-defined]
        with writing(folder):
            if self.args.should_save:  # type: ignore[attr-defined]
                folder.mkdir(parents=True, exist_ok=True)  # Trainer makes none where FSDP saves parts
                open_again(folder)
            super().save_model(output_dir, _internal_call)  # type: ignore[misc]
            if not _internal_call and saves_shards(self.accelerator):  # type: ignore[attr-defined]
                state = self.accelerator.get_state_dict(self.model)  # type: ignore[attr-defined]
                if self.args.should_save:  # type: ignore[attr-defined]
                    self._save(str(folder), state_dict=state)  # type: ignore[attr-defined]
        if self.args.should_save and not save_finished(folder, self.model):  # type: ignore[attr-defined]
            save_state(folder, self.coordinator)
            save_whole(folder, self.model)  # type: ignore[attr-defined]

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Write our card of a model that was cut, which `push_to_hub` sends as well; before the cut, Trainer's own."""
        if not self.is_world_process_zero():  # type: ignore[attr-defined]
            return
        if not write_card(Path(self.args.output_dir), self.model):  # type: ignore[attr-defined]
            super().create_model_card(*args, **kwargs)  # type: ignore[misc]

    def _load_from_checkpoint(self, resume_from_checkpoint: str, *args: Any, **kwargs: Any) -> None:
        """Load a checkpoint; a library whose model wraps another one cannot read the inner one back with its gates."""
        load = super()._load_from_checkpoint  # type: ignore[misc]
        self._load(resume_from_checkpoint, lambda: load(resume_from_checkpoint, *args, **kwargs))

    def _load_best_model(self) -> None:
        """Load the best checkpoint, likewise."""
        self._load(self.state.best_model_checkpoint, super()._load_best_model)  # type: ignore[attr-defined,misc]

    def _load(self, checkpoint: str, usual: Callable[[], None]) -> None:
        """Load a whole wrapper, or the adapters that Trainer would not find, or as Trainer does; then the gates."""
        model: nn.Module = self.model  # type: ignore[attr-defined]
        if has_whole(checkpoint):
            load_whole(checkpoint, model)
            return
        if lie_apart(model):
            restore_adapters(checkpoint, model, EARLIER)
        else:
            usual()
        if has_adapters(model):
            restore_gates(checkpoint, self.coordinator.model, EARLIER)


class PruningTrainer(SparseTrainer, Trainer):
    """`Trainer` that prunes while it fine-tunes."""


def pruning_trainer(base: type[Trainer]) -> type[Any]:
    """Return the Trainer class that prunes while it does what `base` does, e.g. `Seq2SeqTrainer`."""
    return PruningTrainer if base is Trainer else type(f"Pruning{base.__name__}", (SparseTrainer, base), {})
