"""`model.dense_folder`: the dense model of one run serves others that would fine-tune the same one, and no others."""

from pathlib import Path

import pytest

from sparse_trainer.errors import CheckpointError, RecipeError
from sparse_trainer.run.recipes.fine_pruning import FinePruningRecipe
from sparse_trainer.run.recipes.load import load_recipe
from sparse_trainer.run.resume import RunFolder


def folder(tmp_path: Path, *overrides: str) -> RunFolder:
    """Return the folder of a run whose dense model is kept in `shared`."""
    places = (f"model.dense_folder={tmp_path}/shared", f"training.output_dir={tmp_path}/run")
    recipe = load_recipe("quickstart", [*places, *overrides])
    assert isinstance(recipe, FinePruningRecipe)
    return RunFolder(recipe=recipe, resume=False)


def keep(run: RunFolder) -> None:
    """Write down the recipe where the dense model would lie."""
    run.dense.mkdir(parents=True)
    (run.dense / "recipe.yaml").write_text(run.recipe.dump())


def test_it_is_taken_by_runs_that_differ_in_what_comes_after(tmp_path: Path) -> None:
    first = folder(tmp_path)
    first.check(overwrite=False)
    assert first.dense == tmp_path / "shared"
    assert first.dense_model() is None
    keep(first)
    other = folder(
        tmp_path, "pruning.density=0.25", "model.fill=true", "export.verify=false", "description=x"
    )
    other.check(overwrite=False)
    assert other.dense_model() == tmp_path / "shared"


@pytest.mark.parametrize(
    "override",
    [
        "training.seed=7",
        "training.per_device_train_batch_size=8",
        "model.dense_training.num_train_epochs=2",
        "model.name_or_path=bert-base-uncased",
        "data.seed=7",
        "task.labels=['yes', 'no']",
        "lora={r: 4}",
    ],
)
def test_one_of_other_options_is_refused_by_their_names(override: str, tmp_path: Path) -> None:
    keep(folder(tmp_path))
    key = override.partition("=")[0].replace("model.dense_training", "training")
    with pytest.raises(CheckpointError, match=rf"model\.dense_folder: .*holds another dense model: .*{key}"):
        folder(tmp_path, override).check(overwrite=True)


def test_options_of_the_dense_training_count_as_they_are_in_the_end(tmp_path: Path) -> None:
    keep(folder(tmp_path, "model.dense_training.learning_rate=1.0e-5", "training.learning_rate=1.0e-4"))
    same = ("model.dense_training.learning_rate=1.0e-5", "training.learning_rate=2.0e-4")
    folder(tmp_path, *same).check(overwrite=False)


def test_a_folder_of_something_else_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared" / "notes.txt").write_text("mine")
    with pytest.raises(CheckpointError, match="not ours to replace"):
        folder(tmp_path).check(overwrite=True)


@pytest.mark.parametrize("override", ["pruning=null", "model={name_or_path: x, dense_folder: y}"])
def test_a_recipe_without_a_dense_model_before_pruning_has_none_to_share(
    override: str, tmp_path: Path
) -> None:
    changes = [f"model.dense_folder={tmp_path}", override]
    if override.startswith("model="):
        changes += ["pruning.distil_teacher_name_or_path=null"]
    with pytest.raises(RecipeError, match=r"model\.dense_folder.*there is none"):
        load_recipe("quickstart", changes)
