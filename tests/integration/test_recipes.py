"""Every shipped recipe that classifies text runs to its end, on a tiny model and local files, without a network."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import transformers
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

from patchers.modeling_pruned import is_no_norm
from sparse_trainer.cli.inspection import inspect_model
from sparse_trainer.errors import CheckpointError, DataError, RecipeError, SparseTrainerError
from sparse_trainer.folders.load import load_pruned
from sparse_trainer.folders.load_shape import load_shape
from sparse_trainer.folders.save import save_pruned
from sparse_trainer.plan.document import PLAN_FILE, Plan
from sparse_trainer.run.cut_folder import compact_folder
from sparse_trainer.run.pipeline import run
from sparse_trainer.run.recipes.fine_pruning import FinePruningRecipe
from sparse_trainer.run.recipes.load import is_one_shot, load_recipe
from sparse_trainer.run.recipes.reading import read_sections
from sparse_trainer.run.recipes.shipped import shipped
from tests.fixtures.recipe_files import STEPS, small, write_small_files

TASKS_OF_TEXTS = (
    "question-answering",
    "text-classification",
    "token-classification",
    "multiple-choice",
    "masked-lm",
)
TRAINING = sorted(
    name
    for name, path in shipped().items()
    if read_sections(path).get("task", {}).get("name") in TASKS_OF_TEXTS
    and not is_one_shot(read_sections(path))
)


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sparse_trainer.tasks.metrics.hub_reachable", lambda: False)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_files(tmp_path_factory.mktemp("recipes"))


@pytest.mark.parametrize("name", TRAINING)
def test_a_shipped_recipe_trains_and_leaves_a_model_that_loads(
    name: str, files: Path, tmp_path: Path
) -> None:
    said: list[str] = []
    recipe = small(name, files, tmp_path / "run", "export.verify=false", "training.logging_steps=1")
    assert isinstance(recipe, FinePruningRecipe)
    result = run(recipe, said.append)

    plan = Plan.load(result.folder)
    assert plan.density_reached == pytest.approx(0.5, abs=0.1)
    auto_class = getattr(transformers, recipe.task.auto_class)
    compact = auto_class.from_pretrained(result.folder, trust_remote_code=True)
    assert compact.num_parameters() == plan.params["compact"] < plan.params["dense"]
    assert result.comparison.models["pruned"].parameters == plan.params["compact"]
    for file in (
        "recipe.yaml",
        "report.html",
        "report.json",
        "shapes.txt",
        "kept.png",
        "curves.png",
        "widths.csv",
        "README.md",
        PLAN_FILE,
    ):
        assert (result.folder / file).stat().st_size > 0, file
    assert "<h2>Training</h2>" in (result.folder / "report.html").read_text()
    card = (result.folder / "README.md").read_text()
    assert "| learning rate schedule | linear |" in card
    assert re.findall(r"\| \w+\.[A-Z_]+ \|", card) == []  # members of enums
    assert said[0] == "loading data and model"
    assert load_recipe(result.folder / "recipe.yaml").sections == recipe.sections


def test_the_command_prints_json_and_the_lines_it_prints_work(files: Path, tmp_path: Path) -> None:
    """Run as a user does: in a process of its own, reloading in one more."""
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(small("quickstart", files, tmp_path / "run").dump())
    command = [sys.executable, "-m", "sparse_trainer", "run", str(recipe), "--json"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    printed: dict[str, Any] = json.loads(done.stdout)
    assert printed["reloaded"]["same_predictions"] == printed["reloaded"]["samples"] == 24
    assert printed["models"]["pruned"]["parameters"] == printed["reloaded"]["parameters"]
    assert set(printed["models"]["dense"]["latencies"]) == {"1", "16"}
    assert "WARNING" not in done.stderr

    scope: dict[str, Any] = {}
    exec("\n".join(printed["load"][:2]), scope)
    answer = scope["model"]({"text": "is it blue", "text_pair": "It is blue."})
    assert answer["label"] in ("no", "yes")


def test_mixed_precision_leaves_no_wrapper_behind(files: Path, tmp_path: Path) -> None:
    """Reloading is exact, and both models are timed as they are, only without accelerate's autocast."""
    result = run(small("quickstart", files, tmp_path / "run", "training.bf16=true"), lambda line: None)
    assert result.reloaded is not None
    assert result.reloaded.largest_difference < 1e-5
    assert result.comparison.conditions.dtype == "float32"


def test_a_checkpoint_of_a_run_can_be_cut_and_inspected(files: Path, tmp_path: Path) -> None:
    steps = ("training.save_strategy=steps", f"training.save_steps={STEPS}", "export.verify=false")
    result = run(small("boolq-local", files, tmp_path / "run", *steps), lambda line: None)
    folder, plan = compact_folder(str(tmp_path / "run" / f"checkpoint-{STEPS}"), tmp_path / "cut")
    assert result.plan is not None
    assert plan.groups == result.plan.groups
    assert inspect_model(load_shape(str(folder))).parameters == plan.params["compact"]
    assert AutoTokenizer.from_pretrained(folder)("is it")["input_ids"]
    with pytest.raises(CheckpointError, match="nothing to cut"):
        compact_folder(str(folder), tmp_path / "again")


