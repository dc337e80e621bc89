"""The conversion to GGUF."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from transformers import PreTrainedModel

from sparse_trainer.convert.base import Convertible
from sparse_trainer.convert.gguf.geometry import Geometry, geometry_of
from sparse_trainer.convert.gguf.keys import keys_of
from sparse_trainer.convert.gguf.numbers import BLOCK, FORMATS, is_quantized, packed, type_of
from sparse_trainer.convert.gguf.tensors import tensors_of
from sparse_trainer.convert.gguf.vocabulary import tokenizer_keys
from sparse_trainer.errors import ConversionError
from sparse_trainer.inputs.bars import bar


@dataclass(frozen=True, kw_only=True)
class _Sheet:
    """What is written: all but the values of the tensors."""

    geometry: Geometry
    widths: list[int]
    """Channels of each layer, with those of zeros."""
    keys: Mapping[str, Any]
    kinds: Mapping[str, str]
    """Type of each tensor, as gguf names it, in the order of the file."""
    shapes: Mapping[str, tuple[int, ...]]

    def tensors(self, model: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
        """Yield the tensors of the file."""
        return _tensors(model, self.geometry, self.widths)


class Gguf:
    """A file for llama.cpp: stock architectures, also with other heads and channels in every layer."""

    runtime = "llama.cpp"
    extra = "gguf"
    packages: Mapping[str, str] = {"gguf": "0.19.0"}
    formats = tuple(FORMATS)
    is_file = True

    def refuse(self, origin: Convertible, numbers: str) -> None:
        """Refuse families, layers, positions, tokenizers and widths that llama.cpp, or the format, cannot hold."""
        sheet = _sheet(origin, numbers)
        if is_quantized(numbers) and sheet.geometry.hidden % BLOCK:
            raise ConversionError(
                origin.place(),
                f"{numbers} packs rows in blocks of {BLOCK}; {sheet.geometry.hidden} hidden features do not divide.",
                f"Set `quantize=f16`, or prune hidden features by multiples of {BLOCK}.",
            )

    def is_advised(self, origin: Convertible) -> bool:
        """Advise all: the families that are not refused are those of the tests."""
        return True

    def write(self, origin: Convertible, out: Path, numbers: str) -> Mapping[str, Any]:
        """Write metadata, tokenizer and tensors, one tensor at a time."""
        import gguf  # an extra

        sheet = _sheet(origin, numbers)
        writer = gguf.GGUFWriter(out, sheet.geometry.architecture)
        for key, value in sheet.keys.items():
            kind = gguf.GGUFValueType.UINT32 if type(value) is int else gguf.GGUFValueType.get_type(value)
            writer.add_key_value(key, value, kind)
        for name, kind in sheet.kinds.items():
            _announce(writer, name, sheet.shapes[name], gguf.GGMLQuantizationType[kind])
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for name, tensor in bar(sheet.tensors(origin.load()), "writing tensors"):
            writer.write_tensor_data(packed(name, tensor, sheet.kinds[name]))
        writer.close()
        return _facts(sheet, out)


def _sheet(origin: Convertible, numbers: str) -> _Sheet:
    model, place = origin.skeleton, origin.place()
    geometry = geometry_of(model, place)
    widths = [_width(sizes.channels, numbers) for sizes in geometry.layers]
    named = {name: tuple(tensor.shape) for name, tensor in _tensors(model, geometry, widths)}
    prefix = geometry.architecture
    keys = {f"{prefix}.{key}": value for key, value in keys_of(model, geometry, widths, place).items()}
    general = {
        "type": "model",
        "name": Path(origin.name).resolve().name,
        "file_type": FORMATS[numbers].file_type,
        "quantization_version": 2,
    }
    embeddings = named["token_embd.weight"]
    return _Sheet(
        geometry=geometry,
        widths=widths,
        keys={
            **{f"general.{key}": value for key, value in general.items()},
            **keys,
            **tokenizer_keys(origin.name, embeddings[0]),
        },
        kinds={name: type_of(name, shape, numbers) for name, shape in named.items()},
        shapes=named,
    )


def _width(channels: int, numbers: str) -> int:
    """Return the channels that a layer is written with: some, and rows that the format can pack.

    >>> _width(70, "q8_0"), _width(70, "f16"), _width(0, "f16")
    (96, 70, 32)
    """
    whole = -(-channels // BLOCK) * BLOCK if is_quantized(numbers) else channels
    # Without any, llama.cpp would drop what the attention of the layer adds, and say nothing.
    return whole or BLOCK


def _tensors(model: PreTrainedModel, geometry: Geometry, widths: list[int]) -> Iterator[tuple[str, Tensor]]:
    yield from tensors_of(model, geometry, widths)
    yield from geometry.positions.divisors.items()


def _announce(writer: Any, name: str, shape: tuple[int, ...], kind: Any) -> None:
    import gguf  # an extra

    block, size = gguf.GGML_QUANT_SIZES[kind]
    whole = int(np.prod(shape)) // block * size
    writer.add_tensor_info(name, shape, np.dtype(np.float32), whole, raw_dtype=kind)


def _facts(sheet: _Sheet, out: Path) -> dict[str, Any]:
    matrices = [name for name, shape in sheet.shapes.items() if len(shape) > 1]
    main = sheet.kinds[next(name for name in matrices if name.startswith("blk."))]
    return {
        "architecture": sheet.geometry.architecture,
        "layers": len(sheet.geometry.layers),
        "parameters": sum(int(np.prod(shape)) for shape in sheet.shapes.values()),
        "bytes": out.stat().st_size,
        "zero_channels_added": sum(sheet.widths) - sum(sizes.channels for sizes in sheet.geometry.layers),
        "matrices_in_other_types": sum(sheet.kinds[name] != main for name in matrices),
    }
