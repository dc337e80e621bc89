"""Options of `prune`: what they do, how they meet, and what is refused."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from patchers.discovery.discover import discover
from patchers.patching.gates import Gate
from patchers.units import Group
from sparse_trainer.budget.cost import COSTS
from sparse_trainer.budget.standardize import STANDARDIZERS
from sparse_trainer.criteria.calibration.base import Evidence
from sparse_trainer.criteria.calibration.mixture import criterion_of
from sparse_trainer.criteria.calibration.random import Random
from sparse_trainer.criteria.calibration.taylor import Taylor
from sparse_trainer.criteria.training.registry import read_scoring
from sparse_trainer.errors import (
    ArgumentError,
    BudgetError,
    DataError,
    SparseTrainerError,
    UnsupportedModelError,
)
from sparse_trainer.folders.load import load_pruned
from sparse_trainer.folders.save import save_pruned
from sparse_trainer.one_shot.allocation import highest
from sparse_trainer.one_shot.protect import protected
from sparse_trainer.one_shot.prune import prune
from sparse_trainer.statistics.collect import collect
from sparse_trainer.statistics.mask_gradients import MaskGradients
from sparse_trainer.statistics.moments import Moments
from sparse_trainer.statistics.requests import Statistics
from sparse_trainer.training.arguments.arguments import SparseTrainingArguments
from tests.fixtures.oneshot_models import MODELS, calibration, model_of, sequences, widths
from tests.fixtures.same import assert_same


def kept(plan: Any) -> dict[str, list[int]]:
    return {name: group["keep"] for name, group in plan.groups.items()}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"criterion": "wandas"}, "Did you mean 'wanda'"),
        ({"allocation": "fishy"}, "Did you mean 'fisher'"),
        ({"criterion": {"wanda": 1, "tailor": 1}}, "Did you mean 'taylor'"),
        ({"criterion": {}}, "no criterion is named"),
        ({"criterion": {"wanda": 1}, "normalize": "zscore"}, "normalize"),
        ({"reconstruct": "least-squares"}, "Did you mean 'least_squares'"),
        ({"reconstruct": "scale", "reconstruct_bias": True}, "moves no bias"),
        ({"density": 0.0}, r"not in \(0, 1\]"),
        ({"density": {"heads": 2.0}}, r"not in \(0, 1\]"),
        ({"units": ["layers"]}, "wifv does not score layers"),
        ({"units": ["hidden"], "criterion": "magnitude"}, "hidden features go while a model trains"),
        ({"steps": 0}, "not positive"),
        ({"damping": -1.0}, "negative"),
        ({"max_prune": 0.0}, r"not in \(0, 1\]"),
        ({"sequential": True}, "nothing to repair"),
        ({"device": "cpu"}, "only blocks are moved"),
        ({"by_block": True, "criterion": "fisher"}, "it needs gradients"),
        ({"by_block": True, "criterion": {"wanda": 1}, "normalize": "zscore_global"}, "compares all layers"),
        ({"allocation": "fisher", "scope": "uniform"}, "nothing to share out"),
        ({"protect": ["lost"]}, "matches no group"),
        ({"protect": [99]}, "matches no group"),
        ({"scope": "everywhere"}, "scope"),
        ({"target": "paramz"}, "Did you mean 'params'"),
    ],
)
def test_bad_options_say_where_what_and_the_remedy(options: dict[str, Any], message: str) -> None:
    model = model_of("llama")
    with pytest.raises(ArgumentError, match=message):
        prune(model, calibration(model), **options)


def test_criteria_check_their_options() -> None:
    for make in (
        lambda: Taylor(form="elements"),  # type: ignore[arg-type]
        lambda: Taylor(aggregation="sums"),  # type: ignore[arg-type]
    ):
        with pytest.raises(ArgumentError, match="Did you mean"):
            make()


def test_impossible_budgets_are_refused() -> None:
    model = model_of("llama")
    with pytest.raises(BudgetError, match="everything is protected"):
        prune(model, criterion="magnitude", protect=["0-99"])
    with pytest.raises(BudgetError, match="not reachable"):
        prune(model, criterion="magnitude", density=0.05, min_keep={"heads": 2, "channels": 40})


def test_data_is_asked_for_where_it_is_needed() -> None:
    model = model_of("llama")
    with pytest.raises(DataError, match="wanda needs one"):
        prune(model, criterion="wanda")
    with pytest.raises(DataError, match="magnitude with reconstruct='least_squares' needs one"):
        prune(model, criterion="magnitude", reconstruct="least_squares")
    with pytest.raises(DataError, match="holds no batch"):
        prune(model, [], criterion="wanda")
    with pytest.raises(DataError, match="at least"):
        prune(model, sequences(model, (4,)), criterion="wanda", reconstruct="least_squares")


def test_what_is_no_dense_model_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="no transformers model"):
        prune(torch.nn.Linear(2, 2))  # type: ignore[type-var]
    model = model_of("mixtral")
    with pytest.raises(UnsupportedModelError, match="stacked experts"):
        prune(model, calibration(model), criterion="wanda")


def test_experts_are_pruned_by_mask_gradients() -> None:
    model = model_of("mixtral")
    plan = prune(model, calibration(model), criterion="fisher", density={"channels": 0.5})[1]
    assert plan.density_reached == pytest.approx(0.5, abs=0.02)


def test_protected_layers_stay_whole() -> None:
    model = model_of("llama")
    structure = widths(model)
    last = max(g.layer for g in structure.groups)
    assert {structure[n].layer for n in protected(structure, ["first", "last"])} == {0, last}
    assert protected(structure, ["1"]) == protected(structure, [1]) == protected(structure, ["1-1"])
    assert protected(structure, ["*.heads"]) == {g.name for g in structure.of(["heads"])}
    plan = prune(model, criterion="magnitude", density=0.5, protect=["first", "*.heads"])[1]
    for name, group in plan.groups.items():
        whole = len(group["keep"]) == group["size"]
        assert whole == (group["layer"] == 0 or group["kind"] == "heads"), name


def test_uniform_widths_and_multiples() -> None:
    model = model_of("llama")
    _, plan = prune(model, criterion="random", density={"channels": 0.7}, scope="uniform", multiple_of=8)
    assert {len(group["keep"]) for group in plan.groups.values() if group["kind"] == "channels"} == {32}


@pytest.mark.parametrize("steps", [1, 2])
def test_no_layer_loses_more_than_the_cap(steps: int) -> None:
    model = model_of("llama")
    options: dict[str, Any] = {"criterion": "fisher", "density": {"channels": 0.5}, "steps": steps}
    free = prune(model, calibration(model), **options)[1]
    capped = prune(model, calibration(model), max_prune=0.55, **options)[1]
    least = [
        min(len(g["keep"]) for g in p.groups.values() if g["kind"] == "channels") for p in (free, capped)
    ]
    assert least[0] < 22 <= least[1]
    assert capped.params == free.params


def test_allocation_gives_the_widths_and_the_criterion_chooses_inside() -> None:
    model = model_of("llama")
    batches = calibration(model)
    options: dict[str, Any] = {"density": {"channels": 0.5}, "scope": "global"}
    both = kept(prune(model, batches, criterion="wanda", allocation="fisher", **options)[1])
    widths_by = kept(prune(model, batches, criterion="fisher", **options)[1])
    assert {n: len(k) for n, k in both.items()} == {n: len(k) for n, k in widths_by.items()}
    assert both != widths_by
    structure = discover(model, ("channels",))
    statistics = collect(model, structure, batches, [Moments()])
    scores = criterion_of("wanda").scores(Evidence(model=model, structure=structure, statistics=statistics))
    for g in structure.groups:
        assert both[g.name] == highest(scores[g.name], len(both[g.name])).nonzero().flatten().tolist()


def test_mixtures_are_weighted_sums_of_standardised_scores() -> None:
    model = model_of("llama")
    structure = widths(model)
    statistics = collect(model, structure, calibration(model), [Moments(), MaskGradients()])
    evidence = Evidence(model=model, structure=structure, statistics=statistics)
    found = criterion_of({"wanda": 1.0, "fisher": 0.5}).scores(evidence)
    for name, score_U in found.items():
        parts = [criterion_of(c).scores(evidence)[name] for c in ("wanda", "fisher")]
        z = [STANDARDIZERS["zscore_layer"]({name: s}, {name: 1}, {})[name] for s in parts]
        torch.testing.assert_close(score_U, z[0] + 0.5 * z[1])


def test_statistics_of_one_pass_serve_many_criteria() -> None:
    model = model_of("llama")
    batches = calibration(model, rows=16)
    structure = widths(model)
    statistics = collect(model, structure, batches, [Moments(covariance=True), MaskGradients()])
    for criterion in ("wanda", "obs", "fisher"):
        options: dict[str, Any] = {"criterion": criterion, "density": 0.6, "reconstruct": "least_squares"}
        model_a, plan_a = prune(model, statistics=statistics, **options)
        model_b, plan_b = prune(model, batches, **options)
        assert kept(plan_a) == kept(plan_b)
        for a, b in zip(model_a.parameters(), model_b.parameters(), strict=True):
            torch.testing.assert_close(a, b)
    with pytest.raises(ArgumentError, match="as it is now"):
        prune(model, batches, statistics=Statistics())


@pytest.mark.parametrize("density", [0.5, {"heads": 0.5, "channels": 0.4}])
def test_steps_end_at_the_same_budget_and_compose_into_one_plan(density: Any) -> None:
    model = model_of("llama")
    batches = calibration(model)
    once = prune(model, batches, criterion="taylor", density=density)[1]
    pruned, plan = prune(model, batches, criterion="taylor", density=density, steps=3)
    assert plan.density_asked == density
    assert plan.params["dense"] == sum(p.numel() for p in model.parameters())
    assert plan.params["compact"] == sum(p.numel() for p in pruned.parameters())
    if isinstance(density, dict):
        assert plan.params == once.params
    assert plan.density_reached == pytest.approx(once.density_reached, abs=0.03)


def test_an_iterator_of_batches_can_be_read_again() -> None:
    model = model_of("llama")
    batches = calibration(model)
    streamed = prune(model, iter(batches), criterion="wanda", density=0.5, steps=2)[1]
    assert kept(streamed) == kept(prune(model, batches, criterion="wanda", density=0.5, steps=2)[1])


def test_inplace_changes_the_model_itself() -> None:
    model = model_of("llama")
    dense = sum(p.numel() for p in model.parameters())
    pruned, plan = prune(model, criterion="magnitude", density=0.5, inplace=True)
    assert pruned is model
    assert plan.params == {"dense": dense, "compact": sum(p.numel() for p in model.parameters())}


def test_pruning_twice_composes_the_plans() -> None:
    model = model_of("llama")
    first, plan = prune(model, criterion="magnitude", density={"channels": 0.5})
    _, both = prune(first, criterion="random", density={"heads": 0.5})
    assert both.method == "magnitude, then random"
    assert both.params["dense"] == plan.params["dense"]


def test_random_is_that_of_fine_pruning() -> None:
    model = model_of("llama")
    structure = widths(model)
    gates = {g.name: Gate(g.num_units, scored=False) for g in structure.groups}
    args = SparseTrainingArguments(scoring="random", pruning_seed=7)
    trained = args.criterion.scores(model, structure, gates)
    assert args.criterion.criterion == read_scoring("random(seed=7)").criterion
    found = Random(seed=7).scores(Evidence(model=model, structure=structure, statistics=Statistics()))
    assert all(torch.equal(found[name], trained[name]) for name in trained)


@pytest.mark.parametrize("reconstruct", ["bias", "least_squares"])
def test_biases_are_added_where_the_config_can_say_so(tmp_path: Path, reconstruct: str) -> None:
    model = model_of("llama")
    batches = sequences(model, (60,) * 8)
    pruned, plan = prune(
        model, batches, criterion="wifv", density=0.6, reconstruct=reconstruct, reconstruct_bias=True
    )
    assert pruned.config.mlp_bias
    assert pruned.config.attention_bias
    assert bool((pruned.get_parameter("model.layers.0.mlp.down_proj.bias") != 0).any())
    save_pruned(pruned, tmp_path / "out", plan=plan)
    loaded = load_pruned(tmp_path / "out", dtype=torch.float64).eval()
    assert_same(loaded, pruned, lambda model: model(**batches[0]).logits)


def test_a_bias_that_no_config_field_adds_is_refused() -> None:
    model = model_of("qwen2")
    with pytest.raises(ArgumentError, match=r"down_proj\.bias does not exist"):
        prune(model, calibration(model), density={"channels": 0.6}, reconstruct="bias")


def test_least_squares_moves_biases_only_where_there_are_some() -> None:
    bert, llama = model_of("bert"), model_of("llama")
    for model, moved in ((bert, True), (llama, False)):
        batches = sequences(model, (60,) * 8)
        structure = widths(model)
        consumer = structure.of(["channels"])[0].consumer
        pruned, _ = prune(model, batches, density={"channels": 0.6}, reconstruct="least_squares")
        before, after = (dict(m.named_parameters()).get(f"{consumer}.bias") for m in (model, pruned))
        assert (before is None) is not moved
        if before is not None and after is not None:
            assert not torch.equal(before, after)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_sequential_repair_sees_the_pruned_layers_before(name: str) -> None:
    model = model_of(name)
    batches = sequences(model, (60,) * 10)
    options: dict[str, Any] = {
        "criterion": "random",
        "density": {"channels": 0.5},
        "reconstruct": "least_squares",
    }
    dense, plan = prune(model, batches, **options)
    sequential, again = prune(model, batches, sequential=True, **options)
    assert kept(plan) == kept(again)
    layers = sorted(g.consumer for g in discover(model, ("channels",)).groups)
    torch.testing.assert_close(
        sequential.get_submodule(layers[0]).weight,
        dense.get_submodule(layers[0]).weight,
        rtol=1e-8,
        atol=1e-10,
    )
    assert not torch.allclose(
        sequential.get_submodule(layers[-1]).weight, dense.get_submodule(layers[-1]).weight
    )


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("sequential", [False, True])
def test_block_by_block_is_the_same_pruning(name: str, sequential: bool) -> None:
    model = model_of(name)
    batches = sequences(model, (60,) * 10)
    options: dict[str, Any] = {
        "criterion": "obs",
        "density": {"channels": 0.5, "heads": 0.5},
        "reconstruct": "least_squares",
        "sequential": sequential,
    }
    whole, plan = prune(model, batches, **options)
    by_block, again = prune(model, batches, by_block=True, **options)
    assert kept(plan) == kept(again)
    for path, tensor in whole.state_dict().items():
        torch.testing.assert_close(by_block.state_dict()[path], tensor, rtol=1e-7, atol=1e-9)


def test_errors_are_of_one_root() -> None:
    with pytest.raises(SparseTrainerError):
        prune(model_of("llama"), criterion="wanda")


def test_repair_block_by_block_asks_for_calibration() -> None:
    with pytest.raises(DataError, match="reconstruct='bias' needs one"):
        prune(model_of("bert"), criterion="magnitude", density=0.7, reconstruct="bias", by_block=True)


def test_a_cost_of_ones_own_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    class Dear:
        def unit(self, model: nn.Module, group: Group) -> int:
            return 1000 if group.layer == 0 else 1

        def per_feature(self, model: nn.Module, groups: Sequence[Group]) -> dict[str, int]:
            return {}

    monkeypatch.setitem(COSTS, "dear", lambda sequence_length: Dear())
    _, plan = prune(model_of("bert"), criterion="random", density=0.5, target="dear", units=["channels"])
    assert plan.target == "dear"
    assert plan.density_reached == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("criterion", [None, 3, object()])
def test_what_is_no_criterion_is_told(criterion: Any) -> None:
    with pytest.raises(ArgumentError, match="is no criterion"):
        prune(model_of("llama"), criterion=criterion)
