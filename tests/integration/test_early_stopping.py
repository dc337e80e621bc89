"""Recipes whose trainings stop early: when the model is one that was asked for, and not before."""

import json
from pathlib import Path

import pytest

from sparse_trainer.errors import RecipeError
from sparse_trainer.plan.document import Plan
from sparse_trainer.run.pipeline import run
from sparse_trainer.run.recipes.recipe import Recipe
from tests.fixtures.recipe_files import small, write_small_files


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sparse_trainer.tasks.metrics.hub_reachable", lambda: False)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_files(tmp_path_factory.mktemp("recipes"))


def stopping_early(files: Path, out: Path, *overrides: str) -> Recipe:
    """Return a recipe of sixteen steps that measures every second one, and whose losses grow."""
    steps = [
        f"{section}.{name}"
        for section in ("training", "model.dense_training")
        for name in (
            "eval_strategy=steps",
            "eval_steps=2",
            "save_strategy=steps",
            "save_steps=2",
            "max_steps=16",
        )
    ]
    changes = (
        "early_stopping.patience=2",
        "training.learning_rate=0.5",
        "training.load_best_model_at_end=true",
    )
    quick = ("export.verify=false", "training.warmup_steps=0", "pruning.cooldown_ratio=0.5")
    return small("boolq-local", files, out, *steps, *changes, *quick, *overrides)


def test_the_training_ends_early_with_the_structure_that_was_asked_for(files: Path, tmp_path: Path) -> None:
    run(stopping_early(files, tmp_path), print)
    dense = json.loads(
        (max((tmp_path / "dense").glob("checkpoint-*"), key=_step) / "trainer_state.json").read_text()
    )
    pruned = json.loads((max(tmp_path.glob("checkpoint-*"), key=_step) / "trainer_state.json").read_text())
    assert dense["global_step"] < 16
    # 8 is the first step with the final structure.
    assert 8 + 2 * 2 <= pruned["global_step"] <= 16
    assert pruned["best_global_step"] >= 8
    assert Plan.load(tmp_path / "pruned").density_reached == pytest.approx(0.5, abs=0.05)


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.partition("-")[2])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("early_stopping.patience=0",), "early_stopping.patience: 0 is too small"),
        (("early_stopping.threshold=-1",), r"early_stopping.threshold: -1.* is negative"),
        (("early_stopping.metric=f1",), "early_stopping.metric: unknown key"),
        (("training.metric_for_best_model=f2",), r"metric_for_best_model: 'f2' is not measured.*f1"),
    ],
)
def test_what_cannot_be_meant_is_refused(
    overrides: tuple[str, ...], message: str, files: Path, tmp_path: Path
) -> None:
    with pytest.raises(RecipeError, match=message):
        run(stopping_early(files, tmp_path, *overrides), print)
    assert not any(tmp_path.iterdir())


def test_without_evaluations_there_is_nothing_to_stop_by(files: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"early_stopping: training.eval_strategy is 'no'"):
        run(small("boolq-local", files, tmp_path, "early_stopping.patience=2"), print)


@pytest.mark.parametrize(("metric", "greater"), [("loss", False), ("accuracy", True)])
def test_the_direction_of_the_metric_is_known(
    metric: str, greater: bool, files: Path, tmp_path: Path
) -> None:
    recipe = stopping_early(files, tmp_path, f"training.metric_for_best_model={metric}")
    assert recipe.training.greater_is_better is greater  # type: ignore[attr-defined]
