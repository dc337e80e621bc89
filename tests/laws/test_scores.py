"""Scores: one quantity behind the gradient methods, blind to padding and to how a batch is split."""

import pytest
import torch

from patchers.discovery.discover import discover
from patchers.patching.patch import patch, unpatch
from patchers.units import Group, Structure
from sparse_trainer.criteria.calibration.magnitude import magnitude
from sparse_trainer.criteria.training.registry import read_scoring
from sparse_trainer.training.arguments.arguments import SparseTrainingArguments
from tests.fixtures.compact_models import FAMILIES, batch, tiny


def gate_gradients(family: str) -> tuple[torch.nn.Module, Structure, dict[str, torch.Tensor]]:
    model = tiny(family)
    structure = discover(model, ["heads", "channels"])
    gates = patch(model, structure, read_scoring("movement").make_gate)
    model(**batch(model), labels=torch.tensor([0, 1])).loss.backward()
    return model, structure, {name: gate.score_U.grad for name, gate in gates.items()}


@pytest.mark.parametrize("family", FAMILIES)
def test_mask_gradient_is_weight_times_gradient_of_the_consumer(family: str) -> None:
    """dL/dg_u = sum over the unit's columns of W * dL/dW."""
    model, structure, gradients = gate_gradients(family)
    for group in structure.groups:
        weight = model.get_submodule(group.consumer).weight
        per_feature = (weight * weight.grad).sum(0)
        expected_U = per_feature[group.consumer_slice.index_UW].sum(1)
        torch.testing.assert_close(gradients[group.name].double(), expected_U, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("family", FAMILIES)
def test_value_rows_tell_the_same_of_heads(family: str) -> None:
    """Values enter linearly: sum over value rows of W * dL/dW, with the bias, is the same number."""
    model, structure, gradients = gate_gradients(family)
    for group in structure.of(["heads"]):
        s = next(s for s in group.slices if s.is_value)
        value = model.get_submodule(s.path)
        per_feature = (value.weight * value.weight.grad).sum(1) + value.bias * value.bias.grad
        expected_U = per_feature[s.index_UW].sum(1)
        torch.testing.assert_close(gradients[group.name].double(), expected_U, rtol=1e-4, atol=1e-7)


def test_scores_ignore_padding_and_batch_split() -> None:
    ids = batch(tiny())["input_ids"]
    labels = torch.tensor([0, 1])
    whole = _summed_gradients(ids, torch.ones_like(ids), labels)
    padded_ids = torch.cat([ids, torch.zeros(2, 4, dtype=torch.long)], dim=1)
    padded_mask = torch.cat([torch.ones_like(ids), torch.zeros(2, 4, dtype=torch.long)], dim=1)
    for name, gradient_U in _summed_gradients(padded_ids, padded_mask, labels).items():
        torch.testing.assert_close(gradient_U, whole[name], rtol=0, atol=1e-7)
    rows = [slice(0, 1), slice(1, 2)]
    parts = [_summed_gradients(ids[row], torch.ones_like(ids[row]), labels[row]) for row in rows]
    for name, gradient_U in whole.items():
        torch.testing.assert_close((parts[0][name] + parts[1][name]) / 2, gradient_U, rtol=0, atol=1e-7)


def _summed_gradients(ids: torch.Tensor, mask: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
    model = tiny()
    structure = discover(model, ["heads", "channels"])
    gates = patch(model, structure, read_scoring("taylor").make_gate)
    model(input_ids=ids, attention_mask=mask, labels=labels).loss.backward()
    return {name: gate.score_U.grad for name, gate in gates.items()}


@pytest.mark.parametrize("order", [1, 2])
def test_taylor_keeps_a_running_mean_and_clears_the_gradient(order: int) -> None:
    model = tiny()
    criterion = SparseTrainingArguments(scoring="taylor", taylor_order=order, taylor_decay=0.75).criterion
    gates = patch(model, discover(model, ["heads"]), criterion.make_gate)
    gate = next(iter(gates.values()))
    gate.score_U.grad = torch.tensor([1.0, -2.0, 0.0, 4.0])
    criterion.observe(gates)
    expected = torch.tensor([1.0, 2.0, 0.0, 4.0]) ** order * 0.25
    torch.testing.assert_close(
        criterion.scores(model, discover(model, ["heads"]), gates)[next(iter(gates))], expected
    )
    assert gate.score_U.grad is None
    unpatch(model)


@pytest.mark.parametrize("norm", [1, 2])
def test_magnitude_sums_every_weight_of_a_unit(norm: int) -> None:
    model = tiny("bert")
    structure = discover(model)

    def by_hand(group: Group, unit: int) -> float:
        total = 0.0
        for s in group.slices:
            weight = model.get_submodule(s.path).weight
            index = s.index_UW[unit]
            part = weight[index] if s.axis == "out" else weight[:, index]
            total += float(part.detach().abs().pow(norm).sum())
        return total

    for group in structure.of(["heads", "channels"]):
        scores = magnitude(model, group, norm)
        assert scores.shape == (group.num_units,)
        assert float(scores[2]) == pytest.approx(by_hand(group, 2), rel=1e-4)
    for group in structure.of(["layers", "attention", "ffn"]):
        assert magnitude(model, group, norm).shape == (1,)


def test_random_scores_follow_seed_and_place() -> None:
    model = tiny()
    structure = discover(model, ["heads"])

    def draw(seed: int) -> dict[str, torch.Tensor]:
        criterion = read_scoring(f"random(seed={seed})")
        gates = patch(model, structure, criterion.make_gate)
        scores = criterion.scores(model, structure, gates)
        unpatch(model)
        return scores

    first, again, other = draw(1), draw(1), draw(2)
    names = list(first)
    assert all(torch.equal(first[name], again[name]) for name in names)
    assert not torch.equal(first[names[0]], other[names[0]])
    assert not torch.equal(first[names[0]], first[names[1]])
