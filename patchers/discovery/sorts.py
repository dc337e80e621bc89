"""Sorts of block: what mixes tokens in it. Libraries look for the first of each (caches, masks), so one has to stay."""

from torch import nn

from patchers.discovery.experts import is_experts
from patchers.discovery.ffn import ffn_form_of


def sort_of(block: nn.Module) -> str:
    """Name what mixes tokens in a block: the classes of its parts that hold matrices, feed-forward parts aside.

    >>> from transformers import Lfm2Config, Lfm2Model
    >>> sorts = ["conv", "full_attention"]
    >>> config = Lfm2Config(vocab_size=8, hidden_size=32, intermediate_size=32, layer_types=sorts, num_hidden_layers=2,
    ...     num_attention_heads=2, num_key_value_heads=2)
    >>> [sort_of(block) for block in Lfm2Model(config).layers]
    ['Lfm2ShortConv', 'Lfm2Attention']
    """
    found = (type(child).__name__ for child in block.children() if _has_matrices(child) and _mixes(child))
    return " ".join(sorted(found))


def _has_matrices(module: nn.Module) -> bool:
    return any(parameter.dim() > 1 for parameter in module.parameters())


def _mixes(module: nn.Module) -> bool:
    """Tell whether a part of a block is neither a linear nor a feed-forward part."""
    forward = isinstance(module, nn.Linear) or ffn_form_of(module) is not None
    return not forward and not any(is_experts(inner) for inner in module.modules())
