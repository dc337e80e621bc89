"""Fine-tuned classifiers and encoders of texts, pruned in one shot: recipes and the command, to folders that load."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertForSequenceClassification,
    BertModel,
)
from typer.testing import CliRunner

from sparse_trainer.cli.app import make_app
from sparse_trainer.errors import CheckpointError, DataError, RecipeError, SparseTrainerError
from sparse_trainer.inputs.pooling import Pooling
from sparse_trainer.plan.document import Plan
from sparse_trainer.run.pipeline import run
from sparse_trainer.run.recipes.load import load_recipe
from sparse_trainer.tasks.embeddings.files import write_files
from tests.fixtures.recipe_files import boolq_rows, sst2_rows, write_rows, write_tiny_model

pytestmark = pytest.mark.filterwarnings("ignore")
CLASSIFIER, ENCODER = "sst2-local-one-shot", "embeddings-one-shot"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("encoders")
    write_tiny_model(folder / "encoder")
    tokenizer = AutoTokenizer.from_pretrained(folder / "encoder")
    torch.manual_seed(0)
    BertForSequenceClassification.from_pretrained(folder / "encoder", num_labels=2).save_pretrained(
        folder / "classifier"
    )
    tokenizer.save_pretrained(folder / "classifier")
    write_files(folder / "encoder", Pooling(mode="mean", normalize=True), 16, {})
    write_rows(folder / "sst2.jsonl", sst2_rows(48))
    write_rows(
        folder / "pairs.jsonl",
        [
            {"question": f"{row['question']} {n}", "context": row["passage"]}
            for n, row in enumerate(boolq_rows(24))
        ],
    )
    return folder


def small(name: str, files: Path, out: Path, *overrides: str) -> Any:
    model, data = ("classifier", "sst2.jsonl") if name == CLASSIFIER else ("encoder", "pairs.jsonl")
    return load_recipe(
        name,
        [
            f"model.name_or_path={files / model}",
            "model.device=cpu",
            f"data.train_file={files / data}",
            f"data.validation_file={files / data}",
            "data.max_length=32",
            "calibration.samples=20",
            "calibration.batch_size=4",
            f"export.output_dir={out}",
            "export.latency_rounds=1",
            "export.latency_sequence_length=8",
            *overrides,
        ],
    )


@pytest.mark.parametrize(("name", "metric"), [(CLASSIFIER, "accuracy"), (ENCODER, "recall@1")])
def test_a_recipe_prunes_measures_and_saves(name: str, metric: str, files: Path, tmp_path: Path) -> None:
    said: list[str] = []
    result = run(small(name, files, tmp_path / "out"), said.append)
    measured = {key: one.metrics[metric] for key, one in result.comparison.models.items()}
    assert set(measured) == {"dense", "pruned"}
    assert Plan.load(tmp_path / "out").density_reached == pytest.approx(0.5, abs=0.1)
    auto = AutoModelForSequenceClassification if name == CLASSIFIER else AutoModel
    loaded = auto.from_pretrained(tmp_path / "out", trust_remote_code=True)
    assert loaded.num_parameters() == result.comparison.models["pruned"].parameters
    assert (tmp_path / "out" / "modules.json").exists() == (name == ENCODER)
    assert "measuring the pruned model on the validation set" in said


def test_stages_and_searches_go_with_a_task(files: Path, tmp_path: Path) -> None:
    prune = (
        "prune={criterion: fisher + obs, search: evolve, levels: 4, reconstruct: least_squares, density: 0.5}"
    )
    result = run(small(CLASSIFIER, files, tmp_path / "out", prune, "export.verify=false"), lambda line: None)
    assert result.comparison.models["pruned"].metrics["accuracy"] > 0


def pruned_by_command(*options: str) -> Any:
    done = CliRunner().invoke(make_app({"prune"}), ["prune", *options, "--no-pictures", "--json"])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return json.loads(done.stdout)


def test_the_command_reads_a_table_row_by_row(files: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shared = ("--density", "0.5", "--samples", "24", "--length", "32", "--device", "cpu")
    told = pruned_by_command(
        str(files / "classifier"), str(out), "--criterion", "kfac_obs", "--reconstruct", "least-squares",
        "--calibration", str(files / "sst2.jsonl"), "--text-columns", "sentence", *shared,
    )  # fmt: skip
    assert told["density_reached"] == pytest.approx(0.5, abs=0.1)
    tokenizer = AutoTokenizer.from_pretrained(out)
    model = AutoModelForSequenceClassification.from_pretrained(out, trust_remote_code=True)
    assert model(**tokenizer("is it", return_tensors="pt")).logits.shape == (1, 2)


def test_the_command_takes_the_pooling_of_the_files_and_writes_them_again(
    files: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    pruned_by_command(
        str(files / "encoder"), str(out), "--criterion", "fisher", "--density", "0.5", "--samples", "24",
        "--calibration", str(files / "pairs.jsonl"), "--text-columns", "question", "--text-columns", "context",
        "--length", "32", "--device", "cpu",
    )  # fmt: skip
    assert isinstance(AutoModel.from_pretrained(out, trust_remote_code=True), BertModel)
    assert (out / "modules.json").exists()
    assert (out / "1_Pooling" / "config.json").exists()


@pytest.mark.parametrize(
    ("overrides", "what"),
    [
        (["calibration.source=wikitext2"], "the training set in data is what is read"),
        (["calibration=null"], "calibration: missing"),
        (["task=null"], "there is no task"),
        (["evaluation={tasks: [wikitext2]}"], "says what is measured"),
        (["task.name=nothing"], "unknown task"),
        (["prune.pooling=sum"], "pooling"),
    ],
)
def test_sections_that_do_not_go_together(
    overrides: list[str], what: str, files: Path, tmp_path: Path
) -> None:
    with pytest.raises(RecipeError, match=what):
        small(CLASSIFIER, files, tmp_path / "out", *overrides)


@pytest.mark.parametrize(
    ("overrides", "error", "what"),
    [
        (["calibration.samples=99"], DataError, "48 rows to train on, and 99 are needed"),
        (["model.name_or_path={encoder}"], CheckpointError, "nothing is trained here"),
        (["data.train_file=nowhere.jsonl"], DataError, "nowhere.jsonl"),
    ],
)
def test_what_cannot_work_is_told_before_any_work(
    overrides: list[str], error: type[SparseTrainerError], what: str, files: Path, tmp_path: Path
) -> None:
    asked = [override.format(encoder=files / "encoder") for override in overrides]
    with pytest.raises(error, match=what):
        run(small(CLASSIFIER, files, tmp_path / "out", *asked), lambda line: None)
    assert not (tmp_path / "out").exists()
