"""Generation from models whose attention is gone in some layers: caches are counted as if nothing were gone.

Default kernels and float32, as users run them: caches are written by name and by layer, and each release of
transformers may change how. The tests find the cache by the names that releases have used; a new one fails here.
"""

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from transformers import (
    BartConfig,
    BertGenerationConfig,
    Cache,
    DynamicCache,
    EncoderDecoderCache,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoConfig,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen3Config,
    StaticCache,
    T5Config,
    WhisperConfig,
)

from patchers.discovery.discover import discover
from patchers.modeling_pruned import Skip, is_skip
from patchers.patching.gates import Gate
from patchers.patching.patch import patch
from sparse_trainer.cut.optimize import optimize_model
from tests.fixtures.compact_models import perturbed

# Shape legend: B = rows, T = tokens, V = vocabulary.

_SIZES: dict[str, Any] = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 63, "max_position_embeddings": 64,
}  # fmt: skip
_GROUPED = {**_SIZES, "num_key_value_heads": 2, "head_dim": 8}
_SLIDING = {**_GROUPED, "sliding_window": 4}
_MIXED = ["full_attention", "sliding_attention", "full_attention"]
_NEO = {
    "vocab_size": 64, "hidden_size": 32, "num_layers": 3, "num_heads": 4, "intermediate_size": 48, "window_size": 4,
    "attention_types": [[["global", "local", "global"], 1]], "bos_token_id": 1, "eos_token_id": 63, "pad_token_id": 0,
}  # fmt: skip
_GPT2 = {
    "vocab_size": 64, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64,
    "bos_token_id": 1, "eos_token_id": 63, "pad_token_id": 0,
}  # fmt: skip

DECODERS: dict[str, tuple[str, PreTrainedConfig]] = {
    "llama": ("LlamaForCausalLM", LlamaConfig(**_GROUPED)),
    "qwen3": ("Qwen3ForCausalLM", Qwen3Config(**_GROUPED)),
    "gpt2": ("GPT2LMHeadModel", GPT2Config(**_GPT2)),
    "mistral_sliding": ("MistralForCausalLM", MistralConfig(**_SLIDING)),
    "gemma2_sliding_first": ("Gemma2ForCausalLM", Gemma2Config(**_SLIDING)),
    "gemma3_full_first": ("Gemma3ForCausalLM", Gemma3TextConfig(**_SLIDING, layer_types=_MIXED)),
    "gpt_neox": ("GPTNeoXForCausalLM", GPTNeoXConfig(**_SIZES)),
    "gpt_neo": ("GPTNeoForCausalLM", GPTNeoConfig(**_NEO)),
    "bert_generation": ("BertGenerationDecoder", BertGenerationConfig(**_SIZES, is_decoder=True)),
}
"""Class and config; the cache of layer 0 is full in some, sliding in others, and is handed on under several names."""

DYNAMIC_ONLY = ("gpt_neo",)
"""Stock models that read a static cache wrongly, dense too."""

CACHE_NAMES = ("cache", "past_key_values")
"""What transformers calls a cache, newest first."""


def built(name: str, config: PreTrainedConfig) -> PreTrainedModel:
    torch.manual_seed(0)
    return perturbed(getattr(transformers, name)(config)).eval()


def without_attention(model: PreTrainedModel, gone: Callable[[str], bool]) -> PreTrainedModel:
    """Cut the attention of the modules that `gone` picks by path."""
    structure = discover(model, ("attention",))
    closed = {group.name for group in structure.groups if gone(group.core.path if group.core else "")}
    assert closed
    for name, gate in patch(model, structure, lambda group: Gate(group.num_units, scored=False)).items():
        gate.set_keep(torch.tensor([name not in closed]))
    compact = optimize_model(model)
    assert sum(map(is_skip, compact.modules())) == len(closed)
    return compact


def decoder(family: str, *layers: int) -> PreTrainedModel:
    model = built(*DECODERS[family])
    paths = [f".{layer}." for layer in layers]
    return without_attention(model, lambda path: any(p in path for p in paths))


def with_cache(model: PreTrainedModel, cache: Cache, **inputs: Any) -> Tensor:
    """Return the logits of a forward pass that reads and writes this cache."""
    name = next(n for n in CACHE_NAMES if n in inspect.signature(model.forward).parameters)
    logits: Tensor = model(**inputs, **{name: cache}, use_cache=True).logits
    return logits


def written(model: PreTrainedModel, inputs: dict[str, Tensor], **how: Any) -> Any:
    """Generate 8 tokens, never the end of the text, and return them with their logits or scores."""
    return model.generate(
        **inputs, max_new_tokens=8, min_new_tokens=8, do_sample=False, return_dict_in_generate=True,
        output_logits=True, **how,
    )  # fmt: skip