def test_a_pruned_model_is_fine_tuned_on_and_keeps_its_plan(files: Path, tmp_path: Path) -> None:
    first = run(small("boolq-local", files, tmp_path / "run", "export.verify=false"), lambda line: None)
    more = (f"model.name_or_path={first.folder}", "model.dense_training=null", "pruning=null")
    second = run(small("boolq-local", files, tmp_path / "more", *more), lambda line: None)
    assert Plan.load(second.folder) == Plan.load(first.folder)
    assert load_pruned(second.folder).num_parameters() == load_pruned(first.folder).num_parameters()


def test_zeros_in_a_pruned_model_are_filled_and_fine_tuned_on(files: Path, tmp_path: Path) -> None:
    first = run(small("boolq-local", files, tmp_path / "run", "export.verify=false"), lambda line: None)
    model = load_pruned(first.folder)
    weight = model.bert.encoder.layer[0].intermediate.dense.weight
    weight.data[::2, ::2] = 0
    zeros = int((weight == 0).sum())
    folder = save_pruned(model, tmp_path / "zeros", processor=AutoTokenizer.from_pretrained(first.folder))
    more = (f"model.name_or_path={folder}", "model.dense_training=null", "pruning=null", "model.fill=true")
    said: list[str] = []
    second = run(small("boolq-local", files, tmp_path / "more", *more), said.append)
    assert f"{zeros} zeros filled" in said
    filled = load_pruned(second.folder)
    assert int((filled.bert.encoder.layer[0].intermediate.dense.weight == 0).sum()) == 0
    assert Plan.load(second.folder) == Plan.load(first.folder)


def test_the_dense_model_is_trained_in_the_shapes_of_an_earlier_run(files: Path, tmp_path: Path) -> None:
    first = run(small("boolq-local", files, tmp_path / "run", "export.verify=false"), lambda line: None)
    again = ("model.dense_training=null", f"model.rewind={first.folder}")
    second = run(small("boolq-local", files, tmp_path / "again", *again, "pruning=null"), lambda line: None)
    shapes = {name: p.shape for name, p in load_pruned(first.folder).named_parameters()}
    assert {name: p.shape for name, p in load_pruned(second.folder).named_parameters()} == shapes
    assert Plan.load(second.folder).groups == Plan.load(first.folder).groups
    further = ("pruning.distil_teacher_name_or_path=self", "export.verify=false")
    third = run(small("boolq-local", files, tmp_path / "further", *again, *further), lambda line: None)
    assert third.plan is not None
    assert third.plan.params["dense"] == third.comparison.models["dense"].parameters
    for name, group in third.plan.groups.items():
        assert set(group["keep"]) <= set(Plan.load(first.folder).groups[name]["keep"]), name
    assert third.plan.params["compact"] < Plan.load(first.folder).params["compact"]


def test_cheaper_layers_of_a_recipe_end_up_in_the_folder(files: Path, tmp_path: Path) -> None:
    said = ("pruning.cheaper=[relu, no_norm]", "pruning.distil_teacher_name_or_path=null")
    recipe = small("boolq-local", files, tmp_path / "run", *said, "model.dense_training=null")
    result = run(recipe, lambda line: None)
    assert result.reloaded is not None
    assert result.reloaded.same_predictions == result.reloaded.samples
    assert result.plan is not None
    assert result.plan.method == "movement, relu + no_norm"
    model = load_pruned(result.folder)
    assert model.config.hidden_act == "relu"
    assert sum(map(is_no_norm, model.modules())) == 4


def test_a_dense_run_saves_a_stock_checkpoint(files: Path, tmp_path: Path) -> None:
    result = run(small("boolq-local", files, tmp_path / "run", "pruning=null"), lambda line: None)
    assert result.plan is None
    assert list(result.comparison.models) == ["dense"]
    assert not (result.folder / PLAN_FILE).exists()
    model = AutoModelForSequenceClassification.from_pretrained(result.folder)
    classify = pipeline(
        "text-classification", model=model, tokenizer=AutoTokenizer.from_pretrained(result.folder)
    )
    assert classify({"text": "is it", "text_pair": "It is."})["label"] in ("no", "yes")


def test_without_a_dense_fine_tune_the_baseline_has_no_accuracy(files: Path, tmp_path: Path) -> None:
    changes = ("model.dense_training=null", "pruning.distil_teacher_name_or_path=self", "export.verify=false")
    recipe = files / "changed.yaml"
    recipe.write_text(small("boolq-local", files, tmp_path / "run").dump())
    result = run(load_recipe(recipe, changes), lambda line: None)
    assert result.comparison.models["dense"].metrics is None
    assert result.comparison.models["pruned"].metrics is not None


