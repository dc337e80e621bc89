"""Search for layers beside widths: the path against brute force, losses against models that are really cut, limits."""

import copy
import itertools
import logging
import time
from typing import Any

import pytest
import torch
from torch import Tensor

from patchers.discovery.discover import discover
from sparse_trainer.errors import ArgumentError, BudgetError, UnsupportedModelError
from sparse_trainer.one_shot.prune import prune
from sparse_trainer.one_shot.search.program import Stage, best_path
from tests.fixtures.oneshot_models import calibration, model_of, sequences
from tests.laws.test_kinds_by_criteria import batches as batches_of
from tests.laws.test_kinds_by_criteria import made
from tests.unit.one_shot.test_search import kl

# Shape legend: G = levels, T = tokens, I = inputs of a linear, H = hidden features.

DEEP: dict[str, Any] = {
    "search": "dp",
    "criterion": "obs",
    "units": ["heads", "channels", "layers"],
    "reconstruct": "least_squares",
    "levels": 2,
    "search_tokens": 10_000,
}


def stages_of(seed: int) -> list[Stage]:
    generator = torch.Generator().manual_seed(seed)

    def numbers(count: int) -> Tensor:
        return torch.rand(count, generator=generator, dtype=torch.float64).sort().values

    found = []
    for place in range(5):
        costs = [numbers(3).mul(20).round().flip(0) for _ in range(2)]
        runs = {n: float(r) for n, r in enumerate(numbers(5 - place).mul(2), 1) if place}
        stage = Stage(costs=costs, losses=[numbers(3), numbers(3)], fixed=3.0, runs=runs, follows=place > 0)
        found.append(stage)
    return found


def brute_force(stages: list[Stage], allowed: float) -> float:
    """Return the least sum of losses of all ways to close layers and to choose levels in the others."""
    best = float("inf")
    for closed in itertools.product([False, True], repeat=len(stages)):
        runs = [(value, len(list(same))) for value, same in itertools.groupby(closed)]
        starts = list(itertools.accumulate([0, *(length for _, length in runs)]))
        lost = 0.0
        for (value, length), start in zip(runs, starts, strict=False):
            lost += stages[start].runs.get(length, float("inf")) if value else 0.0
        open_stages = [stage for stage, gone in zip(stages, closed, strict=True) if not gone]
        left = allowed - sum(stage.fixed for stage in open_stages)
        ladders = [p for s in open_stages for p in zip(s.costs, s.losses, strict=True)]
        found = {0.0: 0.0}
        for cost_G, loss_G in ladders:
            following: dict[float, float] = {}
            for spent, so_far in found.items():
                for cost, loss in zip(cost_G.tolist(), loss_G.tolist(), strict=True):
                    total = min(following.get(spent + cost, float("inf")), so_far + loss)
                    following[spent + cost] = total
            found = following
        best = min(best, lost + min((loss for spent, loss in found.items() if spent <= left), default=best))
    return best


@pytest.mark.parametrize("seed", range(4))
def test_the_path_is_the_best_of_all(seed: int) -> None:
    stages = stages_of(seed)
    most = sum(float(stage.fixed + sum(cost_G[0] for cost_G in stage.costs)) for stage in stages)
    for share in (0.2, 0.5, 0.8, 1.0):
        path = best_path(stages, share * most)
        best = brute_force(stages, share * most)
        assert path is not None
        spent = lost = 0.0
        for gone, same in itertools.groupby(enumerate(path), lambda at: at[1] is None):
            members = list(same)
            if gone:
                lost += stages[members[0][0]].runs[len(members)]
                continue
            for place, levels in members:
                assert levels is not None
                stage = stages[place]
                spent += stage.fixed + sum(float(c[n]) for c, n in zip(stage.costs, levels, strict=True))
                lost += sum(float(loss_G[n]) for loss_G, n in zip(stage.losses, levels, strict=True))
        assert spent <= share * most
        assert lost == pytest.approx(best)
    assert best_path(stages, 1.0) is None


