"""Open gates change nothing, closed gates equal the cut, unpatch gives the very same tensors back."""

import copy

import pytest
import torch
from transformers import PreTrainedModel

from patchers.discovery.discover import discover
from patchers.patching.gates import Gate, GatedForward
from patchers.patching.patch import gated, gates_by_group, patch, unpatch
from patchers.surgery import cut
from patchers.units import BLOCK_KINDS, Kind, Structure
from sparse_trainer.criteria.training.registry import read_scoring, scorings
from tests.architectures.tiny import tiny_model
from tests.fixtures.compact_models import DECISIONS, FAMILIES, batch, logits, tiny
from tests.fixtures.same import assert_same, assert_same_answer

CASES = [
    (family, kinds)
    for family in FAMILIES
    for kinds in (("heads", "channels"), ("attention", "ffn"), ("layers",))
]


def random_keep(structure: Structure, seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    keep = {g.name: torch.rand(g.num_units, generator=generator) > 0.4 for g in structure.groups}
    layers = structure.of(["layers"])
    if layers:
        keep[layers[0].name][:] = True
        keep[layers[-1].name][:] = False
    return keep


@pytest.mark.parametrize(("family", "kinds"), CASES)
def test_open_gates_are_the_identity(family: str, kinds: tuple[Kind, ...]) -> None:
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        model = tiny(family, dtype)
        before = logits(model)
        for name in scorings():
            if name == "layer_gate":  # a soft gate is open only once it is hard
                continue
            criterion = read_scoring(name)
            patch(model, discover(model, kinds), criterion.make_gate)
            assert torch.equal(logits(model), before), name
            unpatch(model)


@pytest.mark.parametrize(("family", "kinds"), CASES)
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_closed_gates_equal_the_cut(family: str, kinds: tuple[Kind, ...], attention: str) -> None:
    for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 1e-5)):
        model = tiny(family, dtype)
        if attention == "sdpa" and not model._supports_sdpa:
            pytest.skip(f"{family} has no sdpa attention")
        model.set_attn_implementation(attention)
        structure = discover(model, kinds)
        for seed in range(3):
            keep = random_keep(structure, seed)
            with gated(model, structure, keep):
                masked = logits(model)
            smaller = copy.deepcopy(model)
            cut(smaller, structure, keep)
            torch.testing.assert_close(logits(smaller), masked, rtol=0, atol=tolerance)
            assert not torch.allclose(masked, logits(model), rtol=0, atol=1e-3)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("decision", DECISIONS)
def test_decisions_of_every_sort_equal_the_cut(family: str, decision: str) -> None:
    model = tiny(family)
    structure = discover(model)
    keep = DECISIONS[decision](structure)
    with gated(model, structure, keep):
        masked = logits(model)
    cut(model, structure, keep)
    torch.testing.assert_close(logits(model), masked, rtol=0, atol=1e-10)


@pytest.mark.parametrize("family", FAMILIES)
def test_closed_gates_equal_the_cut_in_backward(family: str) -> None:
    model = tiny(family)
    structure = discover(model, ["heads", "channels"])
    keep = random_keep(structure, 1)
    smaller = copy.deepcopy(model)
    cut(smaller, structure, keep)
    with gated(model, structure, keep):
        model(**batch(model)).logits.square().sum().backward()
    smaller(**batch(model)).logits.square().sum().backward()
    for group in structure.groups:
        for s in group.slices:
            index = s.features(keep[group.name])
            whole = model.get_submodule(s.path).weight.grad
            part = smaller.get_submodule(s.path).weight.grad
            expected = whole[index] if s.axis == "out" else whole[:, index]
            torch.testing.assert_close(part, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("family", FAMILIES)
def test_unpatch_returns_the_very_same_tensors(family: str) -> None:
    model = tiny(family)
    tensors, modules = dict(model.named_parameters()), dict(model.named_modules())
    keys = list(model.state_dict())
    patch(model, discover(model, ["heads", "channels"]), read_scoring("taylor").make_gate)
    assert list(model.state_dict()) != keys
    unpatch(model)
    assert all(tensor is tensors[name] for name, tensor in model.named_parameters())
    assert all(module is modules[name] for name, module in model.named_modules())
    assert list(model.state_dict()) == keys
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in model.modules())
    assert not any("forward" in vars(m) for m in model.modules())
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), tensors.values(), strict=False))


