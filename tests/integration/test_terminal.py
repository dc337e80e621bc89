"""What commands say where nobody looks at a terminal: a line per stage on stderr, no bars, the result on stdout."""

import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from sparse_trainer.cli.quiet import quieten
from sparse_trainer.inputs.bars import counting
from sparse_trainer.run.options import PruneSection, SourceOptions
from sparse_trainer.run.prune_folder import prune_folder
from tests.fixtures.recipe_files import write_text, write_tiny_llama

TEXT = ("--calibration-file", "{place}/text.txt", "--samples", "4", "--length", "24")
COMMANDS = {
    "prune": ("prune", "{place}/model", "{out}", "--criterion", "wanda", "--density", "0.7", *TEXT),
    "layers": ("layers", "{place}/model", "--out", "{out}", *TEXT),
    "compare": ("compare", "{place}/model", "--criteria", "wanda,magnitude", "--density", "channels=0.7", *TEXT),
    "evaluate": (
        "evaluate", "{place}/model", "--tasks", "{place}/text.txt", "--length", "24", "--max-tokens", "96",
    ),
    "bench": ("bench", "{place}/model", "--rounds", "1", "--batch", "1", "--sequence-length", "8"),
    "recover": (
        "recover", "{place}/cut", "{out}", "--data", "{place}/text.txt", "--steps", "2", "--length", "24",
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("terminal")
    write_tiny_llama(folder / "model")
    write_text(folder / "text.txt", 200)
    source = SourceOptions(name_or_path=str(folder / "model"), device="cpu")
    options = PruneSection(criterion="magnitude", density=0.7)
    prune_folder(source, folder / "cut", options, None, draw=False, tell=lambda line: None)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_every_stage_is_a_line_and_nothing_else_is_said(name: str, place: Path, tmp_path: Path) -> None:
    if name == "recover":
        pytest.importorskip("peft", reason="peft is not installed")
    arguments = [part.format(place=place, out=tmp_path / "out") for part in COMMANDS[name]]
    done = subprocess.run(
        [sys.executable, "-m", "sparse_trainer", *arguments],
        env={**os.environ, "COLUMNS": "80"},
        capture_output=True,
        text=True,
        check=True,
    )
    lines = done.stderr.splitlines()
    assert len(lines) >= 2
    assert [line for line in lines if not line.startswith(">> ")] == []
    assert done.stdout.strip()


def test_a_bar_follows_what_is_counted_and_leaves_nothing_in_a_file(
    capfd: pytest.CaptureFixture[str],
) -> None:
    with counting("perplexity") as told:
        for done in range(5):
            told(done, 5)
    assert capfd.readouterr() == ("", "")


def test_what_a_user_cannot_change_is_no_warning() -> None:
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        quieten()
        warnings.warn("`is_gradient_checkpointing` is deprecated", FutureWarning, stacklevel=1)
        warnings.warn("something else is deprecated", FutureWarning, stacklevel=1)
    assert [str(each.message) for each in found] == ["something else is deprecated"]
