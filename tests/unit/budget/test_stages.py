"""Budgets in turn: where stages begin, hold and end; what cannot be meant is told."""

import pytest

from sparse_trainer.budget.schedule import CubicSchedule
from sparse_trainer.budget.stages import StagedSchedule, Stages
from sparse_trainer.errors import ArgumentError
from sparse_trainer.training.arguments.arguments import SparseTrainingArguments


def test_one_stage_is_the_usual_schedule() -> None:
    staged, usual = StagedSchedule(warmup=0.1, cooldown=0.3, count=1), CubicSchedule(warmup=0.1, cooldown=0.3)
    for step in range(101):
        assert staged.remaining(step / 100) == pytest.approx(usual.remaining(step / 100), abs=1e-12)
        assert staged.frozen(step / 100) == usual.frozen(step / 100)


@pytest.mark.parametrize("total", [7, 12, 40, 1000, 1003])
@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("warmup", [0.0, 0.1])
def test_each_stage_ends_once_while_it_holds(total: int, count: int, warmup: float) -> None:
    schedule = StagedSchedule(warmup=warmup, cooldown=0.45, count=count)
    schedule.check_steps(total)
    ends = {step: schedule.ends(step, total) for step in range(1, total + 1)}
    found = {step: stage for step, stage in ends.items() if stage is not None}
    assert list(found.values()) == list(range(count))
    assert max(found) == total
    assert all(schedule.held(step / total) == stage for step, stage in found.items())
    places = [schedule.stage(step / total) for step in range(total + 1)]
    assert places == sorted(places)


def test_too_few_steps_are_told() -> None:
    with pytest.raises(
        ArgumentError, match=r"of 12 optimizer steps leaves 4 stages no step each.*14 steps or more"
    ):
        StagedSchedule(warmup=0.1, cooldown=0.3, count=4).check_steps(12)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"speedups": [2.0, 1.5]}, r"speedups: 1.5 comes after 2: each stage goes on.*larger"),
        ({"speedups": [1.5, 1.5]}, r"speedups: 1.5 comes after 1.5"),
        ({"speedups": [0.9, 1.5]}, r"speedups: 0.9 is not above 1"),
        ({"speedups": []}, r"speedups, densities: name no stage"),
        ({"densities": [0.25, 0.5]}, r"densities: 0.5 comes after 0.25.*smaller"),
        ({"densities": [1.0, 0.5]}, r"densities: 1.0 is not in \(0, 1\)"),
        ({"densities": [0.5], "speedups": [2.0]}, r"speedups, densities: are two families"),
        ({"densities": [0.5], "density": 0.3}, r"density: 0.3 beside densities=\[0.5\]"),
        ({"speedups": [2.0], "speedup": 3.0}, r"speedup: 3.0 beside speedups=\[2.0\]"),
        ({"speedups": [2.0], "target": "macs"}, r"target: macs beside speedup=2"),
        ({"speedups": [2.0], "scoring": "l0"}, r"scoring: l0 is pulled towards one budget"),
        ({"densities": [0.5], "attention_pruning_method": "threshold"}, r"densities: .*weight masks cut nothing"),
        ({"densities": [0.5], "latency_batch": 4}, r"latency_batch: nothing is timed"),
    ],
)  # fmt: skip
def test_what_cannot_be_meant_is_told(options: dict[str, object], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        SparseTrainingArguments(**options)  # type: ignore[arg-type]


def test_budgets_share_all_but_what_is_asked() -> None:
    args = SparseTrainingArguments(speedups=[1.5, 3.0], latency_batch=4, min_keep=2)
    assert args.stages == Stages(speedups=(1.5, 3.0))
    first, last = args.stages.budgets(args.budget)
    assert last == args.budget
    assert first.time is not None
    assert (first.time.speedup, first.time.batch, first.min_keep) == (1.5, 4, 2)
