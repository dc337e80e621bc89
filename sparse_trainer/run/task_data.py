"""The data of a task in a one-shot run: rows to calibrate on, and metrics without a training."""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PrinterCallback

from sparse_trainer.cut.auto_classes import auto_classes_of
from sparse_trainer.errors import CheckpointError, DataError
from sparse_trainer.inputs.labels import IGNORED, is_read_shifted, without_labels
from sparse_trainer.run.bare_model import bare_model
from sparse_trainer.run.options import CalibrationOptions
from sparse_trainer.tasks.base import Prepared, Task

_BATCH = 64
"""Rows of the validation set in one forward pass."""


@dataclass(frozen=True, kw_only=True)
class TaskData:
    """A task with its data, of which the training set is only calibrated on."""

    task: Task
    data: Prepared

    def check(self, model: PreTrainedModel) -> None:
        """Raise `CheckpointError` for a model that does not do the task as it was loaded."""
        name = type(model).__name__
        if self.task.auto_class not in auto_classes_of(name):
            raise CheckpointError(
                str(model.name_or_path),
                f"{name} is not what {self.task.auto_class} loads: nothing is trained here.",
                "Fine-tune it first: a recipe with `pruning: null`.",
            )

    def drawn(self, options: CalibrationOptions) -> "TaskData":
        """Return the task with the rows of the training set that are calibrated on.

        Raises:
            DataError: There are too few.
        """
        rows = len(self.data.train)
        if rows < options.samples:
            raise DataError(
                "data", f"{rows} rows to train on, and {options.samples} are needed.",
                "Set a smaller calibration.samples.",
            )  # fmt: skip
        generator = torch.Generator().manual_seed(options.seed)
        places = torch.randperm(rows, generator=generator)[: options.samples].tolist()
        return replace(self, data=replace(self.data, train=self.data.train.select(places)))

    def batches(self, model: PreTrainedModel, options: CalibrationOptions) -> list[dict[str, Tensor]]:
        """Return the rows that were drawn, without labels."""
        train = self.data.train
        found = []
        for start in range(0, len(train), options.batch_size):
            rows = [train[row] for row in range(start, min(start + options.batch_size, len(train)))]
            found.append(without_labels(model, self.data.collator(rows)))
        return found

    def completed(self, model: PreTrainedModel, source: str, revision: str) -> "TaskData":
        """Return the task with what the model says as it was loaded, where that is what it is measured by."""
        return replace(self, data=self.task.complete(self.data, model, source, revision))

    def metrics(self, model: PreTrainedModel) -> dict[str, float]:
        """Return the metrics on the validation set."""
        with tempfile.TemporaryDirectory() as folder:
            arguments = self.task.arguments(
                output_dir=folder,
                per_device_eval_batch_size=_BATCH,
                report_to="none",
                disable_tqdm=True,
                use_cpu=model.device.type == "cpu",
                dataloader_pin_memory=model.device.type != "cpu",
            )
            trainer = self.task.trainer(
                model=model,
                args=arguments,
                eval_dataset=self.data.validation,
                data_collator=self.data.collator,
                compute_metrics=self.data.compute_metrics,
                compute_loss_func=self.data.loss,
                preprocess_logits_for_metrics=self.data.reduce_logits,
            )
            trainer.remove_callback(PrinterCallback)
            logged = trainer.evaluate()
            bare_model(trainer, model)
        return {name: logged[f"eval_{name}"] for name in self.task.metrics}

    @property
    def asked(self) -> tuple[object, tuple[str, ...]]:
        """Return how the finished model is asked: `asked_by`."""
        return asked_by(self.task, self.data)

    def examples(self, model: PreTrainedModel, asked: int) -> Mapping[str, Tensor]:
        """Return inputs of the first rows of the validation set."""
        return example_inputs(self.task, self.data, model, asked)


def asked_by(task: Task, data: Prepared) -> tuple[object, tuple[str, ...]]:
    """Return an example for the pipeline of a task; where there is none, Python that asks the model about one."""
    return (data.example, ()) if task.pipeline is not None else (None, tuple(data.call))


def example_inputs(task: Task, data: Prepared, model: PreTrainedModel, asked: int) -> dict[str, Any]:
    """Return inputs of the first rows of the validation set, no more than the task compares."""
    most = task.outputs.most
    count = min(asked if most is None else min(asked, most), len(data.validation))
    batch = data.collator([data.validation[row] for row in range(count)])
    inputs = without_labels(model, batch)
    if is_read_shifted(model, batch):  # what stands for no answer is no prediction
        inputs["decoder_attention_mask"] = (batch["labels"] != IGNORED).long()
    return inputs
