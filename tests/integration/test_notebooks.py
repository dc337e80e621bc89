"""The notebooks of the documentation run from top to bottom, on tiny models, without a network."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.fixtures.recipe_files import write_text, write_tiny_llama, write_tiny_model

FOLDER = Path(__file__).parents[2] / "docs/notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
SMALL: dict[str, dict[str, Any]] = {
    "fine-prune": {"ROWS": 64, "EPOCHS": 1, "DENSITY": 0.5},
    "one-shot": {"SAMPLES": 8, "LENGTH": 24, "TOKENS": 256},
    "depth": {"SAMPLES": 8, "LENGTH": 24, "TOKENS": 256, "DENSITY": 0.67},
}
"""What the first cell, tagged `parameters`, says instead."""


def test_every_notebook_is_run_here() -> None:
    assert {path.stem for path in NOTEBOOKS} == set(SMALL)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write = write_tiny_model if path.stem == "fine-prune" else write_tiny_llama
    given = {"MODEL": str(write(tmp_path / "model")), "TEXT": str(write_text(tmp_path / "text.txt", 60))}
    cells = [cell for cell in read(path)["cells"] if cell["cell_type"] == "code"]
    assert cells[0]["metadata"] == {"tags": ["parameters"]}
    namespace: dict[str, Any] = {}
    for number, cell in enumerate(cells):
        exec(compile("".join(cell["source"]), f"{path.name}, cell {number}", "exec"), namespace)
        if number == 0:
            namespace |= {
                name: value for name, value in (given | SMALL[path.stem]).items() if name in namespace
            }
    assert capsys.readouterr().out


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_stored_without_results(path: Path) -> None:
    notebook = read(path)
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    assert len({cell["id"] for cell in notebook["cells"]}) == len(notebook["cells"])
    for cell in notebook["cells"]:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None


def read(path: Path) -> dict[str, Any]:
    notebook: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return notebook
