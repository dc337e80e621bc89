"""LoRAPrune: exact against a reference with the gradients of the frozen weights; refused where it says nothing."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from patchers.discovery.discover import discover
from patchers.layers import linear_at, weight_OI
from patchers.patching.adapters import chain
from patchers.units import Structure
from sparse_trainer.criteria.training import loraprune
from sparse_trainer.criteria.training.loraprune import LoraPrune
from sparse_trainer.criteria.training.registry import read_scoring
from sparse_trainer.errors import ArgumentError, UnsupportedModelError
from sparse_trainer.training.arguments.arguments import SparseTrainingArguments
from sparse_trainer.training.coordinator import ModelPatchingCoordinator
from tests.architectures.tiny import tiny_model
from tests.fixtures.compact_models import batch, tiny

peft = pytest.importorskip("peft")

pytestmark = [
    # peft 0.21 asks transformers 5.24 for a property by its old name.
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning"),
    pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False:UserWarning"),
]

LINEARS: dict[str, Any] = {
    "bert": ["query", "value", "dense"],
    "llama": "all-linear",
    "gpt2": ["c_attn", "c_proj", "c_fc"],
}


def dense(family: str, dtype: torch.dtype = torch.float64) -> PreTrainedModel:
    return tiny(family, dtype) if family == "bert" else tiny_model(family, dtype=dtype)


@torch.no_grad()
def adapted(model: nn.Module, **options: Any) -> Any:
    """Return a model around `model` with adapters that are not the identity peft starts with, all of it trainable."""
    torch.manual_seed(3)
    wrapped = peft.get_peft_model(model, peft.LoraConfig(**{"r": 3, "lora_alpha": 5, **options})).eval()
    for name, parameter in wrapped.named_parameters():
        if parameter.requires_grad and "score_U" not in name:
            parameter.add_(0.2 * torch.randn(parameter.shape).to(parameter.dtype))
    return wrapped


def backward(model: Any, scale: float = 1.0) -> None:
    says: Tensor = model(**batch(model)).logits
    weights = torch.randn(says.shape, generator=torch.Generator().manual_seed(9)).to(says.dtype)
    ((says * weights).sum() * scale).backward()


def reference(model: Any, structure: Structure, eta: float) -> dict[str, Tensor]:
    """Return the importances, entry by entry, from the gradient of every frozen weight: here it is there in full."""
    found = {}
    for group in structure.groups:
        found[group.name] = torch.zeros(group.num_units, dtype=torch.float64)
        for part in group.slices:
            *wrappers, linear = chain(model, part.path)
            if not wrappers:
                continue
            gradient_OI = linear.weight.grad.T if isinstance(linear, Conv1D) else linear.weight.grad
            now_OI = weight_OI(linear_at(model, part.path)).detach().clone()
            moved_OI = torch.zeros_like(now_OI)
            (lora,) = wrappers
            for name in lora.lora_A:
                b_OR, a_RI = lora.lora_B[name].weight.detach(), lora.lora_A[name].weight.detach()
                s = lora.scaling[name]
                b_grad_OR, a_grad_RI = s * gradient_OI @ a_RI.T, s * b_OR.T @ gradient_OI
                now_OI += s * b_OR @ a_RI
                if eta:  # what a step of gradient descent takes off the update, for its size
                    stepped_OI = (b_OR - eta * b_grad_OR) @ (a_RI - eta * a_grad_RI)
                    moved_OI += s * (b_OR @ a_RI - stepped_OI) / eta
                else:
                    moved_OI += s * (b_grad_OR @ a_RI + b_OR @ a_grad_RI)
            product_OI = (moved_OI * now_OI).abs()
            rows = product_OI if part.axis == "out" else product_OI.T
            sums_U = torch.stack([rows[entries].sum() for entries in part.index_UW.tolist()])
            found[group.name] += sums_U / sums_U.square().sum().sqrt()
    return found


def without_prefix(name: str) -> str:
    return name.removeprefix("base_model.model.")


@pytest.mark.parametrize("family", LINEARS)
@pytest.mark.parametrize("order", ["adapters first", "gates first"])
@pytest.mark.parametrize(
    ("eta", "options"), [(0.0, {}), (0.5, {"use_rslora": True}), (1.0, {"init_lora_weights": "gaussian"})]
)
def test_scores_are_those_of_the_gradients_of_the_weights(
    family: str, order: str, eta: float, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loraprune, "_ENTRIES", 200)  # several pieces to a weight
    coordinator = ModelPatchingCoordinator(
        SparseTrainingArguments(scoring=f"loraprune(step_size={eta}, decay=0)")
    )
    if order == "adapters first":
        model = adapted(dense(family), target_modules=LINEARS[family], **options)
        coordinator.patch_model(model)
    else:
        model = adapted(coordinator.patch_model(dense(family)), target_modules=LINEARS[family], **options)
    coordinator.begin(10)
    generator = torch.Generator().manual_seed(5)
    for gate in coordinator.gates.values():
        gate.set_keep(torch.rand(gate.keep_U.shape, generator=generator) > 0.3)
    assert not any(p.grad is not None for p in model.parameters())
    twin = copy.deepcopy(model)
    backward(model)
    assert all("lora_" in name for name, p in model.named_parameters() if p.grad is not None)
    coordinator.observe()
    twin.requires_grad_(True)
    backward(twin)
    expected = reference(twin, discover(twin, ["heads", "channels"]), eta)
    expected = {without_prefix(name): score_U for name, score_U in expected.items()}
    for name, gate in coordinator.gates.items():
        saliency_U = gate.get_buffer("saliency_U")
        torch.testing.assert_close(saliency_U, expected[without_prefix(name)].float(), rtol=1e-5, atol=1e-6)
        assert saliency_U.unique().numel() > 1


def test_the_running_mean_and_the_loss_scale() -> None:
    coordinator = ModelPatchingCoordinator(SparseTrainingArguments(scoring="loraprune(decay=0.75)"))
    model = coordinator.patch_model(adapted(dense("bert"), target_modules=LINEARS["bert"]))
    coordinator.begin(10)
    saliencies = [gate.get_buffer("saliency_U") for gate in coordinator.gates.values()]
    backward(model)
    coordinator.observe()
    once = [saliency_U.clone() for saliency_U in saliencies]
    coordinator.observe()
    for saliency_U, first_U in zip(saliencies, once, strict=True):
        torch.testing.assert_close(saliency_U, first_U * 1.75)
        saliency_U.zero_()
    model.zero_grad()
    backward(model, 1024.0)
    coordinator.observe(torch.tensor(1024.0))
    for saliency_U, first_U in zip(saliencies, once, strict=True):
        torch.testing.assert_close(saliency_U, first_U)
    backward(model, float("inf"))
    coordinator.observe(torch.tensor(1024.0))
    for saliency_U, first_U in zip(saliencies, once, strict=True):
        assert torch.equal(saliency_U, first_U)


def test_several_adapters_add_up() -> None:
    model = adapted(dense("llama"), target_modules="all-linear")
    model.add_adapter(
        "second", peft.LoraConfig(target_modules=["q_proj", "down_proj"], r=2, init_lora_weights=False)
    )
    model.base_model.set_adapter(["default", "second"])
    coordinator = ModelPatchingCoordinator(SparseTrainingArguments(scoring="loraprune(decay=0)"))
    coordinator.patch_model(model)
    coordinator.begin(10)
    twin = copy.deepcopy(model)
    backward(model)
    coordinator.observe()
    twin.requires_grad_(True)
    backward(twin)
    expected = reference(twin, discover(twin, ["heads", "channels"]), 0.0)
    for name, gate in coordinator.gates.items():
        torch.testing.assert_close(
            gate.get_buffer("saliency_U"), expected[name].float(), rtol=1e-5, atol=1e-6
        )


REFUSED: dict[str, tuple[dict[str, Any] | None, str]] = {
    "no adapters": (None, r"has no LoRA adapters.*get_peft_model"),
    "DoRA": ({"target_modules": "all-linear", "use_dora": True}, r"DoRA.*use_dora=False"),
    "attention alone": (
        {"target_modules": ["q_proj"]}, r"0\.channels: has no LoRA that trains.*gate_proj, up_proj, down_proj",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize("order", ["adapters first", "gates first"])
def test_what_it_cannot_score_is_refused_before_training(case: str, order: str) -> None:
    options, reason = REFUSED[case]
    coordinator = ModelPatchingCoordinator(SparseTrainingArguments(scoring="loraprune"))
    model = dense("llama")
    if options is not None and order == "adapters first":
        model = peft.get_peft_model(model, peft.LoraConfig(**options))
    coordinator.patch_model(model)
    if options is not None and order == "gates first":
        model = peft.get_peft_model(model, peft.LoraConfig(**options))
    with pytest.raises(UnsupportedModelError, match=reason):
        coordinator.follow_adapters(model)
    with pytest.raises(UnsupportedModelError, match=reason):
        coordinator.begin(10)


@pytest.mark.parametrize("text", ["loraprune(decay=1)", "loraprune(step_size=-1)", "loraprune(steps=1)"])
def test_options_that_cannot_be_meant(text: str) -> None:
    with pytest.raises(ArgumentError):
        read_scoring(text)


def test_kinds() -> None:
    assert read_scoring("loraprune") == LoraPrune(decay=0.9, step_size=0.0)
    with pytest.raises(ArgumentError, match="loraprune does not score layers"):
        SparseTrainingArguments(scoring="loraprune", units=["layers"]).check()
