"""Recipes: parsed, checked, overridden, written back."""

import dataclasses
import inspect
import re
from pathlib import Path

import pytest
import yaml

from sparse_trainer.errors import RecipeError
from sparse_trainer.one_shot.prune import prune
from sparse_trainer.run.options import PruneSection
from sparse_trainer.run.recipes.fine_pruning import FinePruningRecipe
from sparse_trainer.run.recipes.load import is_one_shot, load_recipe
from sparse_trainer.run.recipes.one_shot import OneShotRecipe
from sparse_trainer.run.recipes.reading import read_sections
from sparse_trainer.run.recipes.shipped import describe, shipped
from sparse_trainer.training.arguments.arguments import SparseTrainingArguments

GIVEN = ("model.name_or_path=m", "data.train_file=t.json", "data.validation_file=v.json")
ONE_SHOT = sorted(name for name, path in shipped().items() if is_one_shot(read_sections(path)))
TRAINING = sorted(set(shipped()) - set(ONE_SHOT))


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


@pytest.mark.parametrize(
    "more",
    [
        ("model.fill=true", "pruning=null"),
        ("model.rewind=there", "pruning=null"),
        ("model.fill=true", "pruning.distil_teacher_name_or_path=null"),
        ("model.rewind=there", "pruning.distil_teacher_name_or_path=self"),
    ],
)
@pytest.mark.parametrize("name", ["sst2-local", "quickstart"])
def test_a_pruned_model_is_trained_on_by_the_recipe_that_pruned_it(name: str, more: tuple[str, ...]) -> None:
    recipe = load_recipe(name, [*GIVEN, *more, "model.dense_training=null"])
    assert isinstance(recipe, FinePruningRecipe)
    assert recipe.model.prune_from == "dense"
    assert recipe.dense_training() is None


def test_dense_training_changes_only_what_it_names(file: Path) -> None:
    recipe = load_recipe(file, ["model.dense_training={num_train_epochs: 1}"])
    dense = recipe.dense_training()
    assert dense is not None
    assert (dense.num_train_epochs, dense.learning_rate) == (1, 1e-5)
    assert dense.output_dir != recipe.training.output_dir


@pytest.mark.parametrize("name", TRAINING)
def test_a_shipped_recipe_survives_a_round_trip(name: str, tmp_path: Path) -> None:
    recipe = load_recipe(name, GIVEN)
    again = load_recipe(written(tmp_path, recipe.dump()))
    assert again.sections == recipe.sections
    assert _parsed(again) == _parsed(recipe)


@pytest.mark.parametrize("name", sorted(shipped()))
def test_a_shipped_recipe_starts_with_its_command_and_describes_itself(name: str) -> None:
    path = shipped()[name]
    assert path.read_text().startswith(f"# sparse-trainer run {name}")
    assert describe(path) == yaml.safe_load(path.read_text())["description"]
    known = (OneShotRecipe if name in ONE_SHOT else FinePruningRecipe).SECTIONS
    assert set(yaml.safe_load(path.read_text())) <= {"description", *known}


def test_both_kinds_of_recipe_are_shipped() -> None:
    assert {"llama-wanda", "llama-shortgpt", "llama-sparsegpt"} <= set(ONE_SHOT)
    assert {"quickstart", "squad-bert"} <= set(TRAINING)


@pytest.mark.parametrize("name", ONE_SHOT)
def test_a_one_shot_recipe_survives_a_round_trip(name: str, tmp_path: Path) -> None:
    recipe = load_recipe(name, ["model.name_or_path=m", "export.overwrite=true"])
    again = load_recipe(written(tmp_path, recipe.dump()))
    assert isinstance(recipe, OneShotRecipe)
    assert dataclasses.replace(again, name=name, origin="") == dataclasses.replace(recipe, origin="")
    assert recipe.export.overwrite


@pytest.mark.parametrize("name", ONE_SHOT)
def test_a_one_shot_recipe_names_its_paper(name: str) -> None:
    assert re.search(r"arXiv\s+(# )?\d{4}\.\d{5}", shipped()[name].read_text())


@pytest.fixture
def one_shot(tmp_path: Path) -> Path:
    return written(
        tmp_path,
        "model: {name_or_path: m}\ncalibration: {}\nprune: {criterion: wanda, protect: [first, 3]}\n",
    )


def test_the_sections_of_a_one_shot_recipe_become_dataclasses(one_shot: Path) -> None:
    recipe = load_recipe(one_shot, ["prune.reconstruct=least-squares", "evaluation.tasks=[arc_easy]"])
    assert recipe.prunings[0].reconstruct == "least_squares"
    assert recipe.prunings[0].protect == ("first", 3)
    assert recipe.calibration.source == "wikitext2"
    assert recipe.evaluation.tasks == ("arc_easy",)
    assert load_recipe(one_shot).evaluation is None


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("prune.densty=0.5", r"override .*: prune\.densty: unknown key\. Did you mean 'density'"),
        (
            "prune.criterion=wnda",
            r"override .*: prune\.criterion: unknown value 'wnda'\. Did you mean 'wanda'",
        ),
        ("prune.criterion=obs(round=2)", r"prune\.criterion obs\.round: unknown key\. Did you mean 'rounds'"),
        ("prune.density=2", r"prune\.density: 2 is not in \(0, 1\]"),
        (
            "prune.protect=[1.5]",
            r"prune\.protect: 1\.5 in it is a number\. Give a list of text or a whole number",
        ),
        (
            "prune.reconstruct=leastsquares",
            r"prune\.reconstruct: unknown value .*Did you mean 'least_squares'",
        ),
        ("calibration.sample=4", r"calibration\.sample: unknown key\. Did you mean 'samples'"),
        ("calibration=null", r"override .*: calibration: wanda needs one"),
        ("evaluation.task=[c4]", r"evaluation\.task: unknown key\. Did you mean 'tasks'"),
        ("export.output_dri=x", r"export\.output_dri: unknown key\. Did you mean 'output_dir'"),
        ("training.seed=1", r"unknown section 'training'"),
        ("calibraton.seed=1", r"unknown section 'calibraton'\. Did you mean 'calibration'"),
    ],
)
def test_a_mistake_in_a_one_shot_recipe_is_named(one_shot: Path, override: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        load_recipe(one_shot, [override])


def test_a_recipe_cannot_train_and_prune_in_one_shot(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"mine\.yaml: pruning: unknown section\. Did you mean 'prune'"):
        load_recipe(written(tmp_path, "prune: {}\npruning: {}\n"))


def test_the_options_of_a_recipe_are_those_of_prune() -> None:
    """The same names with the same defaults, less what only Python can pass."""
    options = {
        name: parameter.default
        for name, parameter in inspect.signature(prune).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY
    }
    only_python = {"device", "statistics", "watch", "inplace", "check"}
    given = {field.name: field.default for field in dataclasses.fields(PruneSection)}
    assert given == {name: default for name, default in options.items() if name not in only_python}


def _parsed(recipe: FinePruningRecipe) -> tuple[object, ...]:
    training = {**recipe.training.to_dict(), "output_dir": "", "logging_dir": ""}
    return recipe.task, recipe.model, recipe.data, recipe.pruning, recipe.export, training
