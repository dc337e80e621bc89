"""The sizes of every layer of a language model, read off its modules."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel

from patchers.modeling_pruned import is_skip
from sparse_trainer.cut.layout import earlier_layout
from sparse_trainer.errors import ConversionError


@dataclass(frozen=True, kw_only=True)
class LayerSizes:
    """What one layer has; 0 where a branch is gone."""

    heads: int
    kv_heads: int
    channels: int


@dataclass(frozen=True, kw_only=True)
class Decoder:
    """The sizes of a language model of the form of Llama."""

    layers: tuple[LayerSizes, ...]
    head_dim: int
    hidden: int
    tied: bool
    """Whether the embeddings are the head, too."""
    scaling: float
    """By what the products of queries and keys are multiplied."""

    @property
    def is_even(self) -> bool:
        """Tell whether all layers have the same sizes."""
        return len(set(self.layers)) == 1


def decoder_layers(model: PreTrainedModel) -> Iterable[Any]:
    """Return the blocks of a language model of the form of Llama."""
    return model.get_submodule("model.layers").children()


def decoder_of(model: PreTrainedModel, place: str) -> Decoder:
    """Return the sizes of a model of the form of Llama; its weights may be on the meta device.

    Raises:
        ConversionError: it holds more than other sizes.
    """
    _refuse_layout(model, place)
    blocks = list(decoder_layers(model))
    attentions = [block.self_attn for block in blocks if not is_skip(block.self_attn)]
    if not attentions:
        raise ConversionError(place, "no layer has an attention.", "Keep a head of some layers (`min_keep`).")
    head_dim = int(attentions[0].head_dim)
    embeddings: Any = model.get_input_embeddings()
    head: Any = model.get_output_embeddings()
    return Decoder(
        layers=tuple(_sizes(block, head_dim) for block in blocks),
        head_dim=head_dim,
        hidden=embeddings.weight.shape[1],
        tied=head.weight is embeddings.weight,
        scaling=float(attentions[0].scaling),
    )


def _sizes(block: Any, head_dim: int) -> LayerSizes:
    attention, ffn = block.self_attn, block.mlp
    channels = ffn.down_proj.in_features
    if is_skip(attention):
        return LayerSizes(heads=0, kv_heads=0, channels=channels)
    heads = attention.o_proj.in_features // head_dim
    parts = dict(attention.named_children())
    rows = (
        parts["k_proj"].out_features
        if "k_proj" in parts
        else (parts["qkv_proj"].out_features - heads * head_dim) // 2
    )
    return LayerSizes(heads=heads, kv_heads=rows // head_dim, channels=channels)


def _refuse_layout(model: PreTrainedModel, place: str) -> None:
    """Raise for what is in a cut model beside other sizes."""
    layout = earlier_layout(model.config)
    odd = [part for part in ("norms", "selects", "routers") if layout[part]]
    if odd:
        raise ConversionError(
            place, f"has {odd[0]} of ours, which other runtimes lack.", "It cannot be held."
        )
    if any(bias for _, _, bias in layout["skips"].values()):
        raise ConversionError(
            place,
            "a constant stands where an attention is gone, of the biases of its values.",
            "Keep a head of each layer (`min_keep`).",
        )