def test_a_section_takes_tokens_out_before_the_training(files: Path, tmp_path: Path) -> None:
    (tmp_path / "corpus.txt").write_text("what color is it? it is blue.")
    recipe = small("sst2-local", files, tmp_path / "run", f"vocabulary.corpus=['{tmp_path / 'corpus.txt'}']")
    result = run(recipe, lambda line: None)
    assert result.plan is not None
    assert result.plan.vocabulary is not None
    assert result.plan.method == "vocabulary, then movement"
    kept = len(result.plan.vocabulary["keep"])
    assert kept < result.plan.vocabulary["size"]
    loaded = load_pruned(result.folder)
    assert loaded.get_input_embeddings().weight.shape[0] == kept == loaded.config.vocab_size
    assert len(AutoTokenizer.from_pretrained(result.folder)) == kept
    assert result.reloaded is not None
    assert result.reloaded.same_predictions == result.reloaded.samples
    assert "vocabulary:" in (result.folder / "recipe.yaml").read_text()


def test_the_same_recipe_runs_again_over_its_own_result(files: Path, tmp_path: Path) -> None:
    recipe = small("sst2-local", files, tmp_path / "run", "export.verify=false")
    first = run(recipe, lambda line: None)
    second = run(recipe, lambda line: None, overwrite=True)
    assert first.plan == second.plan
    assert first.comparison.models["pruned"].metrics == second.comparison.models["pruned"].metrics


@pytest.mark.parametrize(
    ("overrides", "error", "message"),
    [
        (["data.text_columns=[question, context]"], DataError, "no column 'context'"),
        (["task.labels=['no']"], DataError, "has the label 1, which is not one of the 1 classes"),
        (["task.metrics=[acuracy]"], RecipeError, "Did you mean 'accuracy'"),
        (["task.name=text-clasification"], RecipeError, "Did you mean 'text-classification'"),
        (["data.max_length=65"], RecipeError, "the model reads 64 tokens at most"),
        (["data.text_columns=[passage]"], RecipeError, "there is one text column"),
        (["model.name_or_path=/nowhere/at/all"], RecipeError, "/nowhere/at/all"),
        (["model.rewind=/nowhere/at/all"], CheckpointError, "/nowhere/at/all.* cannot be read"),
        (["pruning.exclude=['layer.7']"], SparseTrainerError, "matches no group"),
        (["pruning.min_keep={channels: 32, heads: 4}"], SparseTrainerError, "min_keep"),
    ],
)
def test_bad_input_is_refused_before_training(
    overrides: list[str],
    error: type[SparseTrainerError],
    message: str,
    files: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("transformers.Trainer.train", _no_training)
    with pytest.raises(error, match=message):
        run(small("boolq-local", files, tmp_path / "run", *overrides), lambda line: None)


def test_a_folder_that_is_not_ours_is_refused_before_training(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transformers.Trainer.train", _no_training)
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "thesis.tex").write_text("years of work")
    with pytest.raises(CheckpointError, match="not ours to replace"):
        run(
            small("boolq-local", files, tmp_path / "run", f"export.output_dir={tmp_path / 'precious'}"), print
        )
    assert (tmp_path / "precious" / "thesis.tex").read_text() == "years of work"


def test_a_head_with_other_classes_is_refused(files: Path, tmp_path: Path) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(files / "model", num_labels=3)
    model.save_pretrained(tmp_path / "three")
    AutoTokenizer.from_pretrained(files / "model").save_pretrained(tmp_path / "three")
    with pytest.raises(DataError, match=r"its head has 3 classes \(num_labels\), the data has 2: no, yes"):
        run(small("boolq-local", files, tmp_path / "run", f"model.name_or_path={tmp_path / 'three'}"), print)


def _no_training(*_: Any, **__: Any) -> None:
    raise AssertionError("training started")


def test_real_boolq_files_are_accepted(tmp_path: Path, files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = (
        Path(os.environ.get("SPARSE_TRAINER_DATA", Path(__file__).parents[3] / "shared" / "data")) / "boolq"
    )
    if not folder.is_dir():
        pytest.skip(f"no BoolQ files in {folder}; set SPARSE_TRAINER_DATA")
    overrides = [
        f"data.train_file={folder / 'train.jsonl.gz'}",
        f"data.validation_file={folder / 'validation.jsonl.gz'}",
        "data.max_train_samples=16",
        "data.max_eval_samples=16",
        "export.verify=false",
    ]
    result = run(small("boolq-local", files, tmp_path / "run", *overrides), lambda line: None)
    assert result.comparison.models["pruned"].metrics is not None
