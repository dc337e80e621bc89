"""Filling touches exact zeros of prunable weights and nothing else; rewinding keeps decision and weights."""

import copy
from pathlib import Path

import pytest
import torch

from patchers.discovery.discover import discover
from patchers.surgery import cut
from sparse_trainer.cut.fill import fill, rewind
from sparse_trainer.cut.optimize import optimize_model
from sparse_trainer.errors import ArgumentError, BudgetError, CheckpointError
from sparse_trainer.training.arguments.arguments import SparseTrainingArguments
from sparse_trainer.training.coordinator import ModelPatchingCoordinator
from tests.fixtures.compact_models import FAMILIES, logits, patched, tiny, uneven_keep
from tests.fixtures.same import assert_same
from tests.unit.training.test_coordinator import loop


def with_zeros(family: str = "bert") -> torch.nn.Module:
    model = optimize_model(patched(tiny(family), uneven_keep(discover(tiny(family)))))
    for group in discover(model).of(["heads", "channels"]):
        weight = model.get_submodule(group.consumer).weight
        if weight.numel():
            weight.data[::3, ::2] = 0
    return model


@pytest.mark.parametrize("family", FAMILIES)
def test_only_zeros_of_prunable_weights_change(family: str) -> None:
    model = with_zeros(family)
    model.get_input_embeddings().weight.data[0] = 0
    before = {name: p.clone() for name, p in model.named_parameters()}
    filled = fill(model)
    changed = 0
    for name, parameter in model.named_parameters():
        moved = parameter != before[name]
        assert not bool(moved[before[name] != 0].any()), name
        changed += int(moved.sum())
        if "embedding" in name or name.endswith("bias"):
            assert not bool(moved.any()), name
    assert filled == changed > 100
    assert fill(model) == 0


def test_noise_has_the_mean_and_a_hundredth_of_the_deviation_of_the_weight() -> None:
    model = tiny()
    weight = model.bert.encoder.layer[0].intermediate.dense.weight
    weight.data.normal_(0.3, 2.0, generator=torch.Generator().manual_seed(0))
    zero = torch.rand(weight.shape, generator=torch.Generator().manual_seed(1)) < 0.5
    weight.data[zero] = 0
    mean, deviation = float(weight.data.mean()), float(weight.data.std())
    fill(model, noise=0.01)
    drawn = weight.data[zero]
    assert float(drawn.mean()) == pytest.approx(mean, abs=0.01 * deviation)
    assert float(drawn.std()) == pytest.approx(0.01 * deviation, rel=0.1)


def test_fill_is_reproducible_and_refuses_what_it_cannot_mean() -> None:
    one, two, other = with_zeros(), with_zeros(), with_zeros()
    for model, seed in ((one, 42), (two, 42), (other, 1)):
        fill(model, seed=seed)
    assert_same(one, two, logits)
    assert not torch.equal(logits(one), logits(other))
    with pytest.raises(ArgumentError, match="noise"):
        fill(one, noise=-1.0)
    with pytest.raises(ArgumentError, match="patched"):
        fill(patched(tiny(), {}))


def test_rewind_keeps_the_decision_and_the_dense_weights() -> None:
    dense = tiny()
    trained, _ = loop(SparseTrainingArguments(density=0.5))
    plan = optimize_model(trained).pruning_plan
    again = rewind(dense, plan)
    assert [p.shape for p in again.parameters()] == [p.shape for p in optimize_model(trained).parameters()]
    structure = discover(dense)
    by_hand = copy.deepcopy(dense)
    cut(by_hand, structure, plan.keep_for(structure))
    assert_same(again, by_hand, logits, calculated=True)
    assert not torch.equal(logits(again), logits(optimize_model(trained)))
    with pytest.raises(CheckpointError):
        rewind(tiny("distilbert"), plan)


def test_protected_heads_stay_in_a_second_run(tmp_path: object) -> None:
    trained, _ = loop(SparseTrainingArguments(density=0.5))
    plan = optimize_model(trained).pruning_plan
    plan.save(f"{tmp_path}/plan.json")
    args = SparseTrainingArguments(
        scoring="random", density=0.5, protect_plan=f"{tmp_path}/plan.json", pruning_seed=7
    )
    _, second = loop(args)
    kept = plan.keep_for(second.structure)
    heads = [g.name for g in second.structure.groups if g.kind == "heads"]
    for name in heads:
        assert bool(second.gates[name].keep_U.bool()[kept[name]].all()), name
    _, free = loop(SparseTrainingArguments(scoring="random", density=0.5, pruning_seed=7))
    assert not all(bool(free.gates[name].keep_U.bool()[kept[name]].all()) for name in heads)
    assert second.density_reached() == pytest.approx(0.5, abs=0.02)
    with pytest.raises(BudgetError, match="protect_plan"):
        ModelPatchingCoordinator(
            SparseTrainingArguments(
                density={"heads": 0.25, "channels": 0.5}, protect_plan=f"{tmp_path}/plan.json"
            )
        ).patch_model(tiny())


MASKS = {
    "dense_pruning_method": "topK:1d_alt",
    "attention_pruning_method": "topK",
    "attention_output_with_dense": False,
    "attention_block_rows": 4,
    "attention_block_cols": 8,
    "final_threshold": 0.2,
}


@pytest.mark.parametrize("word", ["protect_plan", "rewind_model_name_or_path"])
def test_masks_leave_protected_heads_whole(word: str, tmp_path: Path) -> None:
    plan = optimize_model(patched(tiny(), uneven_keep(discover(tiny())))).pruning_plan
    plan.save(tmp_path / "plan.json")
    model, coordinator = loop(SparseTrainingArguments(**MASKS, **{word: str(tmp_path / "plan.json")}))
    coordinator.end()
    touched = 0
    for group in discover(model).of(["heads"]):
        for piece in group.slices:
            weight = model.get_submodule(piece.path).weight
            if piece.axis == "in":
                weight = weight.T
            kept = piece.index_UW[plan.keep_for(discover(tiny()))[group.name]].flatten()
            assert bool((weight[kept] != 0).all()), piece.path
            touched += int((weight == 0).sum())
    assert touched > 1000
    drawn = {"attention_pruning_method": "l0", "regularization": "l0", "regularization_final_lambda": 1.0}
    args = SparseTrainingArguments(**{**MASKS, **drawn, word: str(tmp_path / "plan.json")})
    with pytest.raises(ArgumentError, match=r"protect_plan.*l0"):
        ModelPatchingCoordinator(args).patch_model(tiny())
