"""`sparse-trainer layers` on a tiny Llama and local text."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from sparse_trainer.cli.app import make_app
from sparse_trainer.cli.commands import COMMANDS
from sparse_trainer.errors import CheckpointError, SparseTrainerError
from tests.fixtures.recipe_files import write_text, write_tiny_llama


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("layers")
    write_tiny_llama(folder / "model")
    write_text(folder / "text.txt", 40)
    return folder


def command(files: Path, out: Path, *more: object) -> str:
    """Run the command in this process, and return what it prints; user errors are raised."""
    text = ("--calibration-file", files / "text.txt", "--samples", 4, "--length", 16, "--device", "cpu")
    given = ["layers", files / "model", "--out", out, *text, *more]
    done = CliRunner().invoke(make_app(COMMANDS), [str(argument) for argument in given])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.stdout


def test_layers_writes_tables_and_pictures_and_says_what_would_go(files: Path, tmp_path: Path) -> None:
    shown = command(
        files, tmp_path / "out", "--density", 0.67, "--criteria", "last,avss(of=output,rule=mass)"
    )
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "layers.csv", "layers.png", "study.csv", "study.png",
    ]  # fmt: skip
    assert "avss(of=output, rule=mass)" in shown
    with pytest.raises(CheckpointError, match="holds a result already"):
        command(files, tmp_path / "out")
    again = command(
        files, tmp_path / "out", "--overwrite", "--no-study", "--no-pictures", "--density", 0.67, "--json"
    )
    found: dict[str, Any] = json.loads(again)
    assert found["layers"] == [0, 1, 2]
    assert found["takes"]["last"] == [False, True, False]
    assert len(found["scores"]["fisher"]) == 3
    assert found["study"] == {}
    assert list(found["files"]) == ["table"]


def test_an_earlier_study_does_not_stay_beside_other_scores(files: Path, tmp_path: Path) -> None:
    command(files, tmp_path / "out", "--criteria", "last", "--density", 0.67, "--no-pictures")
    assert (tmp_path / "out" / "study.csv").exists()
    command(
        files,
        tmp_path / "out",
        "--criteria",
        "last",
        "--density",
        0.67,
        "--no-study",
        "--no-pictures",
        "--overwrite",
    )
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["layers.csv"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--criteria", "wanda"), "criteria: wanda does not score layers"),
        (("--criteria", "lst"), "criteria: unknown value 'lst'"),
        (("--criteria", ","), "criteria: there is none"),
        (("--density", "1.5"), "density"),
        (("--calibration", "wikitex2"), "Did you mean 'wikitext2'"),
        (("--length", "65"), "length: 65 tokens"),
        (("--device", "abacus"), "device: 'abacus'"),
    ],
)
def test_bad_options_are_refused_before_the_model_is_loaded(
    options: tuple[str, ...], message: str, files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sparse_trainer.run.options.load_model", None)
    with pytest.raises(SparseTrainerError, match=message):
        command(files, tmp_path / "out", *options)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_somebody_else_is_left_alone(files: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(CheckpointError, match="not ours to replace"):
        command(files, tmp_path, "--overwrite")


def test_without_matplotlib_there_are_tables(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name == "matplotlib" else find(name, *more)
    )
    with pytest.raises(SparseTrainerError, match=r"matplotlib is not installed.*--no-pictures"):
        command(files, tmp_path / "out", "--criteria", "last")
    command(files, tmp_path / "out", "--criteria", "last", "--no-pictures")
    assert (tmp_path / "out" / "layers.csv").exists()
