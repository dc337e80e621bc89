"""Pruning with adapters: gates act once on linear and adapter, outlive every merge, and what is cut says the same."""

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from patchers.discovery.discover import discover
from patchers.patching.gates import Gate
from patchers.patching.patch import gates_by_group, gates_of, patch, unpatch
from patchers.units import Kind
from sparse_trainer.cut.optimize import optimize_model
from sparse_trainer.errors import UnsupportedModelError
from sparse_trainer.folders.load import load_pruned
from sparse_trainer.training.arguments.arguments import SparseTrainingArguments
from sparse_trainer.training.coordinator import ModelPatchingCoordinator
from tests.architectures.tiny import tiny_model
from tests.fixtures.compact_models import batch, tiny
from tests.fixtures.same import assert_same

peft = pytest.importorskip("peft")

pytestmark = [
    # peft 0.21 asks transformers 5.24 for a property by its old name.
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning"),
    pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False:UserWarning"),
]

KINDS: tuple[Kind, ...] = ("heads", "channels", "attention", "ffn", "layers")
LINEARS = {
    "bert": ["query", "value", "dense"],
    "llama": "all-linear",
    "gpt2": ["c_attn", "c_proj", "c_fc"],
}
FEED_FORWARD = {"bert": ["output.dense"], "llama": ["down_proj"], "gpt2": ["mlp.c_proj"]}
ADAPTERS: dict[str, Callable[[str], Any]] = {
    "lora": lambda family: peft.LoraConfig(target_modules=LINEARS[family], r=3),
    "lora beside the consumers": lambda family: peft.LoraConfig(
        target_modules={"bert": ["query", "value"], "llama": ["q_proj", "v_proj"], "gpt2": ["c_attn"]}[family]
    ),
    "rslora": lambda family: peft.LoraConfig(target_modules=LINEARS[family], r=3, use_rslora=True),
    "dora": lambda family: peft.LoraConfig(target_modules=LINEARS[family], r=3, use_dora=True),
    "embedding": lambda family: peft.LoraConfig(
        target_modules={
            "bert": ["word_embeddings", "dense"],
            "llama": ["embed_tokens", "down_proj"],
            "gpt2": ["wpe", "c_proj"],
        }[family]
    ),
    "ia3": lambda family: peft.IA3Config(
        target_modules=[*FEED_FORWARD[family], {"bert": "key", "llama": "k_proj", "gpt2": "c_attn"}[family]],
        feedforward_modules=FEED_FORWARD[family],
    ),
    "adalora": lambda family: peft.AdaLoraConfig(target_modules=LINEARS[family], total_step=10, init_r=4),
}
CASES = [(family, name) for family in LINEARS for name in ADAPTERS if (family, name) != ("gpt2", "adalora")]


def dense(family: str, dtype: torch.dtype = torch.float64) -> PreTrainedModel:
    return tiny(family, dtype) if family == "bert" else tiny_model(family, dtype=dtype)


@torch.no_grad()
def adapted(model: nn.Module, config: Any) -> Any:
    """Return a model around `model`, whose adapters are not the identity that peft starts with."""
    wrapped = peft.get_peft_model(model, config).eval()
    generator = torch.Generator().manual_seed(1)
    for name, parameter in wrapped.named_parameters():
        if parameter.requires_grad and not name.endswith("score_U"):
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator).to(parameter.dtype))
    return wrapped


def hang(model: nn.Module, kinds: tuple[Kind, ...] = KINDS) -> dict[str, Gate]:
    """Hang gates on a model and close some of every kind; return them by name without prefixes of peft."""
    structure = discover(model, kinds)
    generator = torch.Generator().manual_seed(5)
    gates = patch(model, structure, lambda group: Gate(group.num_units, scored=True))
    closed = {"attention": 0, "ffn": 1, "layers": 2}
    for group in structure.groups:
        keep_U = torch.rand(group.num_units, generator=generator) > 0.4
        if group.kind in closed:
            keep_U = torch.tensor([group.layer != closed[group.kind]])
        gates[group.name].set_keep(keep_U)
    assert gates_by_group(model, structure) == gates
    return {name.removeprefix("base_model.model."): gate for name, gate in gates.items()}


