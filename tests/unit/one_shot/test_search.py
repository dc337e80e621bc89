"""Search for widths: the program against brute force, losses against models that are really cut, budgets, limits."""

import copy
import itertools
import logging
import time
from typing import Any

import pytest
import torch
from torch import Tensor

from patchers.discovery.discover import discover
from patchers.units import Group
from sparse_trainer.budget.cost import unit_cost
from sparse_trainer.budget.options import Budget
from sparse_trainer.cut.carry_out import carry_out
from sparse_trainer.cut.decide import found_in
from sparse_trainer.cut.decision import Decision, Request
from sparse_trainer.errors import ArgumentError, DataError, NonFiniteError
from sparse_trainer.one_shot.prune import prune
from sparse_trainer.one_shot.repairs.least_squares import LeastSquares
from sparse_trainer.one_shot.repairs.refit import refit
from sparse_trainer.one_shot.search.ladders import Ladder, level_counts, refined
from sparse_trainer.one_shot.search.options import SearchOptions
from sparse_trainer.one_shot.search.program import best_levels
from sparse_trainer.one_shot.search.search import search_widths
from sparse_trainer.plan.document import Plan
from sparse_trainer.statistics.calibration import Batches
from sparse_trainer.statistics.collect import collect
from sparse_trainer.statistics.moments import Moments
from tests.fixtures.oneshot_models import calibration, model_of, sequences, widths
from tests.laws.test_kinds_by_criteria import batches, made

# Shape legend: U = units, G = levels, V = vocabulary.

FAST: dict[str, Any] = {"criterion": "obs", "reconstruct": "least_squares", "levels": 3, "search_tokens": 60}