def assert_same_text(model: PreTrainedModel, inputs: dict[str, Tensor], **how: Any) -> None:
    """Expect what a search without a cache finds."""
    search = {name: how[name] for name in ("num_beams", "num_return_sequences") if name in how}
    found = written(model, inputs, use_cache=True, **how)
    expected = written(model, inputs, use_cache=False, **search)
    assert found.sequences.tolist() == expected.sequences.tolist()
    for ours, theirs in zip(found.logits, expected.logits, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def prompt(rows: int = 2) -> dict[str, Tensor]:
    torch.manual_seed(1)
    ids_BT = torch.randint(2, 60, (rows, 7))
    return {"input_ids": ids_BT, "attention_mask": torch.ones_like(ids_BT)}


def left_padded() -> dict[str, Tensor]:
    inputs = prompt()
    inputs["attention_mask"][1, :3] = 0
    inputs["input_ids"][1, :3] = 0
    return inputs


def caches(model: PreTrainedModel, family: str) -> list[Cache]:
    made: list[Cache] = [DynamicCache(config=model.config)]
    if family not in DYNAMIC_ONLY:
        made.append(StaticCache(model.config, max_cache_len=16))
    return made


LAYERS = [(0,), (1,), (0, 1)]


@pytest.mark.parametrize("layers", LAYERS, ids=str)
@pytest.mark.parametrize("family", DECODERS)
@torch.no_grad()
def test_a_prompt_may_be_read_in_pieces(family: str, layers: tuple[int, ...]) -> None:
    model = decoder(family, *layers)
    ids_BT = prompt()["input_ids"]
    whole_BTV = model(ids_BT, use_cache=False).logits
    for cache in caches(model, family):
        read = [
            with_cache(model, cache, input_ids=ids_BT[:, a:b]) for a, b in ((0, 3), (3, 5), (5, 6), (6, 7))
        ]
        torch.testing.assert_close(torch.cat(read, 1), whole_BTV, atol=1e-4, rtol=1e-4)
        assert [int(cache.get_seq_length(layer)) for layer in range(3)] == [7, 7, 7]


@pytest.mark.parametrize("family", DECODERS)
@torch.no_grad()
def test_every_search_finds_with_a_cache_what_it_finds_without(family: str) -> None:
    model = decoder(family, 0)
    assert_same_text(model, prompt())
    if family != "gpt_neo":
        assert_same_text(model, left_padded())
    assert_same_text(model, prompt(), num_beams=3, num_return_sequences=2)


@pytest.mark.parametrize("how", ["lookup", "assisted", "static", "chunks", "static_chunks"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2_sliding_first", "gpt_neox"])
@torch.no_grad()
def test_faster_ways_to_generate_write_the_same_text(family: str, how: str) -> None:
    model = decoder(family, 0)
    ways: dict[str, dict[str, Any]] = {
        "lookup": {"prompt_lookup_num_tokens": 2},
        "assisted": {"assistant_model": decoder(family, 0, 1)},
        "static": {"cache_implementation": "static"},
        "chunks": {"prefill_chunk_size": 3},
        "static_chunks": {"prefill_chunk_size": 3, "cache_implementation": "static"},
    }
    inputs = prompt(rows=1)
    if how == "lookup":
        inputs = {name: value.repeat(1, 2) for name, value in inputs.items()}
    assert_same_text(model, inputs, **ways[how])


@torch.no_grad()
def test_a_no_op_writes_where_room_was_made_ahead() -> None:
    model = decoder("llama", 0)
    ids_BT = prompt()["input_ids"]
    cache = StaticCache(model.config, max_cache_len=16)
    cache.early_initialization(2, 2, 8, torch.float32, torch.device("cpu"))
    read = [with_cache(model, cache, input_ids=ids_BT[:, a:b]) for a, b in ((0, 4), (4, 7))]
    torch.testing.assert_close(torch.cat(read, 1), model(ids_BT).logits, atol=1e-4, rtol=1e-4)


ENCODER_DECODERS: dict[str, tuple[str, PreTrainedConfig]] = {
    "bart": (
        "BartForConditionalGeneration",
        BartConfig(
            vocab_size=64, d_model=32, encoder_layers=2, decoder_layers=3, encoder_attention_heads=4,
            decoder_attention_heads=4, encoder_ffn_dim=48, decoder_ffn_dim=48, max_position_embeddings=64,
            pad_token_id=0, bos_token_id=1, eos_token_id=63, decoder_start_token_id=1, forced_eos_token_id=None,
        ),
    ),
    "whisper": (
        "WhisperForConditionalGeneration",
        WhisperConfig(
            vocab_size=64, num_mel_bins=8, d_model=32, encoder_layers=2, decoder_layers=3, encoder_attention_heads=4,
            decoder_attention_heads=4, encoder_ffn_dim=48, decoder_ffn_dim=48, max_source_positions=12,
            max_target_positions=40, pad_token_id=0, bos_token_id=1, eos_token_id=63, decoder_start_token_id=1,
            suppress_tokens=None, begin_suppress_tokens=None,
        ),
    ),
}  # fmt: skip


def source(family: str) -> dict[str, Tensor]:
    torch.manual_seed(1)
    if family == "whisper":
        return {"input_features": torch.randn(2, 8, 24)}
    return {"input_ids": torch.randint(2, 60, (2, 7))}


def assert_decoder_counts(model: PreTrainedModel, inputs: dict[str, Tensor]) -> None:
    """Read a text in pieces, with both kinds of cache; cross-attention must not count as text."""
    ids_BT = torch.randint(2, 60, (2, 6))
    whole_BTV = model(**inputs, decoder_input_ids=ids_BT, use_cache=False).logits
    config = model.config
    layers = range(3)
    for parts in (
        (DynamicCache(config=config), DynamicCache(config=config)),
        (
            StaticCache(config, max_cache_len=9),
            StaticCache(config, max_cache_len=12 if "input_features" in inputs else 7),
        ),
    ):
        cache = EncoderDecoderCache(*parts)
        read = [
            with_cache(model, cache, **inputs, decoder_input_ids=ids_BT[:, a:b])
            for a, b in ((0, 3), (3, 5), (5, 6))
        ]
        torch.testing.assert_close(torch.cat(read, 1), whole_BTV, atol=1e-4, rtol=1e-4)
        assert {int(cache.self_attention_cache.get_seq_length(layer)) for layer in layers} == {6}


@pytest.mark.parametrize("gone", [("self",), ("cross",), ("self", "cross")], ids="+".join)
@pytest.mark.parametrize("family", ENCODER_DECODERS)
@torch.no_grad()
def test_decoders_of_encoders_count_text_alone(family: str, gone: tuple[str, ...]) -> None:
    ends = tuple(
        {"self": "decoder.layers.0.self_attn", "cross": "decoder.layers.0.encoder_attn"}[g] for g in gone
    )
    model = without_attention(built(*ENCODER_DECODERS[family]), lambda path: path.endswith(ends))
    inputs = source(family)
    assert_decoder_counts(model, inputs)
    for how in ({}, {"num_beams": 3}):
        assert_same_text(model, inputs, **how)


@torch.no_grad()
def test_layers_of_a_t5_are_gone_for_its_caches_too() -> None:
    config = T5Config(
        vocab_size=64, d_model=32, d_kv=8, d_ff=48, num_layers=4, num_heads=4, pad_token_id=0, eos_token_id=63,
        decoder_start_token_id=1,
    )  # fmt: skip
    model = built("T5ForConditionalGeneration", config)
    structure = discover(model, ("layers", "heads"))
    for name, gate in patch(model, structure, lambda group: Gate(group.num_units, scored=False)).items():
        group = structure[name]
        if group.kind == "heads":
            gate.set_keep(torch.tensor([True, group.layer % 2 == 0, True, False]))
        else:
            gate.set_keep(torch.tensor([group.layer != 1]))
    model = optimize_model(model)
    assert_decoder_counts(model, source("t5"))
    for how in ({}, {"num_beams": 3}):
        assert_same_text(model, source("t5"), **how)


@torch.no_grad()
def test_cross_attention_of_an_old_style_decoder_counts_nothing() -> None:
    config = BertGenerationConfig(**_SIZES, is_decoder=True, add_cross_attention=True)
    states = torch.randn(2, 5, 32)
    for gone in (".0.crossattention", ".0.attention", ".0."):
        model = without_attention(
            built("BertGenerationDecoder", config),
            lambda path, gone=gone: gone in path,  # type: ignore[misc]
        )
        ids_BT = prompt()["input_ids"]
        whole_BTV = model(ids_BT, encoder_hidden_states=states, use_cache=False).logits
        cache = EncoderDecoderCache(DynamicCache(config=config), DynamicCache(config=config))
        read = [
            with_cache(model, cache, input_ids=ids_BT[:, a:b], encoder_hidden_states=states)
            for a, b in ((0, 3), (3, 6), (6, 7))
        ]
        torch.testing.assert_close(torch.cat(read, 1), whole_BTV, atol=1e-4, rtol=1e-4)


class Positional(torch.nn.Module):
    """Attention that is handed everything by position, as GIT, CPM-Ant and Dia do."""

    def __init__(self) -> None:
        super().__init__()
        self.layer_id = 1

    def forward(
        self, states: Tensor, key_value_states: Tensor | None, mask: Tensor | None, anything: Any
    ) -> Tensor:
        return states


def test_a_no_op_knows_a_cache_by_its_type_and_place_and_cross_attention_by_its_signature() -> None:
    skip = Skip.of(Positional(), 0, 3, False)
    assert skip.layer_idx == 1
    states_BTD, cache = torch.randn(2, 5, 4), DynamicCache()
    assert skip(states_BTD, None, None, cache).shape == (2, 5, 3)
    assert (cache.get_seq_length(0), cache.get_seq_length(1)) == (0, 5)
    skip(states_BTD, torch.randn(2, 9, 4), None, cache)
    skip(states_BTD, key_value_states=torch.randn(2, 9, 4), cache_of_tomorrow=cache)
    assert cache.get_seq_length(1) == 5
    skip(states_BTD, cache_of_tomorrow=cache)
    assert cache.get_seq_length(1) == 10
    skip(states_BTD, cache_of_tomorrow=object())