def both_orders(
    family: str, config: Any, dtype: torch.dtype = torch.float64
) -> list[tuple[Any, dict[str, Gate]]]:
    """Return a model with adapters that was patched afterwards, and one that was patched before."""
    first = adapted(dense(family, dtype), copy.deepcopy(config))
    inner = dense(family, dtype)
    gates = hang(inner)
    return [(first, hang(first)), (adapted(inner, copy.deepcopy(config)), gates)]


def outputs(model: Any) -> Tensor:
    logits: Tensor = model(**batch(model)).logits
    return logits


def slopes(model: Any, gates: dict[str, Gate]) -> dict[str, Tensor]:
    """Return the gradient of every score for a loss that no symmetry hides."""
    for gate in gates.values():
        gate.requires_grad_(True)
    says = outputs(model)
    weights = torch.randn(says.shape, generator=torch.Generator().manual_seed(9)).to(says.dtype)
    scores = {name: gate.score_U for name, gate in gates.items()}
    found = torch.autograd.grad((says * weights).sum(), list(scores.values()))  # type: ignore[arg-type]
    return dict(zip(scores, found, strict=True))


@pytest.mark.parametrize(("family", "adapter"), CASES)
def test_the_merged_and_the_cut_model_say_what_gates_and_adapters_said(family: str, adapter: str) -> None:
    for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 2e-4)):
        for model, gates in both_orders(family, ADAPTERS[adapter](family), dtype):
            said = outputs(model).detach()
            gradients = slopes(model, gates)
            compact = optimize_model(model)
            assert not any("peft" in type(m).__module__ for m in compact.modules())
            assert compact.num_parameters() < dense(family).num_parameters()
            assert all(p.requires_grad for p in compact.parameters())
            torch.testing.assert_close(outputs(compact), said, rtol=tolerance, atol=tolerance)
            assert torch.equal(outputs(model), said)
            merged = model.merge_and_unload()
            torch.testing.assert_close(outputs(merged), said, rtol=tolerance, atol=tolerance)
            assert set(gates.values()) == set(gates_of(merged).values())
            if dtype == torch.float64:
                for name, slope in slopes(merged, gates).items():
                    torch.testing.assert_close(slope, gradients[name], rtol=1e-5, atol=1e-5)
            assert_same(optimize_model(merged), compact, outputs, calculated=True)


