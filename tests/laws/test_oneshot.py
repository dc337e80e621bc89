"""Laws of one-shot pruning: every criterion on several architectures, exact budgets, the same answer every time."""

import copy

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from patchers.layers import linear_at, weight_OI
from patchers.units import HEADS
from sparse_trainer.budget.cost import unit_cost
from sparse_trainer.criteria.calibration.base import Evidence
from sparse_trainer.criteria.calibration.obs import Obs
from sparse_trainer.criteria.calibration.registry import WIDTH_CRITERIA
from sparse_trainer.criteria.calibration.taylor import Taylor
from sparse_trainer.one_shot.prune import prune
from sparse_trainer.one_shot.repairs.least_squares import LeastSquares
from sparse_trainer.plan.document import Plan
from sparse_trainer.statistics.calibration import Batches
from sparse_trainer.statistics.collect import collect
from sparse_trainer.statistics.moments import Moments
from tests.fixtures.oneshot_models import (
    MODELS,
    calibration,
    error,
    model_of,
    padded,
    refit,
    sequences,
    widths,
)

# Shape legend: U = units, I = features of a consumer's input.


def kept(plan: Plan) -> dict[str, list[int]]:
    return {name: group["keep"] for name, group in plan.groups.items()}


OF_WIDTHS = [name for name, criterion in WIDTH_CRITERIA.items() if HEADS in criterion().kinds]
"""Criteria of depth have tests of their own."""


def scores_of(
    model: PreTrainedModel, criterion: object, batches: list[dict[str, Tensor]]
) -> dict[str, Tensor]:
    assert isinstance(criterion, tuple(WIDTH_CRITERIA.values()))
    structure = widths(model)
    statistics = collect(model, structure, batches, criterion.requests())
    return criterion.scores(Evidence(model=model, structure=structure, statistics=statistics))


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("criterion", OF_WIDTHS)
def test_budget_is_met_to_one_unit_and_the_decision_repeats(name: str, criterion: str) -> None:
    model = model_of(name)
    before = copy.deepcopy(model.state_dict())
    batches = calibration(model)
    pruned, plan = prune(model, batches, criterion=criterion, density=0.6)
    dearest = max(unit_cost(model, g, "params") for g in widths(model).groups)
    total = sum(unit_cost(model, g, "params") * g.num_units for g in widths(model).groups)
    assert plan.density_reached is not None
    assert 0.6 - dearest / total <= plan.density_reached <= 0.6
    saved = sum(p.numel() for p in model.parameters()) - sum(p.numel() for p in pruned.parameters())
    assert saved == pytest.approx((1 - plan.density_reached) * total)
    assert plan.params["dense"] - plan.params["compact"] == saved
    again = prune(model, batches, criterion=criterion, density=0.6)[1]
    assert kept(again) == kept(plan)
    for entry, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[entry]), entry


@pytest.mark.parametrize("criterion", [c for c in OF_WIDTHS if c not in ("magnitude", "random")])
@pytest.mark.parametrize("name", ["llama", "bert"])
def test_scores_do_not_depend_on_batches_or_padding(name: str, criterion: str) -> None:
    model = model_of(name)
    single = sequences(model, (60, 41, 60, 28))
    alone = scores_of(model, WIDTH_CRITERIA[criterion](), single)
    together = scores_of(model, WIDTH_CRITERIA[criterion](), [padded(single)])
    for group, score_U in alone.items():
        torch.testing.assert_close(together[group], score_U, rtol=1e-4, atol=1e-7)
        assert score_U.unique().numel() > 1


@pytest.mark.parametrize("name", MODELS)
def test_obs_score_is_the_least_squares_error_of_removing_that_unit(name: str) -> None:
    model = model_of(name)
    batches = sequences(model, (60,) * 8)
    structure = widths(model)
    for centred in (False, True):
        scores = scores_of(model, Obs(centred=centred, damping=1e-12), batches)
        statistics = collect(model, structure, batches, [Moments(covariance=True)])
        for g in structure.groups[:2]:
            moments = statistics.of(Moments(covariance=True))[g.consumer]
            weight_OI_ = weight_OI(linear_at(model, g.consumer)).detach()
            for unit in range(min(g.num_units, 4)):
                keep_I = torch.ones(weight_OI_.shape[1], dtype=torch.bool)
                keep_I[g.consumer_slice.index_UW[unit]] = False
                repaired = refit(
                    LeastSquares(damping=0.0, reconstruct_bias=centred), weight_OI_, moments, keep_I
                )
                expected = error(weight_OI_, moments, keep_I, repaired)
                torch.testing.assert_close(scores[g.name][unit], expected, rtol=1e-5, atol=1e-12)


