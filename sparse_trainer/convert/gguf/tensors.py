"""The tensors of a model under the names, and in the order of rows, that llama.cpp expects."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import PreTrainedModel

from patchers.modeling_pruned import is_skip
from sparse_trainer.convert.gguf.families import INTERLEAVED
from sparse_trainer.convert.gguf.geometry import Geometry
from sparse_trainer.convert.layers import LayerSizes, decoder_layers
from sparse_trainer.errors import ConversionError

# Shape legend: O = output features, I = input features, C = channels.

Named = dict[str, Tensor]
_PROJECTIONS = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
_BIASES = {"llama": _PROJECTIONS, "deci": _PROJECTIONS, "qwen2": _PROJECTIONS[:3]}
"""Architectures with biases, and the projections that may have one."""
_READERS = ("ffn_gate", "ffn_up")


def tensors_of(model: PreTrainedModel, geometry: Geometry, widths: list[int]) -> Iterator[tuple[str, Tensor]]:
    """Yield all tensors of the file; of a model on the meta device, without values.

    Args:
        widths: Channels that each layer is to have: those beyond its own are zeros, which change nothing.
    """
    parts: dict[str, Any] = dict(model.get_submodule("model").named_children())
    yield "token_embd.weight", parts["embed_tokens"].weight
    yield "output_norm.weight", parts["norm"].weight + geometry.family.norm_offset
    if not geometry.tied:
        head: Any = model.get_output_embeddings()
        yield "output.weight", head.weight
    for layer, (block, sizes) in enumerate(zip(decoder_layers(model), geometry.layers, strict=True)):
        named = _widened(_split(_named(block, layer, geometry), sizes, geometry), widths[layer])
        for name, tensor in _arranged(named, sizes, geometry).items():
            yield f"blk.{layer}.{name}", tensor


def _named(block: Any, layer: int, geometry: Geometry) -> Named:
    """Return the tensors of a block under llama.cpp's names."""
    family, found = geometry.family, {}
    for name, tensor in block.named_parameters():
        path, _, leaf = name.rpartition(".")
        if path not in family.parts:
            raise ConversionError(
                f"layer {layer}: {name}", "is a tensor that llama.cpp has no place for.", "It cannot be held."
            )
        called = family.parts[path]
        if leaf == "bias" and called not in _BIASES.get(geometry.architecture, ()):
            raise ConversionError(
                f"layer {layer}: {name}",
                f"is a bias that {geometry.architecture!r} of llama.cpp does not add.",
                "It cannot be held.",
            )
        found[f"{called}.{leaf}"] = tensor + family.norm_offset if called.endswith("norm") else tensor
    if is_skip(block.self_attn):
        del found["attn_norm.weight"]
    return found


def _split(named: Named, sizes: LayerSizes, geometry: Geometry) -> Named:
    """Return the tensors of a block with one projection each, where transformers has them fused."""
    if "self_attn.qkv_proj" not in geometry.family.parts or geometry.architecture == geometry.family.even:
        return named
    found = dict(named)
    rows = [n * geometry.head_dim for n in (sizes.heads, sizes.kv_heads, sizes.kv_heads)]
    for leaf in ("weight", "bias"):
        fused = found.pop(f"attn_qkv.{leaf}", None)
        if fused is not None:
            for part, tensor in zip("qkv", fused.split(rows), strict=True):
                found[f"attn_{part}.{leaf}"] = tensor
        both = found.pop(f"ffn_up.{leaf}", None)
        if both is not None:
            found[f"ffn_gate.{leaf}"], found[f"ffn_up.{leaf}"] = both.chunk(2)
    return found


def _widened(named: Named, width: int) -> Named:
    """Return the tensors of a block with zero channels behind its own."""
    more = width - named["ffn_down.weight"].shape[1]
    if not more:
        return named
    found = {**named, "ffn_down.weight": pad(named["ffn_down.weight"], (0, more))}
    fused = "ffn_gate.weight" not in named
    for name in (name for name in named if name.startswith(_READERS)):
        parts = named[name].chunk(2) if fused else (named[name],)
        side = (0, more) if named[name].dim() == 1 else (0, 0, 0, more)
        found[name] = torch.cat([pad(part, side) for part in parts])
    return found


def _arranged(named: Named, sizes: LayerSizes, geometry: Geometry) -> Named:
    """Return the tensors of a block as the architecture wants queries, keys and values."""
    found = _scaled(named, geometry.query_gain)
    positions = geometry.positions
    if geometry.architecture in INTERLEAVED:
        for part, heads in (("q", sizes.heads), ("k", sizes.kv_heads)):
            for name in (f"attn_{part}.weight", f"attn_{part}.bias"):
                if name in found:
                    found[name] = interleaved(found[name], heads, positions.turned, positions.gain)
    if geometry.architecture == "openelm":
        for leaf in ("weight", "bias"):
            parts = [found.pop(f"attn_{part}.{leaf}", None) for part in "qkv"]
            present = [part for part in parts if part is not None]
            if present:
                found[f"attn_qkv.{leaf}"] = torch.cat(present)
    return found


def _scaled(named: Named, gain: float) -> Named:
    """Return the tensors of a block with queries multiplied by `gain`: behind their norm, where they have one."""
    if abs(gain - 1) < 1e-6:
        return dict(named)
    normed = "attn_q_norm.weight"
    names = [normed] if normed in named else ["attn_q.weight", "attn_q.bias"]
    return {name: tensor * gain if name in names else tensor for name, tensor in named.items()}


def interleaved(tensor: Tensor, heads: int, turned: int, gain: float = 1.0) -> Tensor:
    """Return the rows of a projection as neighbours are rotated together: the two halves that turn, in turn.

    Args:
        turned: Features of each head that positions turn, the first ones.
        gain: By what llama.cpp multiplies all features, and transformers those that turn.

    >>> interleaved(torch.arange(8), heads=2, turned=4).tolist()
    [0, 2, 1, 3, 4, 6, 5, 7]
    >>> interleaved(torch.arange(8), heads=1, turned=4, gain=2.0).tolist()
    [0.0, 2.0, 1.0, 3.0, 2.0, 2.5, 3.0, 3.5]
    """
    parts = tensor.unflatten(0, (heads, -1))
    first: Tensor = parts[:, :turned].unflatten(1, (2, -1)).transpose(1, 2).flatten(1, 2)
    if turned == parts.shape[1]:
        return first.flatten(0, 1)
    return torch.cat([first, parts[:, turned:] / gain], dim=1).flatten(0, 1)
