"""`sparse-trainer sweep`: what it lists, shows and refuses; no run starts here."""

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from sparse_trainer.cli.front import main
from sparse_trainer.run.sweep.planned import PlannedRun
from sparse_trainer.run.sweep.processes import Ended, RunProcess
from tests.fixtures.recipe_files import boolq_rows, write_rows, write_tiny_model
from tests.unit.run.test_sweep_figures import figures


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sweep")
    rows = write_rows(root / "rows.jsonl", boolq_rows(8))
    (root / "mine.yaml").write_text(
        f"model: {{name_or_path: {write_tiny_model(root / 'bert')}, dense_training: {{}}}}\n"
        f"data: {{train_file: {rows}, validation_file: {rows}, text_columns: [question, passage], max_length: 48}}\n"
        "pruning: {scoring: movement, density: 0.5}\n"
        "training: {max_steps: 2, report_to: none, use_cpu: true}\n"
        "export: {latency_sequence_length: 8}\n"
    )
    return root / "mine.yaml"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def call(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["sparse-trainer", "sweep", *map(str, arguments)])
    with pytest.raises(SystemExit) as caught:
        main()
    return int(caught.value.code or 0)


def running(monkeypatch: pytest.MonkeyPatch, *failing: str) -> list[str]:
    """Let runs end at once, and those named here fail; return the list of names that have run."""
    names: list[str] = []

    def run_all(
        runs: Sequence[PlannedRun],
        jobs: int,
        start: Callable[[PlannedRun, int], RunProcess],
        ended: Callable[[PlannedRun, Ended], None],
    ) -> None:
        for run in runs:
            names.append(run.name)
            run.folder.mkdir(parents=True, exist_ok=True)
            if run.name in failing:
                ended(run, Ended(result=None, error="data: is empty. Give rows."))
            else:
                ended(run, Ended(result=dict(figures(0.8, 4.0).result), error=None))

    monkeypatch.setattr("sparse_trainer.run.sweep.sweep.run_all", run_all)
    return names


def test_a_dry_run_lists_the_runs_and_writes_nothing(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    grid = ("pruning.density=0.25,0.5", "training.seed=0,1")
    assert call(monkeypatch, recipe, *grid, "--dry-run", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["folder"] == str(tmp_path / "runs" / "mine-sweep")
    assert [run["run"] for run in found["runs"]] == [
        "density=0.25_seed=0", "density=0.25_seed=1", "density=0.5_seed=0", "density=0.5_seed=1",
    ]  # fmt: skip
    assert {run["begun"] for run in found["runs"]} == {"new"}
    assert len({run["dense"] for run in found["runs"]}) == 2
    assert call(monkeypatch, recipe, *grid, "--dry-run", "--out", "there") == 0
    shown = capsys.readouterr().out
    assert "density=0.5_seed=1" in shown
    assert f"4 runs in {tmp_path / 'there'}" in shown
    assert list(tmp_path.iterdir()) == []


def test_finished_runs_are_shown_and_not_run_again_and_failed_ones_are(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    grid = ("pruning.density=0.25,0.5", "training.seed=0")
    names = running(monkeypatch, "density=0.5")
    assert call(monkeypatch, recipe, *grid) == 1
    output = capsys.readouterr()
    assert "80.0 %" in output.out
    assert "90.0 %" in output.out
    assert "2.00x" in output.out
    assert "density=0.5 failed: data: is empty. Give rows." in output.out
    assert f"table: {tmp_path}/runs/mine-sweep/sweep.csv" in output.out
    assert f"picture: {tmp_path}/runs/mine-sweep/sweep.png" in output.out
    names.clear()
    running(monkeypatch)
    assert call(monkeypatch, recipe, *grid, "--json") == 0
    output = capsys.readouterr()
    told: dict[str, Any] = json.loads(output.out)
    assert "density=0.25: finished before" in output.err
    assert [run["status"] for run in told["runs"]] == ["finished", "finished"]
    assert [run["speedup_batch_16"] for run in told["runs"]] == [2.0, 2.0]
    assert call(monkeypatch, recipe, *grid, "--dry-run", "--json") == 0
    assert {run["begun"] for run in json.loads(capsys.readouterr().out)["runs"]} == {"finished"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("pruning.densty=0.25,0.5",), "pruning.densty"),
        (("pruning.density=0.25,2",), "override 'pruning.density=2'"),
        (("pruning.density=0.25",), "no option has several values"),
        (("training.seed=0,1", "--jobs", "0"), "--jobs: 0 is too small"),
        (("training.seed=0,1", "--out", "file"), "file"),
        (("training.seed=0,1", "--out", "file/x"), "file"),
        (("training.seed=0,1", "--plugin", "nowhere.py"), "nowhere.py"),
        ((), "overrides"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2_before_any_run(
    arguments: tuple[str, ...],
    said: str,
    recipe: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    names = running(monkeypatch)
    (tmp_path / "file").write_text("x")
    assert call(monkeypatch, recipe, *arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert said.lower() in error.lower()
    assert names == []
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