def test_obs_in_rounds_orders_units_as_greedy_removal_does() -> None:
    model = model_of("llama")
    batches = sequences(model, (60,) * 8)
    structure = widths(model)
    group = structure.of(["heads"])[0]
    channels = structure.of(["channels"])[0]
    statistics = collect(model, structure, batches, [Moments(covariance=True)])
    rounds = channels.num_units
    found = scores_of(model, Obs(rounds=rounds, damping=1e-9), batches)
    assert found[group.name].shape == (group.num_units,)
    order = found[channels.name].argsort(stable=True).tolist()
    moments = statistics.of(Moments(covariance=True))[channels.consumer]
    weight = weight_OI(linear_at(model, channels.consumer)).detach()
    keep_I = torch.ones(rounds, dtype=torch.bool)
    for unit in order[:4]:
        costs = {}
        for candidate in keep_I.nonzero().flatten().tolist():
            trial_I = keep_I.clone()
            trial_I[candidate] = False
            repaired = refit(LeastSquares(damping=1e-9, reconstruct_bias=False), weight, moments, trial_I)
            costs[candidate] = float(error(weight, moments, trial_I, repaired))
        assert min(costs, key=lambda c: costs[c]) == unit
        keep_I[unit] = False


@pytest.mark.parametrize("name", MODELS)
def test_vector_taylor_is_one_number_on_consumer_gate_and_ungated_producer(name: str) -> None:
    model = model_of(name)
    batches = calibration(model)
    gate = scores_of(model, Taylor(form="vector"), batches)
    structure = widths(model)
    vector = Taylor(form="vector", aggregation="max")
    statistics = collect(model, structure, batches, vector.requests())
    (sums,) = statistics.found.values()
    for g in structure.groups:
        consumer = next(i for i, s in enumerate(g.slices) if s.path == g.consumer and s.axis == "in")
        torch.testing.assert_close(sums[g.name][consumer], gate[g.name], rtol=1e-4, atol=1e-6)
        values = [i for i, s in enumerate(g.slices) if s.path.endswith(("up_proj", "v_proj", "value"))]
        for number in values:
            torch.testing.assert_close(sums[g.name][number], gate[g.name], rtol=1e-4, atol=1e-6)


REPAIRS = [(name, repair) for name in MODELS for repair in ("bias", "scale", "least_squares")]


@pytest.mark.parametrize(("name", "repair"), [pair for pair in REPAIRS if pair != ("qwen2", "bias")])
def test_repair_brings_consumers_closer_to_what_they_said(name: str, repair: str) -> None:
    model = model_of(name)
    batches = sequences(model, (60,) * 12)
    options = {"criterion": "random", "density": {"channels": 0.5}}
    damped = {} if repair == "bias" else {"damping": 1e-3}
    plain, _ = prune(model, batches, **options)  # type: ignore[arg-type]
    repaired, _ = prune(model, batches, reconstruct=repair, **options, **damped)  # type: ignore[arg-type]
    consumer = widths(model).of(["channels"])[0].consumer
    said = [_first_output(m, consumer, batches) for m in (model, plain, repaired)]
    assert (said[0] - said[2]).square().sum() < (said[0] - said[1]).square().sum()


def _first_output(model: PreTrainedModel, consumer: str, batches: list[dict[str, Tensor]]) -> Tensor:
    said: list[Tensor] = []
    hook = model.get_submodule(consumer).register_forward_hook(lambda _, args, y: said.append(y.detach()))
    with torch.no_grad():
        for batch in batches:
            model(**batch)
    hook.remove()
    return torch.cat(said)


def test_larger_density_keeps_a_superset() -> None:
    model = model_of("llama")
    batches = Batches(model, calibration(model))
    small, large = (
        kept(prune(model, batches.source, criterion="wanda", density={"channels": d}, scope="global")[1])
        for d in (0.3, 0.6)
    )
    assert all(set(small[name]) <= set(large[name]) for name in small)
