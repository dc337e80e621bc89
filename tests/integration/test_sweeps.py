"""A sweep of four small runs, two at a time, each in a process of its own: it fails, is stopped, and goes on."""

import csv
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from sparse_trainer.plan.document import Plan
from sparse_trainer.run.pipeline import run
from sparse_trainer.run.recipes.load import load_recipe
from sparse_trainer.run.resume import RUN_FILE
from sparse_trainer.run.sweep.planned import RECORD_FILE
from sparse_trainer.run.sweep.planning import plan_runs
from sparse_trainer.run.sweep.processes import sole_use
from tests.fixtures.recipe_files import write_small_files

SWEEP = (sys.executable, "-m", "sparse_trainer", "sweep")
GRID = ("pruning.density=0.5,0.01", "training.seed=0,1")
"""Half of the model, and less than the floors leave: two of four runs fail."""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sweeps")
    files = write_small_files(root / "files")
    rows = files / "sst2.jsonl"
    (root / "mine.yaml").write_text(
        f"model: {{name_or_path: {files / 'model'}, dense_training: {{}}, prune_from: dense}}\n"
        f"data: {{train_file: {rows}, validation_file: {rows}, text_columns: [sentence], max_length: 48}}\n"
        "pruning: {scoring: movement, density: 0.5, distil_teacher_name_or_path: dense}\n"
        "training: {max_steps: 4, per_device_train_batch_size: 4, report_to: none, use_cpu: true}\n"
        "export: {latency_rounds: 1, latency_sequence_length: 8, verify: false}\n"
    )
    return root / "mine.yaml"


def _interruptible() -> None:
    """Let Ctrl-C interrupt the process, also where the tests run in the background of a shell, which ignores it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_a_sweep_that_is_stopped_goes_on_and_its_runs_end_as_they_would_alone(
    recipe: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    command = [*SWEEP, str(recipe), *GRID, "--out", str(out), "--jobs", "2", "--json"]
    first = subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=_interruptible,
    )
    try:
        while not list(out.glob(f"density=0.5_seed=*/{RUN_FILE}")):
            assert first.poll() is None
            time.sleep(0.05)
        first.send_signal(signal.SIGINT)
        _, said = first.communicate()
    finally:
        first.kill()
    assert first.returncode == 128 + signal.SIGINT
    assert "stopped: the same command goes on with it" in said
    with sole_use(out) as lock:  # no process of a run is left that holds the folder
        assert lock is not None

    second = subprocess.run(command, capture_output=True, text=True, check=False)
    assert second.returncode == 1, second.stderr
    told: dict[str, Any] = json.loads(second.stdout)
    assert [run["status"] for run in told["runs"]] == ["finished", "finished", "failed", "failed"], told
    check_table(out)
    dense = out / "dense"
    assert len(list(dense.iterdir())) == 2

    (out / "density=0.5_seed=1" / RECORD_FILE).unlink()
    _, again, *_ = plan_runs(str(recipe), GRID, out)
    assert again.begun == "stopped"
    own, alone = (
        load_recipe(recipe, again.arguments[again.arguments.index("--") + 2 :]),
        load_recipe(recipe, ["training.seed=1", f"training.output_dir={tmp_path}/run"]),
    )
    lines: list[str] = []
    before = (again.result / "config.json").stat().st_mtime_ns
    run(own, lines.append, resume=True)
    assert f"taking the dense model from {again.dense}" in lines
    assert (again.result / "config.json").stat().st_mtime_ns > before
    run(alone)
    check_same(again.result, tmp_path / "run" / "pruned")


def check_table(out: Path) -> None:
    """Check that the table has all runs, with what was measured or why nothing was; and that there is a picture."""
    with (out / "sweep.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["pruning.density"], row["training.seed"]) for row in rows] == [
        ("0.5", "0"), ("0.5", "1"), ("0.01", "0"), ("0.01", "1"),
    ]  # fmt: skip
    assert all(float(row["speedup_batch_16"]) > 0 and row["accuracy"] for row in rows[:2])
    assert all("0.01 is not reachable" in row["error"] and not row["accuracy"] for row in rows[2:])
    assert (out / "sweep.png").read_bytes().startswith(b"\x89PNG")


def check_same(found: Path, expected: Path) -> None:
    """Check that two results hold the same units and weights."""
    assert Plan.load(found).groups == Plan.load(expected).groups
    tensors, others = (load_file(folder / "model.safetensors") for folder in (found, expected))
    assert tensors.keys() == others.keys()
    assert all(tensors[name].equal(other) for name, other in others.items())
