"""Budgets with hidden features: products are counted right, met to one unit, and cut as they were chosen."""

from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from patchers.discovery.discover import discover
from patchers.layers import LINEAR_TYPES, features
from patchers.units import BLOCK_KINDS, KINDS, Group, Kind, kind_named
from sparse_trainer.budget.cost import Target, feature_costs, unit_cost
from sparse_trainer.budget.nesting import Constraint, Nesting
from sparse_trainer.budget.options import Budget
from sparse_trainer.budget.selection import Selector
from sparse_trainer.budget.selectors import make_selector
from sparse_trainer.criteria.training.l0 import ExpectedSize
from sparse_trainer.cut.decision import Decision, Request
from sparse_trainer.cut.optimize import optimize_model
from sparse_trainer.cut.record import make_plan, measures_of
from sparse_trainer.errors import ArgumentError, BudgetError, UnsupportedModelError
from sparse_trainer.one_shot.prune import prune
from sparse_trainer.plan.document import Plan
from sparse_trainer.training.arguments.arguments import SparseTrainingArguments
from sparse_trainer.training.coordinator import ModelPatchingCoordinator
from tests.fixtures.expected_size import counted_share, drawn_alphas
from tests.fixtures.hidden_models import hidden_model, outputs, some, tolerance

FLAT: tuple[Kind, ...] = ("heads", "channels", "hidden")
COMBINATIONS: list[tuple[Kind, ...]] = [
    ("hidden",),
    ("channels", "hidden"),
    FLAT,
    ("heads", "channels", "attention", "ffn", "hidden"),
    KINDS,
]


def nesting_of(model: nn.Module, kinds: tuple[Kind, ...], target: Target = "params") -> Nesting:
    groups = discover(model, kinds).groups
    costs = {g.name: unit_cost(model, g, target) for g in groups}
    return Nesting(groups, costs, feature_costs(model, groups, target))


def budget(density: float, **options: Any) -> Budget:
    multiple_of = {**dict.fromkeys(KINDS, 1), **options.get("multiple_of", {})}
    min_keep = {
        **dict.fromkeys(KINDS, 1),
        "attention": 0,
        "ffn": 0,
        "layers": 0,
        **options.get("min_keep", {}),
    }
    return Budget(density=density, multiple_of=multiple_of, min_keep=min_keep)


def inside(model: nn.Module) -> int:
    """Return the parameters of all linears in blocks."""
    (stack,) = discover(model).stacks
    blocks = model.get_submodule(stack.path)
    return sum(p.numel() for m in blocks.modules() if isinstance(m, LINEAR_TYPES) for p in m.parameters())


def macs_inside(model: nn.Module) -> int:
    structure = discover(model)
    blocks = model.get_submodule(structure.stacks[0].path)
    sizes = [features(m) for m in blocks.modules() if isinstance(m, LINEAR_TYPES)]
    attention = [2 * 128 * g.num_units * g.consumer_slice.width for g in structure.of(["heads"])]
    return sum(o * i for o, i in sizes) + sum(attention)


