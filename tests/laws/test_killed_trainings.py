"""A training whose process is killed (SIGKILL), wherever that is, resumes and ends as one that was not, bit for bit."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from sparse_trainer.training.checkpoint import last_checkpoint
from sparse_trainer.training.trainer import PruningTrainer
from tests.fixtures.compact_models import tiny
from tests.fixtures.killed import die, die_at, ends_well, forked
from tests.fixtures.training import sparse_args, state, trainer

STEPS = 12
OPTIONS: dict[str, Any] = {"save_strategy": "steps", "save_steps": 3, "save_total_limit": 2}


def training(folder: Path, method: str = "movement", **options: Any) -> PruningTrainer:
    """Return a training with dropout, and a checkpoint after every third of twelve steps."""
    return trainer(folder, sparse_args(method), tiny("bert").train(), **{**OPTIONS, **options})


class KillAt(TrainerCallback):
    """Kills its process in a step: its gradients are there, its optimizer has not moved yet."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step + 1 == self.step:
            die()


class KillInSave(TrainerCallback):
    """Kills its process while it writes the checkpoint of a step, before the n-th call to the disk."""

    def __init__(self, step: int, point: int) -> None:
        self.step, self.point = step, point

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            die_at(self.point)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """Return what a training that was not killed ends with."""
    run = training(tmp_path_factory.mktemp("whole"))
    run.train()
    return state(run.model)


def resumed(folder: Path, method: str = "movement", **options: Any) -> dict[str, torch.Tensor]:
    """Go on in this process from the last whole checkpoint, or from the start, and return the end."""
    run = training(folder, method, **options)
    run.train(resume_from_checkpoint=last_checkpoint(folder) is not None)
    assert run.state.global_step == STEPS
    return state(run.model)


def assert_equal(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert [name for name in found if not torch.equal(found[name], expected[name])] == []


@pytest.mark.parametrize("step", [1, 2, 3, 4, 7, 9, 12])
def test_killed_in_a_step(step: int, whole: dict[str, torch.Tensor], tmp_path: Path) -> None:
    def work() -> None:
        run = training(tmp_path)
        run.add_callback(KillAt(step))
        run.train()

    assert not ends_well(forked(work))
    assert_equal(resumed(tmp_path), whole)


# A checkpoint takes 30-odd calls to the disk: every sixth of them.
@pytest.mark.parametrize("point", range(1, 36, 6))
def test_killed_while_a_checkpoint_is_written(
    point: int, whole: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    def work() -> None:
        run = training(tmp_path)
        run.add_callback(KillInSave(9, point))
        run.train()

    assert not ends_well(forked(work))
    assert_equal(resumed(tmp_path), whole)
