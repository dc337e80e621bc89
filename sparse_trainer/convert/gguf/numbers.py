"""Formats of numbers: which tensor is written in which, and rows that fit their blocks."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sparse_trainer.errors import ConversionError


@dataclass(frozen=True, kw_only=True)
class Format:
    """A format of `--quantize`."""

    matrices: str
    """Type of the matrices, as gguf names it."""
    ends: str
    """Type of embeddings and head."""
    file_type: int
    """How llama.cpp numbers files of this sort (`general.file_type`)."""


FORMATS = {
    "f16": Format(matrices="F16", ends="F16", file_type=1),
    "f32": Format(matrices="F32", ends="F32", file_type=0),
    "bf16": Format(matrices="BF16", ends="BF16", file_type=32),
    "q8_0": Format(matrices="Q8_0", ends="Q8_0", file_type=7),
    "q5_1": Format(matrices="Q5_1", ends="Q8_0", file_type=9),
    "q5_0": Format(matrices="Q5_0", ends="Q8_0", file_type=8),
    "q4_1": Format(matrices="Q4_1", ends="Q8_0", file_type=3),
    "q4_0": Format(matrices="Q4_0", ends="Q8_0", file_type=2),
}
"""What the package gguf can write; at 4 and 5 bits embeddings and head keep 8."""

BLOCK = 32
"""Numbers that share a scale in the quantized formats: rows divide by it."""


def is_quantized(numbers: str) -> bool:
    """Tell whether a format packs rows in blocks.

    >>> is_quantized("q8_0"), is_quantized("bf16")
    (True, False)
    """
    return numbers.startswith("q")


def type_of(name: str, shape: tuple[int, ...], numbers: str) -> str:
    """Return the type of one tensor: vectors stay whole, and rows that do not divide are written in 16 bits.

    >>> type_of("blk.0.ffn_up.weight", (3, 64), "q4_0"), type_of("blk.0.attn_norm.weight", (9,), "f16")
    ('Q4_0', 'F32')
    """
    form = FORMATS[numbers]
    if len(shape) < 2:
        return "F32"
    if is_quantized(numbers) and shape[-1] % BLOCK:
        return "F16"
    return form.ends if name in ("token_embd.weight", "output.weight") else form.matrices


def packed(name: str, tensor: Tensor, kind: str) -> np.ndarray[Any, Any]:
    """Return the bytes of a tensor in a type of gguf.

    Raises:
        ConversionError: a number is too large for 16 bits.
    """
    import gguf  # an extra

    values = tensor.detach().to(torch.float32).contiguous().numpy()
    with np.errstate(over="ignore"):
        written = gguf.quants.quantize(values, gguf.GGMLQuantizationType[kind])
    if kind == "F16" and not bool(np.isfinite(written).all()):
        raise ConversionError(
            name, "holds numbers that 16 bits of this kind cannot.", "Set `quantize=bf16` or `quantize=f32`."
        )
    return written  # type: ignore[no-any-return]
