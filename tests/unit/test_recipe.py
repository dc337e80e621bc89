"""Recipes: parsed, checked, overridden, written back."""

from pathlib import Path

import pytest
import yaml

from sparse_trainer.args import SparseTrainingArguments
from sparse_trainer.errors import RecipeError
from sparse_trainer.recipe import Recipe, describe, load_recipe, shipped

GIVEN = ("model.name_or_path=m", "data.train_file=t.json", "data.validation_file=v.json")


def written(folder: Path, text: str) -> Path:
    file = folder / "mine.yaml"
    file.write_text(text)
    return file


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return written(
        tmp_path,
        "task: {labels: ['no', 'yes']}\nmodel: {name_or_path: somewhere}\ndata: {source: generated}\n"
        "pruning: {density: 0.5}\ntraining: {learning_rate: 1e-5, num_train_epochs: 2}\n",
    )


def test_each_section_becomes_its_dataclass(file: Path) -> None:
    recipe = load_recipe(file)
    assert recipe.name == "mine"
    assert isinstance(recipe.pruning, SparseTrainingArguments)
    assert recipe.pruning.density == 0.5
    assert recipe.training.learning_rate == 1e-5  # text to YAML 1.1
    assert recipe.training.output_dir == "runs/mine"
    assert recipe.task.labels == ("no", "yes")


@pytest.mark.parametrize(
    ("override", "where", "hint"),
    [
        ("pruning.densty=0.5", "pruning.densty", "Did you mean 'density'"),
        ("training.num_train_epoch=1", "training.num_train_epoch", "Did you mean 'num_train_epochs'"),
        ("data.text_column=[a]", "data.text_column", "Did you mean 'text_columns'"),
        ("model.dense_training={learning_rat: 1}", "model.dense_training.learning_rat", "'learning_rate'"),
        ("prunning.density=0.5", "unknown section 'prunning'", "Did you mean 'pruning'"),
    ],
)
def test_an_unknown_key_names_file_key_and_the_nearest_one(
    file: Path, override: str, where: str, hint: str
) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(file, [override])
    assert where in str(caught.value)
    assert hint in str(caught.value)
    assert str(file) in str(caught.value) or override in str(caught.value)


def test_an_unknown_section_in_the_file_is_named(tmp_path: Path) -> None:
    file = written(tmp_path, "tasks: {}\n")
    with pytest.raises(RecipeError, match=r"mine\.yaml: tasks: unknown section\. Did you mean 'task'"):
        load_recipe(file)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.num_train_epochs=many", r"training\.num_train_epochs: 'many' is text\. Give a number"),
        ("training.bf16=1", r"training\.bf16: 1 is a whole number\. Give true or false"),
        ("training.seed=1.5", r"training\.seed: 1\.5 is a number\. Give a whole number"),
        ("data.text_columns=question", r"data\.text_columns: 'question' is text\. Give a list of text"),
        ("data.truncation=first", r"data\.truncation: 'first' is text\. Give one of longest_first"),
        ("model.name_or_path=null", r"model\.name_or_path: None is null\. Give text"),
        (
            "training.lr_scheduler_type=3",
            r"training\.lr_scheduler_type: 3 is a whole number\. Give one of linear",
        ),
        ("pruning.density=2", r"pruning\.density: 2 is not in \(0, 1\]"),
        ("pruning.scoring=movment", r"pruning\.scoring: unknown value 'movment'\. Did you mean 'movement'"),
        ("training.eval_strategy=sometimes", r"training: .*sometimes"),
    ],
)
def test_a_wrong_value_is_named_with_what_would_do(file: Path, override: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        load_recipe(file, [override])


def test_a_missing_key_says_how_to_give_it() -> None:
    with pytest.raises(RecipeError, match=r"model\.name_or_path: missing\. .*model\.name_or_path=VALUE"):
        load_recipe("boolq-local")


def test_overrides_are_yaml_and_reach_into_null_sections(file: Path) -> None:
    recipe = load_recipe(file, ["pruning=null"])
    assert recipe.pruning is None
    recipe = load_recipe(
        file, ["pruning=null", "pruning.density={heads: 0.75, channels: 0.5}", "training.seed=7"]
    )
    assert recipe.pruning is not None
    assert recipe.pruning.density == {"heads": 0.75, "channels": 0.5}
    assert recipe.training.seed == 7


@pytest.mark.parametrize("override", ["training.seed", "=1", "training.=1", "training.seed.deep=1"])
def test_a_malformed_override_is_refused(file: Path, override: str) -> None:
    with pytest.raises(RecipeError, match="override"):
        load_recipe(file, ["training.seed=1", override])


@pytest.mark.parametrize("text", ["- a\n", "task: [\n", "task: 3\n"])
def test_a_file_that_is_no_recipe_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(RecipeError, match=r"mine\.yaml"):
        load_recipe(written(tmp_path, text))


def test_an_unknown_recipe_names_the_nearest() -> None:
    with pytest.raises(RecipeError, match="Did you mean 'quickstart'"):
        load_recipe("quikstart")


@pytest.mark.parametrize("override", ["pruning.distil_teacher_name_or_path=dense", "model.prune_from=dense"])
def test_a_dense_teacher_or_start_needs_a_dense_fine_tune(file: Path, override: str) -> None:
    with pytest.raises(RecipeError, match="no dense model is trained"):
        load_recipe(file, [override])
    recipe = load_recipe(file, [override, "model.dense_training={}"])
    assert recipe.dense_training() is not None


def test_dense_training_changes_only_what_it_names(file: Path) -> None:
    recipe = load_recipe(file, ["model.dense_training={num_train_epochs: 1}"])
    dense = recipe.dense_training()
    assert dense is not None
    assert (dense.num_train_epochs, dense.learning_rate) == (1, 1e-5)
    assert dense.output_dir != recipe.training.output_dir


@pytest.mark.parametrize("name", sorted(shipped()))
def test_a_shipped_recipe_survives_a_round_trip(name: str, tmp_path: Path) -> None:
    recipe = load_recipe(name, GIVEN)
    again = load_recipe(written(tmp_path, recipe.dump()))
    assert again.sections == recipe.sections
    assert _parsed(again) == _parsed(recipe)


@pytest.mark.parametrize("name", sorted(shipped()))
def test_a_shipped_recipe_starts_with_its_command_and_describes_itself(name: str) -> None:
    path = shipped()[name]
    assert path.read_text().startswith(f"# sparse-trainer run {name}")
    assert describe(path)
    assert set(yaml.safe_load(path.read_text())) <= {
        "description", "task", "model", "data", "pruning", "training", "export",
    }  # fmt: skip


def _parsed(recipe: Recipe) -> tuple[object, ...]:
    training = {**recipe.training.to_dict(), "output_dir": "", "logging_dir": ""}
    return recipe.task, recipe.model, recipe.data, recipe.pruning, recipe.export, training
