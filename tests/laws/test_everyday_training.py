"""What Trainer can do beside training, it can do while it prunes."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from sparse_trainer.training.arguments.arguments import SparseTrainingArguments
from tests.fixtures.training import METHODS, state, trainer


class RunsOutOfMemory(TrainerCallback):
    """Fails once, in the middle of a training, as CUDA does."""

    def __init__(self, step: int) -> None:
        self.step, self.begun = step, 0

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        self.begun += 1

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.begun == 1 and state.global_step == self.step:
            raise RuntimeError("CUDA out of memory.")


RESTARTED: dict[str, dict[str, Any]] = {
    "taylor": {"scoring": "taylor"},
    "wanda": {"scoring": "wanda", "calibration_samples": 8},
    "cheaper": METHODS["cheaper"],
    "l0-nested": METHODS["l0-nested"],
    "masks": {"dense_pruning_method": "topK:1d_alt", "attention_pruning_method": "topK"},
}


@pytest.mark.parametrize("method", RESTARTED)
def test_a_smaller_batch_after_out_of_memory_begins_the_pruning_anew(method: str, tmp_path: Path) -> None:
    # Weights that do not move: Trainer goes on with those it has.
    options: dict[str, Any] = {"learning_rate": 0.0, "auto_find_batch_size": True}
    run = trainer(tmp_path, SparseTrainingArguments(**RESTARTED[method]), **options)
    failing = RunsOutOfMemory(9)
    run.add_callback(failing)
    run.train()
    assert failing.begun == 2
    size = run.state.train_batch_size
    assert size < 8
    fresh = trainer(
        tmp_path, SparseTrainingArguments(**RESTARTED[method]), **options, per_device_train_batch_size=size
    )
    fresh.train()
    assert fresh.state.max_steps == run.state.max_steps > 12
    for (name, a), b in zip(state(run.model).items(), state(fresh.model).values(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-9, msg=f"{method} {name}")
