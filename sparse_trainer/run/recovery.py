"""Recovery: train a model that was cut briefly, by adapters that are merged at the end; its plan says so afterwards."""

import dataclasses
import math
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from transformers import PreTrainedModel, PrinterCallback, Trainer, TrainingArguments

from patchers.patching.merging import has_adapters
from sparse_trainer.cut.record import attach_plan, plan_of
from sparse_trainer.errors import (
    ArgumentError,
    CheckpointError,
    DataError,
    RecipeError,
    UnsupportedModelError,
    first_line,
)
from sparse_trainer.plan.document import Plan
from sparse_trainer.plan.parts import Recovered
from sparse_trainer.run.bare_model import bare_model
from sparse_trainer.run.curves import Log
from sparse_trainer.run.lora import check_peft, merged
from sparse_trainer.run.options import SourceOptions, Tell
from sparse_trainer.run.recovery_options import RecoveryOptions
from sparse_trainer.run.trainings import dense_trainer
from sparse_trainer.tasks.base import Prepared
from sparse_trainer.tasks.language.causal_model import check_causal, check_foretells
from sparse_trainer.tasks.language.token_losses import PERPLEXITY
from sparse_trainer.tasks.registry import TASKS
from sparse_trainer.training.distillation.comparable import check_teacher
from sparse_trainer.training.distilling import distilling_trainer
from sparse_trainer.training.guards import Clock, KeepZeros, StopWhenNonFinite, check_learned

_LOOK_EVERY = 10
"""Steps between two looks at loss and gradients."""
_WARMUP = 0.03
"""Share of the training in which the learning rate rises."""
_PER_HELD_OUT = 20
"""Of a file without validation, at most one row in so many is held out."""


def load_dense(options: RecoveryOptions, source: SourceOptions, tell: Tell) -> PreTrainedModel | None:
    """Return the dense model that is named, where `source` places models; None where none is.

    Raises:
        CheckpointError: It cannot be loaded.
    """
    if options.teacher is None:
        return None
    tell(f"loading the teacher {options.teacher}")
    return dataclasses.replace(source, name_or_path=options.teacher, revision="main").load()


def check_recovery(options: RecoveryOptions) -> None:
    """Refuse what needs neither model nor data to be refused.

    Raises:
        ArgumentError: peft is missing, or a file of validation stands beside a set that has its own.
        DataError: A data file is not there.
    """
    if options.lora is not None:
        try:
            check_peft()
        except RecipeError as error:
            remedy = "Run `pip install 'peft>=0.18'`, or train norms-and-biases."
            raise ArgumentError("train", error.what, remedy) from error
    options.check_data()


def check_targets(options: RecoveryOptions, model: PreTrainedModel) -> None:
    """Refuse a model that cannot be trained so; one without weights, on the meta device, will do.

    Raises:
        ArgumentError: It has adapters already, or no module that is named, or nothing of what is to learn.
    """
    if has_adapters(model):
        raise ArgumentError(
            "model", "has adapters already, which recovery would freeze.", "Call merge_and_unload() first."
        )
    if options.lora is not None:
        with _naming_targets(), options.lora.tried(model):
            return
    if options.train == "norms-and-biases" and not any(map(_is_small, model.parameters())):
        raise ArgumentError("train", "the model has neither norms nor biases.", "Train lora, or all.")


