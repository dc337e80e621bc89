"""L0: exact when open or closed, expected sizes are expectations, every budget is met exactly, the Lagrangian rises."""

import copy
from typing import Any

import pytest
import torch
from transformers.optimization import Adafactor

from patchers.discovery.discover import discover
from patchers.patching.hard_concrete import BETA, HIGH, LOW, ConcreteGate, log_odds, presence
from patchers.patching.patch import patch
from patchers.surgery import cut
from patchers.units import BLOCK_KINDS, Group, Kind, Structure, kind_named
from sparse_trainer.budget.nesting import Constraint, Nesting
from sparse_trainer.criteria.training.l0 import ExpectedSize
from sparse_trainer.cut.optimize import optimize_model
from sparse_trainer.training.arguments.arguments import SparseTrainingArguments
from sparse_trainer.training.coordinator import ModelPatchingCoordinator
from sparse_trainer.training.optimizer_groups import options_known_to
from tests.fixtures.compact_models import batch, logits, tiny
from tests.fixtures.expected_size import counted_share, drawn_alphas

NESTED = ["heads", "channels", "attention", "ffn", "layers"]


def number(value: Any) -> float:
    return float(value.detach()) if isinstance(value, torch.Tensor) else float(value)


def l0_args(**options: Any) -> SparseTrainingArguments:
    return SparseTrainingArguments(**{"scoring": "l0", "l0_learning_rate": 0.3, **options})


def patched(**options: Any) -> tuple[Any, ModelPatchingCoordinator]:
    model = tiny().train()
    coordinator = ModelPatchingCoordinator(l0_args(**options))
    coordinator.patch_model(model)
    return model, coordinator


def alphas(coordinator: ModelPatchingCoordinator) -> dict[str, torch.Tensor]:
    return {name: gate.score_U for name, gate in coordinator.gates.items()}


def test_probability_of_presence_is_that_of_the_samples() -> None:
    generator = torch.Generator().manual_seed(0)
    for alpha in (-3.0, -1.0, 0.0, 2.0):
        gate = ConcreteGate(200_000)
        gate.score_U.data.fill_(alpha)
        gate.noise_U.copy_(log_odds(torch.rand(200_000, generator=generator)))
        value_U = gate()
        assert number((value_U > 0).float().mean()) == pytest.approx(
            number(presence(torch.tensor(alpha))), abs=4e-3
        )
        noise = number(gate.noise_U[0])
        by_hand = torch.sigmoid(torch.tensor((alpha + noise) / BETA)) * (HIGH - LOW) + LOW
        assert number(value_U[0]) == pytest.approx(number(by_hand.clamp(0, 1)), abs=1e-6)


def test_held_gates_are_exact_and_pass_no_gradient() -> None:
    gate = ConcreteGate(4)
    assert torch.equal(gate(), torch.ones(4))
    gate.set_keep(torch.tensor([True, False, True, False]))
    gate.hold()
    value_U = gate()
    assert torch.equal(value_U, gate.keep_U)
    value_U.sum().backward()
    assert torch.equal(gate.score_U.grad, torch.zeros(4))


@pytest.mark.parametrize("kinds", [("heads", "channels"), ("attention", "ffn"), ("layers",), tuple(NESTED)])
def test_closed_in_training_mode_equals_the_cut(kinds: tuple[Kind, ...]) -> None:
    model = tiny()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    structure = discover(model, kinds)
    generator = torch.Generator().manual_seed(1)
    keep = {g.name: torch.rand(g.num_units, generator=generator) > 0.4 for g in structure.groups}
    keep.update({g.name: torch.tensor([g.layer > 0]) for g in structure.of(["layers"])})
    smaller = copy.deepcopy(model)
    cut(smaller, structure, keep)
    gates = patch(model, structure, lambda group: ConcreteGate(group.num_units))
    whole = logits(model.train())
    for name, gate in gates.items():
        gate.set_keep(keep[name])
        gate.hold()
    torch.testing.assert_close(logits(model), logits(smaller), rtol=0, atol=1e-10)
    torch.testing.assert_close(logits(model.eval()), logits(smaller), rtol=0, atol=1e-10)
    assert not torch.allclose(whole, logits(model), rtol=0, atol=1e-3)


def _group(name: str, kind: str, units: int, inner: str | None = None) -> Group:
    return Group(
        name=name,
        kind=kind_named(kind),
        layer=0,
        stack="s",
        block=name.split("/")[0],
        num_units=units,
        consumer="c",
        inner=inner,
    )


