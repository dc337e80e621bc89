"""Discovery finds every unit of every family, and refuses what it does not know by name."""

import time

import pytest
import torch
from torch import nn
from transformers import (
    BertConfig,
    BertModel,
    BitNetConfig,
    BitNetModel,
    DebertaV2Config,
    DebertaV2Model,
    DeepseekV3Config,
    DeepseekV3Model,
    GPT2Config,
    GPT2Model,
    LlamaConfig,
    LlamaModel,
    ResNetConfig,
    ResNetModel,
    StableLmConfig,
    StableLmModel,
)

from patchers.discovery.discover import discover
from patchers.errors import UnsupportedModelError
from sparse_trainer.inputs.make import forward_outputs, inputs_for
from sparse_trainer.training.arguments.arguments import SparseTrainingArguments
from sparse_trainer.training.coordinator import ModelPatchingCoordinator
from tests.architectures.tiny import tiny_model
from tests.fixtures.compact_models import FAMILIES, tiny


@pytest.mark.parametrize("family", FAMILIES)
def test_finds_every_unit(family: str) -> None:
    structure = discover(tiny(family))
    assert [g.num_units for g in structure.of(["heads"])] == [4] * 3
    assert [g.num_units for g in structure.of(["channels"])] == [48] * 3
    for kind in ("attention", "ffn", "layers"):
        assert [g.num_units for g in structure.of([kind])] == [1] * 3
    assert len({g.name for g in structure.groups}) == len(structure.groups)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_linear_is_in_a_group_or_named_with_a_reason(family: str) -> None:
    model = tiny(family)
    structure = discover(model)
    grouped = {s.path for g in structure.groups for s in g.slices}
    linears = {path for path, m in model.named_modules() if isinstance(m, nn.Linear)}
    assert grouped | set(structure.untouched) == linears
    assert not grouped & set(structure.untouched)
    assert all(reason == "outside the blocks" for reason in structure.untouched.values())


def test_works_on_meta() -> None:
    with torch.device("meta"):
        model = BertModel(BertConfig(num_hidden_layers=2))
    assert [g.num_units for g in discover(model, ["channels"]).groups] == [3072] * 2


def test_excluded_groups_stay_out_and_are_named() -> None:
    structure = discover(tiny("bert"), ["heads", "channels"], ["layer.0", "*.heads"])
    assert [g.name for g in structure.groups] == [f"bert.encoder.layer.{i}.channels" for i in (1, 2)]
    assert "excluded" in structure.untouched["bert.encoder.layer.0.output.dense"]
    with pytest.raises(UnsupportedModelError, match=r"'layer\.9' matches no group"):
        discover(tiny("bert"), exclude=["layer.9"])


def test_unknown_model_is_refused_with_its_linears() -> None:
    with pytest.raises(
        UnsupportedModelError, match=r"ResNetModel.*no attention or feed-forward module of a known form"
    ):
        discover(ResNetModel(ResNetConfig(embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1])))
    with pytest.raises(UnsupportedModelError, match=r"linears: 0, 1"):
        discover(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)))


def test_contradicting_shapes_are_refused_with_both_numbers() -> None:
    model = tiny("bert")
    model.bert.encoder.layer[1].attention.self.num_attention_heads = 5
    with pytest.raises(UnsupportedModelError, match=r"layer\.1.*32 features do not divide by 5 heads"):
        discover(model)


def test_queries_that_do_not_divide_into_groups_are_refused_with_both_numbers() -> None:
    model = tiny_model("llama")
    model.model.layers[1].self_attn.k_proj = nn.Linear(32, 3 * 8, bias=False)
    with pytest.raises(
        UnsupportedModelError, match=r"layers\.1\.self_attn: 4 query heads do not divide into 3 KV groups"
    ):
        discover(model)


def test_keys_that_are_no_whole_heads_are_refused_with_both_numbers() -> None:
    model = tiny_model("llama")
    model.model.layers[1].self_attn.k_proj = nn.Linear(32, 20, bias=False)
    with pytest.raises(
        UnsupportedModelError,
        match=r"layers\.1\.self_attn\.k_proj: 20 features do not divide by 8 features of a head",
    ):
        discover(model)


def test_a_convolution_pins_the_first_layer() -> None:
    config = DebertaV2Config(
        hidden_size=32, num_attention_heads=4, intermediate_size=48, num_hidden_layers=3, conv_kernel_size=3
    )
    structure = discover(DebertaV2Model(config), ["layers"])
    assert [g.layer for g in structure.groups] == [1, 2]
    assert "a convolution takes its output" in structure.untouched["encoder.layer.0"]


