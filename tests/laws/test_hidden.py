"""Hidden features: open gates change nothing, closed ones equal the cut, what cannot follow is refused by name."""

import copy
import re
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GemmaConfig,
    GemmaForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
)

from patchers.discovery.discover import discover
from patchers.errors import UnsupportedModelError
from patchers.patching.blends import blend_norms
from patchers.patching.gated_norm import GatedNorm, is_plain_norm
from patchers.patching.gates import Gate
from patchers.patching.patch import gated, gates_by_group, gates_of, patch, unpatch
from patchers.surgery import cut
from patchers.units import KINDS, Kind
from sparse_trainer.criteria.training.registry import read_scoring
from sparse_trainer.cut.optimize import optimize_model
from tests.architectures.tiny import tiny_model
from tests.fixtures.compact_models import tiny
from tests.fixtures.hidden_models import NAMES, hidden_model, outputs, some, tolerance
from tests.fixtures.same import assert_same, assert_same_answer

KINDS_BESIDE: list[tuple[Kind, ...]] = [
    ("hidden",),
    ("heads", "channels", "hidden"),
    ("heads", "channels", "attention", "ffn", "layers", "hidden"),
]


@pytest.mark.parametrize("name", NAMES)
def test_open_gates_are_the_identity(name: str) -> None:
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        model = hidden_model(name, dtype)
        before = outputs(model)
        structure = discover(model, ["hidden"])
        assert len(structure.groups) == 1
        for criterion in ("l0", "movement"):
            patch(model, structure, read_scoring(criterion).make_gate)
            assert torch.equal(outputs(model), before), criterion
            unpatch(model)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kinds", KINDS_BESIDE)
def test_closed_gates_equal_the_cut(name: str, kinds: tuple[Kind, ...]) -> None:
    model = hidden_model(name)
    structure = discover(model, kinds)
    keep = some(structure)
    with gated(model, structure, keep):
        masked = outputs(model)
    smaller = copy.deepcopy(model)
    cut(smaller, structure, keep)
    torch.testing.assert_close(outputs(smaller), masked, rtol=0, atol=tolerance(name))
    assert not torch.allclose(masked, outputs(model), rtol=0, atol=1e-3)
    left = discover(smaller, ["hidden"]).groups[0]
    assert left.num_units == int(keep[left.name].sum())


@pytest.mark.parametrize("name", ["bert", "electra", "llama-tied", "bert-mlm"])
def test_closed_gates_equal_the_cut_in_backward(name: str) -> None:
    model = hidden_model(name)
    structure = discover(model, ["hidden"])
    (group,) = structure.groups
    keep = some(structure)
    smaller = copy.deepcopy(model)
    cut(smaller, structure, keep)
    inputs = {"input_ids": torch.arange(5, 21).view(2, 8)}
    with gated(model, structure, keep):
        model(**inputs).logits.square().sum().backward()
    smaller(**inputs).logits.square().sum().backward()
    for s in group.slices:
        whole = model.get_submodule(s.path).weight.grad
        dim = (1 if s.axis == "in" else 0) if isinstance(model.get_submodule(s.path), nn.Linear) else 0
        taken = whole.index_select(dim, s.features(keep[group.name]))
        other = [t for t in group.slices if t.path == s.path and t.axis != s.axis]
        for t in other:
            taken = taken.index_select(1 - dim, t.features(keep[group.name]))
        part = smaller.get_submodule(s.path).weight.grad
        torch.testing.assert_close(part, taken, rtol=0, atol=1e2 * tolerance(name))
    for t in group.tensors:
        taken = model.get_parameter(t.name).grad.index_select(t.dim, t.features(keep[group.name]))
        part = smaller.get_parameter(t.name).grad
        torch.testing.assert_close(part, taken, rtol=0, atol=1e2 * tolerance(name))