def table(seed: int, *, whole: bool) -> tuple[list[Tensor], list[Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    costs, losses = [], []
    for levels in (3, 4, 2, 4):
        cost = (
            torch.rand(levels, generator=generator, dtype=torch.float64).mul(40).sort(descending=True).values
        )
        costs.append(cost.round() if whole else cost)
        losses.append(torch.rand(levels, generator=generator, dtype=torch.float64).sort().values)
    return costs, losses


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("seed", range(5))
def test_the_program_finds_what_trying_everything_finds(seed: int, whole: bool) -> None:
    costs, losses = table(seed, whole=whole)
    least, most = (float(sum(cost_G[end] for cost_G in costs)) for end in (-1, 0))
    for share in (0.1, 0.4, 0.8, 1.0):
        allowed = least + share * (most - least) + 0.05
        found = best_levels(costs, losses, allowed)
        spent = sum(float(cost_G[level]) for cost_G, level in zip(costs, found, strict=True))
        assert spent <= allowed
        # Costs without a common measure are rounded up, each to a part of the budget.
        sure = allowed if whole else allowed * (1 - len(costs) / 65536)
        best = min(
            sum(float(loss_G[level]) for loss_G, level in zip(losses, levels, strict=True))
            for levels in itertools.product(*(range(len(cost_G)) for cost_G in costs))
            if sum(float(cost_G[level]) for cost_G, level in zip(costs, levels, strict=True)) <= sure
        )
        lost = sum(float(loss_G[level]) for loss_G, level in zip(losses, found, strict=True))
        assert lost <= best + 1e-9
        assert not whole or lost == pytest.approx(best)


def test_the_program_is_quick_over_the_layers_of_a_large_model() -> None:
    costs = [torch.arange(32, -1, -1).double() * unit for unit in (8192 * 3584, 8192 * 160)] * 80
    losses = [torch.arange(33).double() ** 2 * (1 + number % 7) for number in range(160)]
    start = time.process_time()
    found = best_levels(costs, losses, 0.6 * float(sum(cost_G[0] for cost_G in costs)))
    assert time.process_time() - start < 5
    assert len(found) == 160


def test_levels_are_multiples_and_keep_floors() -> None:
    assert level_counts(64, levels=4, floor=1, step=16) == (64, 48, 32, 16)
    assert level_counts(50, levels=2, floor=20, step=16) == (50, 48, 32)
    assert level_counts(3, levels=1, floor=1, step=1) == (3, 1)
    assert level_counts(8, levels=64, floor=8, step=1) == (8,)


@pytest.mark.parametrize("step", [1, 8])
def test_widths_between_levels_lose_what_lies_between(step: int) -> None:
    loss_G = torch.tensor([0.0, 0.01, 0.01, 0.4, 3.0], dtype=torch.float64)
    coarse = Ladder(groups=(), counts=(128, 96, 64, 32, 8), step=step, loss_G=loss_G)
    fine = refined(coarse)
    assert len(fine.counts) > 12
    assert all(count % step == 0 for count in fine.counts)
    assert list(fine.counts) == sorted(set(fine.counts), reverse=True)
    assert (fine.loss_G.diff() >= 0).all()
    for count, loss in zip(coarse.counts, loss_G.tolist(), strict=True):
        assert fine.loss_G[fine.counts.index(count)] == pytest.approx(loss)
    assert refined(Ladder(groups=(), counts=(3,), step=1, loss_G=torch.zeros(1))).counts == (3,)


@torch.no_grad()
def kl(dense: Any, cut: Any, batches: list[dict[str, Tensor]]) -> float:
    """Return the mean divergence at real tokens."""
    total, tokens = 0.0, 0
    for batch in batches:
        inputs = {name: value for name, value in batch.items() if name != "labels"}
        p, q = (
            model(**inputs).logits[batch["attention_mask"] != 0].log_softmax(-1) for model in (dense, cut)
        )
        total, tokens = total + float((p.exp() * (p - q)).sum()), tokens + len(p)
    return total / tokens


@torch.no_grad()
@pytest.mark.parametrize("name", ["llama", "gpt2", "bert"])
def test_losses_of_levels_are_those_of_models_that_are_cut(name: str) -> None:
    model = model_of(name)
    before = copy.deepcopy(model.state_dict())
    batches = calibration(model, rows=4) + sequences(model, (60,) * 6, seed=1)
    structure = widths(model)
    statistics = collect(model, structure, batches, [Moments(covariance=True)])
    generator = torch.Generator().manual_seed(0)
    ranks = {g.name: torch.rand(g.num_units, generator=generator) for g in structure.groups}
    repair = LeastSquares()
    keep, record = search_widths(
        model, structure, ranks, Batches(model, batches), statistics,
        budget=Budget(density=0.6),
        cost_of=lambda group, count: float(count),
        repair=repair,
        options=SearchOptions(method="dp", levels=3, tokens=10_000),
    )  # fmt: skip
    assert all(torch.equal(tensor, before[entry]) for entry, tensor in model.state_dict().items())
    assert set(model.state_dict()) == set(before)
    for group in (structure.groups[0], structure.groups[-1]):
        raw = []
        for count, _ in record["losses"][group.name]:
            cut = copy.deepcopy(model)
            keep_U = torch.zeros(group.num_units, dtype=torch.bool)
            keep_U[ranks[group.name].argsort(descending=True)[:count]] = True
            kept = {g.name: torch.ones(g.num_units, dtype=torch.bool) for g in structure.groups} | {
                group.name: keep_U
            }
            refit(cut, structure, kept, repair, statistics)
            decision = Decision(structure=found_in(cut), keep=kept, request=Request(method="by hand"))
            carry_out(cut, decision, check=False)
            raw.append(kl(model, cut, batches))
        expected = torch.tensor(raw, dtype=torch.float64).cummax(0).values
        found = torch.tensor([loss for _, loss in record["losses"][group.name]], dtype=torch.float64)
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)
    for name_, keep_U in keep.items():
        count = int(keep_U.sum())
        assert keep_U[ranks[name_].argsort(descending=True)[:count]].all()


@pytest.mark.parametrize("density", [0.6, {"heads": 0.5, "channels": 0.7}])
@pytest.mark.parametrize("scope", ["global", "layer", "uniform"])
def test_budgets_scopes_floors_and_protection_hold(scope: str, density: Any) -> None:
    model = model_of("llama")
    options = {
        **FAST,
        "min_keep": {"heads": 1, "channels": 8},
        "protect": ["last"],
        "multiple_of": {"channels": 4},
    }
    plan = prune(model, sequences(model, (60,) * 8), search="dp", density=density, scope=scope, **options)[1]
    last = max(g.layer for g in discover(model, ("heads",)).groups)
    groups: list[Group] = [g for g in widths(model).groups if g.layer != last]
    kept = {g.name: len(plan.groups[g.name]["keep"]) for g in groups}
    assert all(
        len(plan.groups[g.name]["keep"]) == g.num_units for g in widths(model).groups if g.layer == last
    )
    for g in groups:
        assert kept[g.name] >= (8 if g.kind == "channels" else 1)
        assert g.kind == "heads" or kept[g.name] % 4 == 0 or kept[g.name] == g.num_units
    if scope == "uniform":
        assert len({kept[g.name] for g in groups if g.kind == "channels"}) == 1
    cost = {g.name: unit_cost(model, g, "params") for g in groups}
    if isinstance(density, float):
        total = sum(cost[g.name] * g.num_units for g in groups)
        assert sum(cost[n] * count for n, count in kept.items()) <= density * total
        if scope == "global":
            dearest = max(cost[g.name] * (4 if g.kind == "channels" else 1) for g in groups)
            assert sum(cost[n] * count for n, count in kept.items()) > density * total - 2 * dearest
    else:
        for kind in density:
            units = [g for g in groups if g.kind == kind]
            assert sum(kept[g.name] for g in units) <= density[kind] * sum(g.num_units for g in units)


def test_whole_branches_go_where_no_floor_holds_them() -> None:
    model = model_of("llama")
    batches = sequences(model, (60,) * 8)
    pruned, plan = prune(model, batches, search="dp", density=0.15, min_keep=0, **FAST)
    assert min(len(group["keep"]) for group in plan.groups.values()) == 0
    assert torch.isfinite(pruned(**batches[0]).logits).all()


def test_switches_make_the_whole_model_better_and_the_plan_says_so() -> None:
    model = model_of("llama")
    batches = sequences(model, (60,) * 8)
    options = {**FAST, "search_tokens": 480, "density": 0.5}
    by_program, plan = prune(model, batches, search="dp", **options)
    switched, other = prune(model, batches, search="evolve", **options)
    measured = other.searches[0]["measured"]
    assert measured is not None
    assert measured <= kl(model, by_program, batches) + 1e-12
    assert measured == pytest.approx(kl(model, switched, batches), rel=1e-4)
    assert plan.searches[0]["measured"] is None
    assert plan.method == "obs, widths by search dp, repaired by least_squares"
    assert (
        Plan.from_json(other.to_json()) == other
        or Plan.from_json(other.to_json()).to_json() == other.to_json()
    )


@pytest.mark.parametrize(
    "budget",
    [{"density": {"heads": 0.5, "channels": 0.4}}, {"density": 0.5, "scope": "layer"}],
    ids=["per kind", "per layer"],
)
def test_switches_under_one_budget_see_the_widths_under_all_others(budget: dict[str, Any]) -> None:
    model = model_of("llama")
    batches = sequences(model, (60,) * 8)
    switched, plan = prune(
        model, batches, search="evolve", **{**FAST, "reconstruct": None, "search_tokens": 480}, **budget
    )
    assert plan.searches[0]["measured"] == pytest.approx(kl(model, switched, batches), rel=1e-4)


def test_blocks_that_are_measured_one_by_one_lose_as_much_as_together() -> None:
    model = model_of("llama")
    batches = sequences(model, (60,) * 2)
    together, alone = (
        prune(model, batches, search="dp", density=0.5, time_limit=limit, **FAST)[1].searches[0]["losses"]
        for limit in (None, 1e6)
    )
    assert len(together) > 2
    assert together == alone


def test_a_search_whose_time_is_up_returns_the_best_so_far(caplog: pytest.LogCaptureFixture) -> None:
    model = model_of("llama")
    with caplog.at_level(logging.WARNING):
        plan = prune(
            model, sequences(model, (60,) * 8), search="evolve", density=0.5, time_limit=1e-6, **FAST
        )[1]
    assert "time was up when" in caplog.text
    assert "before a switch was tried" in caplog.text
    assert plan.density_reached == pytest.approx(0.5, abs=0.1)
    assert plan.searches[0]["measured"] is None
    assert "Infinity" not in plan.to_json()


def test_groups_that_were_not_reached_lose_what_others_do_at_the_same_share() -> None:
    """Also where they have other numbers of units, as in a model that was pruned before."""
    model = model_of("llama")
    batches = sequences(model, (60,) * 8)
    once, _ = prune(model, batches, criterion="magnitude", density={"channels": 0.7})
    plan = prune(once, batches, search="dp", density=0.5, time_limit=1e-6, **FAST)[1]
    found = plan.searches[0]["losses"]
    first, *others = ([loss for _, loss in levels] for name, levels in found.items() if "channels" in name)
    assert all(max(other) < 2 * max(first) + 1e-9 for other in others)


@pytest.mark.parametrize(
    ("family", "kind"), [("mixtral", "experts"), ("mixtral", "channels"), ("t5", "heads")]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_experts_encoder_decoders_and_half_precision(family: str, kind: str, dtype: torch.dtype) -> None:
    model = made(family).to(dtype)
    plan = prune(
        model,
        batches(family),
        search="evolve",
        criterion="fisher",
        density={kind: 0.6},
        levels=2,
        search_tokens=12,
    )[1]
    assert plan.density_reached is not None
    assert 0.4 <= plan.density_reached <= 0.6
    assert plan.searches[0]["measured"] is not None


def test_without_repair_and_for_a_classifier() -> None:
    model = model_of("bert")
    plan = prune(
        model, calibration(model), search="dp", criterion="magnitude", density={"channels": 0.5}, levels=2
    )[1]
    assert plan.density_reached == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"search": "dpp"}, "Did you mean 'dp'"),
        ({"levels": 4}, "levels: is of a search"),
        ({"time_limit": 3.0}, "time_limit: is of a search"),
        ({"search": "dp", "levels": 0}, "levels: 0"),
        ({"search": "dp", "search_tokens": 0}, "search_tokens: 0"),
        ({"search": "dp", "time_limit": 0.0}, "time_limit: 0"),
        ({"search": "dp", "allocation": "fisher"}, "allocation: the search shares"),
        ({"search": "dp", "standardize": "share"}, "standardize: a search compares"),
        ({"search": "dp", "by_block": True, "criterion": "wanda"}, "by_block: a search runs"),
        ({"search": "dp", "steps": 2}, "steps: a search finds"),
        ({"search": "dp", "density": {"layers": 0.5}, "criterion": "perplexity"}, "search: finds widths"),
    ],
)
def test_bad_options_say_where_what_and_the_remedy(options: dict[str, Any], message: str) -> None:
    model = model_of("llama")
    with pytest.raises(ArgumentError, match=message):
        prune(model, calibration(model), **options)


def test_text_is_needed_and_must_be_read() -> None:
    model = model_of("llama")
    with pytest.raises(DataError, match="calibration"):
        prune(model, search="dp", criterion="magnitude")
    batches = sequences(model, (20,) * 2)
    with torch.no_grad():
        model.get_submodule("lm_head").weight.fill_(torch.inf)
    with pytest.raises(NonFiniteError, match="NaN or infinity"):
        prune(model, batches, search="dp", criterion="magnitude")
