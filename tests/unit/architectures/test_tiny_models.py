"""Tiny models of many types: small, perturbed, seeded, and they run."""

import pytest
import torch
from torch import Tensor, nn

from sparse_trainer.inputs.make import forward_outputs, inputs_for
from tests.architectures.tiny import (
    NotTestable,
    auto_class_for,
    dtype_for,
    model_types,
    tiny_config,
    tiny_model,
)

_TYPES = (
    "bert",
    "bart",
    "clip",
    "deberta-v2",
    "gemma3",
    "gpt2",
    "llama",
    "llava",
    "mixtral",
    "qwen2_vl",
    "siglip",
    "t5",
    "vit",
    "wav2vec2",
    "whisper",
)
_MOST_PARAMETERS = 3_000_000
_MASKED_TYPES = ("bert", "deberta-v2", "llama", "gpt2", "t5")


@pytest.mark.parametrize("model_type", _TYPES)
def test_it_is_small_and_runs_twice_to_the_same_finite_outputs(model_type: str) -> None:
    model = tiny_model(model_type)
    assert model.num_parameters() < _MOST_PARAMETERS
    assert not model.training
    assert model.dtype == dtype_for(model_type) == torch.float64

    inputs = inputs_for(model)
    once, again = forward_outputs(model, inputs), forward_outputs(model, inputs)

    assert once
    assert all(torch.isfinite(output).all() for output in once)
    assert all(torch.equal(*pair) for pair in zip(once, again, strict=True))


@pytest.mark.parametrize("model_type", _TYPES)
def test_no_bias_is_zero_and_no_norm_is_one(model_type: str) -> None:
    model = tiny_model(model_type)
    for name, parameter in model.named_parameters():
        assert parameter.count_nonzero() > 0, name
    norms = [module for module in model.modules() if isinstance(module, nn.LayerNorm)]
    assert all((norm.weight != 1).all() for norm in norms if norm.elementwise_affine)


def test_the_seed_decides_about_weights_and_inputs() -> None:
    first, same, other = (tiny_model("llama", seed=seed) for seed in (0, 0, 1))
    assert _equal(dict(first.named_parameters()), dict(same.named_parameters()))
    assert not _equal(dict(first.named_parameters()), dict(other.named_parameters()))
    assert _equal(inputs_for(first), inputs_for(same))
    assert not _equal(inputs_for(first), inputs_for(first, seed=2))


def test_building_leaves_the_callers_random_numbers_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    model = tiny_model("gpt2")
    forward_outputs(model, inputs_for(model))
    assert torch.equal(torch.rand(2), expected)


@pytest.mark.parametrize("model_type", _MASKED_TYPES)
def test_padded_tokens_do_not_reach_the_outputs(model_type: str) -> None:
    model = tiny_model(model_type)
    inputs = inputs_for(model)
    padded_BT = inputs["attention_mask"] == 0
    assert padded_BT[-1].any()
    assert not padded_BT[0].any()

    changed = {**inputs, "input_ids": torch.where(padded_BT, 7, inputs["input_ids"])}
    before, after = forward_outputs(model, inputs)[0], forward_outputs(model, changed)[0]

    if before.shape[:2] == padded_BT.shape:
        before, after = before[~padded_BT], after[~padded_BT]
    torch.testing.assert_close(before, after)


def test_queries_share_keys_where_the_type_lets_them() -> None:
    config = tiny_config("llama")
    assert (config.num_attention_heads, config.num_key_value_heads, config.head_dim) == (4, 2, 8)


def test_there_is_a_layer_of_each_sort() -> None:
    assert set(tiny_config("gemma3").text_config.layer_types) == {"sliding_attention", "full_attention"}


def test_an_image_stands_in_the_text() -> None:
    model = tiny_model("llava")
    inputs = inputs_for(model)
    changed = {**inputs, "pixel_values": inputs["pixel_values"] + 1}
    assert not torch.equal(forward_outputs(model, inputs)[0], forward_outputs(model, changed)[0])


def test_types_without_an_auto_class_say_so() -> None:
    assert "llama" in model_types()
    assert "siglip_text_model" not in model_types()
    with pytest.raises(NotTestable, match="has no auto class"):
        auto_class_for("siglip_text_model")


def _equal(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)
