"""GGUF files say in unmodified llama.cpp what the model says in transformers."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
)

from patchers.discovery.discover import discover
from sparse_trainer.convert.folder import convert_folder
from sparse_trainer.cut.optimize import optimize_model
from sparse_trainer.cut.share import share_layers
from sparse_trainer.errors import ConversionError
from sparse_trainer.folders.load import load_pruned
from sparse_trainer.folders.save import save_pruned
from tests.fixtures.character_tokenizer import character_tokenizer
from tests.fixtures.compact_models import patched
from tests.fixtures.language_models import language_model
from tests.fixtures.llama_cpp import difference

pytest.importorskip("gguf")
pytest.importorskip("xllamacpp")

_SIZES: dict[str, Any] = {
    "vocab_size": 99, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4, "num_attention_heads": 8,
    "num_key_value_heads": 4, "head_dim": 16, "max_position_embeddings": 128, "pad_token_id": 1, "bos_token_id": 0,
    "eos_token_id": 1,
}  # fmt: skip
_BIASES = {"attention_bias": True, "mlp_bias": True}
_LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32, "rope_theta": 10000.0,
}  # fmt: skip
_YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32, "rope_theta": 10000.0}
_LINEAR = {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}
_LONGROPE = {
    "rope_type": "longrope", "rope_theta": 10000.0, "original_max_position_embeddings": 40,
    "short_factor": [1.0 + 0.1 * n for n in range(8)], "long_factor": [1.0 + 0.7 * n for n in range(8)],
}  # fmt: skip
_PARTLY = {
    **_LONGROPE, "partial_rotary_factor": 0.75, "short_factor": [1.1, 1.2, 1.3, 1.4, 1.5, 1.6],
    "long_factor": [2.0, 3.0, 4.0, 5.0, 6.0, 7.0],
}  # fmt: skip
_SHORT = {**_PARTLY, "original_max_position_embeddings": 300, "factor": 4.0}
_TWO_BASES = {
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
    "sliding_attention": {"rope_type": "default", "rope_theta": 5000.0},
}
_DYNAMIC = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
_GEMMA = {"head_dim": 16, "query_pre_attn_scalar": 16}
MODELS: dict[str, tuple[str, dict[str, Any], str, str | None]] = {
    "llama": ("Llama", {}, "llama", "deci"),
    "llama tied": ("Llama", {"tie_word_embeddings": True}, "llama", "deci"),
    "llama biases": ("Llama", _BIASES, "llama", "deci"),
    "llama3 positions": ("Llama", {"rope_parameters": _LLAMA3}, "llama", "deci"),
    "llama linear positions": ("Llama", {"rope_parameters": _LINEAR}, "llama", "deci"),
    "llama yarn": ("Llama", {"rope_parameters": _YARN}, "llama", "deci"),
    "llama dynamic": ("Llama", {"rope_parameters": _DYNAMIC}, "llama", "deci"),
    "llama longrope": ("Llama", {"rope_parameters": _LONGROPE}, "llama", "deci"),
    "mistral": ("Mistral", {"sliding_window": None}, "llama", "deci"),
    "qwen2": ("Qwen2", {"hidden_size": 128}, "qwen2", "deci"),
    "qwen2 odd heads": ("Qwen2", {}, "deci", "deci"),
    "qwen2 yarn": ("Qwen2", {"hidden_size": 128, "rope_parameters": _YARN}, "qwen2", "deci"),
    "qwen3": ("Qwen3", {"tie_word_embeddings": True}, "qwen3", "openelm"),
    "qwen3 head": ("Qwen3", {}, "qwen3", None),
    "phi3": ("Phi3", {"hidden_size": 128}, "phi3", "deci"),
    "qwen3 yarn": ("Qwen3", {"tie_word_embeddings": True, "rope_parameters": _YARN}, "qwen3", "openelm"),
    "phi3 longrope": ("Phi3", {"hidden_size": 128, "rope_parameters": _LONGROPE}, "phi3", "deci"),
    "phi3 partly": ("Phi3", {"hidden_size": 128, "rope_parameters": _PARTLY}, "phi3", "deci"),
    "phi3 short": ("Phi3", {"hidden_size": 128, "rope_parameters": _SHORT}, "phi3", "deci"),
    "phi3 narrow": ("Phi3", {"head_dim": 12, "hidden_size": 128}, "deci", "deci"),
    "gemma": ("Gemma", {}, "gemma", None),
    "gemma2": ("Gemma2", {**_GEMMA, "sliding_window": 8}, "gemma2", None),
    "gemma2 any kinds": (
        "Gemma2",
        {**_GEMMA, "sliding_window": 80, "layer_types": ["full_attention"] + ["sliding_attention"] * 3},
        "gemma2",
        None,
    ),
    "gemma2 27b": (
        "Gemma2",
        {**_GEMMA, "query_pre_attn_scalar": 40, "num_hidden_layers": 46},
        "gemma2",
        None,
    ),
    "gemma3 27b": (
        "Gemma3",
        {**_GEMMA, "query_pre_attn_scalar": 40, "num_hidden_layers": 62},
        "gemma3",
        None,
    ),
    "gemma3 bases": (
        "Gemma3",
        {**_GEMMA, "sliding_window": 8, "num_hidden_layers": 6, "rope_parameters": _TWO_BASES},
        "gemma3",
        None,
    ),
    "gemma3": ("Gemma3", {**_GEMMA, "sliding_window": 8, "num_hidden_layers": 6}, "gemma3", None),
}
"""Class, config, architecture in llama.cpp of even and of uneven layers."""
KEPT = {"heads": (2, 1, 4, 3), "channels": (32, 96, 64, 7)}


def model_of(name: str) -> PreTrainedModel:
    """Return a tiny model whose biases and norms do something."""
    cls, config, _, _ = MODELS[name]
    family = {"Gemma3": "Gemma3Text"}.get(cls, cls)
    torch.manual_seed(3)
    made = getattr(transformers, f"{family}Config")(**{**_SIZES, **config})
    model: PreTrainedModel = getattr(transformers, f"{cls}ForCausalLM")(made).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def uneven(model: PreTrainedModel) -> PreTrainedModel:
    """Return the model with other heads and channels in every layer."""
    keep = {
        group.name: torch.randperm(group.num_units) < KEPT[group.kind][group.layer]
        for group in discover(model, ("heads", "channels")).groups
    }
    cut: PreTrainedModel = optimize_model(patched(model, keep))
    return cut


def stored(model: PreTrainedModel, folder: Path) -> str:
    """Write a model with a tokenizer, and return the folder."""
    if "pruning" in vars(model.config):
        save_pruned(model, folder, processor=character_tokenizer())
    else:
        model.save_pretrained(folder)
        character_tokenizer().save_pretrained(folder)
    return str(folder)


def converted(model: PreTrainedModel, folder: Path, numbers: str = "f32") -> tuple[Path, Mapping[str, Any]]:
    """Return the file of a model, and what is said of it."""
    return convert_folder(stored(model, folder / "one"), folder / "model.gguf", "gguf", quantize=numbers)


def exactness(name: str) -> tuple[float, float]:
    """Return how far log-probabilities may be, and tokens short of the likeliest ones."""
    # llama.cpp looks GELU up in a table of 16 bits, in every layer.
    deep = 1e-2 if "27b" in name else 0.0
    return (1e-4 if "gemma" not in name else deep or 2e-3), deep


@pytest.mark.parametrize("name", MODELS)
def test_a_dense_model_takes_the_architecture_of_its_family(name: str, tmp_path: Path) -> None:
    model = model_of(name)
    out, facts = converted(model, tmp_path)
    assert facts["architecture"] == MODELS[name][2]
    largest, short = difference(model, out, exact=True)
    within, behind = exactness(name)
    assert largest < within
    assert short <= behind


@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3", "phi3", "phi3 partly", "gemma2 27b"])
def test_equal_layers_with_fewer_heads(name: str, tmp_path: Path) -> None:
    model = model_of(name)
    keep = {g.name: torch.arange(g.num_units) != 1 for g in discover(model, ["heads"]).groups}
    cut = optimize_model(patched(model, keep))
    out, facts = converted(cut, tmp_path)
    # Those of Qwen2 and Phi-3 want heads that together have the width of the hidden features.
    assert facts["architecture"] == ("deci" if name.startswith(("qwen2", "phi3")) else name.partition(" ")[0])
    assert difference(cut, out, exact=True)[0] < exactness(name)[0]


@pytest.mark.parametrize("name", [name for name, row in MODELS.items() if row[3]])
def test_uneven_layers_take_one_that_reads_their_sizes(name: str, tmp_path: Path) -> None:
    model = uneven(model_of(name))
    out, facts = converted(model, tmp_path)
    assert facts["architecture"] == MODELS[name][3]
    largest, short = difference(model, out, exact=True)
    assert largest < 1e-4
    assert short == 0


@pytest.mark.parametrize("name", ["llama", "qwen2 odd heads", "qwen3", "gemma2"])
def test_in_16_bits_and_with_the_kernels_that_users_run(name: str, tmp_path: Path) -> None:
    model = model_of(name) if name == "gemma2" else uneven(model_of(name))
    out, _ = converted(model, tmp_path, "f16")
    largest, short = difference(model, out)
    assert largest < 0.01
    assert short < 0.01


@pytest.mark.parametrize(
    ("numbers", "within"),
    [("bf16", 0.1), ("q8_0", 0.1), ("q5_1", 0.6), ("q5_0", 0.6), ("q4_1", 1.0), ("q4_0", 1.5)],
)
def test_formats_of_numbers(numbers: str, within: float, tmp_path: Path) -> None:
    model = uneven(model_of("llama"))
    out, facts = converted(model, tmp_path, numbers)
    assert facts["zero_channels_added"] == (25 if numbers.startswith("q") else 0)
    assert facts["matrices_in_other_types"] == (0 if numbers in ("bf16", "q8_0") else 2)
    largest, short = difference(model, out)
    assert largest < within
    assert short < within


def test_branches_that_are_gone(tmp_path: Path) -> None:
    model = model_of("llama")
    gone = {"model.layers.1.attention", "model.layers.2.ffn"}
    cut = optimize_model(patched(model, {name: torch.tensor([False]) for name in gone}))
    out, facts = converted(cut, tmp_path)
    assert facts["architecture"] == "deci"
    assert facts["zero_channels_added"] == 32
    largest, short = difference(cut, out, exact=True)
    assert largest < 1e-4
    assert short == 0


def test_equal_widths_and_fewer_layers_stay_the_architecture_of_the_family(tmp_path: Path) -> None:
    model = model_of("qwen3 head")
    groups = discover(model, ["channels", "layers"]).groups
    keep = {
        g.name: torch.arange(g.num_units) < (40 if g.kind == "channels" else g.layer != 1) for g in groups
    }
    cut = optimize_model(patched(model, keep))
    out, facts = converted(cut, tmp_path)
    assert facts["architecture"] == "qwen3"
    assert facts["layers"] == 3
    assert difference(cut, out, exact=True)[0] < 1e-4


def test_layers_that_share_weights_have_a_copy_each(tmp_path: Path) -> None:
    shared = share_layers(model_of("llama"), 2)
    out, facts = converted(shared, tmp_path)
    assert facts["architecture"] == "llama"
    assert difference(shared, out, exact=True)[0] < 1e-4


def refused(model: PreTrainedModel, folder: Path, numbers: str = "f16") -> str:
    """Return why a model is not converted, and see that nothing was written."""
    source = stored(model, folder / "one")
    with pytest.raises(ConversionError) as told:
        convert_folder(source, folder / "model.gguf", "gguf", quantize=numbers)
    assert [path.name for path in folder.iterdir()] == ["one"]
    return str(told.value)


def test_what_no_architecture_holds_is_refused_before_any_work(tmp_path: Path) -> None:
    places = iter(range(100))

    def why(model: PreTrainedModel, numbers: str = "f16") -> str:
        (place := tmp_path / f"{next(places)}").mkdir()
        return refused(model, place, numbers)

    assert "reads those of layer 0. In Python, save_pruned(" in why(uneven(model_of("gemma2")))
    assert "reads out by the embeddings. In Python, save_pruned(" in why(uneven(model_of("qwen3 head")))
    first = {"model.layers.0.attention": torch.tensor([False])}
    assert "layer 0 has no attention" in why(optimize_model(patched(model_of("llama"), first)))
    assert "layer 0 has no attention, and 'openelm'" in why(optimize_model(patched(model_of("qwen3"), first)))
    narrow = LlamaForCausalLM(LlamaConfig(**{**_SIZES, "hidden_size": 48}))
    assert "packs rows in blocks of 32; 48 hidden features do not divide. Set quantize=f16" in why(
        narrow, "q8_0"
    )
    other = LlamaForCausalLM(LlamaConfig(**_SIZES, hidden_act="relu"))
    assert "activation 'relu'" in why(other)
    scaled = {**_YARN, "beta_fast": 16.0}
    assert "scale positions" in why(LlamaForCausalLM(LlamaConfig(**_SIZES, rope_parameters=scaled)))
    windows = {**_SIZES, **_GEMMA, "layer_types": ["full_attention", "sliding_attention"] * 2}
    assert "layer_types: are not those of llama.cpp" in why(Gemma3ForCausalLM(Gemma3TextConfig(**windows)))
    turning = {**_TWO_BASES, "sliding_attention": {**_TWO_BASES["full_attention"], "factor": 2.0}}
    scaled_windows = Gemma3TextConfig(**{**_SIZES, **_GEMMA, "num_hidden_layers": 6}, rope_parameters=turning)
    assert "rope_parameters of windows" in why(Gemma3ForCausalLM(scaled_windows))
    assert "is none that is written as GGUF here" in why(language_model("gpt2"))


def test_what_is_refused_for_its_layers_is_held_padded(tmp_path: Path) -> None:
    cut = uneven(model_of("qwen3 head"))
    source = stored(cut, tmp_path / "one")
    save_pruned(load_pruned(source), tmp_path / "two", export="padded", processor=character_tokenizer())
    out, facts = convert_folder(str(tmp_path / "two"), tmp_path / "model.gguf", "gguf", quantize="f32")
    assert facts["architecture"] == "qwen3"
    assert difference(cut, out, exact=True)[0] < 1e-4


def test_a_window_of_attention_bounds_the_context(tmp_path: Path) -> None:
    from gguf import GGUFReader

    torch.manual_seed(0)
    model = MistralForCausalLM(MistralConfig(**_SIZES, sliding_window=48))
    out, _ = converted(model, tmp_path)
    assert GGUFReader(out).get_field("llama.context_length").contents() == 48
    gemma, _ = convert_folder(
        stored(model_of("gemma2 any kinds"), tmp_path / "two"), tmp_path / "2.gguf", "gguf"
    )
    assert GGUFReader(gemma).get_field("gemma2.context_length").contents() == 80