def test_expected_size_is_the_mean_over_all_outcomes() -> None:
    groups = [
        _group("a/heads", "heads", 3),
        _group("a/attention", "attention", 1, "a/heads"),
        _group("a/ffn", "ffn", 1),
        _group("a/layer", "layers", 1),
        _group("b/heads", "heads", 2),
    ]
    costs = {"a/heads": 5, "a/attention": 17, "a/ffn": 7, "a/layer": 30, "b/heads": 4}
    nesting = Nesting(groups, costs)
    assert nesting.own == {"a/heads": 5, "a/attention": 2, "a/ffn": 7, "a/layer": 6, "b/heads": 4}
    assert nesting.total == 38
    own = {name: number(cost) for name, cost in nesting.own.items()}
    constraint = Constraint(costs=own, total=38.0, density=0.5, around=nesting.around)
    sizes = {g.name: g.num_units for g in groups}
    alpha = drawn_alphas(nesting)
    expected = ExpectedSize([constraint], sizes)(alpha).item()
    assert expected == pytest.approx(counted_share(nesting, alpha), abs=1e-6)


def test_each_kind_and_layer_has_its_own_expected_size() -> None:
    _, coordinator = patched(density={"heads": 0.5, "channels": 0.25}, scope="uniform")
    for name, gate in coordinator.gates.items():
        gate.score_U.data.copy_(
            torch.randn(gate.score_U.shape, generator=torch.Generator().manual_seed(len(name)))
        )
    expected = coordinator.pruner.budget_penalty.expected(coordinator.gates)
    share_C = expected(alphas(coordinator))
    assert len(expected.firsts) == len(coordinator.gates) == 6
    for share, name in zip(share_C, expected.firsts, strict=True):
        assert number(share) == pytest.approx(
            number(presence(coordinator.gates[name].score_U).mean()), abs=1e-6
        )


@pytest.mark.parametrize("units", [["heads", "channels"], NESTED])
def test_gradient_of_the_penalty(units: list[str]) -> None:
    _, coordinator = patched(units=units, density=0.4)
    coordinator.begin(100, 70)
    gates = coordinator.gates
    for gate in gates.values():
        gate.score_U.data.uniform_(-1, 1)
        gate.multipliers_2.copy_(torch.tensor([2.0, 3.0]))

    def penalty() -> torch.Tensor:
        return coordinator.pruner.budget_penalty(gates, 0.4, 0.0)

    penalty().backward()
    over = number(coordinator.pruner.budget_penalty.expected(gates)(alphas(coordinator))) - 0.4
    assert number(penalty()) == pytest.approx(2 * over + 3 * over**2, rel=1e-4)
    for name in list(gates)[:2] + list(gates)[-2:]:
        alpha_U, gradient = gates[name].score_U, gates[name].score_U.grad
        values = []
        for step in (0.05, -0.05):
            alpha_U.data[0] += step
            values.append(number(penalty().double()))
            alpha_U.data[0] -= step
        assert number(gradient[0]) == pytest.approx((values[0] - values[1]) / 0.1, rel=0.02, abs=2e-6)


def test_multipliers_climb_and_gates_descend() -> None:
    _, coordinator = patched(density=0.4)
    gates, lagrangian = coordinator.gates, coordinator.pruner.budget_penalty
    coordinator.begin(100, 60)
    first = next(iter(gates.values()))
    before = first.multipliers_2.clone()
    over = number(lagrangian.expected(gates)(alphas(coordinator))) - 0.4
    lagrangian(gates, 0.4, 0.0).backward()
    assert all(bool((gate.score_U.grad > 0).all()) for gate in gates.values())
    coordinator.observe()
    rate = coordinator.args.l0_multiplier_rate
    torch.testing.assert_close(
        first.multipliers_2 - before, rate * torch.tensor([over, over**2]), rtol=1e-4, atol=1e-6
    )
    moved = first.multipliers_2.clone()
    coordinator.observe()
    assert torch.equal(first.multipliers_2, moved)
    assert all(bool((gate.multipliers_2[0] == 0).all()) for gate in list(gates.values())[1:])


def test_multipliers_wait_for_the_end_of_the_dense_start() -> None:
    _, coordinator = patched(
        density=0.4, units=["heads", "channels", "attention", "ffn"], pruning_warmup_ratio=0.2
    )
    coordinator.begin(10)
    first = next(iter(coordinator.gates.values()))
    start = first.multipliers_2.clone()
    moved = []
    for _ in range(4):
        coordinator.pruner.penalty()
        coordinator.observe()
        moved.append(not torch.equal(first.multipliers_2, start))
        coordinator.step()
    assert moved == [False, False, False, True]


def test_noise_follows_seed_and_step_and_leaves_the_global_generator_alone() -> None:
    _, coordinator = patched()
    gates = coordinator.gates
    state = torch.get_rng_state()

    def draw(progress: float) -> torch.Tensor:
        coordinator.pruner.criterion.advance(gates, progress, coordinator.args.schedule)
        return torch.cat([gate.noise_U for gate in gates.values()])

    first, again, other = draw(0.3), draw(0.3), draw(0.4)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(state, torch.get_rng_state())


def test_dense_start_is_dense() -> None:
    model, coordinator = patched(pruning_warmup_ratio=0.5, cooldown_ratio=0.2)
    coordinator.begin(10)
    for step in range(4):
        coordinator.step(step + 1)
        assert all(torch.equal(gate(), torch.ones_like(gate.keep_U)) for gate in coordinator.gates.values())
    coordinator.step(5)
    assert any(bool((gate() != 1).any()) for gate in coordinator.gates.values())
    assert model.training


