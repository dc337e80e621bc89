"""The conversion to a DeciLM folder."""

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import save_torch_state_dict
from torch import Tensor
from torch.nn.functional import pad
from transformers import PreTrainedModel

from sparse_trainer.convert.base import Convertible
from sparse_trainer.convert.decilm import configuration_decilm
from sparse_trainer.convert.layers import Decoder, LayerSizes, decoder_layers, decoder_of
from sparse_trainer.errors import ConversionError
from sparse_trainer.files.writing import write_text
from sparse_trainer.folders.configs import CONFIG_FILE
from sparse_trainer.folders.tokenizers import find_tokenizer

STEP = 256
"""Channels come in multiples of this: readers round what the config says up to it."""
_FAMILIES = ("llama", "mistral")
_FIELDS = (
    "attention_bias", "bos_token_id", "eos_token_id", "hidden_act", "hidden_size", "max_position_embeddings",
    "mlp_bias", "num_attention_heads", "num_hidden_layers", "pad_token_id", "rms_norm_eps", "tie_word_embeddings",
    "vocab_size",
)  # fmt: skip
_DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}


class DeciLM:
    """A folder for engines that know Llama with other widths, other KV heads or no branch in some layers."""

    runtime = "SGLang, mlx-lm"
    extra = ""
    packages: Mapping[str, str] = {}
    formats = ("auto", *_DTYPES)
    is_file = False

    def refuse(self, origin: Convertible, numbers: str) -> None:
        """Refuse other families, windows, and attention with some of its query heads gone."""
        config, place = origin.skeleton.config, origin.place()
        if config.model_type not in _FAMILIES or not type(origin.skeleton).__name__.endswith("ForCausalLM"):
            raise ConversionError(
                place,
                f"{type(origin.skeleton).__name__} of type {config.model_type!r} is not of the form of DeciLM.",
                f"Types that are, as language models: {', '.join(_FAMILIES)}.",
            )
        if vars(config).get("sliding_window") is not None:
            raise ConversionError(
                f"{place}: sliding_window", "is set; DeciLM has none.", "It cannot be held."
            )
        _refuse_heads(decoder_of(origin.skeleton, place), place)

    def is_advised(self, origin: Convertible) -> bool:
        """Advise models with uneven layers: even ones these engines run as they are."""
        return not decoder_of(origin.skeleton, origin.place()).is_even

    def write(self, origin: Convertible, out: Path, numbers: str) -> Mapping[str, Any]:
        """Write config with its file, weights and tokenizer."""
        model = origin.load(_DTYPES.get(numbers, "auto"))
        decoder = decoder_of(model, origin.place())
        widths = _widths(model, decoder)
        values = _config(model, decoder, widths)
        write_text(out / CONFIG_FILE, json.dumps(values, indent=2) + "\n")
        shutil.copyfile(configuration_decilm.__file__, out / Path(configuration_decilm.__file__).name)
        save_torch_state_dict(dict(_weights(model, decoder, widths)), out)
        if model.generation_config is not None:
            model.generation_config.save_pretrained(out)
        tokenizer = find_tokenizer(origin.name)
        if tokenizer is not None:
            tokenizer.save_pretrained(out)
        return {
            "layers": len(decoder.layers),
            "attentions_gone": sum(not sizes.heads for sizes in decoder.layers),
            "ffns_gone": widths.count(0),
            "zero_channels_added": sum(widths) - sum(sizes.channels for sizes in decoder.layers),
        }


def _refuse_heads(decoder: Decoder, place: str) -> None:
    for layer, sizes in enumerate(decoder.layers):
        if sizes.heads and sizes.heads * decoder.head_dim != decoder.hidden:
            raise ConversionError(
                place,
                f"layer {layer} has {sizes.heads} query heads of {decoder.head_dim} features; DeciLM wants as many in "
                f"each layer as make up its {decoder.hidden} hidden ones.",
                "Prune channels and branches, no heads.",
            )
    if abs(decoder.scaling * decoder.head_dim**0.5 - 1) > 1e-6:
        raise ConversionError(
            place, "its attention is not scaled by the root of the width of a head.", "It cannot be held."
        )
    if not decoder.layers[0].heads:
        raise ConversionError(place, "layer 0 has no attention, which vLLM cannot run.", "Keep that one.")


