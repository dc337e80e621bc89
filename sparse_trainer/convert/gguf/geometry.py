"""The sizes of every layer of a model, read off its modules, and the architecture of llama.cpp that holds them."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel

from patchers.modeling_pruned import is_skip
from sparse_trainer.convert.gguf.families import Family, family_of
from sparse_trainer.cut.layout import earlier_layout
from sparse_trainer.errors import ConversionError

_PADDED = "Save it with `export=padded`, whose layers have equal sizes, and convert that."


@dataclass(frozen=True, kw_only=True)
class LayerSizes:
    """What one layer has; 0 where a branch is gone."""

    heads: int
    kv_heads: int
    channels: int


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """The shape of a model, as llama.cpp wants to know it."""

    family: Family
    architecture: str
    """Name of the architecture in llama.cpp."""
    layers: tuple[LayerSizes, ...]
    head_dim: int
    hidden: int
    tied: bool
    """Whether the embeddings are the head, too."""

    @property
    def is_even(self) -> bool:
        """Tell whether all layers have the same sizes."""
        return len(set(self.layers)) == 1


def geometry_of(model: PreTrainedModel, place: str) -> Geometry:
    """Return the sizes of a model; its weights may be on the meta device.

    Raises:
        ConversionError: no architecture of llama.cpp holds them.
    """
    family = family_of(model, place)
    _refuse_layout(model, place)
    blocks = list(decoder_layers(model))
    attentions: list[Any] = [block.self_attn for block in blocks if not is_skip(block.self_attn)]
    if not attentions:
        raise ConversionError(place, "no layer has an attention.", "llama.cpp needs one in layer 0.")
    head_dim = int(attentions[0].head_dim)
    if any(abs(attention.scaling * head_dim**0.5 - 1) > 1e-6 for attention in attentions):
        raise ConversionError(
            place, "its attention is not scaled by the root of the width of a head.", "It cannot be held."
        )
    layers = tuple(_sizes(block, head_dim) for block in blocks)
    even = len(set(layers)) == 1
    fits = even and (not family.is_square or layers[0].heads * head_dim == _hidden(model))
    embeddings: Any = model.get_input_embeddings()
    head: Any = model.get_output_embeddings()
    found = Geometry(
        family=family,
        architecture=family.even if fits or family.uneven is None else family.uneven,
        layers=layers,
        head_dim=head_dim,
        hidden=_hidden(model),
        tied=head.weight is embeddings.weight,
    )
    _refuse_uneven(found, place)
    if not found.tied and (family.always_tied or found.architecture == "openelm"):
        raise ConversionError(
            place,
            f"has a head of its own, and {found.architecture!r} of llama.cpp reads out by the embeddings.",
            "It cannot be held." if even else _PADDED,
        )
    return found


def decoder_layers(model: PreTrainedModel) -> Iterable[Any]:
    """Return the blocks of a language model of a known family."""
    return model.get_submodule("model.layers").children()


def _hidden(model: PreTrainedModel) -> int:
    embeddings: Any = model.get_input_embeddings()
    width: int = embeddings.weight.shape[1]
    return width


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
            place, f"has {odd[0]} that no architecture of llama.cpp computes.", "It cannot be held."
        )
    if any(bias for _, _, bias in layout["skips"].values()):
        raise ConversionError(
            place,
            "a constant stands where an attention is gone, of the biases of its values.",
            "Keep a head of each layer (`min_keep`).",
        )


def _refuse_uneven(found: Geometry, place: str) -> None:
    """Raise for layers that the architecture cannot hold."""
    gone = [layer for layer, sizes in enumerate(found.layers) if not sizes.heads]
    if not found.is_even and found.family.uneven is None:
        raise ConversionError(
            place,
            f"its layers have different sizes, and {found.architecture!r} of llama.cpp reads those of layer 0.",
            _PADDED,
        )
    if gone and found.architecture != "deci":
        raise ConversionError(
            place,
            f"layer {gone[0]} has no attention, and {found.architecture!r} of llama.cpp wants one in each.",
            "Keep a head of each layer (`min_keep`), or take whole layers.",
        )
    if 0 in gone:
        raise ConversionError(
            place,
            "layer 0 has no attention, and llama.cpp reads the width of heads there.",
            "Keep a head of layer 0 (`protect=first`), or take whole layers.",
        )
