"""Laws of masks over single weights: exact counts, the published formulas, the same answer however it is computed."""

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from patchers.layers import linear_at, weight_OI
from sparse_trainer.one_shot.elements.base import Ask, Pattern
from sparse_trainer.one_shot.elements.mask import linears_of
from sparse_trainer.one_shot.elements.registry import ELEMENT_CRITERIA
from sparse_trainer.one_shot.elements.sparsegpt import pruned as refitted
from sparse_trainer.one_shot.prune import prune
from sparse_trainer.statistics.collect import collect
from sparse_trainer.statistics.elements import WeightProducts
from sparse_trainer.statistics.moments import Moments
from tests.fixtures.oneshot_models import MODELS, calibration, model_of, padded, sequences, widths

# Shape legend: O x I = a weight, outputs by inputs; G x M = runs of inputs.

WEIGHTS = {"units": ["weights"]}


def weights_of(model: PreTrainedModel) -> dict[str, Tensor]:
    """Return the weights that can be masked, [O, I], by path."""
    return {path: weight_OI(linear_at(model, path)).detach() for path in linears_of(widths(model).groups)}


def same(first: PreTrainedModel, second: PreTrainedModel, tolerance: float = 0.0) -> None:
    """Require equal zeros, and weights that are equal but for a tolerance."""
    others = second.state_dict()
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor == 0, others[name] == 0), name
        torch.testing.assert_close(tensor, others[name], rtol=0, atol=tolerance)


def ceil(count: float) -> int:
    """Round up what is no whole number but for rounding."""
    return math.ceil(count - 1e-6)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("criterion", ELEMENT_CRITERIA)
def test_every_comparison_leaves_exact_counts_and_touches_nothing_else(name: str, criterion: str) -> None:
    model, batches = model_of(name), calibration(model_of(name))
    before = copy.deepcopy(model.state_dict())
    compared = ("row", "tensor") if criterion == "obs" else ("row", "tensor", "global")
    for compare in compared:
        masked, plan = prune(model, batches, criterion=criterion, density=0.55, compare=compare, **WEIGHTS)
        found = weights_of(masked)
        for weight in found.values():
            kept_O = (weight != 0).sum(1)
            if compare == "row":
                assert (kept_O == ceil(0.55 * weight.shape[1])).all()
            if compare == "tensor":
                assert int(kept_O.sum()) == ceil(0.55 * weight.numel())
        size = sum(weight.numel() for weight in found.values())
        zeros = sum(int((weight == 0).sum()) for weight in found.values())
        if compare == "global":
            assert size - zeros == ceil(0.55 * size)
        assert plan.zeros_in_all == (zeros, size)
        assert plan.density_reached == 1 - zeros / size
        assert (plan.target, plan.scope, plan.density_asked) == ("weights", compare, 0.55)
        assert plan.params["dense"] == plan.params["compact"] == model.num_parameters()
        masks = {f"{path}.weight" for path in found}
        for entry, tensor in masked.state_dict().items():
            if entry not in masks:
                assert torch.equal(tensor, before[entry]), entry
    assert all(torch.equal(tensor, before[entry]) for entry, tensor in model.state_dict().items())


@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize("criterion", ELEMENT_CRITERIA)
@pytest.mark.parametrize(("pattern", "n", "m"), [("2:4", 2, 4), ("4:8", 4, 8), ("1:4", 1, 4)])
def test_a_pattern_holds_in_every_run_of_inputs(
    name: str, criterion: str, pattern: str, n: int, m: int
) -> None:
    model = model_of(name)
    masked, plan = prune(model, calibration(model), criterion=criterion, pattern=pattern, **WEIGHTS)
    for weight in weights_of(masked).values():
        assert ((weight != 0).reshape(-1, m).sum(1) == n).all()
    assert plan.scope == pattern
    assert plan.density_reached == n / m