def close_inside(nesting: Nesting, keep: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return a decision that closes all that lies inside what is closed."""
    return {
        name: keep_U * all(bool(keep[outer].any()) for outer in nesting.around[name])
        for name, keep_U in keep.items()
    }


@pytest.mark.parametrize("name", ["bert", "llama", "gpt2", "electra"])
def test_what_counts_is_what_the_linears_in_blocks_hold(name: str) -> None:
    model = hidden_model(name)
    # The no-op in the place of GPT-2's attention takes the bias of its output with it.
    branches: tuple[Kind, ...] = ("channels",) if name == "gpt2" else ("attention", "ffn")
    for target, count in (("params", inside), ("macs", macs_inside)):
        for kinds in (FLAT, (*FLAT, *branches)):
            nesting = nesting_of(model, kinds, target)
            keep = close_inside(nesting, some(discover(model, kinds)))
            assert nesting.total == count(model)
            compact = optimize_model(model, plan=plan_of(model, keep), check=False)
            assert nesting.kept(keep) == pytest.approx(count(compact), abs=1e-6)


def plan_of(model: Any, keep: dict[str, torch.Tensor]) -> Plan:
    structure = discover(model, KINDS)
    sizes = measures_of(model, structure, 128)
    decision = Decision(structure=structure, keep=keep, request=Request(method="test"))
    return make_plan(model, decision, before=sizes, after=sizes)


def test_with_layers_everything_in_blocks_counts_once() -> None:
    model = hidden_model("bert")
    nesting = nesting_of(model, KINDS)
    blocks = model.get_submodule(discover(model).stacks[0].path)
    assert nesting.total == sum(p.numel() for p in blocks.parameters())
    keep = {g.name: torch.ones(g.num_units, dtype=torch.bool) for g in nesting.groups}
    keep["bert.encoder.hidden"][::2] = False
    compact = optimize_model(model, plan=plan_of(model, keep), check=False)
    left = compact.get_submodule(discover(compact).stacks[0].path)
    assert nesting.kept(keep) == sum(p.numel() for p in left.parameters())


def test_without_hidden_a_density_means_what_it_meant() -> None:
    model = hidden_model("bert")
    groups = discover(model, BLOCK_KINDS).groups
    costs = {g.name: unit_cost(model, g, "params") for g in groups}
    assert not feature_costs(model, groups, "params")
    assert Nesting(groups, costs, {}).own == Nesting(groups, costs).own


CASES: list[tuple[tuple[Kind, ...], Target]] = [
    *((kinds, target) for kinds in COMBINATIONS for target in ("params", "macs")),
    *((kinds, "units") for kinds in COMBINATIONS[:3]),
]


@pytest.mark.parametrize(("kinds", "target"), CASES)
def test_every_budget_is_met_to_one_unit(kinds: tuple[Kind, ...], target: Target) -> None:
    model = hidden_model("bert")
    groups = discover(model, kinds).groups
    costs = {g.name: unit_cost(model, g, target) for g in groups}
    per_feature = feature_costs(model, groups, target)
    nesting = Nesting(groups, costs, per_feature)
    generator = torch.Generator().manual_seed(4)
    for density in (0.15, 0.3, 0.5, 0.7, 0.9, 1.0):
        selector = make_selector(groups, costs, budget(density), per_feature)
        for shift in (-3.0, 0.0, 3.0):
            scores = {g.name: torch.randn(g.num_units, generator=generator) + 1 for g in groups}
            if "bert.encoder.hidden" in scores:
                scores["bert.encoder.hidden"] += shift - 1
            keep = selector.select(scores).keep
            reached = nesting.kept(keep) / nesting.total
            assert reached <= density + 1e-9
            assert reached + _next_unit(nesting, keep) > density - 1e-9


def _next_unit(nesting: Nesting, keep: dict[str, torch.Tensor]) -> float:
    """Return the share of the cheapest unit that could still have stayed, of those that fill the budget."""
    taken = {g.name for g in nesting.outer}
    gone = 0.0 if nesting.hidden is None else 1.0 - float(keep[nesting.hidden.name].double().mean())
    filling = [g for g in nesting.groups if g.name not in taken and not nesting.is_apart(g)]
    costs = [
        nesting.own[g.name] - gone * nesting.shared.get(g.name, 0)
        for g in filling
        if not bool(keep[g.name].all()) and all(bool(keep[name].any()) for name in nesting.around[g.name])
    ]
    if not costs and nesting.hidden is not None:
        costs = [nesting.total / nesting.hidden.num_units]
    return min(costs) / nesting.total if costs else 1.0


def test_hidden_features_close_by_their_own_scores_while_the_rest_can_make_up() -> None:
    model = hidden_model("bert")
    groups = discover(model, FLAT).groups
    costs = {g.name: unit_cost(model, g, "params") for g in groups}
    per_feature = feature_costs(model, groups, "params")
    scores = {g.name: torch.arange(float(g.num_units)) for g in groups}
    name = groups[-1].name
    for density, below, expected in ((0.5, 8, 24), (0.5, 0, 32), (0.9, 16, 29), (0.5, 31, 17), (0.05, 8, 24)):
        scores[name] = torch.arange(32.0) - below
        keep = make_selector(groups, costs, budget(density), per_feature).select(scores).keep[name]
        if density == 0.05:
            assert 1 <= int(keep.sum()) <= expected
        else:
            assert int(keep.sum()) == pytest.approx(expected, abs=1 if expected not in (24, 32) else 0)
        assert bool(keep[32 - int(keep.sum()) :].all())


def test_multiples_and_floors_of_hidden_features() -> None:
    model = hidden_model("bert")
    groups = discover(model, FLAT).groups
    costs = {g.name: unit_cost(model, g, "params") for g in groups}
    per_feature = feature_costs(model, groups, "params")
    generator = torch.Generator().manual_seed(5)
    for density in (0.2, 0.45, 0.7):
        selector = make_selector(groups, costs, budget(density, multiple_of={"hidden": 8}), per_feature)
        scores = {g.name: torch.randn(g.num_units, generator=generator) for g in groups}
        assert int(selector.select(scores).keep[groups[-1].name].sum()) % 8 == 0
    with pytest.raises(BudgetError, match=r"not reachable: .* keep at least"):
        make_selector(groups, costs, budget(0.02, min_keep={"hidden": 32, "channels": 10}), per_feature)


def test_a_larger_budget_keeps_more_hidden_features_and_those_of_the_smaller() -> None:
    model = hidden_model("llama")
    groups = discover(model, FLAT).groups
    costs = {g.name: unit_cost(model, g, "params") for g in groups}
    per_feature = feature_costs(model, groups, "params")
    generator = torch.Generator().manual_seed(6)
    scores = {g.name: torch.randn(g.num_units, generator=generator) for g in groups}
    before = torch.zeros(32, dtype=torch.bool)
    for density in (0.1, 0.25, 0.4, 0.6, 0.8, 0.95, 1.0):
        keep = make_selector(groups, costs, budget(density), per_feature).select(scores).keep[groups[-1].name]
        assert not bool((before & ~keep).any())
        before = keep
    assert bool(before.all())


def test_expected_size_is_the_mean_over_all_outcomes() -> None:
    def group(name: str, kind: str, units: int, inner: str | None = None) -> Group:
        return Group(
            name=name, kind=kind_named(kind), layer=0, stack="s", block="" if kind == "hidden" else name.split("/")[0],
            num_units=units, consumer="c", inner=inner,
        )  # fmt: skip

    groups = [
        group("a/heads", "heads", 2),
        group("a/attention", "attention", 1, "a/heads"),
        group("b/heads", "heads", 2),
        group("hidden", "hidden", 3),
    ]
    costs = {"a/heads": 7, "a/attention": 20, "b/heads": 4, "hidden": 10}
    nesting = Nesting(groups, costs, {"a/heads": 2, "a/attention": 5, "b/heads": 1, "hidden": 3})
    assert nesting.own == {"a/heads": 7, "a/attention": 6, "b/heads": 4, "hidden": 3}
    assert nesting.shared == {"a/heads": 6, "a/attention": 3, "b/heads": 3}
    constraint = Constraint(
        costs={k: float(v) for k, v in nesting.own.items()}, total=float(nesting.total), density=0.5,
        around=nesting.around, shared={k: float(v) for k, v in nesting.shared.items()}, hidden="hidden",
    )  # fmt: skip
    sizes = {g.name: g.num_units for g in groups}
    alpha = drawn_alphas(nesting)
    expected = ExpectedSize([constraint], sizes)(alpha).item()
    assert expected == pytest.approx(counted_share(nesting, alpha), abs=1e-6)


class _NoReading(TorchDispatchMode):
    """Refuses what makes the host wait for the device: reading a number of a tensor."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert "local_scalar_dense" not in str(func), "the host reads a tensor"
        assert "nonzero" not in str(func), "the host waits for a size"
        return func(*args, **(kwargs or {}))


def test_neither_the_forward_pass_nor_the_selection_waits_for_the_device() -> None:
    model = hidden_model("bert").train()
    args = SparseTrainingArguments(scoring="l0", units=["heads", "channels", "ffn", "hidden"], density=0.4)
    coordinator = ModelPatchingCoordinator(args)
    coordinator.patch_model(model)
    coordinator.begin(10, 5)
    scores = {g.name: torch.randn(g.num_units) for g in coordinator.structure.groups}
    norm = model.bert.encoder.layer[1].output.LayerNorm
    x_BD = torch.randn(3, 32, dtype=torch.float64)
    pruner: Any = coordinator.pruner
    groups = discover(model, ["layers"]).groups
    layers = Selector(groups, {g.name: 3 for g in groups}, budget(0.5))
    with _NoReading():
        norm(x_BD).sum().backward()
        pruner.selector.select(scores, 0.3)
        pruner.penalty()
        layers.select({g.name: torch.randn(1) for g in layers.pools[0].groups}, 0.3)


def _train(name: str, steps: int = 40, **options: Any) -> tuple[Any, ModelPatchingCoordinator]:
    model = hidden_model(name).train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    coordinator = ModelPatchingCoordinator(SparseTrainingArguments(**options))
    coordinator.patch_model(model)
    optimizer = torch.optim.AdamW(coordinator.parameter_groups(lr=1e-3))
    coordinator.begin(steps)
    inputs = {"input_ids": torch.arange(5, 21).view(2, 8)}
    for step in range(steps):
        said = model(**inputs)
        coordinator.loss(said.logits.float().square().mean(), inputs, said).backward()
        coordinator.observe()
        optimizer.step()
        optimizer.zero_grad()
        coordinator.step(step + 1)
    return model.eval(), coordinator


@pytest.mark.parametrize("name", ["bert", "llama-tied", "electra"])
@pytest.mark.parametrize("units", [FLAT, KINDS])
def test_l0_reaches_its_density_and_is_cut_as_it_was_trained(name: str, units: tuple[Kind, ...]) -> None:
    kinds = [kind for kind in units if kind != "experts"]
    model, coordinator = _train(name, scoring="l0", units=kinds, density=0.3, l0_learning_rate=0.6)
    pruner: Any = coordinator.pruner
    kept = {name: gate.keep_U.bool() for name, gate in coordinator.gates.items()}
    reached = coordinator.density_reached()
    assert reached <= 0.3 + 1e-9
    assert reached + _next_unit(pruner.nesting, kept) > 0.3
    hidden = kept[pruner.nesting.hidden.name]
    assert 0 < int(hidden.sum()) < 32
    masked = outputs(model)
    compact = optimize_model(model)
    torch.testing.assert_close(outputs(compact), masked, rtol=0, atol=tolerance(name))
    assert compact.pruning_plan.density_reached == pytest.approx(reached)


@pytest.mark.parametrize("scoring", ["movement", "taylor", "magnitude", "random"])
def test_other_criteria_take_a_density_per_kind(scoring: str) -> None:
    density = {"heads": 0.5, "channels": 0.5, "hidden": 0.75}
    model, coordinator = _train("bert", steps=12, scoring=scoring, density=density)
    kept = {name: int(gate.keep_U.sum()) for name, gate in coordinator.gates.items()}
    assert kept["bert.encoder.hidden"] == 24
    assert sum(count for name, count in kept.items() if name.endswith("channels")) == 72
    masked = outputs(model)
    torch.testing.assert_close(outputs(optimize_model(model)), masked, rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"units": ["heads", "hidden"]}, "one density would count them twice"),
        ({"scoring": "l0", "units": ["heads", "hidden"], "scope": "uniform"}, "count them twice"),
        ({"scoring": "layer_gate", "units": ["hidden"]}, "layer_gate does not score hidden features"),
        ({"scoring": "wanda", "density": {"hidden": 0.5}}, "wanda does not score hidden features"),
        ({"preset": "hybrid", "units": ["hidden"]}, "units for gates"),
    ],
)
def test_what_cannot_be_meant_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        SparseTrainingArguments(**options)


def test_refusals_name_the_model_and_the_reason() -> None:
    args = SparseTrainingArguments(scoring="l0", units=["heads", "channels", "hidden"])
    with pytest.raises(UnsupportedModelError, match=r"deberta.encoder.hidden: .*rel_embeddings"):
        ModelPatchingCoordinator(args).patch_model(hidden_model("deberta-v2"))
    narrow = SparseTrainingArguments(scoring="l0", units=["heads", "hidden"], include=["layer.1"])
    with pytest.raises(UnsupportedModelError, match="include or exclude leaves them out"):
        ModelPatchingCoordinator(narrow).patch_model(hidden_model("bert"))
    with pytest.raises(ArgumentError, match="hidden features go while a model trains"):
        prune(hidden_model("llama", torch.float32), criterion="magnitude", units=["hidden"], density=0.5)
