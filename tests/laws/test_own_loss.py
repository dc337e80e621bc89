"""A `compute_loss` of one's own gains distillation and penalty, once, in the share that accumulation demands."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import Trainer, TrainingArguments

from patchers.patching.patch import gates_of, masks_of
from sparse_trainer.errors import ArgumentError
from sparse_trainer.training.arguments.arguments import SparseTrainingArguments
from sparse_trainer.training.coordinator import ModelPatchingCoordinator
from sparse_trainer.training.loss import SAYS_WHO_DIVIDES
from sparse_trainer.training.trainer import PruningTrainer, SparseTrainer
from tests.fixtures.training import quiet_model, rows, sparse_args, state, trainer

SPLIT: dict[str, Any] = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}
MASKS = {
    "dense_pruning_method": "sigmoid_threshold",
    "attention_pruning_method": "sigmoid_threshold",
    "regularization": "l1",
    "regularization_final_lambda": 50.0,
}


class Script(SparseTrainer, Trainer):
    """Built in two calls, as scripts for nn_pruning are; its loss is Trainer's."""

    def __init__(self, sparse_args: SparseTrainingArguments, **options: Any) -> None:
        Trainer.__init__(self, **options)
        SparseTrainer.__init__(self, sparse_args)


class ThreeArguments(Script):
    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False) -> Any:  # type: ignore[override]
        outputs = model(**inputs)
        return (outputs.loss, outputs) if return_outputs else outputs.loss


class FourArguments(Script):
    loss_is_scaled_for_ga = False

    def compute_loss(  # type: ignore[override]
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        outputs = model(**inputs)
        return (outputs.loss, outputs) if return_outputs else outputs.loss


class CallsSuper(Script):
    def compute_loss(self, model: Any, inputs: Any, *args: Any, num_items_in_batch: Any = None) -> Any:  # type: ignore[override]
        return super().compute_loss(model, inputs, *args, num_items_in_batch=num_items_in_batch)


class ForwardsKeywords(Script):
    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **kwargs: Any) -> Any:  # type: ignore[override]
        return super().compute_loss(model, inputs, return_outputs, **kwargs)


class OnlyLoss(Script):
    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False) -> Any:  # type: ignore[override]
        return model(**inputs).loss


class PicksInputs(Script):
    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False) -> Any:  # type: ignore[override]
        outputs = model(input_ids=inputs["input_ids"], labels=inputs["labels"])
        return (outputs.loss, outputs) if return_outputs else outputs.loss


class InOneCall(PruningTrainer):
    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False) -> Any:  # type: ignore[override]
        outputs = model(**inputs)
        return (outputs.loss, outputs) if return_outputs else outputs.loss


def script(cls: type[Script], folder: Path, args: SparseTrainingArguments, **options: Any) -> Script:
    """Return what `trainer` returns, of another class and built in two calls."""
    coordinator = ModelPatchingCoordinator(args)
    model = coordinator.patch_model(quiet_model())
    told = trainer(folder, sparse_args("random"), **options)
    run = cls(args, model=model, args=told.args, train_dataset=rows(), eval_dataset=rows(16))
    run.set_patch_coordinator(coordinator)
    return run


@pytest.mark.parametrize("cls", [ThreeArguments, FourArguments, CallsSuper, ForwardsKeywords])
@pytest.mark.parametrize("method", ["movement-distilled", "layer_gate", "l0-nested"])
def test_own_loss_trains_what_the_default_trains(cls: type[Script], method: str, tmp_path: Path) -> None:
    if cls is FourArguments and not SAYS_WHO_DIVIDES:
        pytest.skip("this release of transformers does not ask whether the loss is divided already")
    plain = trainer(tmp_path / "a", sparse_args(method))
    plain.train()
    for name, options in (("whole", {}), ("split", SPLIT)):
        own = script(cls, tmp_path / name, sparse_args(method), **options)
        own.train()
        for (entry, a), b in zip(state(plain.model).items(), state(own.model).values(), strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-6, msg=f"{name} {entry}")
    assert any((gate.keep_U == 0).any() for gate in gates_of(plain.model).values())


def test_masks_of_an_own_loss_are_regularized(tmp_path: Path) -> None:
    plain = trainer(tmp_path / "a", SparseTrainingArguments(**MASKS))
    plain.train()
    own = script(ThreeArguments, tmp_path / "b", SparseTrainingArguments(**MASKS), **SPLIT)
    own.train()
    assert masks_of(own.model)
    for (entry, a), b in zip(state(plain.model).items(), state(own.model).values(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6, msg=entry)
    assert any("penalty" in entry for entry in own.state.log_history)


def test_evaluation_shows_the_task_loss_alone(tmp_path: Path) -> None:
    own = script(ThreeArguments, tmp_path, sparse_args("movement-distilled"))
    with torch.no_grad():
        batch = rows(16).with_format("torch")[:]
        expected = own.model.eval()(**batch).loss
    assert own.evaluate()["eval_loss"] == pytest.approx(float(expected))


def test_a_loss_without_outputs_takes_a_penalty_but_no_teacher(tmp_path: Path) -> None:
    plain = trainer(tmp_path / "a", sparse_args("layer_gate"))
    plain.train()
    own = script(OnlyLoss, tmp_path / "b", sparse_args("layer_gate"))
    own.train()
    for (entry, a), b in zip(state(plain.model).items(), state(own.model).values(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-9, msg=entry)
    taught = script(OnlyLoss, tmp_path / "c", sparse_args("movement-distilled"))
    with pytest.raises(ArgumentError, match=r"OnlyLoss\.compute_loss.*return_outputs"):
        taught.train()


def test_a_loss_that_drops_inputs_is_told_what_it_dropped(tmp_path: Path) -> None:
    own = script(PicksInputs, tmp_path, sparse_args("movement-distilled"))
    with pytest.raises(ArgumentError, match=r"no hidden_states.*model\(\*\*inputs\)"):
        own.train()


def test_extras_of_a_loss_function_without_labels_are_divided(tmp_path: Path) -> None:
    """Trainer takes every `compute_loss_func` for scaled, so this one scales; the penalty must not count four times."""

    def size(outputs: Any, labels: Tensor | None, num_items_in_batch: Any = None) -> Tensor:
        assert num_items_in_batch is None
        return F.mse_loss(outputs.logits, torch.zeros_like(outputs.logits)) * len(outputs.logits) / 8

    runs = []
    for name, options in (("whole", {"per_device_train_batch_size": 8}), ("split", SPLIT)):
        settings = {"max_steps": 6, "report_to": [], "use_cpu": True, "save_strategy": "no", **options}
        run = PruningTrainer(
            model=quiet_model(),
            args=TrainingArguments(str(tmp_path / name), **settings),
            sparse_args=sparse_args("layer_gate"),
            train_dataset=rows().remove_columns("labels"),
            compute_loss_func=size,
        )
        run.train()
        runs.append(run)
    for (entry, a), b in zip(state(runs[0].model).items(), state(runs[1].model).values(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6, msg=entry)


def test_older_losses_serve_trainers_built_in_one_call_too(tmp_path: Path) -> None:
    plain = trainer(tmp_path / "a", sparse_args("layer_gate"))
    plain.train()
    told = trainer(tmp_path / "b", sparse_args("random"), **SPLIT)
    own = InOneCall(
        model=quiet_model(), args=told.args, sparse_args=sparse_args("layer_gate"), train_dataset=rows()
    )
    own.train()
    for (entry, a), b in zip(state(plain.model).items(), state(own.model).values(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6, msg=entry)