def test_the_gradient_of_a_soft_gate_is_that_of_the_function() -> None:
    for norm in (nn.LayerNorm(6).double(), nn.RMSNorm(6).double()):
        nn.init.normal_(norm.weight, generator=torch.Generator().manual_seed(0))
        gate = Gate(6, scored=True).double()
        gate.keep_U.copy_(torch.tensor([1.0, 0.3, 0.0, 0.9, 1.0, 0.6]))
        x_BD = torch.randn(3, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        weights_BD = torch.randn(3, 6, generator=torch.Generator().manual_seed(2), dtype=torch.float64)

        def value() -> torch.Tensor:
            return (GatedNorm(norm, gate)(x_BD) * weights_BD).sum()  # noqa: B023

        value().backward()
        for unit in (0, 1, 3, 5):
            sides = []
            for step in (1e-6, -1e-6):
                gate.keep_U[unit] += step
                sides.append(float(value().detach()))
                gate.keep_U[unit] -= step
            assert float(gate.score_U.grad[unit]) == pytest.approx((sides[0] - sides[1]) / 2e-6, rel=1e-5)


@pytest.mark.parametrize("make", [nn.LayerNorm, partial(nn.LayerNorm, bias=False), nn.RMSNorm])
def test_every_gradient_of_a_gated_norm_is_that_of_the_function(make: Callable[[int], nn.Module]) -> None:
    torch.manual_seed(0)
    norm, gate = make(6).double(), Gate(6, scored=False)
    parameters = [torch.randn(6, dtype=torch.float64, requires_grad=True) for _ in norm.parameters()]
    gate.keep_U = torch.tensor([1.0, 0.3, 0.0, 0.9, 1.0, 0.6], dtype=torch.float64)

    def value(x_BD: torch.Tensor, *given: torch.Tensor) -> torch.Tensor:
        vars(norm)["_parameters"] = {"bias": None, **dict(zip(["weight", "bias"], given))}  # noqa: B905
        return GatedNorm(norm, gate)(x_BD)

    x_BD = torch.randn(2, 3, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(value, (x_BD, *parameters))


@pytest.mark.parametrize("name", ["bert", "electra", "gpt2"])
@pytest.mark.parametrize("closed", [False, True])
def test_the_gradient_of_a_gate_is_the_slope_of_the_loss(name: str, closed: bool) -> None:
    model = hidden_model(name)
    structure = discover(model, ["hidden"])
    patch(model, structure, lambda group: Gate(group.num_units, scored=True))
    (gate,) = gates_by_group(model, structure).values()
    gate.double()
    if closed:
        gate.set_keep(torch.arange(32) % 3 > 0)
    inputs = {"input_ids": torch.arange(5, 21).view(2, 8)}
    model(**inputs).logits.square().sum().backward()
    for unit in (0, 1, 5, 30):
        sides = []
        for step in (1e-5, -1e-5):
            gate.keep_U[unit] += step
            with torch.no_grad():
                sides.append(float(model(**inputs).logits.square().sum()))
            gate.keep_U[unit] -= step
        slope = (sides[0] - sides[1]) / 2e-5
        assert float(gate.score_U.grad[unit]) == pytest.approx(slope, rel=1e-3, abs=1e-6)


@pytest.mark.parametrize("name", ["bert", "electra", "llama-tied", "gpt2"])
def test_unpatch_returns_the_very_same_tensors(name: str) -> None:
    model = hidden_model(name)
    tensors, keys = dict(model.named_parameters()), list(model.state_dict())
    patch(model, discover(model, KINDS), read_scoring("taylor").make_gate)
    assert list(model.state_dict()) != keys
    unpatch(model)
    assert all(tensor is tensors[key] for key, tensor in model.named_parameters())
    assert list(model.state_dict()) == keys
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in model.modules())
    assert not any("forward" in vars(m) for m in model.modules())


def test_shared_parameters_stay_shared() -> None:
    for name in ("llama-tied", "bert-mlm", "electra-mlm-square", "gpt2"):
        model = hidden_model(name)
        structure = discover(model, ["hidden"])
        cut(model, structure, some(structure))
        assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


def test_a_copy_of_a_patched_model_is_independent() -> None:
    model = tiny()
    structure = discover(model, ["hidden"])
    patch(model, structure, read_scoring("movement").make_gate)
    twin = copy.deepcopy(model)
    before = outputs(model)
    (gate,) = gates_by_group(twin, structure).values()
    gate.set_keep(torch.arange(32) < 9)
    assert torch.equal(outputs(model), before)
    assert not torch.allclose(outputs(twin), before)
    unpatch(twin)
    assert_same_answer(outputs(twin), before)


def test_a_patched_checkpoint_is_refused_by_stock_loaders(tmp_path: object) -> None:
    model = tiny("bert", torch.float32)
    structure = discover(model, ["hidden"])
    patch(model, structure, read_scoring("movement").make_gate)
    model.save_pretrained(tmp_path)
    with pytest.raises(RuntimeError, match=r"size mismatch|ignore_mismatched_sizes"):
        type(model).from_pretrained(tmp_path)
    again = tiny("bert", torch.float32)
    patch(again, structure, read_scoring("movement").make_gate)
    again.load_state_dict(model.state_dict())
    assert_same(again, model, outputs)


REFUSED = {
    "albert": "the norms of its blocks follow no known form",
    "deberta": "LayerNorm and RMSNorm|rel_embeddings|DebertaLayerNorm|no LayerNorm",
    "gemma": "embed_tokens .GemmaTextScaledWordEmbedding.",
    "t5": "several lists of blocks share it: encoder.block, decoder.block",
    "mobilebert": "several lists of blocks",
    "mixtral": "holds hidden features",
    "vit": "the norms of its blocks follow no known form",
    "gpt_neox": "embed_in",
}


@pytest.mark.parametrize("model_type", REFUSED)
def test_what_cannot_follow_is_refused_by_name(model_type: str) -> None:
    structure = discover(tiny_model(model_type), ["hidden"])
    assert not structure.groups
    ((name, reason),) = structure.refused_hidden.items()
    assert structure.untouched[name] == reason
    assert re.search(REFUSED[model_type], reason), reason


def test_a_norm_is_told_by_what_it_computes() -> None:
    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(8))

        def forward(self, x_BD: torch.Tensor) -> torch.Tensor:
            return self.weight * x_BD / (1.0 + x_BD.abs().amax(-1, keepdim=True)) + 1.0

    llama = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=9, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2
        )
    )
    gemma = GemmaForCausalLM(
        GemmaConfig(
            vocab_size=9, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2,
            num_key_value_heads=1, head_dim=4,
        )
    )  # fmt: skip
    assert all(is_plain_norm(m) for m in (nn.LayerNorm(8), nn.RMSNorm(8), llama.model.norm, gemma.model.norm))
    assert not any(
        is_plain_norm(m) for m in (Half(), nn.Linear(8, 8), nn.LayerNorm(8, elementwise_affine=False))
    )