def test_the_path_through_the_layers_of_a_large_model_is_quick() -> None:
    costs = [torch.arange(32, -1, -1).double() * unit for unit in (8192 * 3584, 8192 * 160)]
    losses = [torch.arange(33).double() ** 2] * 2
    stages = [
        Stage(
            costs=costs,
            losses=[loss_G * (1 + place % 7) for loss_G in losses],
            fixed=16384.0,
            runs={n: 900.0 * n**1.5 for n in range(1, min(8, 80 - place) + 1)} if place else {},
            follows=place > 0,
        )
        for place in range(80)
    ]
    start = time.process_time()
    path = best_path(stages, 0.6 * 80 * float(costs[0][0] + costs[1][0]))
    assert time.process_time() - start < 5
    assert path is not None
    assert any(levels is None for levels in path)


@torch.no_grad()
def taken_over(model: Any, batches: list[dict[str, Tensor]], layer: int, length: int) -> Any:
    """Return a model without a run, whose linear in front is fitted by hand."""
    cut, linear = copy.deepcopy(model), model.model.layers[layer - 1].mlp.down_proj
    reads, states = [], []
    hooks = [
        linear.register_forward_pre_hook(lambda _, args: reads.append(args[0][0])),
        model.model.layers[layer - 1].register_forward_hook(lambda *args: states.append(args[2][0])),
        model.model.layers[layer - 1 + length].register_forward_hook(lambda *args: states.append(args[2][0])),
    ]
    for batch in batches:
        model(**batch)
    for hook in hooks:
        hook.remove()
    x_TI, before_TH, behind_TH = torch.cat(reads), torch.cat(states[::2]), torch.cat(states[1::2])
    root_T1 = before_TH.square().mean(-1, keepdim=True).rsqrt()
    x_TI, missing_TH = x_TI * root_T1, (behind_TH - before_TH) * root_T1
    gram_II = x_TI.T @ x_TI
    gram_II += 0.1 * gram_II.diagonal().mean() * torch.eye(len(gram_II))
    cut.model.layers[layer - 1].mlp.down_proj.weight += torch.linalg.solve(gram_II, x_TI.T @ missing_TH).T
    del cut.model.layers[layer : layer + length]
    return cut


def test_losses_of_runs_are_those_of_models_without_them() -> None:
    model = model_of("llama")
    before = copy.deepcopy(model.state_dict())
    batches = sequences(model, (40,) * 6)
    plan = prune(model, batches, density=0.4, **DEEP)[1]
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    losses = plan.searches[0]["losses"]
    expected = {
        "model.layers.1.layer": (1, 1),
        "model.layers.2.layer": (2, 1),
        "model.layers.1.layer - model.layers.2.layer": (1, 2),
    }
    assert expected.keys() <= losses.keys()
    for name, (layer, length) in expected.items():
        assert losses[name][0] == (1, 0.0)
        by_hand = kl(model, taken_over(model, batches, layer, length), batches)
        assert losses[name][1][1] == pytest.approx(by_hand, rel=1e-5)


@pytest.mark.parametrize("refit_behind", [False, True])
def test_layers_go_where_widths_may_not_and_the_plan_adds_up(refit_behind: bool) -> None:
    model = model_of("llama")
    batches = sequences(model, (60,) * 8)
    full = {"heads": 2, "channels": 40}
    pruned, plan = prune(model, batches, density=0.7, min_keep=full, refit_behind=refit_behind, **DEEP)
    gone = [name for name, group in plan.groups.items() if group["kind"] == "layers" and not group["keep"]]
    assert len(gone) == 1
    assert pruned.config.num_hidden_layers == len(pruned.model.layers) == model.config.num_hidden_layers - 1
    assert plan.density_reached is not None
    assert plan.density_reached <= 0.7
    record = plan.searches[0]
    kept = {n: len(g["keep"]) for n, g in plan.groups.items() if g["kind"] != "layers"}
    alone = record["losses"][gone[0]][1][1]
    whole = all(kept[n] == g["size"] for n, g in plan.groups.items() if g["kind"] != "layers")
    assert record["expected"] == pytest.approx(alone) if whole else record["expected"] > alone
    assert torch.isfinite(pruned(**batches[0]).logits).all()