def test_latent_attention_gives_heads_and_keeps_its_ranks() -> None:
    config = DeepseekV3Config(
        hidden_size=32, num_attention_heads=4, num_key_value_heads=4, q_lora_rank=16, kv_lora_rank=8,
        num_hidden_layers=2, qk_rope_head_dim=4, qk_nope_head_dim=4, v_head_dim=8, intermediate_size=48,
        first_k_dense_replace=2, vocab_size=64,
    )  # fmt: skip
    structure = discover(DeepseekV3Model(config))
    assert [g.num_units for g in structure.of(["heads"])] == [4] * 2
    assert [(s.path.rpartition(".")[2], s.width) for s in structure.of(["heads"])[0].slices] == [
        ("q_b_proj", 8), ("kv_b_proj", 12), ("o_proj", 8),
    ]  # fmt: skip
    assert len(structure.of(["layers"])) == 2
    assert "latent space" in structure.untouched["layers.0.self_attn.q_a_proj"]


def test_gpt2_heads_are_found_in_its_transposed_linears() -> None:
    model = GPT2Model(GPT2Config(n_embd=32, n_head=4, n_layer=2, vocab_size=64))
    assert [g.num_units for g in discover(model).of(["heads"])] == [4] * 2


@pytest.mark.parametrize("intermediate", [24, 32])
def test_a_norm_between_the_linears_keeps_the_channels(intermediate: int) -> None:
    config = BitNetConfig(
        hidden_size=32, num_attention_heads=4, num_key_value_heads=4, intermediate_size=intermediate,
        num_hidden_layers=2, vocab_size=64,
    )  # fmt: skip
    with pytest.raises(UnsupportedModelError, match=r"ffn_sub_norm mixes or normalises the channels"):
        discover(BitNetModel(config))


def test_channels_as_many_as_hidden_features_are_found() -> None:
    config = BertConfig(hidden_size=32, num_attention_heads=4, intermediate_size=32, num_hidden_layers=2)
    assert [g.num_units for g in discover(BertModel(config)).of(["channels"])] == [32] * 2


def test_a_norm_for_each_head_keeps_the_heads() -> None:
    config = StableLmConfig(
        hidden_size=32, num_attention_heads=4, num_key_value_heads=4, intermediate_size=48, num_hidden_layers=2,
        qk_layernorm=True, vocab_size=64,
    )  # fmt: skip
    structure = discover(StableLmModel(config))
    assert not structure.of(["heads"])
    assert "q_layernorm" in structure.untouched["layers.0.self_attn"]


def test_a_parameter_with_an_entry_per_head_keeps_the_heads() -> None:
    model = BertModel(
        BertConfig(hidden_size=32, num_attention_heads=4, intermediate_size=48, num_hidden_layers=2)
    )
    model.encoder.layer[0].attention.self.slopes = nn.Parameter(torch.ones(4))
    structure = discover(model)
    assert [g.layer for g in structure.of(["heads"])] == [1]
    assert "self.slopes may have an entry for each head" in structure.untouched["encoder.layer.0.attention"]


def test_a_model_of_eighty_layers_is_read_in_two_seconds() -> None:
    config = LlamaConfig(
        hidden_size=8192,
        intermediate_size=28672,
        num_hidden_layers=80,
        num_attention_heads=64,
        num_key_value_heads=8,
    )
    with torch.device("meta"):
        model = LlamaModel(config)
    start = time.process_time()
    structure = discover(model)
    assert time.process_time() - start < 2
    assert [g.num_units for g in structure.of(["heads"])] == [8] * 80


def test_towers_are_included_or_excluded_by_name() -> None:
    model = tiny_model("llava")
    text = discover(model, ["heads", "channels"], include=["language_model"])
    vision = discover(model, ["heads", "channels"], exclude=["language_model"])
    assert {".vision_tower." in g.name for g in text.groups} == {False}
    assert {".vision_tower." in g.name for g in vision.groups} == {True}
    assert len(text.groups) + len(vision.groups) == len(discover(model, ["heads", "channels"]).groups)
    with pytest.raises(UnsupportedModelError, match=r"include: 'audio_tower' matches no group"):
        discover(model, include=["audio_tower"])
    coordinator = ModelPatchingCoordinator(SparseTrainingArguments(include=["language_model"]))
    coordinator.patch_model(model)
    assert {g.name for g in coordinator.structure.groups} == {g.name for g in text.groups}


@pytest.mark.parametrize(
    ("model_type", "path", "reason"),
    [
        ("t5", "encoder.block.0", "relative_attention_bias feeds the other layers"),
        ("gemma4_text", "model.layers.1", "input made for its number"),
        ("flaubert", "attentions.0", "another list runs beside this one"),
        ("qwen3_vl_vision", "blocks.0", "taken by number"),
        ("hiera", "encoder.stages.2.layers.0", "make the picture smaller"),
    ],
)
def test_layers_that_cannot_go_are_named_with_the_reason(model_type: str, path: str, reason: str) -> None:
    structure = discover(tiny_model(model_type))
    assert reason in structure.untouched[path]
    assert not any(g.block == path for g in structure.of(["layers"]))
    assert path not in discover(tiny_model(model_type), ["channels"]).untouched


def test_heads_of_an_attention_that_short_inputs_exchanged_stay() -> None:
    model = tiny_model("big_bird")
    assert not discover(model).of(["heads"])
    forward_outputs(model, inputs_for(model))
    structure = discover(model)
    assert not structure.of(["heads"])
    assert "short inputs" in structure.untouched["encoder.layer.0.attention"]