def test_the_gate_acts_once_in_value_and_gradient() -> None:
    """Soft values show what zeros and ones hide: a gate that acts twice is squared."""
    for model, gates in both_orders("llama", ADAPTERS["dora"]("llama")):
        for gate in gates.values():
            gate.keep_U.fill_(0.5)
        before, gradients = outputs(model).detach(), slopes(model, gates)
        merged = model.merge_and_unload()
        torch.testing.assert_close(outputs(merged), before, rtol=0, atol=1e-9)
        for name, slope in slopes(merged, gates).items():
            torch.testing.assert_close(slope, gradients[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", LINEARS)
def test_gates_survive_everything_that_peft_does(family: str) -> None:
    config = ADAPTERS["lora"](family)
    for model, gates in both_orders(family, config):
        said = outputs(model).detach()
        bare = adapted(dense(family), copy.deepcopy(config)).unload()
        hang(bare)
        without = outputs(bare).detach()
        assert not torch.allclose(without, said, rtol=0, atol=1e-3)
        model.merge_adapter()
        torch.testing.assert_close(outputs(model), said, rtol=0, atol=1e-9)
        model.unmerge_adapter()
        torch.testing.assert_close(outputs(model), said, rtol=0, atol=1e-9)
        with model.disable_adapter():
            torch.testing.assert_close(outputs(model), without, rtol=0, atol=1e-9)
            torch.testing.assert_close(outputs(optimize_model(model)), without, rtol=0, atol=1e-9)
        model.add_adapter("second", peft.LoraConfig(target_modules=LINEARS[family], init_lora_weights=False))
        torch.testing.assert_close(outputs(model), said, rtol=0, atol=1e-9)
        model.set_adapter("second")
        second = outputs(model).detach()
        assert not torch.allclose(second, said, rtol=0, atol=1e-3)
        torch.testing.assert_close(outputs(optimize_model(model)), second, rtol=0, atol=1e-9)
        model.base_model.set_adapter(["default", "second"])
        torch.testing.assert_close(outputs(optimize_model(model)), outputs(model), rtol=0, atol=1e-9)
        model.set_adapter("default")
        model.delete_adapter("second")
        torch.testing.assert_close(outputs(model), said, rtol=0, atol=1e-9)
        for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):  # noqa: S301 - our own
            torch.testing.assert_close(outputs(other.merge_and_unload()), said, rtol=0, atol=1e-9)
        assert set(gates_of(model).values()) == set(gates.values())
        torch.testing.assert_close(outputs(model.unload()), without, rtol=0, atol=1e-9)


def test_a_linear_that_is_wrapped_later_is_gated_with_what_wraps_it() -> None:
    model = adapted(dense("llama"), ADAPTERS["lora beside the consumers"]("llama"))
    hang(model)
    model.add_adapter("more", peft.LoraConfig(target_modules="all-linear", init_lora_weights=False))
    model.set_adapter("more")
    torch.testing.assert_close(outputs(optimize_model(model)), outputs(model), rtol=0, atol=1e-9)


def test_adapters_that_transformers_injected_are_merged_too() -> None:
    model = dense("llama")
    config = peft.LoraConfig(
        target_modules="all-linear", exclude_modules=["lm_head"], init_lora_weights=False
    )
    peft.inject_adapter_in_model(config, model)
    model.peft_config, model._hf_peft_config_loaded = {"default": config}, True
    hang(model)
    said = outputs(model)
    compact = optimize_model(model)
    torch.testing.assert_close(outputs(compact), said, rtol=0, atol=1e-9)
    assert not compact._hf_peft_config_loaded
    assert outputs(model).equal(said)


def test_the_cut_model_runs_its_own_forward_pass_whatever_a_trainer_put_in_its_place() -> None:
    """As trl's fused head does, a function on the instance that remembers the model it was made for."""
    model = adapted(dense("llama"), ADAPTERS["lora"]("llama"))
    hang(model)
    said, inner = outputs(model), model.get_base_model()
    remembered = inner.forward
    inner.forward = lambda **inputs: remembered(**inputs)
    compact = optimize_model(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    torch.testing.assert_close(outputs(compact), said, rtol=0, atol=1e-9)


def test_unpatching_leaves_the_very_same_adapters() -> None:
    model = adapted(dense("bert"), ADAPTERS["lora"]("bert"))
    before, said = dict(model.named_parameters()), outputs(model)
    hang(model)
    unpatch(model)
    after = dict(model.named_parameters())
    assert before.keys() == after.keys()
    assert all(before[name] is after[name] for name in before)
    assert torch.equal(outputs(model), said)
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in model.modules())


def test_an_error_inside_an_adapter_leaves_the_gate_in_charge() -> None:
    model = adapted(dense("bert"), ADAPTERS["lora"]("bert"))
    hang(model)
    said = outputs(model)
    wrapper = model.get_submodule("base_model.model.bert.encoder.layer.0.output.dense")
    handle = wrapper.lora_A["default"].register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        outputs(model)
    handle.remove()
    torch.testing.assert_close(outputs(model.merge_and_unload()), said, rtol=0, atol=1e-9)


def test_what_was_patched_and_closes_nothing_is_refused() -> None:
    coordinator = ModelPatchingCoordinator(SparseTrainingArguments(density=0.5))
    model = adapted(coordinator.patch_model(dense("bert")), ADAPTERS["lora"]("bert"))
    with pytest.raises(
        UnsupportedModelError, match=r"all its units are open: density 1\.0 reached, asked for 0\.5"
    ):
        optimize_model(model)
    unpatch(model)
    with pytest.raises(UnsupportedModelError, match="its gates are gone"):
        optimize_model(model)
    with pytest.raises(UnsupportedModelError, match="all its units are open"):
        optimize_model(ModelPatchingCoordinator(masks()).patch_model(dense("bert")))  # type: ignore[arg-type]


def test_a_density_of_one_that_was_asked_for_cuts_nothing() -> None:
    model = dense("bert")
    ModelPatchingCoordinator(SparseTrainingArguments(density=1.0)).patch_model(model)
    assert optimize_model(model).num_parameters() == dense("bert").num_parameters()


def masks() -> SparseTrainingArguments:
    return SparseTrainingArguments(dense_pruning_method="topK", attention_pruning_method="topK")


def start(order: str, args: SparseTrainingArguments, model: PreTrainedModel, config: Any) -> None:
    """Do what comes before a training with adapters."""
    coordinator = ModelPatchingCoordinator(args)
    if order == "adapters first":
        coordinator.patch_model(peft.get_peft_model(model, config))
    else:
        coordinator.follow_adapters(peft.get_peft_model(coordinator.patch_model(model), config))


REFUSED: dict[str, tuple[str, Callable[[], Any], str]] = {
    "prompt": ("bert", lambda: peft.PromptTuningConfig(num_virtual_tokens=2, task_type="SEQ_CLS"), "PROMPT_TUNING"),
    "prefix": ("llama", lambda: peft.PrefixTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM"), "PREFIX_TUNING"),
    "bias without a bias": (
        "llama", lambda: peft.LoraConfig(target_modules=["down_proj"], lora_bias=True), "cannot be merged",
    ),
    "tied embedding": ("gpt2", lambda: peft.LoraConfig(target_modules=["wte"]), "its weight is tied to"),
    "a copy of a consumer": (
        "llama", lambda: peft.LoraConfig(target_modules=["q_proj"], modules_to_save=["down_proj"]), "down_proj|Linear",
    ),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("order", ["adapters first", "gates first"])
@pytest.mark.parametrize("case", REFUSED)
def test_adapters_that_would_lose_something_are_refused_before_training(case: str, order: str) -> None:
    family, make, reason = REFUSED[case]
    with pytest.raises(UnsupportedModelError, match=reason):
        start(order, SparseTrainingArguments(), dense(family), make())


@pytest.mark.parametrize("order", ["adapters first", "gates first"])
def test_masked_linears_take_no_adapter(order: str) -> None:
    with pytest.raises(UnsupportedModelError, match=r"[Aa]dapter"):
        start(order, masks(), dense("bert"), ADAPTERS["lora"]("bert"))


@pytest.mark.parametrize("order", ["adapters first", "gates first"])
def test_a_quantized_base_is_refused(order: str) -> None:
    model = dense("llama")
    model.config.quantization_config = {"quant_method": "bitsandbytes"}
    if order == "adapters first":
        model = adapted(model, ADAPTERS["lora"]("llama"))
    with pytest.raises(UnsupportedModelError, match=r"quantized.*quantize the result"):
        ModelPatchingCoordinator(SparseTrainingArguments()).patch_model(model)


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings:UserWarning")
def test_embedding_and_head_that_were_trained_apart_stay_apart(tmp_path: Path) -> None:
    config = peft.LoraConfig(target_modules=["c_fc"], modules_to_save=["wte", "lm_head"])
    model = adapted(dense("gpt2"), config)
    hang(model, ("channels",))
    said = outputs(model).detach()
    compact = optimize_model(model)
    torch.testing.assert_close(outputs(compact), said, rtol=0, atol=1e-9)
    compact.save_pretrained(tmp_path)
    torch.testing.assert_close(outputs(load_pruned(tmp_path)), said, rtol=0, atol=1e-9)
