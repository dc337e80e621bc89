"""Two processes with half the batch each take the decisions of one, with copies of the model and with FSDP2."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from sparse_trainer.cut.optimize import optimize_model
from sparse_trainer.plan.document import Plan
from sparse_trainer.training.load import load_patched
from tests.fixtures.processes import PLAIN, SHARED, SHARES, run_of

ROOT = Path(__file__).parents[2]
shares = pytest.mark.skipif(not SHARES, reason="FSDP2 needs accelerate 1.15")
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("processes")]


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder in which two processes have done all that is tried here."""
    folder = tmp_path_factory.mktemp("two")
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command = [sys.executable, *launcher, "-m", "tests.fixtures.processes", str(folder)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-6000:]
    (folder / "said").write_text(done.stderr)
    return folder


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the same trainings in one process."""
    folder = tmp_path_factory.mktemp("one")
    for method in sorted({*PLAIN, *SHARED}):
        run = run_of(folder / method, method, 1)
        run.train()
        run.save_model(str(folder / method))
    return folder


CASES = [*(f"plain-{method}" for method in PLAIN), *(f"shared-{method}" for method in SHARED)]


@pytest.mark.parametrize("name", CASES)
def test_two_processes_equal_one(name: str, one: Path, two: Path) -> None:
    method = name.partition("-")[2]
    alone, together = (load_file(folder / "model.safetensors") for folder in (one / method, two / name))
    assert alone.keys() == together.keys()
    for entry, tensor in alone.items():
        # Adam makes rounding visible where the gradients of loss and penalty cancel.
        near = 1e-4 if "_mask." in entry or (method == "masks-l0" and "_gate." in entry) else 1e-6
        torch.testing.assert_close(together[entry], tensor, rtol=0, atol=near, msg=f"{name}: {entry}")
    assert any(".keep_" in entry and bool((tensor == 0).any()) for entry, tensor in alone.items())


@pytest.mark.parametrize("name", CASES)
def test_all_processes_keep_the_same_units(name: str, two: Path) -> None:
    first, second = (load_file(two / f"{name}.{rank}.safetensors") for rank in (0, 1))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[place], second[place]) for place in first)


@shares
@pytest.mark.parametrize("method", ["movement", "masks-hybrid"])
def test_a_training_goes_on_from_shards(method: str, two: Path) -> None:
    shards = two / f"uninterrupted-{method}" / "checkpoint-5"
    assert not (shards / "model.safetensors").exists()
    whole, resumed = (
        load_file(two / f"{how}-{method}" / "model.safetensors") for how in ("uninterrupted", "resumed")
    )
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[entry], resumed[entry]) for entry in whole)


@shares
def test_what_was_shared_out_is_saved_whole_and_cut(two: Path) -> None:
    compact = optimize_model(load_patched(two / "uninterrupted-movement"))
    assert compact.pruning_plan.density_reached == pytest.approx(0.5, abs=0.1)
    for rank in (0, 1):
        assert "trainer.save_model(folder)" in (two / f"cut.{rank}.txt").read_text()
        assert "FULL_STATE_DICT" in (two / f"load.{rank}.txt").read_text()


def test_a_recipe_runs_in_both_and_one_process_writes(two: Path) -> None:
    names = ("recipe-plain", "recipe-shared") if SHARES else ("recipe-plain",)
    for name in names:
        assert [(two / f"{name}.{rank}.txt").read_text() for rank in (0, 1)] == ["0", "0"]
        plan = Plan.load(two / name / "run" / "pruned")
        assert plan.density_reached == pytest.approx(0.5, abs=0.1)
    assert (two / "said").read_text().count(">> fine-pruning") == len(names)


@shares
def test_what_cannot_work_is_refused_once_before_any_work(two: Path) -> None:
    assert [(two / f"recipe-refused.{rank}.txt").read_text() for rank in (0, 1)] == ["2", "2"]
    assert not any(file.is_file() for file in (two / "recipe-refused" / "run").rglob("*"))
    assert (two / "said").read_text().count("sends parameters to the other processes") == 1


def test_a_process_that_decides_otherwise_stops_all(two: Path) -> None:
    said = [(two / f"astray.{rank}.txt").read_text() for rank in (0, 1)]
    assert said[0] == said[1]
    assert said[0].startswith("step 6: the 2 processes chose different units")
