"""A training that ends before its structure is final says so."""

from pathlib import Path
from typing import Any

import pytest
from transformers import TrainerCallback

from tests.fixtures.training import sparse_args, trainer


class Stop(TrainerCallback):
    """Stops a training early, as EarlyStoppingCallback does."""

    def __init__(self, at: int) -> None:
        self.at = at

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_training_stop = state.global_step >= self.at


def test_a_training_that_is_stopped_says_what_it_reached(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = trainer(tmp_path, sparse_args("movement"))
    run.add_callback(Stop(4))
    run.train()
    reached = run.coordinator.density_reached()
    assert 0.5 < reached < 1
    assert (
        f"ended at step 4 of 12, before the structure is final: density reached {reached:.3f}, asked 0.5"
        in caplog.text
    )


def test_a_training_that_reaches_its_end_says_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trainer(tmp_path, sparse_args("movement")).train()
    assert "before the structure is final" not in caplog.text
