"""Resuming a pruning training: from a complete checkpoint of the same pruning, or not at all."""

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sparse_trainer.errors import CheckpointError
from sparse_trainer.training.checkpoint import STATE_FILE, find_checkpoint, last_checkpoint
from tests.fixtures.training import sparse_args, state, trainer


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a training with checkpoints at steps 4, 8 and 12."""
    folder = tmp_path_factory.mktemp("stopped")
    trainer(folder, sparse_args("movement"), save_strategy="steps", save_steps=4).train()
    return folder


def resume(
    folder: Path, *, resume_from_checkpoint: Any = True, method: str = "movement", **options: Any
) -> Any:
    """Resume the training with these pruning arguments, and return its trainer."""
    run = trainer(folder, sparse_args(method, **options), save_strategy="steps", save_steps=4)
    run.train(resume_from_checkpoint)
    return run


def edit_state(**changes: Any) -> Callable[[Path], None]:
    """Return what changes the pruning state of a checkpoint."""

    def do_harm(folder: Path) -> None:
        values = json.loads((folder / STATE_FILE).read_text())
        (folder / STATE_FILE).write_text(json.dumps(values | changes))

    return do_harm


def test_other_pruning_arguments_are_named_with_both_values(stopped: Path) -> None:
    checkpoint = stopped / "checkpoint-4"
    with pytest.raises(CheckpointError, match=r"density was 0\.5 and is 0\.3 now") as caught:
        resume(stopped, resume_from_checkpoint=checkpoint, density=0.3)
    assert str(checkpoint / STATE_FILE) in str(caught.value)
    with pytest.raises(
        CheckpointError, match=r"state.json: density, cooldown_ratio: .*; cooldown_ratio was 0\.3"
    ):
        resume(stopped, resume_from_checkpoint=str(checkpoint), density=0.3, cooldown_ratio=0.5)
    with pytest.raises(CheckpointError, match="scoring was 'movement' and is 'magnitude' now"):
        resume(stopped, method="magnitude")


@pytest.mark.parametrize(
    ("do_harm", "message"),
    [
        (lambda folder: (folder / STATE_FILE).unlink(), "cannot be read"),
        (lambda folder: (folder / STATE_FILE).write_text('{"format": 1, "sparse'), "cannot be read"),
        (lambda folder: (folder / STATE_FILE).write_text("[]"), "does not hold an object"),
        (lambda folder: (folder / STATE_FILE).write_bytes(b"\xff\xfe"), "cannot be read"),
        (edit_state(format=2), "format 1"),
        (edit_state(sparse_args=None), "format 1"),
        (edit_state(sparse_args={"densty": 0.5}), "cannot be used"),
        (edit_state(sparse_args={"density": 7}), "cannot be used"),
    ],
)
def test_a_missing_or_damaged_pruning_state_is_refused(
    do_harm: Callable[[Path], None], message: str, stopped: Path, tmp_path: Path
) -> None:
    checkpoint = tmp_path / "checkpoint-4"
    shutil.copytree(stopped / "checkpoint-4", checkpoint)
    do_harm(checkpoint)
    with pytest.raises(CheckpointError, match=message) as caught:
        resume(tmp_path, resume_from_checkpoint=str(checkpoint))
    assert STATE_FILE in str(caught.value)


def test_the_same_arguments_go_on_from_the_last_complete_checkpoint(stopped: Path, tmp_path: Path) -> None:
    for step in (4, 8, 12):
        shutil.copytree(stopped / f"checkpoint-{step}", tmp_path / f"checkpoint-{step}")
    # A save that was killed: Trainer writes its state last.
    (tmp_path / "checkpoint-12" / "trainer_state.json").unlink()
    (tmp_path / "checkpoint-8" / "trainer_state.json").write_text('{"epoch": 1.')
    (tmp_path / "checkpoint-best").mkdir()
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-4"
    whole = trainer(tmp_path / "whole", sparse_args("movement"))
    whole.train()
    resumed = resume(tmp_path)
    for name, tensor in state(whole.model).items():
        assert torch.equal(tensor, state(resumed.model)[name]), name


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (True, "holds no complete checkpoint"),
        ("nowhere", "is no folder"),
        ("", "trainer_state.json: cannot be read"),
        (Path("checkpoint-8"), "is no folder"),
    ],
)
def test_what_is_no_checkpoint_is_refused_before_any_training(
    asked: Any, message: str, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match=message):
        find_checkpoint(asked, tmp_path)
    with pytest.raises(CheckpointError, match=message):
        trainer(tmp_path, sparse_args("movement")).train(asked)


def test_nothing_is_looked_for_where_nothing_is_resumed(tmp_path: Path) -> None:
    assert find_checkpoint(None, tmp_path / "nowhere") is None
    assert find_checkpoint(False, tmp_path / "nowhere") is None


def test_no_step_is_taken_after_the_last_one(tmp_path: Path) -> None:
    """The last of ten steps is in the middle of an epoch."""
    options = {"max_steps": 10, "save_strategy": "steps", "save_steps": 5, "lr_scheduler_type": "constant"}
    first = trainer(tmp_path, sparse_args("movement"), **options)
    first.train()
    resumed = trainer(tmp_path, sparse_args("movement"), **options)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 10
    for name, tensor in state(first.model).items():
        assert torch.equal(tensor, state(resumed.model)[name]), name


def test_a_checkpoint_that_cannot_be_written_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    run = trainer(tmp_path, sparse_args("movement"))
    monkeypatch.setattr("transformers.modeling_utils.safe_save_file", full)
    with pytest.raises(CheckpointError, match=r"cannot be written .No space left on device.*Make room"):
        run.save_model(str(tmp_path / "model"))
