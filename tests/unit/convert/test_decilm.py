"""DeciLM folders say in mlx-lm what the model says in transformers."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
)

from patchers.discovery.discover import discover
from sparse_trainer.convert.folder import convert_folder
from sparse_trainer.cut.optimize import optimize_model
from sparse_trainer.errors import CheckpointError, ConversionError
from sparse_trainer.folders.configs import read_config
from sparse_trainer.folders.save import save_pruned
from tests.fixtures.character_tokenizer import character_tokenizer
from tests.fixtures.compact_models import patched, perturbed
from tests.fixtures.language_models import language_model

_SIZES: dict[str, Any] = {
    "vocab_size": 99, "hidden_size": 64, "intermediate_size": 600, "num_hidden_layers": 4, "num_attention_heads": 8,
    "num_key_value_heads": 2, "max_position_embeddings": 128, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1,
}  # fmt: skip
_LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32, "rope_theta": 10000.0,
}  # fmt: skip
MODELS: dict[str, dict[str, Any]] = {
    "plain": {},
    "tied": {"tie_word_embeddings": True},
    "biases": {"attention_bias": True, "mlp_bias": True},
    "llama3": {"rope_parameters": _LLAMA3},
}
CHANNELS = (600, 512, 0, 17)
"""Kept in each layer; layer 1 loses its attention."""
IDS_BT = torch.randint(3, 99, (2, 40), generator=torch.Generator().manual_seed(0))


def pruned(**config: Any) -> PreTrainedModel:
    """Return a Llama with other channels in every layer, and without an attention."""
    torch.manual_seed(0)
    model = perturbed(LlamaForCausalLM(LlamaConfig(**{**_SIZES, **config}))).eval()
    groups = discover(model, ("channels", "attention")).groups
    keep = {
        g.name: torch.arange(g.num_units) < CHANNELS[g.layer]
        if g.kind == "channels"
        else torch.tensor([g.layer != 1])
        for g in groups
        if not (config.get("attention_bias") and g.kind == "attention")
    }
    cut: PreTrainedModel = optimize_model(patched(model, keep))
    return cut


def converted(model: PreTrainedModel, folder: Path, numbers: str = "auto") -> tuple[Path, Mapping[str, Any]]:
    """Return the folder of a model, and what is said of it."""
    if "pruning" in vars(model.config):
        save_pruned(model, folder / "one", processor=character_tokenizer())
    else:
        model.save_pretrained(folder / "one")
    return convert_folder(str(folder / "one"), folder / "deci", "decilm", quantize=numbers)


@pytest.mark.parametrize("name", MODELS)
def test_mlx_says_the_same(name: str, tmp_path: Path) -> None:
    mx = pytest.importorskip("mlx.core")
    utils = pytest.importorskip("mlx_lm.utils")
    model = pruned(**MODELS[name])
    out, facts = converted(model, tmp_path)
    # Without channels a branch with a bias is a constant, and stays.
    assert facts["zero_channels_added"] == 168 + 239 + (256 if name == "biases" else 0)
    assert facts["ffns_gone"] == (0 if name == "biases" else 1)
    other, _ = utils.load_model(out)
    with torch.no_grad():
        want_BTV = model(IDS_BT).logits.log_softmax(-1)
    said = torch.tensor(other(mx.array(IDS_BT.tolist())).tolist()).log_softmax(-1)
    torch.testing.assert_close(said, want_BTV, rtol=0, atol=1e-3)


def test_the_config_is_read_as_engines_read_it(tmp_path: Path) -> None:
    out, _ = converted(pruned(), tmp_path, "bf16")
    config = AutoConfig.from_pretrained(out, trust_remote_code=True)
    assert config.model_type == "nemotron-nas"
    assert config.dtype is torch.bfloat16
    assert [block.attention.no_op for block in config.block_configs] == [False, True, False, False]
    assert [block.ffn.no_op for block in config.block_configs] == [False, False, True, False]
    groups = [b.attention.n_heads_in_group for b in config.block_configs if not b.attention.no_op]
    assert groups == [4, 4, 4]
    widths = [int(2 * b.ffn.ffn_mult * 64 / 3) for b in config.block_configs if hasattr(b.ffn, "ffn_mult")]
    assert [-(-width // 256) * 256 for width in widths] == [768, 512, 256]
    config.save_pretrained(tmp_path / "again")
    again, first = (json.loads((place / "config.json").read_text()) for place in (tmp_path / "again", out))
    assert again["block_configs"] == first["block_configs"]


def test_what_it_cannot_say_is_refused(tmp_path: Path) -> None:
    def why(model: PreTrainedModel, name: str) -> str:
        (tmp_path / name).mkdir()
        with pytest.raises(ConversionError) as told:
            converted(model, tmp_path / name)
        assert [path.name for path in (tmp_path / name).iterdir()] == ["one"]
        return str(told.value)

    dense = perturbed(LlamaForCausalLM(LlamaConfig(**_SIZES)))
    heads = {g.name: torch.arange(g.num_units) < 1 for g in discover(dense, ["heads"]).groups if g.layer == 2}
    assert "layer 2 has 4 query heads of 8 features" in why(optimize_model(patched(dense, heads)), "heads")
    first = {"model.layers.0.attention": torch.tensor([False])}
    assert "layer 0 has no attention" in why(optimize_model(patched(dense, first)), "first")
    assert "sliding_window" in why(MistralForCausalLM(MistralConfig(**_SIZES, sliding_window=8)), "window")
    assert "is not of the form of DeciLM" in why(language_model("gpt2"), "gpt2")


def test_a_folder_whose_config_is_code_is_refused_with_what_helps(tmp_path: Path) -> None:
    LlamaForCausalLM(LlamaConfig(**_SIZES)).save_pretrained(tmp_path / "model")
    convert_folder(str(tmp_path / "model"), tmp_path / "out", "decilm")
    with pytest.raises(
        CheckpointError, match=r"'nemotron-nas', which code .* Give the folder that it was made of"
    ):
        read_config(str(tmp_path / "out"))
