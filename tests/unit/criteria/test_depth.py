"""Criteria of depth: their scores against hidden states compared by hand, and which layers go."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from patchers.discovery.discover import discover
from patchers.units import LAYERS
from sparse_trainer import prune
from sparse_trainer.criteria.calibration.base import Evidence
from sparse_trainer.criteria.calibration.mixture import criterion_of
from sparse_trainer.errors import ArgumentError, BudgetError
from sparse_trainer.statistics.collect import collect
from tests.fixtures.oneshot_models import calibration, model_of

# Shape legend: L = layers, S = L + 1 places between blocks, N = tokens, H = hidden features.

FAMILIES = ("bert", "gpt2", "llama", "mixtral")
DEPTH = (
    "block_influence",
    "relative_norm",
    "avss",
    "avss(of='output')",
    "angular",
    "angular(last_token=True)",
)


def states(model: Any, batches: list[dict[str, Tensor]], *, last_token: bool = False) -> Tensor:
    """Return the states of all real tokens at all places between blocks, [S, N, H]."""
    found = []

    def enter(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen.append((args or tuple(kwargs.values()))[0])

    def leave(_: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        seen.append(output if isinstance(output, Tensor) else output[0])

    blocks = [model.get_submodule(group.block) for group in discover(model, ("layers",)).groups]
    seen: list[Tensor] = []
    for batch in batches:
        seen.clear()
        handles = [block.register_forward_pre_hook(enter, with_kwargs=True) for block in blocks]
        handles.append(blocks[-1].register_forward_hook(leave))
        with torch.no_grad():
            model(**{name: value for name, value in batch.items() if name != "labels"})
        for handle in handles:
            handle.remove()
        mask = batch.get("attention_mask", torch.ones_like(batch["input_ids"])).bool()
        if last_token:
            place = torch.arange(mask.shape[1])
            mask &= place == (place * mask).amax(1, keepdim=True)
        found.append(torch.stack([state[mask] for state in seen]))
    return torch.cat(found, 1).double()


def angles(states_SNH: Tensor) -> Tensor:
    """Return the mean angle between any two places, as a share of half a turn, [S, S]."""
    unit_SNH = torch.nn.functional.normalize(states_SNH, dim=-1)
    cosines_SSN = torch.einsum("snh,tnh->stn", unit_SNH, unit_SNH).clamp(-1, 1)
    return (cosines_SSN.acos() / torch.pi).mean(-1)


def expected(name: str, model: Any, batches: list[dict[str, Tensor]]) -> Tensor:
    """Return the scores of all layers, [L]."""
    all_SNH = states(model, batches, last_token="last_token" in name)
    before_LNH, behind_LNH = all_SNH[:-1], all_SNH[1:]
    change_LNH = behind_LNH - before_LNH
    if name == "block_influence":
        return 1 - torch.cosine_similarity(before_LNH, behind_LNH, dim=-1).mean(1)
    if name == "relative_norm":
        return (change_LNH.norm(dim=-1) / before_LNH.norm(dim=-1)).mean(1)
    if name.startswith("angular"):
        return angles(all_SNH).diagonal(1)
    looked_LNH = behind_LNH if "output" in name else change_LNH
    rms_LN1 = change_LNH.square().mean(-1, keepdim=True).sqrt()
    limit = 1e-5 if "output" in name else 0.01 * rms_LN1
    sparsity_L = (looked_LNH.abs() < limit).double().mean((1, 2))
    return looked_LNH.mean(1).var(-1, correction=0) / (sparsity_L + 1e-6)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", DEPTH)
def test_scores_are_those_of_the_hidden_states(name: str, family: str) -> None:
    model, structure = model_of(family), discover(model_of(family), ("layers",))
    batches = calibration(model)
    criterion = criterion_of(name, "none")
    statistics = collect(model, structure, batches, criterion.requests())
    scores = criterion.scores(Evidence(model=model, structure=structure, statistics=statistics))
    found = torch.cat([scores[group.name] for group in structure.groups]).double()
    torch.testing.assert_close(found, expected(name, model, batches), rtol=2e-3, atol=1e-5)


@pytest.mark.parametrize("name", [*DEPTH[:4], "last"])
def test_the_lowest_layers_go_and_the_rest_is_untouched(name: str) -> None:
    model = model_of("llama")
    batches = calibration(model)
    pruned, plan = prune(model, batches, criterion=name, density=0.7)
    kept = [layer for layer, group in enumerate(plan.by_kind()["layers"]) if group["keep"]]
    scores = torch.tensor([0.6, 0.3, 1.0]) if name == "last" else expected(name, model, batches)
    assert kept == sorted(scores.argsort(descending=True)[:2].tolist())
    assert pruned.config.num_hidden_layers == 2
    for layer, source in enumerate(kept):
        for one, other in zip(
            pruned.model.layers[layer].parameters(), model.model.layers[source].parameters(), strict=True
        ):
            assert torch.equal(one, other)


@pytest.mark.parametrize("protect", [(), ("first",), ("last",)])
def test_angular_takes_the_run_that_turns_least(protect: tuple[str, ...]) -> None:
    model = model_of("llama")
    batches = calibration(model)
    angles_SS = angles(states(model, batches))
    free = [layer for layer in range(3) if {0: "first", 2: "last"}.get(layer) not in protect]
    for count in range(1, len(free)):
        _, plan = prune(
            model, batches, criterion="angular", density={"layers": 1 - count / len(free)}, protect=protect
        )
        gone = [group["layer"] for group in plan.by_kind()["layers"] if not group["keep"]]
        runs = [first for first in range(3 - count + 1) if set(range(first, first + count)) <= set(free)]
        best = min(runs, key=lambda first: float(angles_SS[first, first + count]))
        assert gone == list(range(best, best + count))


def test_angular_refuses_what_no_run_can_meet() -> None:
    config = LlamaConfig(
        vocab_size=99,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=5,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    model = LlamaForCausalLM(config)
    with pytest.raises(BudgetError, match=r"no run of 3 layers of model\.layers may go"):
        prune(
            model, calibration(model_of("llama")), criterion="angular", density={"layers": 0.25}, protect=(2,)
        )


def test_the_mass_of_avss_is_a_share_of_its_scores() -> None:
    model = model_of("llama")
    batches = calibration(model)
    scores = expected("avss", model, batches)
    share = float(scores.sort().values.cumsum(0)[1] / scores.sum())
    for density, left in ((1 - share - 1e-3, 1), (1 - share + 1e-3, 2), (0.9999, 3)):
        _, plan = prune(model, batches, criterion="avss(rule='mass')", density=density)
        assert sum(len(group["keep"]) for group in plan.by_kind()["layers"]) == left


@pytest.mark.parametrize("name", ["fisher", "taylor(form=vector)", "magnitude"])
def test_layers_and_widths_go_under_a_density_each(name: str) -> None:
    model = model_of("llama")
    pruned, plan = prune(
        model, calibration(model), criterion=name, density={"layers": 0.7, "channels": 0.5, "heads": 1.0}
    )
    kinds = plan.by_kind()
    assert [len(group["keep"]) for group in kinds["layers"]].count(0) == 1
    assert sum(len(group["keep"]) for group in kinds["channels"]) < sum(g["size"] for g in kinds["channels"])
    assert pruned.config.num_hidden_layers == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"criterion": "block_influence", "density": {"heads": 0.5}}, "block_influence does not score heads"),
        ({"criterion": "wanda", "density": {"layers": 0.5}}, "wanda does not score layers.*block_influence"),
        ({"criterion": "angular", "by_block": True}, "angular looks at more than one block"),
        ({"criterion": "block_influence", "steps": 2}, "layers change places when one goes"),
        ({"criterion": "avss(rule='share')"}, "avss.rule: 'share'"),
        ({"criterion": "avss(of='input')"}, "avss.of: 'input'"),
    ],
)
def test_what_cannot_be_meant_is_refused(options: dict[str, Any], message: str) -> None:
    model = model_of("llama")
    with pytest.raises(ArgumentError, match=message):
        prune(model, calibration(model), **options)


def test_what_is_deepest_goes_but_the_last() -> None:
    structure = discover(model_of("llama"), (LAYERS,))
    scores = criterion_of("last", "none").scores(
        Evidence(model=model_of("llama"), structure=structure, statistics=None)  # type: ignore[arg-type]
    )
    order = sorted(structure.groups, key=lambda group: float(scores[group.name]))
    assert [group.layer for group in order] == [1, 0, 2]


@pytest.mark.parametrize("name", ["fisher", "taylor(form=vector)", "magnitude"])
@pytest.mark.parametrize("units", [["attention"], ["ffn"], ["attention", "channels"], ["attention", "ffn"]])
def test_depth_and_widths_share_one_budget(name: str, units: list[str]) -> None:
    """One density over the parameters of all kinds; what is left computes as the cut says (`check`)."""
    model = model_of("llama")
    pruned, plan = prune(model, calibration(model), criterion=name, units=units, density=0.6)
    assert set(units) <= set(plan.by_kind())
    assert sum(p.numel() for p in pruned.parameters()) < sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("units", ["layers", "ffn"])
@pytest.mark.parametrize(
    "normalize", ["zscore_layer", "median_layer", "log_layer", "rank_layer", "zscore_global"]
)
def test_mixtures_compare_layers_with_each_other(units: str, normalize: str) -> None:
    """Each is the only unit of its group, so that a score among its group would say nothing."""
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=6, num_attention_heads=4
    )
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for layer in (1, 2):
            for weight in model.model.layers[layer].parameters():
                if weight.ndim == 2:
                    weight.mul_(1e-3)
    parts = {
        "layers": {"block_influence": 1.0, "relative_norm": 1.0},
        "ffn": {"magnitude": 1.0, "fisher": 1.0},
    }
    rows = [{"input_ids": torch.randint(0, 64, (2, 16))}]
    plan = prune(model, rows, criterion=parts[units], density={units: 0.67}, normalize=normalize)[1]
    assert [
        group["layer"] for group in plan.groups.values() if group["kind"] == units and not group["keep"]
    ] == [1, 2]


def test_one_name_is_a_list_of_one() -> None:
    model, rows = model_of("llama"), calibration(model_of("llama"))
    one = prune(model, rows, criterion="block_influence", units="layers", density=0.5, protect="first")[1]
    assert (
        one
        == prune(model, rows, criterion="block_influence", units=["layers"], density=0.5, protect=["first"])[
            1
        ]
    )


@pytest.mark.parametrize("options", [{"min_keep": {"layers": 3}}, {"max_prune": 0.2}])
def test_floors_of_whole_layers_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ArgumentError, match="layers are whole"):
        prune(model_of("llama"), criterion="magnitude", density={"layers": 0.5}, **options)
