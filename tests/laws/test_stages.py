"""Budgets in turn: each is met where its stage ends; what is done there disturbs nothing; resumed = uninterrupted."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import TrainerState

from sparse_trainer.budget.counting import parameter_count
from sparse_trainer.cut.optimize import optimize_model
from sparse_trainer.cut.record import plan_of
from sparse_trainer.errors import ArgumentError
from sparse_trainer.training.stage_ends import StageEnds
from sparse_trainer.training.trainer import PruningTrainer
from tests.fixtures.compact_models import tiny
from tests.fixtures.training import sparse_args, state, trainer

DENSITIES = [0.75, 0.5, 0.3]
METHODS = ("movement", "taylor", "magnitude", "wanda", "cut-once")


def exporting(made: PruningTrainer, found: dict[int, Any]) -> PruningTrainer:
    """Cut the model at each end, and use up random numbers as an evaluation would."""

    def export(stage: int, at: TrainerState) -> None:
        cut = optimize_model(made.model)
        with torch.no_grad():
            cut(torch.arange(3, 11).view(1, 8))
        found[stage] = (at.global_step, cut, made.coordinator.density_reached())
        torch.manual_seed(0)
        np.random.seed(0)
        random.seed(0)

    made.add_callback(StageEnds(made.coordinator, export))
    return made


@pytest.mark.parametrize("method", METHODS)
def test_each_budget_is_met_and_exports_disturb_nothing(method: str, tmp_path: Path) -> None:
    args = sparse_args(method, densities=DENSITIES)
    plain = trainer(tmp_path / "a", args, tiny("bert").train())
    plain.train()
    found: dict[int, Any] = {}
    exported = exporting(trainer(tmp_path / "b", args, tiny("bert").train()), found)
    exported.train()
    assert list(found) == [0, 1, 2]
    for (name, a), b in zip(state(plain.model).items(), state(exported.model).values(), strict=True):
        assert torch.equal(a, b), name
    sizes = [parameter_count(cut) for _, cut, _ in found.values()]
    assert sizes == sorted(sizes, reverse=True)
    for (_, cut, density), asked in zip(found.values(), DENSITIES, strict=True):
        plan = plan_of(cut)
        assert plan is not None
        assert plan.density_asked == asked
        assert asked - 0.08 < density <= asked + 1e-9  # a head of the tiny model is some 5 %
    checkpoints = {int(folder.name.split("-")[1]) for folder in (tmp_path / "b").glob("checkpoint-*")}
    assert checkpoints == {step for step, _, _ in found.values()}


def test_resumed_in_a_later_stage_equals_uninterrupted(tmp_path: Path) -> None:
    args = sparse_args("movement", densities=DENSITIES)
    found: dict[int, Any] = {}
    straight = exporting(trainer(tmp_path / "a", args, tiny("bert").train()), found)
    straight.train()
    first = found[0][0]
    again: dict[int, Any] = {}
    resumed = exporting(trainer(tmp_path / "b", args, tiny("bert").train()), again)
    resumed.train(resume_from_checkpoint=str(tmp_path / "a" / f"checkpoint-{first}"))
    assert list(again) == [1, 2]
    for (name, a), b in zip(state(straight.model).items(), state(resumed.model).values(), strict=True):
        assert torch.equal(a, b), name
    for stage in again:
        assert plan_of(again[stage][1]) == plan_of(found[stage][1])


def test_each_time_is_met(tmp_path: Path) -> None:
    file = tmp_path / "phone.csv"
    file.write_text(
        "kind,units,milliseconds\nrest,1,2\nlayers,1,0.5\nheads,2,1.5\nheads,4,2\nchannels,64,3\nchannels,256,8\n"
    )
    args = sparse_args("movement", speedups=[1.5, 2.0, 3.0], latency_table=str(file))
    model = tiny(dtype=torch.float32, intermediate_size=256, num_hidden_layers=4).train()
    found: dict[int, Any] = {}
    exporting(trainer(tmp_path / "run", args, model), found).train()
    for (_, cut, _), asked in zip(found.values(), [1.5, 2.0, 3.0], strict=True):
        plan = plan_of(cut)
        assert plan is not None
        assert plan.speed is not None
        assert plan.speed["speedup_asked"] == asked
        assert asked - 1e-6 <= plan.speed["speedup_expected"] < 1.1 * asked


def test_a_training_of_one_budget_has_no_ends(tmp_path: Path) -> None:
    made = trainer(tmp_path, sparse_args("movement"))
    with pytest.raises(ArgumentError, match="speedups, densities: name no stage"):
        StageEnds(made.coordinator, lambda stage, at: None)
