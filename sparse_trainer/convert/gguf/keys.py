"""The metadata of the file: sizes, norms, positions."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from sparse_trainer.convert.gguf.families import INTERLEAVED
from sparse_trainer.convert.gguf.geometry import Geometry
from sparse_trainer.errors import ConversionError, shown

ROPE_FACTORS = "rope_freqs.weight"
"""Tensor of divisors of the frequencies of positions."""


def keys_of(model: PreTrainedModel, geometry: Geometry, widths: list[int], place: str) -> dict[str, Any]:
    """Return what the file says of the model, by key without the name of the architecture.

    Args:
        widths: Channels of each layer, with those that are zeros.

    Raises:
        ConversionError: positions, or a window, that llama.cpp does not compute.
    """
    config = model.config
    heads, kv_heads = ([getattr(s, name) for s in geometry.layers] for name in ("heads", "kv_heads"))
    uneven = geometry.architecture != geometry.family.even
    embeddings: Any = model.get_input_embeddings()
    keys: dict[str, Any] = {
        "vocab_size": embeddings.weight.shape[0],
        "block_count": len(geometry.layers),
        "embedding_length": geometry.hidden,
        "feed_forward_length": widths if uneven else widths[0],
        "attention.head_count": heads if uneven else heads[0],
        "attention.head_count_kv": kv_heads if uneven else kv_heads[0],
        "attention.key_length": geometry.head_dim,
        "attention.value_length": geometry.head_dim,
        "attention.layer_norm_rms_epsilon": float(config.rms_norm_eps),
        **_windows(config, geometry, place),
        **_positions(config, geometry, place),
    }
    for field, key in (("attn_logit_softcapping", "attn"), ("final_logit_softcapping", "final")):
        cap = vars(config).get(field)
        if cap is not None and geometry.architecture != "gemma2":
            raise ConversionError(f"{place}: {field}", f"is {cap}.", "It cannot be held.")
        if cap is not None:
            keys[f"{key}_logit_softcapping"] = float(cap)
    return keys


def rope_factors(config: Any, geometry: Geometry) -> Tensor | None:
    """Return by what each frequency is divided for scaling of the sort "llama3", None where there is none."""
    rope = _rope(config)
    if rope["rope_type"] != "llama3":
        return None
    width = _rotary(rope, geometry)
    plain = 1.0 / rope["rope_theta"] ** (torch.arange(0, width, 2, dtype=torch.float64) / width)
    wavelength = 2 * torch.pi / plain
    low, high, factor = rope["low_freq_factor"], rope["high_freq_factor"], rope["factor"]
    old = rope["original_max_position_embeddings"]
    smooth = (old / wavelength - low) / (high - low)
    between = 1 / ((1 - smooth) / factor + smooth)
    factors = torch.where(wavelength > old / low, torch.full_like(plain, factor), between)
    return torch.where(wavelength < old / high, torch.ones_like(plain), factors).float()


def _rope(config: Any) -> dict[str, Any]:
    """Return the parameters of positions; of a model with windows, those of the layers that see all tokens."""
    rope: dict[str, Any] = config.rope_parameters
    whole: dict[str, Any] = rope.get("full_attention", rope)
    return whole


def _rotary(rope: Mapping[str, Any], geometry: Geometry) -> int:
    """Return how many features of a head are rotated."""
    return int(geometry.head_dim * (rope.get("partial_rotary_factor") or 1.0))


def _positions(config: Any, geometry: Geometry, place: str) -> dict[str, Any]:
    rope = _rope(config)
    kind, where = rope["rope_type"], f"{place}: rope_parameters"
    rotary = _rotary(rope, geometry)
    if rotary != geometry.head_dim and geometry.architecture in INTERLEAVED:
        raise ConversionError(
            where, "turn a part of each head only.", "It cannot be held with uneven layers."
        )
    keys: dict[str, Any] = {"rope.freq_base": float(rope["rope_theta"]), "rope.dimension_count": rotary}
    if kind == "default" or (kind == "llama3" and geometry.architecture in INTERLEAVED):
        return keys
    if kind == "linear":
        return {**keys, "rope.scaling.type": "linear", "rope.scaling.factor": float(rope["factor"])}
    known = {
        "rope_theta", "rope_type", "type", "factor", "original_max_position_embeddings", "partial_rotary_factor"
    }  # fmt: skip
    if kind == "yarn" and geometry.architecture not in ("phi3",) and not set(rope) - known:
        old = rope.get("original_max_position_embeddings") or config.max_position_embeddings
        return {
            **keys,
            "rope.scaling.type": "yarn",
            "rope.scaling.factor": float(rope["factor"]),
            "rope.scaling.original_context_length": int(old),
        }
    raise ConversionError(
        where,
        f"{shown(dict(rope))} scale positions in a way that {geometry.architecture!r} of llama.cpp is not written for.",
        "Convert a model with default, linear, llama3 (Llama) or yarn positions.",
    )


def _windows(config: Any, geometry: Geometry, place: str) -> dict[str, Any]:
    """Return how far layers see, and how long a text may be."""
    length = int(config.max_position_embeddings)
    window, kinds = vars(config).get("sliding_window"), vars(config).get("layer_types")
    pattern = geometry.family.window_pattern
    if kinds is not None and "sliding_attention" not in kinds and set(kinds) == {"full_attention"}:
        window = None
    if pattern is not None:
        window = window or length
        _check_pattern(kinds, pattern, place)
        return {"context_length": length, "attention.sliding_window": int(window)}
    # Where llama.cpp knows no windows: within one, both compute the same.
    keys = {"context_length": length if window is None else min(length, int(window))}
    return {**keys, "attention.sliding_window": 0} if geometry.architecture == "phi3" else keys


def _check_pattern(kinds: list[str] | None, pattern: int, place: str) -> None:
    want = [
        "full_attention" if (layer + 1) % pattern == 0 else "sliding_attention"
        for layer in range(len(kinds or []))
    ]
    if kinds != want:
        raise ConversionError(
            f"{place}: layer_types",
            f"are not those of llama.cpp, which sees all tokens in every layer {pattern} and a window in the others.",
            "Keep all layers, or take them where the pattern stays.",
        )
