"""Adapters of recipes: what peft is given, what is refused before any work; trying them changes nothing."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoConfig, PreTrainedModel

from sparse_trainer.errors import ArgumentError, RecipeError
from sparse_trainer.run.lora import LoraOptions, check_not_quantized, check_peft, head_names, merged
from tests.architectures.tiny import tiny_model
from tests.fixtures.compact_models import batch, tiny

pytest.importorskip("peft")


def trained_names(model: nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def adapt(model: PreTrainedModel, **options: Any) -> Any:
    return LoraOptions(**options).adapt(model, seed=3)


@pytest.mark.parametrize(
    ("family", "heads"),
    [("bert", ["classifier"]), ("distilbert", ["pre_classifier", "classifier"]), ("roberta", ["classifier"])],
)
def test_the_head_is_trained_in_full_and_every_other_linear_has_an_adapter(
    family: str, heads: list[str]
) -> None:
    model = tiny(family)
    assert head_names(model) == heads
    linears = {path for path, module in model.named_modules() if isinstance(module, nn.Linear)}
    adapted = adapt(model, r=2)
    for name in trained_names(adapted):
        assert "lora_" in name or any(f".{head}." in name for head in heads), name
    wrapped = {
        path.removesuffix(".base_layer") for path, _ in model.named_modules() if path.endswith(".base_layer")
    }
    assert wrapped == {path for path in linears if path.partition(".")[0] not in heads}


def test_output_embeddings_and_bare_models_have_no_head() -> None:
    assert head_names(tiny_model("llama")) == []
    assert head_names(tiny_model("t5")) == []
    assert head_names(tiny("bert").base_model) == []


def test_the_same_seed_gives_the_same_adapters() -> None:
    one, other = adapt(tiny("bert")), adapt(tiny("bert"))
    for name, parameter in one.named_parameters():
        assert torch.equal(parameter, other.get_parameter(name)), name


@pytest.mark.parametrize("family", ["bert", "gpt2", "llama"])
def test_trying_adapters_leaves_the_very_same_model(family: str) -> None:
    model = tiny(family) if family == "bert" else tiny_model(family)
    model.requires_grad_(True)
    before, flags = dict(model.named_parameters()), trained_names(model)
    modules = [(path, type(module)) for path, module in model.named_modules()]
    attributes = set(vars(model))
    with LoraOptions(use_dora=True).tried(model) as adapted:
        assert trained_names(adapted) != flags
    assert [(path, type(module)) for path, module in model.named_modules()] == modules
    assert all(parameter is before[name] for name, parameter in model.named_parameters())
    assert trained_names(model) == flags
    assert set(vars(model)) == attributes


@pytest.mark.parametrize("bias", ["none", "all", "lora_only"])
@pytest.mark.parametrize(
    "options",
    [{}, {"use_rslora": True}, {"use_dora": True}, {"init": "gaussian"}, {"init": "orthogonal"}],
    ids=str,
)
def test_what_was_trained_is_merged(options: dict[str, Any], bias: Any) -> None:
    model = tiny("bert", torch.float64)
    adapted = adapt(model, bias=bias, **options).eval()
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    assert (
        "bert.embeddings.LayerNorm.bias"
        in {n.removeprefix("base_model.model.") for n in trained_names(adapted)}
    ) == (bias == "all")
    says = adapted(**batch(model)).logits
    base = merged(adapted)
    assert base is model
    assert not any("peft" in type(module).__module__ for module in base.modules())
    torch.testing.assert_close(base(**batch(model)).logits, says, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("options", "where"),
    [
        ({"r": 0}, "r"), ({"alpha": 0.0}, "alpha"), ({"dropout": 1.0}, "dropout"),
        ({"target_modules": ()}, "target_modules"),
        ({"r": 3, "init": "orthogonal"}, "r"),
    ],
)  # fmt: skip
def test_numbers_that_cannot_be_meant(options: dict[str, Any], where: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        LoraOptions(**options)
    assert caught.value.where == where


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"target_modules": ("query", "valeu")}, r"lora\.target_modules: no module is called 'valeu'.*mean 'value'\?"),
        ({"exclude_modules": ("poler",)}, r"lora\.exclude_modules: no module is called 'poler'"),
        ({"modules_to_save": ("clasifier",)}, r"lora\.modules_to_save: .* Did you mean 'classifier'\?"),
        ({"target_modules": ("attention",)}, r"lora: peft refuses it: Target module"),
        ({"target_modules": "nothing.*"}, r"lora: peft refuses it: "),
    ],
)  # fmt: skip
def test_modules_that_are_not_there(options: dict[str, Any], said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        adapt(tiny("bert"), **options)


def test_without_peft_the_remedy_is_a_line_for_pip(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RecipeError, match=r"peft is not installed\. Run `pip install 'peft>=0\.18'`"):
        check_peft()


def test_a_quantized_base_is_refused_by_its_config(tmp_path: Path) -> None:
    config = tiny("bert").config
    check_not_quantized(config, "MODEL")
    config.quantization_config = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    config.save_pretrained(tmp_path)
    with pytest.raises(
        RecipeError, match=r"model\.name_or_path: MODEL: its weights are quantized.*quantize the result"
    ):
        check_not_quantized(AutoConfig.from_pretrained(tmp_path), "MODEL")
