"""Selection is exact, monotone, honours floors and multiples, and says what is feasible."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from patchers.units import LAYERS, Group, Kind, kind_named
from sparse_trainer.budget.nested import NestedSelector
from sparse_trainer.budget.options import Budget
from sparse_trainer.budget.selection import Selector
from sparse_trainer.budget.selectors import make_selector
from sparse_trainer.cut.optimize import optimize_model
from sparse_trainer.errors import ArgumentError, BudgetError
from sparse_trainer.training.arguments.arguments import SparseTrainingArguments
from sparse_trainer.training.coordinator import ModelPatchingCoordinator
from tests.architectures.tiny import tiny_model
from tests.fixtures.compact_models import tiny

COSTS: dict[str, int] = {"heads": 64, "channels": 3}


def group(kind: str, layer: int, units: int) -> Group:
    block = f"layers.{layer}"
    return Group(
        name=f"{block}.{kind}",
        kind=kind_named(kind),
        layer=layer,
        stack="layers",
        block=block,
        num_units=units,
        consumer=block,
    )


def model_groups(layers: int = 4, heads: int = 8, channels: int = 50) -> list[Group]:
    pairs = [(group("heads", i, heads), group("channels", i, channels)) for i in range(layers)]
    return [g for pair in pairs for g in pair]


def make(density: Any, groups: list[Group] | None = None, **options: Any) -> tuple[Selector, list[Group]]:
    groups = model_groups() if groups is None else groups
    budget = Budget(
        density=density,
        scope=options.get("scope", "global"),
        multiple_of={"heads": 1, "channels": options.get("multiple_of", 1)},
        min_keep={"heads": options.get("min_keep", 1), "channels": options.get("min_keep", 1)},
    )
    return Selector(groups, {g.name: COSTS[g.kind] for g in groups}, budget), groups


def scores_of(groups: list[Group], seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {g.name: torch.randn(g.num_units, generator=generator) for g in groups}


def cost(keep: dict[str, torch.Tensor], groups: list[Group]) -> int:
    return sum(int(keep[g.name].sum()) * COSTS[g.kind] for g in groups)


@settings(max_examples=150, deadline=None)
@given(
    density=st.floats(0.15, 1.0),
    scope=st.sampled_from(["global", "layer"]),
    multiple=st.sampled_from([1, 4, 7]),
    min_keep=st.integers(0, 2),
    seed=st.integers(0, 10_000),
)
def test_budget_is_met_to_the_smallest_unit(
    density: float, scope: str, multiple: int, min_keep: int, seed: int
) -> None:
    try:
        selector, groups = make(density, scope=scope, multiple_of=multiple, min_keep=min_keep)
    except BudgetError:
        return
    keep = selector.select(scores_of(groups, seed)).keep
    pools = [groups] if scope == "global" else [[g for g in groups if g.layer == i] for i in range(4)]
    for pool in pools:
        total = sum(g.num_units * COSTS[g.kind] for g in pool)
        reached = cost(keep, pool)
        assert reached <= density * total + 1e-6 * total
        # A chunk of either kind that is still out would not have fitted.
        out = {g.kind for g in pool if not bool(keep[g.name].all())}
        step = min((COSTS[k] * (multiple if k == "channels" else 1) for k in out), default=0)
        assert not out or reached + step > density * total - 1e-6 * total
    for g in groups:
        kept = int(keep[g.name].sum())
        assert kept >= min(min_keep, g.num_units)
        assert g.kind == "heads" or kept == g.num_units or kept % multiple == 0


@settings(max_examples=80, deadline=None)
@given(low=st.floats(0.2, 1.0), high=st.floats(0.2, 1.0), seed=st.integers(0, 10_000))
def test_larger_budget_keeps_a_superset_when_costs_are_equal(low: float, high: float, seed: int) -> None:
    groups = [group("channels", i, 40) for i in range(3)]
    low, high = sorted((low, high))
    scores = scores_of(groups, seed)
    small, large = (make(d, groups)[0].select(scores).keep for d in (low, high))
    assert all(bool((~small[name] | large[name]).all()) for name in small)


@pytest.mark.parametrize("seed", range(5))
def test_the_best_are_kept_within_each_group(seed: int) -> None:
    selector, groups = make(0.5)
    scores = scores_of(groups, seed)
    selection = selector.select(scores)
    for g in groups:
        keep = selection.keep[g.name]
        if bool(keep.any()) and not bool(keep.all()):
            assert scores[g.name][keep].min() >= scores[g.name][~keep].max()


def test_ties_keep_the_lower_index() -> None:
    groups = [group("channels", 0, 10)]
    keep = make(0.3, groups)[0].select({groups[0].name: torch.zeros(10)}).keep[groups[0].name]
    assert keep.tolist() == [True] * 3 + [False] * 7


@pytest.mark.parametrize("scope", ["global", "layer", "uniform"])
def test_per_kind_densities_count_units_of_that_kind(scope: str) -> None:
    selector, groups = make({"heads": 0.75, "channels": 0.5}, scope=scope)
    keep = selector.select(scores_of(groups, 0)).keep
    for kind, kept in (("heads", 6), ("channels", 25)):
        counts = [int(keep[g.name].sum()) for g in groups if g.kind == kind]
        assert sum(counts) == kept * 4
        assert scope == "global" or counts == [kept] * 4


@pytest.mark.parametrize("density", [0.3, 0.44, 0.5, 0.55, 0.8])
def test_uniform_gives_equal_widths_and_makes_up_for_rounding(density: float) -> None:
    selector, groups = make(density, scope="uniform")
    keep = selector.select(scores_of(groups, 0)).keep
    widths = {(g.kind, int(keep[g.name].sum())) for g in groups}
    assert len(widths) == 2
    total = sum(g.num_units * COSTS[g.kind] for g in groups)
    smallest_step = 4 * COSTS["channels"]
    if min(width for _, width in widths) > 1 and max(w for k, w in widths if k == "channels") < 50:
        assert abs(cost(keep, groups) - density * total) <= smallest_step / 2 + 1e-6


def test_remaining_interpolates_towards_dense() -> None:
    selector, groups = make(0.5)
    scores = scores_of(groups, 0)
    assert all(bool(k.all()) for k in selector.select(scores, remaining=1.0).keep.values())
    halfway = cost(selector.select(scores, remaining=0.5).keep, groups)
    total = sum(g.num_units * COSTS[g.kind] for g in groups)
    assert halfway == pytest.approx(0.75 * total, abs=COSTS["heads"])


def test_impossible_budget_gives_the_feasible_range() -> None:
    with pytest.raises(BudgetError, match=r"not reachable.*min_keep.*\[0\.\d+, 1\]"):
        make(0.05, min_keep=3)
    with pytest.raises(BudgetError, match="multiple_of"):
        make({"channels": 0.1}, [group("channels", 0, 64)], multiple_of=32)


def test_threshold_is_the_lowest_score_kept() -> None:
    groups = [group("channels", 0, 10)]
    selection = make(0.4, groups)[0].select({groups[0].name: torch.arange(10.0)})
    assert float(selection.threshold) == 6.0


def layers_of(stack: str, count: int) -> list[Group]:
    return [
        Group(
            name=f"{stack}.{i}.layer",
            kind=LAYERS,
            layer=i,
            stack=stack,
            block=f"{stack}.{i}",
            num_units=1,
            consumer=f"{stack}.{i}",
        )
        for i in range(count)
    ]


def layer_budget(density: Any, scope: Any = "global") -> Budget:
    kinds: tuple[Kind, ...] = ("heads", "channels", "layers")
    return Budget(
        density=density, scope=scope, multiple_of=dict.fromkeys(kinds, 1), min_keep=dict.fromkeys(kinds, 0)
    )


@pytest.mark.parametrize("scope", ["global", "layer", "uniform"])
@pytest.mark.parametrize("density", [0.3, {"layers": 0.3}])
def test_a_budget_below_one_layer_gives_the_feasible_range(density: Any, scope: str) -> None:
    groups = layers_of("encoder", 3)
    costs = {g.name: 7 for g in groups}
    with pytest.raises(BudgetError, match=r"one layer of every stack.*\[0\.3333, 1\]"):
        Selector(groups, costs, layer_budget(density, scope))
    selector = Selector(groups, costs, layer_budget(0.34, scope))
    scores = {g.name: torch.tensor([-5.0 + g.layer]) for g in groups}
    assert [bool(k) for k in selector.select(scores).keep.values()] == [False, False, True]


def test_the_best_layer_of_every_stack_stays_whatever_it_costs() -> None:
    groups = [*layers_of("encoder", 3), *layers_of("decoder", 3)]
    costs = {g.name: 3 if g.stack == "encoder" else 1 for g in groups} | {"decoder.2.layer": 2}
    selector = Selector(groups, costs, layer_budget(0.4))
    scores = {g.name: torch.tensor([float(g.stack == "encoder") * 9 + g.layer]) for g in groups}
    keep = selector.select(scores).keep
    assert [name for name, keep_U in keep.items() if bool(keep_U)] == ["encoder.2.layer", "decoder.2.layer"]
    with pytest.raises(BudgetError, match=r"\[0\.3846, 1\]"):
        Selector(groups, costs, layer_budget(0.35))


def test_layers_without_anything_inside_stay_one_a_stack_beside_nested_ones() -> None:
    nested = [*layers_of("layers", 3), *model_groups(3)]
    bare = layers_of("decoder", 3)
    costs = {g.name: 700 if g.kind == "layers" else COSTS[g.kind] for g in (*nested, *bare)}
    selector = make_selector([*nested, *bare], costs, layer_budget(0.34))
    assert isinstance(selector, NestedSelector)
    for seed in range(5):
        keep = selector.select({name: s - 9 for name, s in scores_of([*nested, *bare], seed).items()}).keep
        for stack in (nested, bare):
            kept = [g.layer for g in stack if g.kind == "layers" and bool(keep[g.name])]
            assert len(kept) >= 1
        total = 6 * 700
        own = {g.name: 700 for g in bare} | {
            g.name: 700 - 8 * COSTS["heads"] - 50 * COSTS["channels"] for g in nested if g.kind == "layers"
        }
        spent = sum(
            int(keep[g.name].sum()) * own.get(g.name, costs[g.name])
            for g in (*nested, *bare)
            if g.kind == "layers" or bool(keep[f"layers.{g.layer}.layer"])
        )
        assert spent <= 0.34 * total
    with pytest.raises(BudgetError):
        make_selector([*nested, *bare], costs, layer_budget(0.16))


def test_units_that_cost_nothing_are_refused() -> None:
    experts = group("channels", 0, 4)
    for groups, density in (([experts], 0.5), ([experts], {"channels": 0.5}), (model_groups(), 0.5)):
        costs = {g.name: 0 if g.kind == "channels" else 1 for g in groups}
        with pytest.raises(ArgumentError, match=r"target: channels cost nothing.*'params'"):
            Selector(groups, costs, layer_budget(density))


@pytest.mark.parametrize("scoring", ["movement", "l0", "layer_gate"])
def test_layers_are_never_all_closed(scoring: str) -> None:
    options = {"scoring": scoring, "units": ["layers"]}
    with pytest.raises(BudgetError, match=r"\[0\.3333, 1\]"):
        ModelPatchingCoordinator(SparseTrainingArguments(**options, density=0.3)).patch_model(tiny())
    coordinator = ModelPatchingCoordinator(SparseTrainingArguments(**options, density=0.34))
    model = coordinator.patch_model(tiny())
    coordinator.begin(1)
    coordinator.step()
    assert optimize_model(model).config.num_hidden_layers == 1


def test_experts_have_no_macs_to_save() -> None:
    options = {"scoring": "movement", "units": ["experts"], "target": "macs"}
    with pytest.raises(ArgumentError, match="target: experts cost nothing"):
        ModelPatchingCoordinator(SparseTrainingArguments(**options)).patch_model(tiny_model("mixtral"))


def test_auto_is_what_nothing_said_is() -> None:
    experts = group("experts", 0, 64)
    assert Budget(multiple_of="auto") == Budget()
    assert Budget(multiple_of="auto").step_of(experts) == Budget().step_of(experts)
    with pytest.raises(ArgumentError, match="one per kind, or auto"):
        Budget(multiple_of="automatic")


@pytest.mark.parametrize("kind", ["vocab", "vocabulary"])
def test_tokens_are_pointed_to_what_trims_them(kind: str) -> None:
    with pytest.raises(ArgumentError, match="trim-vocabulary"):
        Budget(units=(kind,))
