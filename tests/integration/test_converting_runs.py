"""Runs that end with their model written for other runtimes."""

from pathlib import Path

import pytest

from sparse_trainer.errors import ArgumentError, CheckpointError, ConversionError, SparseTrainerError
from sparse_trainer.run import conversions
from sparse_trainer.run.pipeline import run
from sparse_trainer.run.recipes.load import load_recipe
from sparse_trainer.run.recipes.recipe import Recipe
from tests.fixtures.recipe_files import write_text, write_tiny_llama, write_tiny_model


def recipe(folder: Path, *overrides: str) -> Recipe:
    """Return a small one-shot recipe of weights alone."""
    if not (folder / "model").exists():
        write_tiny_llama(folder / "model")
        write_text(folder / "text.txt", 40)
    return load_recipe(
        "llama-wanda",
        [
            f"model.name_or_path={folder / 'model'}",
            "model.device=cpu",
            f"calibration.file={folder / 'text.txt'}",
            "calibration.samples=2",
            "calibration.length=16",
            "evaluation=null",
            f"export.output_dir={folder / 'out'}",
            "export.latency_rounds=1",
            "export.latency_sequence_length=8",
            "export.verify=false",
            *overrides,
        ],
    )


def test_a_run_ends_with_the_other_forms_beside_its_folder(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    said: list[str] = []
    result = run(recipe(tmp_path, "export.convert=[onnx:int8]"), said.append)
    assert (tmp_path / "out-onnx" / "model.onnx").is_file()
    assert result.files["onnx"] == tmp_path / "out-onnx"
    assert said[-1] == "converting to onnx (int8)"


@pytest.mark.parametrize(
    ("asked", "error", "why"),
    [
        ("[tensorrt]", ArgumentError, "export.convert"),
        ("[onnx:q3]", ArgumentError, "export.convert"),
        ("[onnx, onnx:int8]", ArgumentError, "twice"),
    ],
)
def test_what_cannot_be_written_is_refused_before_any_work(
    asked: str, error: type[SparseTrainerError], why: str, tmp_path: Path
) -> None:
    said: list[str] = []
    with pytest.raises(error, match=why):
        run(recipe(tmp_path, f"export.convert={asked}"), said.append)
    assert said == []
    assert not (tmp_path / "out").exists()


def test_a_model_that_the_form_cannot_hold_is_refused_before_any_work(tmp_path: Path) -> None:
    said: list[str] = []
    asked = recipe(
        tmp_path, "export.convert=[decilm]", f"model.name_or_path={write_tiny_model(tmp_path / 'bert')}"
    )
    with pytest.raises(ConversionError):
        run(asked, said.append)
    assert said == []


def test_a_place_that_is_taken_or_a_missing_package_is_refused_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conversions, "check_installed", lambda *arguments: None)
    (tmp_path / "out.gguf").write_text("mine")
    with pytest.raises(CheckpointError, match="is there already"):
        run(recipe(tmp_path, "export.convert=[gguf]"), lambda line: None)
    assert (tmp_path / "out.gguf").read_text() == "mine"