def test_wanda_is_the_formula_with_inputs_from_masked_blocks() -> None:
    model = model_of("llama")
    ids = [batch["input_ids"] for batch in sequences(model, [20, 20, 20])]
    masked, _ = prune(model, [{"input_ids": each} for each in ids], criterion="wanda", density=0.5, **WEIGHTS)
    dense = weights_of(model)
    for path, weight in weights_of(masked).items():
        layer = int(path.split(".")[2])
        # Blocks before this one are masked, it and those after it are not.
        halfway = copy.deepcopy(model)
        halfway.model.layers[:layer].load_state_dict(masked.model.layers[:layer].state_dict())
        seen: list[Tensor] = []
        linear_at(halfway, path).register_forward_pre_hook(lambda _, args, seen=seen: seen.append(args[0][0]))
        with torch.no_grad():
            for each in ids:
                halfway(input_ids=each)
        score_OI = dense[path].abs() * torch.cat(seen).square().mean(0).sqrt()
        worst = score_OI.argsort(dim=1)[:, : weight.shape[1] // 2]
        assert torch.equal(weight, dense[path].scatter(1, worst, 0.0))


def test_snip_is_the_sum_over_sequences_of_the_absolute_product() -> None:
    model = model_of("gpt2")
    rows = sequences(model, [12, 20, 9])
    structure = widths(model)
    found = collect(model, structure, [padded(rows)], [WeightProducts()]).of(WeightProducts())
    expected: dict[str, Tensor] = {}
    for row in rows:
        model.zero_grad()
        tokens = row["input_ids"].shape[1] - 1
        (model(**row, labels=row["input_ids"]).loss * tokens).backward()
        for path in linears_of(structure.groups):
            weight = linear_at(model, path).weight
            assert weight.grad is not None
            product = (weight * weight.grad).abs().detach().T
            expected[path] = expected.get(path, torch.zeros_like(product)) + product
    for path, score_OI in found.items():
        torch.testing.assert_close(score_OI, expected[path], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("criterion", ELEMENT_CRITERIA)
def test_how_sequences_lie_in_batches_does_not_matter(criterion: str) -> None:
    model = model_of("llama")
    rows = sequences(model, [20, 12, 17, 20])
    alone = prune(model, rows, criterion=criterion, density=0.5, **WEIGHTS)[0]
    together = prune(model, [padded(rows)], criterion=criterion, density=0.5, **WEIGHTS)[0]
    same(alone, together, 1e-9)


@pytest.mark.parametrize("criterion", ["wanda", "obs", "magnitude", "random"])
@pytest.mark.parametrize("name", ["llama", "bert"])
def test_one_block_in_memory_gives_the_same_zeros(criterion: str, name: str) -> None:
    model = model_of(name)
    batches = calibration(model)
    whole = prune(model, batches, criterion=criterion, density=0.5, **WEIGHTS)[0]
    options: dict[str, Any] = {"by_block": True, "device": "cpu"}
    same(whole, prune(model, batches, criterion=criterion, density=0.5, **options, **WEIGHTS)[0])


@pytest.mark.parametrize("criterion", ELEMENT_CRITERIA)
def test_bfloat16_keeps_its_type_and_its_counts(criterion: str) -> None:
    model = model_of("llama").bfloat16()
    masked, plan = prune(model, calibration(model), criterion=criterion, density=0.5, **WEIGHTS)
    assert masked.dtype == torch.bfloat16
    assert plan.density_reached == pytest.approx(0.5, abs=1e-3)
    assert all(bool(torch.isfinite(weight).all()) for weight in weights_of(masked).values())


def hessian(inputs: int, tokens: int, seed: int = 0) -> Tensor:
    """Return second moments of correlated inputs."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(inputs // 2, inputs, generator=generator, dtype=torch.float64)
    x_NI = torch.randn(tokens, inputs // 2, generator=generator, dtype=torch.float64) @ mixing
    x_NI += 0.3 * torch.randn(tokens, inputs, generator=generator, dtype=torch.float64)
    return x_NI.T @ x_NI / tokens


def factor(second_II: Tensor) -> Tensor:
    upper: Tensor = torch.linalg.cholesky(torch.linalg.inv(second_II), upper=True)
    return upper


ROW = Ask(density=0.5, compare="row", pattern=None)


def test_sparsegpt_on_independent_inputs_is_wanda() -> None:
    weight_OI = torch.randn(6, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    second_I = torch.linspace(0.5, 3.0, 16, dtype=torch.float64)
    found = refitted(weight_OI, factor(torch.diag(second_I)), ROW, columns=16)
    score_OI = weight_OI.abs() * second_I.sqrt()
    expected = weight_OI.scatter(1, score_OI.argsort(dim=1)[:, :8], 0.0)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_sparsegpt_makes_up_for_one_weight_by_hand() -> None:
    """Of two inputs with correlation c, the first goes: the second takes over c times its weight."""
    second_II = torch.tensor([[1.0, 0.6], [0.6, 1.0]], dtype=torch.float64)
    weight_OI = torch.tensor([[1.0, 5.0]], dtype=torch.float64)
    found = refitted(weight_OI, factor(second_II), ROW, columns=2)
    torch.testing.assert_close(found, torch.tensor([[0.0, 5.6]], dtype=torch.float64))


@pytest.mark.parametrize("pattern", [None, Pattern(n=2, m=4)])
def test_sparsegpt_leaves_less_error_than_wanda_and_magnitude(pattern: Pattern | None) -> None:
    weight_OI = torch.randn(24, 32, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    second_II = hessian(32, 400)
    ask = Ask(density=0.5, compare="row", pattern=pattern)
    found = refitted(weight_OI, factor(second_II), ask, columns=8)

    def error(new_OI: Tensor) -> float:
        change_OI = new_OI - weight_OI
        return float(((change_OI @ second_II) * change_OI).sum())

    def without(score_OI: Tensor) -> Tensor:
        runs_GM = score_OI.reshape(-1, 32 if pattern is None else 4)
        worst = runs_GM.argsort(dim=1)[:, : runs_GM.shape[1] // 2]
        closed = torch.zeros_like(runs_GM, dtype=torch.bool).scatter(1, worst, True).view_as(weight_OI)
        return weight_OI.masked_fill(closed, 0.0)

    wanda = without(weight_OI.abs() * second_II.diagonal().sqrt())
    assert error(found) < 0.6 * error(wanda)
    assert error(found) < 0.6 * error(without(weight_OI.abs()))
    # What is left of a row can still be refitted as a whole; the greedy order costs little.
    assert float((found == 0).double().mean()) == 0.5


def test_sparsegpt_in_a_model_leaves_less_error_than_wanda() -> None:
    model = model_of("llama")
    batches = calibration(model, rows=16)
    request = Moments(every_linear=True, covariance=True)
    moments = collect(model, widths(model), batches, [request]).of(request)
    dense, path = weights_of(model), "model.layers.0.mlp.up_proj"
    errors = {}
    for criterion in ("obs(damping=0.001)", "wanda", "magnitude", "random"):
        masked, _ = prune(model, batches, criterion=criterion, density=0.5, compare="row", **WEIGHTS)
        change_OI = weights_of(masked)[path] - dense[path]
        errors[criterion] = float(((change_OI @ moments[path].second_II) * change_OI).sum())
    assert list(errors) == sorted(errors, key=errors.__getitem__)


def test_a_later_cut_counts_the_zeros_that_are_left() -> None:
    """Layers move up when one goes, and widths shrink: recovery keeps zeros by these names."""
    model, batches = model_of("llama"), calibration(model_of("llama"))
    masked, first = prune(model, batches, criterion="magnitude", density=0.5, **WEIGHTS)
    for density in ({"channels": 0.5}, {"layers": 0.5}):
        cut, plan = prune(masked, batches, criterion="magnitude", density=density)
        found = weights_of(cut)
        assert plan.zeros == {
            f"{path}.weight": (int((weight == 0).sum()), weight.numel()) for path, weight in found.items()
        }
        assert 0 < plan.zeros_in_all[0] < first.zeros_in_all[0]
