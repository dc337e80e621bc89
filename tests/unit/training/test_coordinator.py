"""The core without a Trainer: a hand-written loop prunes as well."""

from itertools import pairwise
from typing import Any

import pytest
import torch

from patchers.errors import UnsupportedModelError
from patchers.patching.patch import gates_of
from sparse_trainer.criteria.calibration.registry import WIDTH_CRITERIA
from sparse_trainer.cut.optimize import optimize_model
from sparse_trainer.errors import ArgumentError, BudgetError, NonFiniteError
from sparse_trainer.one_shot.prune import prune
from sparse_trainer.training.arguments.arguments import SparseTrainingArguments
from sparse_trainer.training.coordinator import ModelPatchingCoordinator
from tests.fixtures.compact_models import FAMILIES, batch, logits, tiny
from tests.fixtures.training import METHODS, sparse_args


def loop(
    args: SparseTrainingArguments, family: str = "bert", steps: int = 12
) -> tuple[Any, ModelPatchingCoordinator]:
    model = tiny(family).train()
    coordinator = ModelPatchingCoordinator(args)
    coordinator.patch_model(model)
    optimizer = torch.optim.AdamW(coordinator.parameter_groups(lr=1e-3, weight_decay=0.01))
    inputs = {**batch(model), "labels": torch.tensor([0, 1])}
    calibration = [inputs] * 8 if args.reconstruct else [inputs]
    if coordinator.wants_calibration:
        coordinator.calibrate(calibration)
    coordinator.begin(total_steps=steps)
    for step in range(steps):
        outputs = model(**inputs, output_hidden_states=coordinator.needs_hidden_states)
        coordinator.loss(outputs.loss, inputs, outputs).backward()
        coordinator.observe()
        optimizer.step()
        optimizer.zero_grad()
        coordinator.step(step + 1)
        if coordinator.wants_calibration and args.reconstruct:
            coordinator.calibrate(calibration)
    return model.eval(), coordinator


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", METHODS)
def test_hand_written_loop_prunes_and_cuts(method: str, family: str) -> None:
    if (method, family) == ("l0-hidden", "deberta-v2"):
        with pytest.raises(UnsupportedModelError, match="rel_embeddings"):
            loop(sparse_args(method), family)
        return
    model, coordinator = loop(sparse_args(method), family)
    assert coordinator.finished
    asked = sparse_args(method).density
    assert coordinator.density_reached() == pytest.approx(asked, abs=0.05)
    masked = logits(model)
    compact = optimize_model(model)
    torch.testing.assert_close(logits(compact), masked, rtol=0, atol=1e-10)
    assert sum(p.numel() for p in compact.parameters()) < sum(p.numel() for p in model.parameters())


def test_schedule_starts_dense_and_ends_at_the_budget() -> None:
    coordinator = ModelPatchingCoordinator(SparseTrainingArguments(scoring="magnitude", density=0.4))
    coordinator.patch_model(tiny())
    coordinator.begin(100)
    reached = []
    for _ in range(100):
        coordinator.step()
        reached.append(coordinator.density_reached())
    assert reached[9] == 1.0
    assert all(a >= b - 0.03 for a, b in pairwise(reached))
    assert len(set(reached[-31:])) == 1
    assert reached[-1] == pytest.approx(0.4, abs=0.01)


def test_update_every_selects_seldom_but_always_at_the_end() -> None:
    coordinator = ModelPatchingCoordinator(
        SparseTrainingArguments(scoring="magnitude", update_every=9, cooldown_ratio=0.3)
    )
    coordinator.patch_model(tiny())
    coordinator.begin(40)
    changes, before = [], 1.0
    for step in range(1, 41):
        coordinator.step(step)
        if coordinator.density_reached() != before:
            changes.append(step)
            before = coordinator.density_reached()
    assert set(changes) <= {9, 18, 27, 28}
    assert before == pytest.approx(0.5, abs=0.02)


def test_problems_come_before_training() -> None:
    with pytest.raises(BudgetError, match="density"):
        ModelPatchingCoordinator(SparseTrainingArguments(density=0.1, min_keep=3)).patch_model(tiny())
    with pytest.raises(UnsupportedModelError, match="no prunable group"):
        ModelPatchingCoordinator(SparseTrainingArguments(exclude=["encoder"])).patch_model(tiny())
    model = tiny()
    ModelPatchingCoordinator().patch_model(model)
    with pytest.raises(UnsupportedModelError, match="patched already"):
        ModelPatchingCoordinator().patch_model(model)


def test_failed_patch_leaves_the_model_alone() -> None:
    model = tiny()
    with pytest.raises(BudgetError):
        ModelPatchingCoordinator(SparseTrainingArguments(density=0.1, min_keep=3)).patch_model(model)
    assert not gates_of(model)


def test_non_finite_scores_are_named() -> None:
    coordinator = ModelPatchingCoordinator()
    coordinator.patch_model(tiny())
    coordinator.begin(10)
    gate = coordinator.gates["bert.encoder.layer.1.channels"]
    assert gate.score_U is not None
    gate.score_U.data[3] = torch.inf
    coordinator.step()
    with pytest.raises(NonFiniteError, match=r"layer\.1\.channels"):
        coordinator.metrics()


def test_macs_target_counts_attention_products() -> None:
    heads = {}
    for length in (8, 4096):
        coordinator = ModelPatchingCoordinator(
            SparseTrainingArguments(scoring="magnitude", target="macs", sequence_length=length)
        )
        coordinator.patch_model(tiny())
        heads[length] = coordinator.pruner.costs["bert.encoder.layer.0.heads"]
        assert coordinator.pruner.costs["bert.encoder.layer.0.channels"] == 2 * 32
    assert heads[4096] - heads[8] == 2 * (4096 - 8) * 8


@pytest.mark.parametrize(
    "scoring",
    [
        name
        for name in WIDTH_CRITERIA
        if name not in ("magnitude", "random", "taylor", "angular", "last", "perplexity", "layer_gate")
    ],
)
def test_one_shot_criteria_score_once_before_training(scoring: str) -> None:
    model, plain = tiny("bert"), tiny("bert")
    inputs = {**batch(model), "labels": torch.tensor([0, 1])}
    coordinator = ModelPatchingCoordinator(SparseTrainingArguments(scoring=scoring, density=0.6))
    coordinator.patch_model(model)
    with pytest.raises(ArgumentError, match="has seen none"):
        coordinator.begin(total_steps=4)
    coordinator.calibrate([inputs])
    coordinator.begin(total_steps=4)
    for step in range(4):
        coordinator.step(step + 1)
    _, plan = prune(plain, [inputs], criterion=scoring, density=0.6)
    for name, gate in coordinator.gates.items():
        assert gate.keep_U.nonzero().flatten().tolist() == plan.groups[name]["keep"]