def _train(steps: int = 20, **options: Any) -> tuple[Any, ModelPatchingCoordinator]:
    model, coordinator = patched(**options)
    optimizer = torch.optim.AdamW(coordinator.parameter_groups(lr=1e-3))
    coordinator.begin(steps)
    inputs = {**batch(model), "labels": torch.tensor([0, 1])}
    for step in range(steps):
        outputs = model(**inputs)
        coordinator.loss(outputs.loss, inputs, outputs).backward()
        coordinator.observe()
        optimizer.step()
        optimizer.zero_grad()
        coordinator.step(step + 1)
    return model.eval(), coordinator


@pytest.mark.parametrize("target", ["params", "macs"])
@pytest.mark.parametrize(
    "units",
    [
        ["heads", "channels"],
        ["heads", "channels", "attention", "ffn"],
        ["attention", "ffn", "layers"],
        NESTED,
    ],
)
@pytest.mark.parametrize("density", [0.3, 0.55, 0.8])
def test_every_budget_is_met_to_one_unit(units: list[str], target: str, density: float) -> None:
    model, coordinator = _train(units=units, target=target, density=density)
    reached = coordinator.density_reached()
    kept = {name: gate.keep_U.bool() for name, gate in coordinator.gates.items()}
    inner = [g for g in coordinator.structure.groups if g.name not in {o.name for o in _outer(coordinator)}]
    out = [
        coordinator.pruner.nesting.own[g.name]
        for g in inner
        if not bool(kept[g.name].all())
        and all(bool(kept[name].any()) for name in coordinator.pruner.nesting.around[g.name])
    ]
    assert reached <= density + 1e-9
    assert reached + (min(out) / coordinator.pruner.nesting.total if out else 1.0) > density
    masked = logits(model)
    compact = optimize_model(model)
    torch.testing.assert_close(logits(compact), masked, rtol=0, atol=1e-10)
    assert compact.pruning_plan.density_reached == pytest.approx(reached)
    if target == "params":
        removed = compact.pruning_plan.params["dense"] - compact.pruning_plan.params["compact"]
        assert removed == pytest.approx((1 - reached) * coordinator.pruner.nesting.total, rel=0.01)


def _outer(coordinator: ModelPatchingCoordinator) -> tuple[Group, ...]:
    return coordinator.pruner.nesting.outer


def test_expected_size_is_at_the_budget_when_the_structure_is_fixed() -> None:
    _, coordinator = _train(steps=200, units=NESTED, density=0.4)
    share = number(coordinator.pruner.budget_penalty.expected(coordinator.gates)(alphas(coordinator)))
    assert share == pytest.approx(0.4, abs=0.05)


def test_what_lies_in_a_closed_branch_is_closed() -> None:
    _, coordinator = patched(units=NESTED, density=0.4)
    scores = {name: torch.ones_like(gate.keep_U) for name, gate in coordinator.gates.items()}
    branch = next(g for g in coordinator.structure.groups if g.kind == "attention")
    layer = [g for g in coordinator.structure.groups if g.kind == "layers"][-1]
    scores[branch.name][:] = -1
    scores[layer.name][:] = -2
    keep = coordinator.pruner.selector.select(scores).keep
    assert not any(bool(keep[name].any()) for name in (branch.name, branch.inner, layer.name))
    inside = [g.name for g in coordinator.structure.groups if g.block == layer.block]
    assert len(inside) == 5
    assert not any(bool(keep[name].any()) for name in inside)
    share = coordinator.pruner.nesting.kept(keep) / coordinator.pruner.nesting.total
    assert share == pytest.approx(0.4, abs=65 / coordinator.pruner.nesting.total)


def test_structure_knows_all_nested_kinds() -> None:
    structure: Structure = discover(tiny())
    assert {g.kind for g in structure.groups} == set(BLOCK_KINDS) - {"experts"}


@pytest.mark.parametrize("optimizer_class", [torch.optim.AdamW, torch.optim.SGD, Adafactor])
def test_the_group_of_the_gates_suits_every_optimizer(optimizer_class: Any) -> None:
    coordinator = patched()[1]
    own = {"scale_parameter": False, "relative_step": False} if optimizer_class is Adafactor else {}
    optimizer = optimizer_class(coordinator.parameter_groups()[0]["params"], lr=1e-3, **own)
    (group,) = coordinator.score_groups()
    optimizer.add_param_group(options_known_to(group, optimizer.defaults))
    assert optimizer.param_groups[1]["lr"] == 0.3
    assert (optimizer.param_groups[1].get("eps") == 1e-12) is (optimizer_class is torch.optim.AdamW)
    coordinator.begin(10, 5)
    before = torch.cat([score_U.detach() for score_U in alphas(coordinator).values()])
    coordinator.pruner.penalty().backward()
    optimizer.step()
    assert not torch.equal(torch.cat([*alphas(coordinator).values()]), before)