def test_protected_layers_stay_and_one_of_all_does() -> None:
    model = model_of("llama")
    batches = sequences(model, (60,) * 8)
    full = {"heads": 2, "channels": 40}
    options = {**DEEP, "min_keep": full}
    plan = prune(model, batches, density=0.6, protect=["model.layers.2.*"], **options)[1]
    assert plan.groups["model.layers.1.layer"]["keep"] == []
    assert "model.layers.2.layer" not in plan.groups
    # Without a repair the first may go, too, but never all.
    plan = prune(model, batches, density=0.4, **{**options, "reconstruct": None})[1]
    kept = [g for g in plan.groups.values() if g["kind"] == "layers" and g["keep"]]
    assert len(kept) == 1
    with pytest.raises(BudgetError, match="not reachable"):
        prune(model, batches, density=0.2, **options)


def test_a_search_whose_time_is_up_takes_the_best_so_far(caplog: pytest.LogCaptureFixture) -> None:
    model = model_of("llama")
    with caplog.at_level(logging.WARNING):
        plan = prune(model, sequences(model, (60,) * 8), density=0.6, time_limit=1e-6, **DEEP)[1]
    assert "runs of layers were tried" in caplog.text
    assert plan.density_reached == pytest.approx(0.6, abs=0.1)


def test_losses_in_bfloat16_are_near_those_in_full() -> None:
    model = model_of("llama").float()
    batches = sequences(model, (60,) * 8)
    plans = [prune(model, batches, density=0.6, search_bfloat16=rough, **DEEP)[1] for rough in (False, True)]
    exact, rough = (plan.searches[0]["losses"] for plan in plans)
    assert exact != rough
    pairs = [
        (exact[name][level][1], rough[name][level][1]) for name in exact for level in range(len(exact[name]))
    ]
    # These weights are large and random: bfloat16 changes what the dense model says as well.
    assert torch.tensor(pairs).T.corrcoef()[0, 1] > 0.9


@pytest.mark.parametrize(
    ("family", "reconstruct"), [("t5", None), ("mixtral", None), ("qwen2", "least_squares")]
)
def test_other_stacks(family: str, reconstruct: str | None) -> None:
    model = model_of(family) if reconstruct else made(family)
    batches = batches_of(family) if reconstruct is None else sequences(model, (60,) * 8)
    kind = "experts" if family == "mixtral" else "channels"
    options = {**DEEP, "criterion": "fisher", "units": [kind, "layers"], "reconstruct": reconstruct}
    pruned, plan = prune(model, batches, density=0.7, **options)
    assert plan.density_reached is not None
    assert 0.3 <= plan.density_reached <= 0.7
    assert discover(pruned, ["layers"]).groups


def test_where_a_norm_stands_behind_it_is_told_before_the_search() -> None:
    model = model_of("gemma2")
    with pytest.raises(UnsupportedModelError, match="a norm stands"):
        prune(model, sequences(model, (60,) * 8), density=0.6, **DEEP)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"units": ["layers"]}, "search: finds widths beside layers"),
        ({"units": ["heads", "attention"]}, "search: finds whole attention"),
        ({"density": {"heads": 0.8, "layers": 0.8}}, "density: layers and widths share one budget"),
        ({"scope": "uniform"}, "scope: layers go anywhere"),
        ({"target": "units"}, "target: a layer counts as much"),
        ({"search": "evolve"}, "search: switches change no layers"),
        ({"search": None, "search_bfloat16": True, "levels": 8, "search_tokens": 4096}, "contain"),
        ({"criterion": "block_influence"}, "does not score heads"),
        ({"reconstruct": "scale"}, "repairs no removed layers"),
    ],
)
def test_bad_options_are_told_early(options: dict[str, Any], message: str) -> None:
    model = model_of("llama")
    asked = {"density": 0.6, **DEEP, **options}
    if isinstance(asked["density"], dict):
        asked["units"] = None
    with pytest.raises(ArgumentError, match=message):
        prune(model, calibration(model), **asked)
