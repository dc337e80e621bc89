"""A budget that falls at once: the choice and the repair are those of `prune` on the model of that moment."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from sparse_trainer import prune
from sparse_trainer.cut.optimize import optimize_model
from sparse_trainer.cut.record import plan_of
from sparse_trainer.errors import ArgumentError, DataError, UnsupportedModelError
from sparse_trainer.training.arguments.arguments import SparseTrainingArguments
from sparse_trainer.training.coordinator import ModelPatchingCoordinator
from sparse_trainer.training.trainer import PruningTrainer
from tests.architectures.tiny import tiny_model
from tests.fixtures.compact_models import tiny
from tests.fixtures.training import quiet_model, rows, sparse_args, state, trainer

REPAIRED: dict[str, Any] = {"criterion": "kfac_obs", "reconstruct": "least_squares"}


def as_batches(count: int = 24) -> list[dict[str, torch.Tensor]]:
    found = rows(count).with_format("torch")
    return [{name: found[:][name] for name in ("input_ids", "labels")}]


def coordinator_of(model: torch.nn.Module, **options: Any) -> ModelPatchingCoordinator:
    coordinator = ModelPatchingCoordinator(sparse_args("cut-once", **options))
    coordinator.patch_model(model)
    return coordinator


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(torch.arange(3, 23).view(2, 10)).logits


def assert_same(one: torch.nn.Module, other: torch.nn.Module) -> None:
    for (name, a), b in zip(state(one).items(), state(other).values(), strict=True):
        assert torch.equal(a, b), name


@pytest.mark.parametrize("family", ["bert", "distilbert"])
@pytest.mark.parametrize("scoring", ["kfac_obs", "wanda", "fisher"])
@pytest.mark.parametrize("repair", ["least_squares", "scale"])
def test_the_cut_is_that_of_prune(family: str, scoring: str, repair: str) -> None:
    model = tiny(family)
    asked = {"reconstruct": repair, "density": 0.5}
    pruned, plan = prune(copy.deepcopy(model), as_batches(), criterion=scoring, **asked)
    coordinator = coordinator_of(model.train(), scoring=scoring, **asked)
    coordinator.begin(10)
    for step in range(1, 5):
        assert not coordinator.wants_calibration, step
        coordinator.step()
    assert coordinator.wants_calibration
    coordinator.calibrate(as_batches())
    assert coordinator.finished
    assert not coordinator.wants_calibration
    cut = optimize_model(model)
    assert plan_of(cut).groups == plan.groups
    assert torch.allclose(logits(cut), logits(pruned), atol=1e-6)
    assert torch.allclose(logits(model), logits(pruned), atol=1e-6)


def test_until_then_nothing_is_closed_and_nothing_afterwards_changes_the_choice(tmp_path: Path) -> None:
    densities: list[float] = []

    class Watch(TrainerCallback):
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            densities.append(run.coordinator.density_reached())

    run = trainer(tmp_path, sparse_args("cut-once"))
    run.add_callback(Watch())
    run.train()
    assert densities[:3] == [1.0] * 3
    assert len(set(densities[3:])) == 1
    assert 0.42 < densities[3] <= 0.5
    assert "repaired by least_squares" in plan_of(optimize_model(run.model)).method


@pytest.mark.parametrize("at", [2, 3, 4, 5, 8])
def test_resumed_before_at_and_after_the_cut_equals_uninterrupted(at: int, tmp_path: Path) -> None:
    args = sparse_args("cut-once")
    saving = {"save_strategy": "steps", "save_steps": 1}
    straight = trainer(tmp_path / "a", args, tiny("bert").train(), **saving)
    straight.train()
    resumed = trainer(tmp_path / "b", args, tiny("bert").train())
    resumed.train(resume_from_checkpoint=str(tmp_path / "a" / f"checkpoint-{at}"))
    assert_same(straight.model, resumed.model)


def test_a_second_budget_is_cut_from_what_the_first_has_left() -> None:
    model = tiny("bert")
    first, _ = prune(copy.deepcopy(model), as_batches(), density=0.7, **REPAIRED)
    coordinator = coordinator_of(model.train(), densities=[0.7, 0.4])
    coordinator.begin(10)
    for _ in range(10):
        coordinator.step()
        if coordinator.wants_calibration:
            before = logits(model)
            coordinator.calibrate(as_batches())
            if coordinator.density_reached() > 0.45:
                assert torch.allclose(logits(model), logits(first), atol=1e-6)
            else:
                assert torch.allclose(before, logits(first), atol=1e-6)
            model.train()
    assert coordinator.finished
    assert coordinator.density_reached() <= 0.4
    assert torch.allclose(logits(optimize_model(model)), logits(model), atol=1e-6)


def test_the_repair_brings_outputs_nearer_to_those_before(tmp_path: Path) -> None:
    distances = {}
    for repair in ("least_squares", "scale"):
        model = tiny("bert")
        dense = logits(model)
        coordinator = coordinator_of(model, reconstruct=repair, pruning_warmup_ratio=0.0)
        coordinator.begin(10)
        coordinator.step()
        coordinator.calibrate(as_batches())
        distances[repair] = float((logits(model) - dense).square().mean())
        for gate in coordinator.gates.values():
            assert not bool(gate.keep_U.all()) or gate.keep_U.numel() < 8
    assert distances["least_squares"] < distances["scale"]


def test_a_loop_that_forgets_to_calibrate_is_told() -> None:
    coordinator = coordinator_of(tiny("bert"))
    with pytest.raises(ArgumentError, match="dense start is not over"):
        coordinator.calibrate(as_batches())
    coordinator.begin(10)
    for _ in range(4):
        coordinator.step()
    with pytest.raises(ArgumentError, match=r"Call calibrate\(batches\) after each step"):
        coordinator.step()


def test_too_few_rows_are_refused_before_the_first_step(tmp_path: Path) -> None:
    run = trainer(tmp_path, sparse_args("cut-once", calibration_samples=2))
    with pytest.raises(DataError, match="calibration_samples: 20 tokens"):
        run.train()
    assert run.state.global_step == 0


def test_a_streamed_training_set_is_refused_before_the_first_step(tmp_path: Path) -> None:
    run = PruningTrainer(
        model=quiet_model(),
        args=trainer(tmp_path, sparse_args("cut-once"), max_steps=4).args,
        sparse_args=sparse_args("cut-once"),
        train_dataset=rows().to_iterable_dataset(),
    )
    with pytest.raises(ArgumentError, match=r"cannot be drawn.*Give one with a length"):
        run.train()
    assert run.state.global_step == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scoring": "movement"}, "reconstruct: movement scores while the budget falls"),
        ({"cooldown_ratio": 0.5}, "cooldown_ratio: the budget falls at once"),
        ({"reconstruct": "magic"}, "reconstruct: unknown value 'magic'"),
        ({"damping": -1.0}, "damping: -1.0 is negative"),
        ({"reconstruct": None, "damping": 0.5}, "damping: nothing is solved"),
        (
            {"scoring": "fisher", "units": ["layers"]},
            "reconstruct: nothing is refitted in training where layers",
        ),
        ({"dense_pruning_method": "topK", "scoring": "movement", "calibration_samples": 128}, "reconstruct"),
    ],
)
def test_what_cannot_be_meant_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        sparse_args("cut-once", **options)


def test_adapters_are_refused() -> None:
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(tiny(), peft.LoraConfig(target_modules=["query"]))
    with pytest.raises(ArgumentError, match="reconstruct: the linears have adapters"):
        ModelPatchingCoordinator(sparse_args("cut-once")).patch_model(model)


def test_experts_are_refused() -> None:
    coordinator = ModelPatchingCoordinator(sparse_args("cut-once", scoring="fisher"))
    with pytest.raises(UnsupportedModelError, match=r"nothing can be refitted.*drop reconstruct"):
        coordinator.patch_model(tiny_model("qwen3_moe", dtype=torch.float32))


def test_a_training_that_ends_before_the_cut_is_refused_by_an_option_that_can_be_given() -> None:
    coordinator = coordinator_of(tiny("bert"), pruning_warmup_ratio=0.9)
    with pytest.raises(ArgumentError, match=r"pruning_warmup_ratio: 0\.9 of 3 .*Train for 10 steps or more"):
        coordinator.begin(3)
    coordinator.begin(10)


def test_a_training_that_begins_anew_after_the_cut_begins_with_dense_weights(tmp_path: Path) -> None:
    begun: list[dict[str, torch.Tensor]] = []

    class RunsOutOnce(TrainerCallback):
        def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
            begun.append(state(run.model))

        def on_step_end(self, args: Any, trained: Any, *others: Any, **kwargs: Any) -> None:
            if trained.global_step == 6 and len(begun) == 1:
                assert run.coordinator.finished
                raise RuntimeError("CUDA out of memory. Tried to allocate")

    run = trainer(tmp_path, sparse_args("cut-once"), auto_find_batch_size=True)
    run.add_callback(RunsOutOnce())
    run.train()
    first, second = begun
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert run.coordinator.finished


def test_scales_learn_after_the_cut(tmp_path: Path) -> None:
    args = sparse_args("cut-once", freeze_weights=True, learn_scales=True)
    run = trainer(tmp_path, args, tiny("bert").train())
    run.train()
    assert run.coordinator.finished
    assert isinstance(args, SparseTrainingArguments)
    assert torch.allclose(logits(optimize_model(run.model)), logits(run.model), atol=1e-5)