def read_data(options: RecoveryOptions, tokenizer: Any) -> Prepared:
    """Load and encode the data: before any model is loaded.

    Raises:
        DataError: It cannot be had, or lacks what is asked for.
    """
    instructions: Any = TASKS["instruction-tuning"]
    task = instructions(plain=False) if options.instructions else TASKS["causal-lm"]()
    try:
        data = task.prepare(options.data_options(), tokenizer)
    except RecipeError as error:
        raise DataError(error.where, error.what, error.remedy) from error
    if options.is_local and options.validation is None:
        count = min(options.held_out, max(1, len(data.train) // _PER_HELD_OUT))
        if len(data.train) < 2:
            raise DataError("data", "one row cannot be learned from and held out.", "Give more text.")
        first = len(data.train) - count
        data = dataclasses.replace(
            data,
            train=data.train.select(range(first)),
            validation=data.train.select(range(first, len(data.train))),
        )
    kept = min(options.held_out, len(data.validation))
    return dataclasses.replace(data, validation=data.validation.select(range(kept)))


def check_dense(model: PreTrainedModel, teacher: PreTrainedModel, options: RecoveryOptions) -> None:
    """Raise `ArgumentError` for a teacher of another vocabulary, or one that is no causal language model."""
    try:
        check_foretells(teacher)
    except UnsupportedModelError as error:
        raise ArgumentError("teacher", f"{error.where} {error.what}", "Give the dense model.") from error
    try:
        check_teacher(model, teacher, options.distillation)
    except ArgumentError as error:
        raise ArgumentError("teacher", error.what, error.remedy) from error


@dataclass(frozen=True, kw_only=True)
class Training:
    """Where a recovery keeps checkpoints."""

    folder: Path | None = None
    """None = none are written."""
    save_steps: int = 100
    checkpoint: Path | None = None
    """The one to go on from."""


def recover_model(
    model: PreTrainedModel,
    data: Prepared,
    options: RecoveryOptions,
    *,
    teacher: PreTrainedModel | None = None,
    training: Training | None = None,
    tell: Tell,
) -> tuple[Recovered, Log]:
    """Train a model that was cut, in place, and write into its plan what was done; return that, and what was logged.

    Its dtype stays: what learns is float32 meanwhile, and adapters are merged. Weights that masks have set to zero
    are zero afterwards.

    Args:
        data: What `read_data` returned.
        teacher: The dense model.
        tell: Called with one line per stage and per look at the loss.

    Raises:
        ArgumentError: The model has adapters, or lacks what is to learn; or an option that the Trainer refuses.
        CheckpointError: It carries no plan.
        NonFiniteError: Loss, gradients or weights are no numbers any more.
    """
    plan = checked_plan(model)
    check_causal(model, data)
    check_targets(options, model)
    if teacher is not None:
        check_dense(model, teacher, options)
    training = training or Training()
    zeros = KeepZeros([weight for name, weight in model.named_parameters() if name in plan.zeros])
    with tempfile.TemporaryDirectory() as scratch:
        place = str(training.folder or scratch)
        tell("measuring the held-out data")
        before = _perplexity(model, data, options, place)
        tell(f"recovering ({options.train})")
        log = _train(model, data, options, teacher, training, place, zeros, tell)
        zeros()
        tell("measuring the held-out data")
        after = _perplexity(model, data, options, place)
    model.eval()
    steps = int(log[-1]["step"])
    done = Recovered(
        train=options.train,
        data=options.data_name,
        teacher=options.teacher_name,
        steps=steps,
        tokens=steps * options.batch_size * options.accumulate * options.length,
        perplexity_before=before,
        perplexity_after=after,
    )
    attach_plan(model, dataclasses.replace(plan, recoveries=(*plan.recoveries, done)))
    return done, log


def checked_plan(model: PreTrainedModel) -> Plan:
    """Return the plan of a model that was cut.

    Raises:
        CheckpointError: It has none.
    """
    plan = plan_of(model)
    if plan is None:
        raise CheckpointError(
            str(model.config.name_or_path),
            "carries no plan: it was not cut.",
            "Prune it first; or fine-tune it with `sparse-trainer run`.",
        )
    return plan


def _train(
    model: PreTrainedModel,
    data: Prepared,
    options: RecoveryOptions,
    teacher: PreTrainedModel | None,
    training: Training,
    place: str,
    zeros: KeepZeros,
    tell: Tell,
) -> Log:
    """Train in place; return what was logged, the last step at its end."""
    steps = options.most_steps(len(data.train))
    clock = Clock(steps, options.minutes)
    arguments = trainer_arguments(options, place, model, steps=steps, saves=training)
    with _learning(model, options) as student:
        trainer = recovery_trainer(teacher, options, clock)(
            model=student,
            args=arguments,
            train_dataset=data.train,
            data_collator=data.collator,
            compute_loss_func=data.loss,
            callbacks=[clock, zeros, StopWhenNonFinite(tell)],
        )
        trainer.remove_callback(PrinterCallback)
        checkpoint = None if training.checkpoint is None else str(training.checkpoint)
        try:
            trainer.train(resume_from_checkpoint=checkpoint)
        finally:
            bare_model(trainer, trainer.model)
    return (*trainer.state.log_history, {"step": trainer.state.global_step})


def recovery_trainer(teacher: PreTrainedModel | None, options: RecoveryOptions, clock: Clock) -> Any:
    """Return a Trainer whose learning rate falls with the clock, and that learns from a teacher where there is one."""
    base: Any = Trainer if teacher is None else distilling_trainer(Trainer, teacher, options.distillation)

    class RecoveryTrainer(dense_trainer(base)):  # type: ignore[misc]
        def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
            """Return a cosine over the share of the training that is over, by steps or by time."""
            self.lr_scheduler = LambdaLR(optimizer or self.optimizer, lambda step: _rate(clock.share(step)))
            return self.lr_scheduler

    return RecoveryTrainer


def _rate(share: float) -> float:
    """Return the share of the learning rate at a share of the training.

    >>> _rate(0.0) < 0.1, _rate(0.03), round(_rate(1.0), 6)
    (True, 1.0, 0.0)
    """
    if share < _WARMUP:
        return max(share, 1e-3) / _WARMUP
    return 0.5 * (1 + math.cos(math.pi * (share - _WARMUP) / (1 - _WARMUP)))


@contextmanager
def _learning(model: PreTrainedModel, options: RecoveryOptions) -> Iterator[Any]:
    """Show the model as it trains, what learns in float32; then all is in the weights, of the dtype that they had.

    Where the block fails, or ends in weights that are no numbers, the model is as it was.
    """
    if options.lora is not None:
        with options.lora.tried(model, options.seed) as student:
            yield student
            check_learned(student)
            # What is finite in an adapter may overflow where it is added to float16.
            check_learned(merged(student))
        return
    before = [(parameter, parameter.data, parameter.requires_grad) for parameter in model.parameters()]
    try:
        for parameter in model.parameters():
            learns = options.train == "all" or _is_small(parameter)
            parameter.requires_grad_(learns)
            if learns:
                parameter.data = parameter.data.to(torch.float32, copy=True)
        yield model
        check_learned(model)
        before = [(parameter, parameter.data.to(old.dtype), flag) for parameter, old, flag in before]
    finally:
        for parameter, data, flag in before:
            parameter.data = data
            parameter.requires_grad_(flag)


def _is_small(parameter: nn.Parameter) -> bool:
    """Tell the scales of norms, and biases, from matrices."""
    return parameter.ndim <= 1


def trainer_arguments(
    options: RecoveryOptions, place: str, model: PreTrainedModel, *, steps: int, saves: Training
) -> TrainingArguments:
    """Return what the Trainer is told.

    Raises:
        ArgumentError: The device has no bfloat16.
    """
    asked = options.bf16
    is_half = next(model.parameters()).dtype in (torch.bfloat16, torch.float16)
    try:
        return TrainingArguments(
            output_dir=place,
            max_steps=steps,
            per_device_train_batch_size=options.batch_size,
            per_device_eval_batch_size=options.batch_size,
            gradient_accumulation_steps=options.accumulate,
            learning_rate=options.rate,
            weight_decay=0.0,
            bf16=is_half if asked is None else asked,
            use_cpu=model.device.type == "cpu",
            dataloader_pin_memory=model.device.type != "cpu",
            seed=options.seed,
            logging_steps=_LOOK_EVERY,
            logging_first_step=True,
            logging_nan_inf_filter=False,
            save_strategy="no" if saves.folder is None else "steps",
            save_steps=saves.save_steps,
            save_total_limit=1,
            report_to=[],
            disable_tqdm=True,
        )
    except (ValueError, RuntimeError, ImportError) as error:
        raise ArgumentError("bf16", f"{first_line(error)}.", "Set `bf16=False`.") from error


def _perplexity(model: PreTrainedModel, data: Prepared, options: RecoveryOptions, place: str) -> float:
    """Return the perplexity of the held-out rows, in the dtype of the model, without autocast."""
    plain = dataclasses.replace(options, bf16=False)
    trainer = Trainer(
        model=model,
        args=trainer_arguments(plain, place, model, steps=1, saves=Training()),
        eval_dataset=data.validation,
        data_collator=data.collator,
        compute_metrics=data.compute_metrics,
        preprocess_logits_for_metrics=data.reduce_logits,
        compute_loss_func=data.loss,
    )
    trainer.remove_callback(PrinterCallback)
    found: float = trainer.evaluate()[f"eval_{PERPLEXITY}"]
    bare_model(trainer, model)
    return found


@contextmanager
def _naming_targets() -> Iterator[None]:
    """Let errors about adapters name the option of recovery."""
    try:
        yield
    except RecipeError as error:
        raise ArgumentError("targets", error.what, error.remedy) from error
