"""The architecture of llama.cpp that holds the sizes of a model."""

from dataclasses import dataclass

from transformers import PreTrainedModel

from sparse_trainer.convert.gguf.families import Family, family_of
from sparse_trainer.convert.gguf.positions import Positions, positions_of_file
from sparse_trainer.convert.layers import Decoder, decoder_of
from sparse_trainer.errors import ConversionError

_PADDED = (
    'In Python, save_pruned(load_pruned(FOLDER), OUT, export="padded") makes layers equal: convert that.'
)


@dataclass(frozen=True, kw_only=True)
class Geometry(Decoder):
    """The shape of a model, as llama.cpp wants to know it."""

    family: Family
    architecture: str
    """Name of the architecture in llama.cpp."""
    positions: Positions
    query_gain: float
    """By what queries are multiplied, so that llama.cpp's scaling of attention becomes that of the model."""


def geometry_of(model: PreTrainedModel, place: str) -> Geometry:
    """Return the sizes of a model; its weights may be on the meta device.

    Raises:
        ConversionError: no architecture of llama.cpp holds them.
    """
    family, decoder = family_of(model, place), decoder_of(model, place)
    width = decoder.layers[0].heads * decoder.head_dim
    fits = decoder.is_even and (not family.is_square or width == decoder.hidden)
    architecture = family.even if fits or family.uneven is None else family.uneven
    found = Geometry(
        **vars(decoder),
        family=family,
        architecture=architecture,
        positions=positions_of_file(model.config, decoder.head_dim, architecture, place),
        query_gain=decoder.scaling / _scaling(family, decoder),
    )
    _refuse_uneven(found, place)
    if not found.tied and (family.always_tied or architecture == "openelm"):
        raise ConversionError(
            place,
            f"has a head of its own, and {architecture!r} of llama.cpp reads out by the embeddings.",
            "It cannot be held." if found.is_even else _PADDED,
        )
    return found


def _scaling(family: Family, decoder: Decoder) -> float:
    """Return by what llama.cpp multiplies the products of queries and keys."""
    is_wide = len(decoder.layers) == family.wide_at
    width = decoder.hidden // decoder.layers[0].heads if is_wide else decoder.head_dim
    return float(width**-0.5)


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