def test_a_norm_that_is_wrapped_is_not_unwrapped() -> None:
    model = hidden_model("llama")
    vars(model.model.norm)["forward"] = model.model.norm.forward
    with pytest.raises(UnsupportedModelError, match=r"model.norm: its forward pass is wrapped"):
        patch(model, discover(model, ["hidden"]), lambda group: Gate(group.num_units, scored=False))


def test_a_norm_that_was_replaced_is_refused_before_and_after_discovery() -> None:
    model = hidden_model("bert")
    structure = discover(model, ["hidden"])
    blend_norms(model.bert.encoder, decay=0.9)
    with pytest.raises(UnsupportedModelError, match="LayerNorm: is a BlendedNorm now"):
        patch(model, structure, lambda group: Gate(group.num_units, scored=False))
    assert not gates_of(model)
    assert "BlendedNorm" in discover(model, ["hidden"]).untouched["bert.encoder.hidden"]


def test_something_beside_the_known_parts_refuses_the_model() -> None:
    config = BertConfig(
        vocab_size=9, hidden_size=8, intermediate_size=12, num_hidden_layers=1, num_attention_heads=2
    )
    model = BertForSequenceClassification(config)
    model.bert.encoder.layer[0].extra = nn.Linear(8, 3)
    reason = discover(model, ["hidden"]).untouched["bert.encoder.hidden"]
    assert reason.startswith("bert.encoder.layer.0.extra ")


def test_a_model_without_a_head_says_the_features_that_stay() -> None:
    model = tiny("bert").bert
    structure = discover(model, ["hidden"])
    keep = some(structure)
    (kept_U,) = keep.values()
    patch(model, structure, lambda group: Gate(group.num_units, scored=False))
    for gate in gates_by_group(model, structure).values():
        gate.set_keep(kept_U)
    ids_BT = torch.arange(5, 21).view(2, 8)
    masked = model(ids_BT)
    compact = optimize_model(model)
    found = compact(ids_BT)
    torch.testing.assert_close(
        found.last_hidden_state, masked.last_hidden_state[..., kept_U], rtol=0, atol=1e-10
    )
    torch.testing.assert_close(found.pooler_output, masked.pooler_output, rtol=0, atol=1e-10)
    assert not bool(masked.last_hidden_state[..., ~kept_U].abs().gt(1e-10).any())
