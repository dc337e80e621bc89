"""The best model is chosen among those that have the structure asked for, and comes back with its gates."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import EarlyStoppingCallback

from sparse_trainer.cut.optimize import optimize_model
from sparse_trainer.training.arguments.arguments import SparseTrainingArguments
from sparse_trainer.training.load import load_patched
from sparse_trainer.training.trainer import PruningTrainer
from tests.fixtures.training import state, trainer

EACH: dict[str, Any] = {
    "save_strategy": "steps",
    "save_steps": 1,
    "eval_strategy": "steps",
    "eval_steps": 1,
    "load_best_model_at_end": True,
    "metric_for_best_model": "loss",
    "restore_callback_states_from_checkpoint": True,
    # Losses grow: the earliest model is the best one, were it not for the budget.
    "learning_rate": 0.3,
}
METHODS: dict[str, dict[str, Any]] = {
    "movement": {"scoring": "movement"},
    "l0": {"scoring": "l0", "l0_learning_rate": 0.3},
    "masks": {"dense_pruning_method": "topK:1d_alt", "attention_pruning_method": "topK"},
}
FINAL = 9
"""Of twelve steps the first one after which the structure is final."""


def training(folder: Path, method: str = "movement", **options: Any) -> PruningTrainer:
    pruning = SparseTrainingArguments(**METHODS[method], cooldown_ratio=0.25)
    return trainer(folder, pruning, **{**EACH, **options})


@pytest.mark.parametrize("method", METHODS)
def test_the_best_model_is_one_whose_structure_is_final(method: str, tmp_path: Path) -> None:
    run = training(tmp_path, method)
    run.train()
    losses = {e["step"]: e["eval_loss"] for e in run.state.log_history if "eval_loss" in e}
    assert min(losses, key=lambda step: losses[step]) < FINAL
    best = min(range(FINAL, 13), key=lambda step: losses[step])
    assert run.state.best_model_checkpoint == str(tmp_path / f"checkpoint-{best}")
    assert run.state.best_metric == losses[best] == pytest.approx(run.evaluate()["eval_loss"])
    found, saved = optimize_model(run.model), optimize_model(load_patched(tmp_path / f"checkpoint-{best}"))
    expected = saved.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in found.state_dict().items())


def test_early_stopping_waits_for_the_final_structure(tmp_path: Path) -> None:
    run = training(tmp_path)
    run.add_callback(EarlyStoppingCallback(early_stopping_patience=1))
    run.train()
    assert run.state.global_step >= FINAL
    assert run.coordinator.finished
    assert run.coordinator.density_reached() == pytest.approx(0.5, abs=0.05)


def test_a_training_that_early_stopping_ended_is_over_when_it_resumes(tmp_path: Path) -> None:
    run = training(tmp_path)
    run.add_callback(EarlyStoppingCallback(early_stopping_patience=1))
    run.train()
    assert run.state.global_step < 12
    again = training(tmp_path)
    again.add_callback(EarlyStoppingCallback(early_stopping_patience=1))
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == run.state.global_step
    found, expected = state(again.model), state(run.model)
    assert [name for name in found if not torch.equal(found[name], expected[name])] == []


def test_a_training_with_nothing_to_choose_from_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    training(tmp_path / "many").train()
    assert "nothing to choose" not in caplog.text
    run = training(tmp_path / "few", eval_steps=4, save_steps=4)
    run.train()
    assert "final from step 9 of 12 on, and one model was evaluated from there" in caplog.text
    assert run.state.best_model_checkpoint == str(tmp_path / "few" / "checkpoint-12")
    late = training(tmp_path / "late", eval_delay=100)
    late.train()
    assert "no model was evaluated from there: the model of the last step stays" in caplog.text
    assert late.coordinator.density_reached() == pytest.approx(0.5, abs=0.05)
