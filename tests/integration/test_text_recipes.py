"""Tasks on text, from recipe to finished folder: it is reloaded in a process of its own, and the printed lines run."""

import math
import shlex
from pathlib import Path

import pytest
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from sparse_trainer.errors import DataError, RecipeError, SparseTrainerError
from sparse_trainer.run.outcome import RunResult
from sparse_trainer.run.pipeline import run
from sparse_trainer.run.recipes.fine_pruning import FinePruningRecipe
from sparse_trainer.run.recipes.load import load_recipe
from tests.fixtures.recipe_files import boolq_rows, small, write_rows, write_small_files

ROOT = Path(__file__).parents[2]
STSB = (
    "task.problem_type=regression",
    "task.labels=null",
    "task.metrics=[pearsonr, spearmanr]",
)


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sparse_trainer.tasks.metrics.hub_reachable", lambda: False)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_small_files(tmp_path_factory.mktemp("texts"))
    scores = [{**row, "label": 5 * number / 24} for number, row in enumerate(boolq_rows(24))]
    write_rows(folder / "stsb.jsonl", scores)
    return folder


def finished(name: str, files: Path, tmp_path: Path, *overrides: str) -> tuple[RunResult, list[object]]:
    """Run a recipe; return its result and what the lines print that it shows."""
    result = run(small(name, files, tmp_path / "run", *overrides), lambda line: None)
    assert result.reloaded is not None
    assert result.reloaded.same_predictions == result.reloaded.samples > 0
    dense, pruned = result.comparison.models.values()
    assert pruned.parameters < dense.parameters
    assert pruned.metrics is not None
    assert all(map(math.isfinite, pruned.metrics.values()))
    printed: list[object] = []
    exec("\n".join(result.load_lines), {"print": printed.append})
    return result, printed


def test_scores_of_sentence_pairs(files: Path, tmp_path: Path) -> None:
    rows = [f"data.{split}_file={files / 'stsb.jsonl'}" for split in ("train", "validation")]
    result, [answer] = finished("glue-bert", files, tmp_path, *STSB, *rows)
    assert set(result.comparison.models["pruned"].metrics or ()) == {"pearsonr", "spearmanr"}
    assert result.reloaded is not None
    assert result.reloaded.samples == 24
    assert isinstance(answer, dict)
    tokenizer = AutoTokenizer.from_pretrained(result.folder)
    model = AutoModelForSequenceClassification.from_pretrained(result.folder, trust_remote_code=True)
    row = boolq_rows(24)[0]
    found = model(**tokenizer(row["question"], row["passage"], return_tensors="pt")).logits.item()
    assert answer["score"] == pytest.approx(found, abs=1e-5)  # the number, not its sigmoid


def test_entities(files: Path, tmp_path: Path) -> None:
    result, [answer] = finished("ner-bert", files, tmp_path)
    assert list(result.comparison.models["pruned"].metrics or ()) == ["f1", "precision", "recall", "accuracy"]
    assert isinstance(answer, list)
    assert {found["entity"] for found in answer} <= {"B-NAME"}


def test_choices(files: Path, tmp_path: Path) -> None:
    result, [answer] = finished("swag-bert", files, tmp_path)
    assert answer in ("it is blue", "it is red", "it is green", "it is black")
    assert result.comparison.models["pruned"].latencies[16].median > 0


def test_masked_text(files: Path, tmp_path: Path) -> None:
    result, [answer] = finished("mlm-bert", files, tmp_path, "model.dense_training=null")
    dense, pruned = (each.metrics for each in result.comparison.models.values())
    assert dense is not None, "a language model does its task as it is loaded"
    assert pruned is not None
    assert pruned["perplexity"] > 1
    assert isinstance(answer, list)
    assert {"token_str", "score"} <= set(answer[0])


def glue_lines() -> list[list[str]]:
    """Return the overrides of every line of the catalogue that runs a task of GLUE."""
    catalogue = (ROOT / "recipes" / "README.md").read_text(encoding="utf-8").replace("\\\n", " ")
    lines = (line for line in catalogue.splitlines() if line.startswith("sparse-trainer run glue-bert "))
    return [shlex.split(line, comments=True)[3:] for line in lines]


def test_every_task_of_glue_is_an_override() -> None:
    recipes = [load_recipe("glue-bert", overrides) for overrides in glue_lines()]
    assert all(isinstance(recipe, FinePruningRecipe) for recipe in recipes)
    named = {recipe.data.config for recipe in recipes if isinstance(recipe, FinePruningRecipe)}
    assert named == {"mnli", "sst2", "cola", "mrpc", "qqp", "stsb", "qnli", "rte", "wnli"}


@pytest.mark.parametrize(
    ("name", "overrides", "error", "message"),
    [
        ("glue-bert", STSB[:2], RecipeError, r"task\.metrics: 'accuracy' does not fit this task.*pearsonr"),
        ("glue-bert", (*STSB, "data.label_column=hypothesis"), DataError, "no column 'hypothesis'"),
        ("ner-bert", ("task.metrics=[pearsonr]",), RecipeError, r"task\.metrics: 'pearsonr' does not fit"),
        ("ner-bert", ("task.labels=[O, NAME]",), DataError, "'NAME' is no tag of IOB2"),
        (
            "ner-bert",
            ("task.labels=[O, B-X]",),
            DataError,
            "row 0: has the tag 'B-NAME', which is not one of",
        ),
        ("swag-bert", ("task.choices=[choices]",), DataError, "no column 'choices'"),
        ("swag-bert", ("task.num_choices=3",), DataError, "no row has 3 choices"),
        ("mlm-bert", ("data.max_length=65",), RecipeError, "the model reads 64 tokens at most"),
        ("mlm-bert", ("task.mask_probability=1.0",), RecipeError, r"task\.mask_probability: 1\.0 is not in"),
    ],
)
def test_what_does_not_fit_is_told_before_training(
    name: str,
    overrides: tuple[str, ...],
    error: type[SparseTrainerError],
    message: str,
    files: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def train(*_: object, **__: object) -> None:
        raise AssertionError("training started")

    monkeypatch.setattr("transformers.Trainer.train", train)
    with pytest.raises(error, match=message):
        run(small(name, files, tmp_path / "run", *overrides), lambda line: None)
