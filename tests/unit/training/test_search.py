"""Hyperparameter search with optuna: a fresh patched model and its own budget in each trial."""

import logging
from pathlib import Path
from typing import Any

import pytest
from torch import nn
from transformers import TrainingArguments

from patchers.patching.patch import gates_of
from sparse_trainer.errors import ArgumentError
from sparse_trainer.training.search import SearchSpace
from sparse_trainer.training.trainer import PruningTrainer
from tests.fixtures.training import quiet_model, rows, sparse_args

needs_optuna = pytest.mark.usefixtures("optuna")


@pytest.fixture(scope="module")
def optuna() -> Any:
    found = pytest.importorskip("optuna", reason="optuna is not installed")
    found.logging.set_verbosity(found.logging.WARNING)
    return found


class Watched(PruningTrainer):
    """Notes what each trial ended with."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.trials: list[dict[str, Any]] = []
        super().__init__(*args, **kwargs)

    def train(self, *args: Any, **kwargs: Any) -> Any:
        result = super().train(*args, **kwargs)
        coordinator = self.coordinator
        assert coordinator.finished
        assert coordinator.model is self.model
        assert set(map(id, coordinator.gates.values())) == set(map(id, gates_of(self.model).values()))
        scores = {id(score) for score in coordinator.score_parameters()}
        trained = {id(p) for group in self.optimizer.param_groups for p in group["params"]}
        assert scores <= trained
        self.trials.append(
            {
                "density": coordinator.density_reached(),
                "scoring": coordinator.args.scoring,
                "learning_rate": self.args.learning_rate,
                "model": self.model,
            }
        )
        return result


def searching(folder: Path, models: list[nn.Module], **options: Any) -> Watched:
    """Return a Trainer that makes its models itself, and notes them."""

    def model_init() -> nn.Module:
        models.append(quiet_model())
        return models[-1]

    args = TrainingArguments(
        str(folder), max_steps=6, report_to=[], save_strategy="no", use_cpu=True, disable_tqdm=True
    )
    return Watched(
        model_init=model_init, args=args, sparse_args=sparse_args("movement", **options),
        train_dataset=rows(), eval_dataset=rows(8),
    )  # fmt: skip


def space(trial: Any) -> dict[str, Any]:
    """Search options of the training and of pruning."""
    return {
        "learning_rate": trial.suggest_categorical("learning_rate", [1e-3, 2e-3]),
        "density": trial.suggest_categorical("density", [0.5, 0.75]),
        "scoring": trial.suggest_categorical("scoring", ["movement", "magnitude"]),
    }


@needs_optuna
def test_each_trial_prunes_a_fresh_model_by_its_own_options(
    optuna: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    models: list[nn.Module] = []
    run = searching(tmp_path, models)
    grid = optuna.samplers.GridSampler(
        {"learning_rate": [1e-3], "density": [0.5, 0.75], "scoring": ["movement", "magnitude"]}
    )
    with caplog.at_level(logging.WARNING, "transformers"):
        best = run.hyperparameter_search(
            space, n_trials=4, direction="minimize", backend="optuna", sampler=grid
        )
    assert "no corresponding field" not in caplog.text
    assert best.hyperparameters.keys() == {"learning_rate", "density", "scoring"}
    assert len(models) == 5  # one when the Trainer was made
    assert [trial["model"] for trial in run.trials] == models[1:]
    assert all(trial["learning_rate"] == 1e-3 for trial in run.trials)
    found = {(trial["scoring"], round(trial["density"], 1)) for trial in run.trials}
    assert len(found) == 4
    for trial in run.trials:
        asked = 0.5 if trial["density"] < 0.6 else 0.75
        assert trial["density"] == pytest.approx(asked, abs=0.05)
    # Afterwards the Trainer prunes as it was told when it was made.
    assert (run.coordinator.args.density, run.coordinator.args.scoring) == (0.5, "movement")
    run.train()
    assert run.trials[-1]["density"] <= 0.5


@needs_optuna
@pytest.mark.parametrize("own", [True, False])
def test_trials_of_equal_options_end_equal(own: bool, optuna: Any, tmp_path: Path) -> None:
    """Nothing of one trial is left in the next: scores, steps, a teacher that is a copy of the model."""
    run = searching(tmp_path, [], distil_teacher_name_or_path="self")
    values: list[float] = []

    def objective(metrics: dict[str, float]) -> float:
        values.append(metrics["eval_loss"])
        return values[-1]

    def same(trial: Any) -> dict[str, Any]:
        found = {"learning_rate": trial.suggest_categorical("learning_rate", [1e-3])}
        return found | ({"density": trial.suggest_categorical("density", [0.6])} if own else {})

    run.hyperparameter_search(
        same, compute_objective=objective, n_trials=3, direction="minimize", backend="optuna"
    )
    assert len(values) == 3
    assert values[0] == values[1] == values[2]
    assert all(trial["density"] == pytest.approx(0.6 if own else 0.5, abs=0.05) for trial in run.trials)


@needs_optuna
def test_quality_and_size_are_searched_together(optuna: Any, tmp_path: Path) -> None:
    run = searching(tmp_path, [])
    best = run.hyperparameter_search(
        lambda trial: {"density": trial.suggest_float("density", 0.4, 0.9)},
        compute_objective=lambda metrics: (metrics["eval_loss"], run.coordinator.density_reached()),
        direction=["minimize", "minimize"], n_trials=3, backend="optuna",
    )  # fmt: skip
    assert isinstance(best, list)
    assert best


@needs_optuna
def test_a_value_that_cannot_be_ends_the_search_with_our_error(optuna: Any, tmp_path: Path) -> None:
    run = searching(tmp_path, [])
    with pytest.raises(ArgumentError, match=r"density: 1\.5 is not in"):
        run.hyperparameter_search(
            lambda trial: {"density": trial.suggest_float("density", 1.5, 1.5)}, n_trials=1, backend="optuna"
        )
    assert run.coordinator.args.density == 0.5


def test_other_libraries_search_options_of_the_training_only() -> None:
    asked = sparse_args("movement")
    both = SearchSpace(lambda trial: {"learning_rate": 0.1, "density": 0.6}, asked, lambda: "ray")
    with pytest.raises(ArgumentError, match="only optuna searches options of pruning: density"):
        both.training(None)
    alone = SearchSpace(lambda trial: {"learning_rate": 0.1}, asked, lambda: "ray")
    assert alone.training(None) == {"learning_rate": 0.1}
    assert alone.pruning({"learning_rate": 0.1}) == asked
    by_optuna = SearchSpace(lambda trial: {"learning_rate": 0.1, "density": 0.6}, asked, lambda: "optuna")
    assert by_optuna.training(None) == {"learning_rate": 0.1}
    assert by_optuna.pruning(None).density == 0.6