def _widths(model: PreTrainedModel, decoder: Decoder) -> list[int]:
    """Return the channels that each layer is written with; 0 where its feed-forward branch is gone."""
    # Without channels a branch still adds its bias.
    least = 1 if vars(model.config).get("mlp_bias") else 0
    return [-(-max(sizes.channels, least) // STEP) * STEP for sizes in decoder.layers]


def _config(model: PreTrainedModel, decoder: Decoder, widths: list[int]) -> dict[str, Any]:
    fields: dict[str, Any] = model.config.to_dict()
    rope = dict(fields["rope_parameters"])
    theta = rope.pop("rope_theta")
    return {
        **{name: fields[name] for name in _FIELDS if name in fields},
        "architectures": ["DeciLMForCausalLM"],
        "auto_map": {"AutoConfig": "configuration_decilm.DeciLMConfig"},
        "block_configs": [
            _block(sizes, width, decoder.hidden) for sizes, width in zip(decoder.layers, widths, strict=True)
        ],
        "dtype": str(model.dtype).removeprefix("torch."),
        "model_type": configuration_decilm.DeciLMConfig.model_type,
        "num_attention_heads": decoder.hidden // decoder.head_dim,
        "num_hidden_layers": len(decoder.layers),
        "rope_scaling": None if rope.get("rope_type", "default") == "default" else rope,
        "rope_theta": theta,
        "tie_word_embeddings": decoder.tied,
    }


def _block(sizes: LayerSizes, width: int, hidden: int) -> dict[str, Any]:
    """Return what readers want to know of one layer.

    They take the whole part of 2/3 * ffn_mult * hidden size, and round it up to the next multiple: the middle of a step
    is out of reach of any rounding.
    """
    attention: dict[str, Any] = {"no_op": not sizes.heads, "replace_with_linear": False}
    ffn: dict[str, Any] = {"no_op": not width, "replace_with_linear": False}
    if sizes.heads:
        attention["n_heads_in_group"] = sizes.heads // sizes.kv_heads
    if width:
        ffn["ffn_mult"] = round(1.5 * (width - STEP / 2) / hidden, 6)
    return {"attention": attention, "ffn": ffn}


def _weights(model: PreTrainedModel, decoder: Decoder, widths: list[int]) -> Iterator[tuple[str, Tensor]]:
    """Yield the weights of the folder: nothing of a branch that is gone, and zero channels up to the next step."""
    parts: Any = model.get_submodule("model")
    yield "model.embed_tokens.weight", parts.embed_tokens.weight.detach()
    yield "model.norm.weight", parts.norm.weight.detach()
    if not decoder.tied:
        head: Any = model.get_output_embeddings()
        yield "lm_head.weight", head.weight.detach()
    blocks = zip(decoder_layers(model), decoder.layers, widths, strict=True)
    for layer, (block, sizes, width) in enumerate(blocks):
        gone = [
            *([] if sizes.heads else ["self_attn", "input_layernorm"]),
            *([] if width else ["mlp", "post_attention_layernorm"]),
        ]
        for name, parameter in block.named_parameters():
            if name.partition(".")[0] not in gone:
                yield (
                    f"model.layers.{layer}.{name}",
                    _filled(name, parameter.detach(), width - sizes.channels),
                )


def _filled(name: str, tensor: Tensor, more: int) -> Tensor:
    """Return a tensor with zeros for further channels, where it has channels."""
    if name == "mlp.down_proj.weight":
        return pad(tensor, (0, more))
    if name.startswith(("mlp.gate_proj", "mlp.up_proj")):
        return pad(tensor, (0, more) if tensor.dim() == 1 else (0, 0, 0, more))
    return tensor.contiguous()
