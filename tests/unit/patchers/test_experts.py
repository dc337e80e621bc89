"""Mixtures of experts: channels inside stacked experts, and whole experts with their rows of the router."""

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from patchers.discovery.discover import discover
from patchers.errors import UnsupportedModelError
from patchers.patching.gates import Gate
from patchers.patching.patch import gated, gates_by_group, gates_of, patch, unpatch
from patchers.surgery import cut
from patchers.units import Structure
from sparse_trainer.budget.cost import unit_cost
from sparse_trainer.budget.options import Budget
from sparse_trainer.budget.selection import Selector
from sparse_trainer.cut.optimize import optimize_model
from sparse_trainer.errors import BudgetError
from sparse_trainer.folders.load import load_pruned
from sparse_trainer.folders.save import save_pruned
from sparse_trainer.inputs.make import forward_outputs, inputs_for
from sparse_trainer.one_shot.prune import prune
from sparse_trainer.training.arguments.arguments import SparseTrainingArguments
from sparse_trainer.training.coordinator import ModelPatchingCoordinator
from tests.architectures.tiny import tiny_model
from tests.fixtures.same import assert_same

MIXTURES = ("mixtral", "qwen2_moe", "qwen3_moe", "gpt_oss", "olmoe")


def logits(model: PreTrainedModel) -> Tensor:
    return forward_outputs(model, inputs_for(model))[0]


def keep_of(structure: Structure) -> dict[str, Tensor]:
    """Close another expert in each layer."""
    keep = {}
    for place, group in enumerate(structure.of(["experts"])):
        keep[group.name] = torch.arange(group.num_units) != place
    return keep


@pytest.mark.parametrize("model_type", MIXTURES)
def test_a_closed_expert_is_never_chosen(model_type: str) -> None:
    model = tiny_model(model_type)
    structure = discover(model)
    keep = keep_of(structure)
    whole = logits(model)
    with gated(model, structure, keep):
        masked = logits(model)
    assert not torch.allclose(masked, whole)
    cut(model, structure, keep)
    torch.testing.assert_close(logits(model), masked, rtol=0, atol=1e-7)
    experts = next(m for m in model.modules() if "gate_up_proj" in dict(m.named_parameters(recurse=False)))
    assert experts.gate_up_proj.shape[0] == experts.num_experts == 3


def test_channels_of_experts_go_in_every_expert() -> None:
    model = tiny_model("mixtral")
    structure = discover(model, ["channels"])
    group = structure.groups[0]
    keep = {group.name: torch.arange(group.num_units) % 2 == 0}
    with gated(model, structure, keep):
        masked = logits(model)
    cut(model, structure, keep)
    torch.testing.assert_close(logits(model), masked, rtol=0, atol=1e-10)
    assert model.model.layers[0].mlp.experts.down_proj.shape == (4, 32, 24)


def test_fewer_experts_than_a_token_meets_are_refused() -> None:
    model = tiny_model("mixtral")
    structure = discover(model)
    group = structure.of(["experts"])[0]
    with pytest.raises(UnsupportedModelError, match=r"1 of 4 units would stay; its module needs 2"):
        cut(model, structure, {group.name: torch.tensor([True, False, False, False])})
    budget = Budget(density=0.25, multiple_of={"experts": 1}, min_keep={"experts": 1})
    with pytest.raises(BudgetError, match=r"density in \[0\.5, 1\]"):
        Selector([group], {group.name: 1}, budget)


def test_a_router_with_a_correction_bias_is_left_alone_by_name() -> None:
    structure = discover(tiny_model("deepseek_v3"))
    assert not structure.of(["experts"])
    assert "correction bias" in structure.untouched["model.layers.1.mlp.gate"]


def test_experts_cost_parameters_but_no_macs() -> None:
    model = tiny_model("mixtral")
    group = discover(model).of(["experts"])[0]
    assert unit_cost(model, group, "params") == 3 * 32 * 48 + 32
    assert unit_cost(model, group, "macs") == 0
    channels = discover(model).of(["channels"])[0]
    assert unit_cost(model, channels, "params") == 4 * 3 * 32
    assert unit_cost(model, channels, "macs") == 2 * 3 * 32


def test_scores_of_experts_get_a_gradient_and_unpatch_gives_the_router_back() -> None:
    model = tiny_model("mixtral")
    structure = discover(model, ["experts"])
    before = logits(model)
    patch(model, structure, lambda group: Gate(group.num_units, scored=True))
    gates = gates_by_group(model, structure)
    gates[structure.groups[0].name].set_keep(torch.tensor([True, False, True, True]))
    model(**inputs_for(model)).logits.square().sum().backward()
    gradient = gates[structure.groups[0].name].score_U.grad
    assert gradient is not None
    assert gradient.isfinite().all()
    assert gradient[1] == 0
    assert gradient.count_nonzero() == 3
    unpatch(model)
    assert torch.equal(logits(model), before)


@pytest.mark.parametrize("even", [True, False])
def test_a_mixture_without_some_experts_saves_and_loads(tmp_path: Path, even: bool) -> None:
    model = tiny_model("mixtral", dtype=torch.float32)
    structure = discover(model)
    keep = keep_of(structure)
    if not even:
        del keep[structure.of(["experts"])[1].name]
    patched = copy.deepcopy(model)
    patch(patched, structure, lambda group: Gate(group.num_units, scored=False))
    for name, gate in gates_by_group(patched, structure).items():
        if name in keep:
            gate.set_keep(keep[name])
    compact = optimize_model(patched)
    assert (type(compact) is type(model)) == even
    folder = save_pruned(compact, tmp_path / "compact")
    again = load_pruned(folder)
    assert_same(again, compact, logits)
    assert not even or again.config.num_local_experts == 3


@pytest.mark.parametrize("model_type", MIXTURES)
def test_experts_have_a_magnitude_whatever_their_router_holds(model_type: str) -> None:
    model = tiny_model(model_type, dtype=torch.float32)
    pruned, _ = prune(model, criterion="magnitude", density={"experts": 0.5})
    assert pruned.num_parameters() < model.num_parameters()
    assert torch.isfinite(logits(pruned)).all()


def test_fine_pruning_chooses_experts() -> None:
    model = tiny_model("mixtral", dtype=torch.float32)
    arguments = SparseTrainingArguments(scoring="movement", units=["experts"], density=0.75)
    coordinator = ModelPatchingCoordinator(arguments)
    coordinator.patch_model(model)
    assert coordinator.report()["density_asked"] == 0.75
    assert {group.kind for group in coordinator.structure.groups} == {"experts"}


@pytest.mark.parametrize(("kind", "path"), [("experts", "gate"), ("channels", "experts")])
def test_a_router_or_experts_with_a_wrapped_forward_are_refused_before_a_gate_hangs(
    kind: str, path: str
) -> None:
    model = tiny_model("mixtral")
    structure = discover(model, [kind])
    owner = model.get_submodule(structure.groups[-1].consumer)
    vars(owner)["forward"] = owner.forward
    with pytest.raises(UnsupportedModelError, match=f"{path}.*: its forward pass is wrapped.*{kind}"):
        patch(model, structure, lambda group: Gate(group.num_units, scored=False))
    assert not gates_of(model)
    assert "forward" in vars(owner)
