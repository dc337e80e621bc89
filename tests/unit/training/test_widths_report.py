"""What a training reports to gets density, threshold and, in the end, a picture of the widths."""

import sys
import types
from pathlib import Path
from typing import Any

import pytest
from transformers.integrations import integration_utils

from sparse_trainer.training.widths_report import kept_widths
from tests.fixtures.training import sparse_args, trainer


class Run:
    """Stands in for wandb and trackio: it remembers what is logged, and when it was finished."""

    def __init__(self) -> None:
        self.logged: list[dict[str, Any]] = []
        self.open, self.config, self.summary = True, {}, {}  # type: ignore[var-annotated]

    def log(self, values: dict[str, Any]) -> None:
        assert self.open
        self.logged.append(values)

    def finish(self) -> None:
        self.open = False


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_density_threshold_and_a_picture_are_reported(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Run()
    library = types.ModuleType(name)
    vars(library).update(run=made, log=made.log, Image=lambda picture: picture, finish=made.finish)
    monkeypatch.setitem(sys.modules, name, library)
    kind = getattr(integration_utils, f"{name.title()}Callback")
    callback = kind.__new__(kind)
    vars(callback).update(_initialized=True, _space_id=None, **{f"_{name}": library})
    vars(callback)["_log_model"] = integration_utils.WandbLogModel.FALSE
    run = trainer(tmp_path, sparse_args("movement"))
    run.add_callback(callback)
    run.train()
    scalars = [entry for entry in made.logged if "train/density" in entry]
    assert len(scalars) == 4
    assert all("train/threshold" in entry for entry in scalars)
    (shown,) = [entry for entry in made.logged if "train/widths" in entry]
    assert shown["train/global_step"] == 12
    assert min(shown["train/widths"].size) > 100
    assert made.open == (name == "wandb")


def test_tensorboard_gets_them_too(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = trainer(tmp_path, sparse_args("movement"), report_to=["tensorboard"])
    run.train()
    (folder,) = (tmp_path / "runs").iterdir()
    events = EventAccumulator(str(folder)).Reload()
    assert {"train/density", "train/threshold"} <= set(events.Tags()["scalars"])
    assert events.Tags()["images"] == ["train/widths"]


def test_the_picture_shows_what_the_gates_leave(tmp_path: Path) -> None:
    run = trainer(tmp_path, sparse_args("movement"))
    run.train()
    kinds = kept_widths(run.coordinator)
    assert {kind: len(groups) for kind, groups in kinds.items()} == {"heads": 3, "channels": 3}
    kept = run.coordinator.report()["kept"]
    assert sum(len(group["keep"]) for groups in kinds.values() for group in groups) == sum(kept.values())