def test_a_copy_of_a_patched_model_is_independent() -> None:
    model = tiny()
    structure = discover(model, ["heads", "channels"])
    patch(model, structure, read_scoring("movement").make_gate)
    twin = copy.deepcopy(model)
    before = logits(model)
    for gate in gates_by_group(twin, structure).values():
        gate.set_keep(torch.zeros_like(gate.keep_U, dtype=torch.bool))
    assert torch.equal(logits(model), before)
    assert not torch.allclose(logits(twin), before)
    unpatch(twin)
    assert_same_answer(logits(twin), before)


@pytest.mark.parametrize("kinds", [("heads", "channels"), ("layers",), ("attention",)])
def test_a_patched_checkpoint_is_refused_by_stock_loaders(tmp_path: object, kinds: tuple[Kind, ...]) -> None:
    model = tiny("bert", torch.float32)
    patch(
        model,
        discover(model, kinds),
        read_scoring("movement").make_gate,
    )
    model.save_pretrained(tmp_path)
    with pytest.raises(RuntimeError, match=r"size mismatch|ignore_mismatched_sizes"):
        type(model).from_pretrained(tmp_path)
    again = tiny("bert", torch.float32)
    patch(
        again,
        discover(again, kinds),
        read_scoring("movement").make_gate,
    )
    again.load_state_dict(model.state_dict())
    assert_same(again, model, logits)


# peft 0.21 asks transformers 5.23 for a property by its old name.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_gates_compose_with_lora() -> None:
    peft = pytest.importorskip("peft")
    model = tiny("bert")
    config = peft.LoraConfig(target_modules=["output.dense", "intermediate.dense"], init_lora_weights=False)
    adapted: PreTrainedModel = peft.get_peft_model(model, config).eval()
    structure = discover(adapted, ["heads", "channels"])
    names = [g.name for g in structure.groups]
    keep = {g.name: torch.rand(g.num_units) > 0.5 for g in structure.groups}
    patch(adapted, structure, read_scoring("movement").make_gate)
    for name, gate in gates_by_group(adapted, structure).items():
        gate.set_keep(keep[name])
    masked = adapted(**batch(model)).logits
    unpatch(adapted)
    merged = adapted.merge_and_unload()
    plain = discover(merged, ["heads", "channels"])
    cut(merged, plain, {g.name: keep[name] for g, name in zip(plain.groups, names, strict=True)})
    torch.testing.assert_close(merged(**batch(model)).logits, masked, rtol=0, atol=1e-10)


def test_every_kind_has_a_place() -> None:
    models = (tiny("bert"), tiny_model("mixtral"))
    assert {g.kind for model in models for g in discover(model).groups} == set(BLOCK_KINDS)


@pytest.mark.parametrize("trained", ["weights and gates", "gates alone", "weights alone"])
def test_gate_and_linear_in_one_function_equal_the_two_apart(trained: str) -> None:
    generator = torch.Generator().manual_seed(0)
    linear = torch.nn.Linear(6, 5).double().requires_grad_(trained != "gates alone")
    x = torch.randn(2, 3, 6, dtype=torch.float64, generator=generator).requires_grad_()
    gate = Gate(3, scored=trained != "weights alone")
    gate.set_keep(torch.tensor([True, False, True]))
    wanted = [p for p in (x, *linear.parameters(), gate.score_U) if p is not None and p.requires_grad]
    weights = torch.randn(2, 3, 5, dtype=torch.float64, generator=generator)
    together = GatedForward(linear, gate, width=2)(x)
    apart = torch.nn.functional.linear(x * gate().repeat_interleave(2), linear.weight, linear.bias)
    assert torch.equal(together, apart)
    for a, b in zip(
        torch.autograd.grad((together * weights).sum(), wanted),
        torch.autograd.grad((apart * weights).sum(), wanted),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6 if a.dtype == torch.float32 else 1e-12)
