"""`sparse-trainer compare` on a tiny Llama and local text."""

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

TEXT = ("--calibration-file", "text.txt", "--samples", "6", "--length", "16", "--held-out", "3")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("compare")
    write_tiny_llama(folder / "model")
    write_text(folder / "text.txt", 60)
    return folder


def command(files: Path, *more: object) -> str:
    """Run the command in this process, and return what it prints; user errors are raised."""
    text = [str(files / "text.txt") if part == "text.txt" else part for part in TEXT]
    given = ["compare", files / "model", "--device", "cpu", *text, *more]
    done = CliRunner().invoke(make_app(COMMANDS), [str(argument) for argument in given])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.stdout


def test_a_table_a_picture_and_numbers_for_scripts(files: Path, tmp_path: Path) -> None:
    given = ("--criteria", "wanda,obs(rounds=2),fisher", "--density", "channels=0.5")
    shown = command(files, *given)
    assert "obs(rounds=2)" in shown
    assert "3 sequences (45 labels) held out" in " ".join(shown.split())
    drawing = importlib.util.find_spec("matplotlib") is not None
    out = (tmp_path / "out", *([] if drawing else ["--no-pictures"]))
    found: dict[str, Any] = json.loads(
        command(files, *given, "--reconstruct", "least-squares", "--damping", "0.2", "--out", *out, "--json")
    )
    assert [each["criterion"] for each in found["criteria"]] != []
    assert found["criteria"][0]["behind"] == 0.0
    assert (tmp_path / "out" / "compare.csv").exists()
    assert (tmp_path / "out" / "compare.png").exists() == drawing
    with pytest.raises(CheckpointError, match="holds a result already"):
        command(files, *given, "--out", tmp_path / "out", "--no-pictures")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--criteria", "wnda"), "Did you mean 'wanda'"),
        (("--criteria", " "), "there is none"),
        (("--criteria", "wanda", "--held-out", "0"), "held_out"),
        (("--criteria", "wanda", "--density", "1.5"), "density"),
        (("--criteria", "wanda", "--target", "latency"), "Take params, macs or units"),
        (("--criteria", "wanda,block_influence"), "prunes heads and channels, and block_influence layers"),
        (("--criteria", "wanda", "--samples", "500"), "500 to calibrate on, and 3 to judge on.*held_out"),
    ],
)
def test_bad_input_is_told_before_any_work(files: Path, more: tuple[str, ...], message: str) -> None:
    with pytest.raises(SparseTrainerError, match=message):
        command(files, *more)
