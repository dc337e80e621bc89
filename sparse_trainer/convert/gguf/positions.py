"""How positions turn the features of a head: what a file says of it, and tensors of divisors."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from sparse_trainer.convert.gguf.families import INTERLEAVED
from sparse_trainer.errors import ConversionError, shown

# Shape legend: P = pairs of features of a head.

_FREQS, _LONG, _SHORT = "rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"
_STILL: Final = 1e30
"""Divisor of a frequency that turns nothing."""
_YARN: Final = {
    "rope_theta", "rope_type", "type", "factor", "original_max_position_embeddings", "partial_rotary_factor"
}  # fmt: skip
"""What yarn may say; llama.cpp takes the rest from the paper."""


@dataclass(frozen=True, kw_only=True)
class Positions:
    """The positions of a model, in an architecture of llama.cpp."""

    keys: Mapping[str, Any]
    """Of the file, without the name of the architecture."""
    divisors: Mapping[str, Tensor]
    """By what frequencies are divided, [P], under llama.cpp's names."""
    turned: int
    """Features of each head that positions turn: the first ones."""
    gain: float
    """By what llama.cpp multiplies all features that it turns by `keys`."""


def positions_of_file(config: Any, head_dim: int, architecture: str, place: str) -> Positions:
    """Return how positions are written.

    Raises:
        ConversionError: llama.cpp does not compute them.
    """
    rope: dict[str, Any] = config.rope_parameters
    rope = rope.get("full_attention", rope)
    turned = int(head_dim * (rope.get("partial_rotary_factor") or 1.0))
    # Where an architecture turns whole heads, what stands still is divided by nearly infinity.
    width = head_dim if architecture in INTERLEAVED else turned
    scaling, gain = _scaling(config, rope, architecture, width == turned, place)
    return Positions(
        keys={
            "rope.freq_base": float(rope["rope_theta"]),
            "rope.dimension_count": width,
            **_windows(config, place),
            **scaling,
        },
        divisors={
            name: _spread(divisors_P, float(rope["rope_theta"]), turned, width)
            for name, divisors_P in _divisors(rope, turned, width).items()
        },
        turned=turned,
        gain=gain,
    )


def _scaling(
    config: Any, rope: Mapping[str, Any], architecture: str, is_whole: bool, place: str
) -> tuple[dict[str, Any], float]:
    """Return keys of the scaling, and the gain of what is turned."""
    kind, old = rope["rope_type"], rope.get("original_max_position_embeddings")
    # The base of "dynamic" grows beyond the positions of the config, which are those of the file.
    if kind in ("default", "dynamic") or (kind == "llama3" and architecture in INTERLEAVED):
        return {}, 1.0
    if kind == "linear":
        return {"rope.scaling.type": "linear", "rope.scaling.factor": float(rope["factor"])}, 1.0
    if kind == "longrope" and architecture in ("phi3", *INTERLEAVED):
        gain = longrope_gain(rope, config.max_position_embeddings)
        keys = {"type": "longrope", "original_context_length": int(rope["original_max_position_embeddings"])}
        return {f"rope.scaling.{key}": value for key, value in {**keys, "attn_factor": gain}.items()}, gain
    if kind == "yarn" and architecture != "phi3" and is_whole and not set(rope) - _YARN:
        length = int(old or config.max_position_embeddings)
        keys = {"type": "yarn", "factor": float(rope["factor"]), "original_context_length": length}
        return {f"rope.scaling.{key}": value for key, value in keys.items()}, 1.0
    raise ConversionError(
        f"{place}: rope_parameters",
        f"{shown(dict(rope))} scale positions in a way that {architecture!r} of llama.cpp is not written for.",
        "Convert a model with default, linear, llama3 (Llama), longrope (Phi-3) or yarn positions.",
    )


def longrope_gain(rope: Mapping[str, Any], length: int) -> float:
    """Return by what transformers multiplies turned features of longrope.

    >>> longrope_gain({"attention_factor": 1.5}, 64), longrope_gain({"original_max_position_embeddings": 64}, 64)
    (1.5, 1.0)
    """
    said, old = rope.get("attention_factor"), rope.get("original_max_position_embeddings") or length
    if said is not None:
        return float(said)
    factor = float(rope.get("factor") or length / old)
    return 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(old))


def _windows(config: Any, place: str) -> dict[str, Any]:
    """Return keys of the layers that see a window, where their positions are others."""
    rope = config.rope_parameters.get("sliding_attention")
    if rope is None:
        return {}
    if rope["rope_type"] != "default":
        raise ConversionError(
            f"{place}: rope_parameters of windows",
            f"are {shown(dict(rope))}.",
            "llama.cpp scales none there.",
        )
    return {"rope.freq_base_swa": float(rope["rope_theta"])}


def _divisors(rope: Mapping[str, Any], turned: int, width: int) -> dict[str, Tensor]:
    """Return divisors of the frequencies of `turned` features by llama.cpp's name; {} where there are none."""
    if rope["rope_type"] == "longrope":
        parts = {_LONG: rope["long_factor"], _SHORT: rope["short_factor"]}
        return {name: torch.tensor(factors, dtype=torch.float64) for name, factors in parts.items()}
    if rope["rope_type"] == "llama3":
        return {_FREQS: _llama3(rope, turned)}
    return {} if turned == width else {_FREQS: torch.ones(turned // 2, dtype=torch.float64)}


def _llama3(rope: Mapping[str, Any], turned: int) -> Tensor:
    wavelength_P = 2 * torch.pi * rope["rope_theta"] ** _powers(turned)
    low, high, factor = rope["low_freq_factor"], rope["high_freq_factor"], rope["factor"]
    old = rope["original_max_position_embeddings"]
    smooth_P = (old / wavelength_P - low) / (high - low)
    between_P = 1 / ((1 - smooth_P) / factor + smooth_P)
    long_P = torch.where(wavelength_P > old / low, torch.full_like(between_P, factor), between_P)
    return torch.where(wavelength_P < old / high, torch.ones_like(long_P), long_P)


def _spread(divisors_P: Tensor, base: float, turned: int, width: int) -> Tensor:
    """Return divisors of the frequencies that llama.cpp gives `width` features, where `turned` of them turn."""
    if turned == width:
        return divisors_P.float()
    first_P = base ** (_powers(turned) - _powers(width)[: turned // 2]) * divisors_P
    rest_P = torch.full(((width - turned) // 2,), _STILL, dtype=torch.float64)
    return torch.cat([first_P, rest_P]).float()


def _powers(width: int) -> Tensor:
    return torch.arange(0, width, 2, dtype=torch.float64) / width
