"""What differs between a cut model and the stock model of its config."""

import copy
from collections.abc import Mapping, Set
from functools import partial
from typing import Any, TypedDict

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from patchers import Structure, discover
from patchers.layers import LINEAR_TYPES, features
from patchers.modeling_pruned import Skip, base_of, stock_class_of, stock_config
from sparse_trainer.errors import UnsupportedModelError

_OURS = "modeling_pruned."
_PER_LAYER_FIELDS = ("layer_types", "mlp_layer_types", "no_rope_layers")
"""Config fields with one entry per layer."""


class Layout(TypedDict):
    """Differences by module path, relative to the base model."""

    skips: dict[str, list[int | bool]]
    """[outputs, width, bias] of each no-op that took the place of an attention."""
    linears: dict[str, list[int]]
    """[output features, input features]."""
    attributes: dict[str, dict[str, int]]
    selects: dict[str, dict[str, Any]]


def fit_config(config: PreTrainedConfig, cut: Structure, gone: Mapping[str, Set[int]]) -> None:
    """Bring a config as near to a cut model as the stock class understands, in place.

    Args:
        cut: What `discover` finds in the model after the cut.
        gone: Layers that were taken away, by path of their stack.
    """
    for name in ("pruning", "auto_map"):
        if name == "pruning" or _is_our_map(vars(config).get(name)):
            vars(config).pop(name, None)
    for stack in cut.stacks:
        setattr(config, stack.config_keys["layers"], stack.size)
        widths = channel_widths(cut, stack.path)
        if len(set(widths)) == 1 and widths[0] > 0:
            setattr(config, stack.config_keys["channels"], widths[0])
        if gone.get(stack.path):
            _drop_entries(config, stack.size + len(gone[stack.path]), gone[stack.path])


def channel_widths(structure: Structure, stack: str) -> list[int]:
    """Return the channels of every layer of a stack, 0 where there are none."""
    size = next(s.size for s in structure.stacks if s.path == stack)
    widths = {g.layer: g.num_units for g in structure.of(["channels"]) if g.stack == stack}
    return [widths.get(layer, 0) for layer in range(size)]


def _is_our_map(auto_map: object) -> bool:
    return isinstance(auto_map, dict) and all(_OURS in str(reference) for reference in auto_map.values())


def _drop_entries(config: PreTrainedConfig, size: int, gone: Set[int]) -> None:
    for name in _PER_LAYER_FIELDS:
        entries = vars(config).get(name)
        if isinstance(entries, list) and len(entries) == size:
            setattr(config, name, [entry for layer, entry in enumerate(entries) if layer not in gone])


def stock_of(model: PreTrainedModel) -> PreTrainedModel:
    """Return the stock model of a cut model's config, on the meta device."""
    with torch.device("meta"):
        return stock_class_of(model)(stock_config(model.config))


def layout_of(model: PreTrainedModel, stock: PreTrainedModel) -> Layout:
    """Return how a cut model differs from the stock model that its config describes."""
    base, plain = base_of(model), base_of(stock)
    return Layout(
        skips=_skips(base),
        linears=_linears(base, plain),
        attributes=_attributes(base, plain),
        selects=_selects(base),
    )


def mark_skips(model: PreTrainedModel, stock: PreTrainedModel) -> None:
    """Leave an empty entry for a weight that every no-op replaced, so that the stock class refuses the weights."""
    plain = base_of(stock)
    for path, module in base_of(model).named_modules():
        if is_skip(module) and not dict(module.named_buffers()):
            skip: Any = module
            name, _ = next(plain.get_submodule(path).named_parameters())
            skip.stand_for(name, next(model.parameters()))


def check_builds(model: PreTrainedModel) -> None:
    """Build the model's class from its config on the meta device, and compare every shape.

    Raises:
        UnsupportedModelError: the model has something that neither config nor layout can say.
    """
    with torch.device("meta"):
        built = type(model)(copy.deepcopy(model.config))
    have, want = _shapes(model), _shapes(built)
    for name in sorted(have.keys() | want.keys()):
        if have.get(name) != want.get(name):
            raise UnsupportedModelError(
                name,
                f"has shape {have.get(name)}; {type(model).__name__} builds {want.get(name)} from this config.",
                "Undo changes to the model that its config does not describe.",
            )


def is_native(layout: Layout) -> bool:
    """Tell whether the stock class builds the model all by itself.

    >>> is_native({"skips": {}, "linears": {}, "attributes": {}, "selects": {}})
    True
    """
    return not any(layout.values())


def is_skip(module: nn.Module) -> bool:
    """Tell whether a module is a no-op of ours, also one whose class came with a saved folder."""
    return type(module).__name__ == Skip.__name__ and type(module).__module__.endswith("modeling_pruned")


def selects_of(module: nn.Module) -> list[dict[str, Any]]:
    """Return the arguments of the selections that hang on a module."""
    hooks = [h for h in module._forward_pre_hooks.values() if isinstance(h, partial)]
    return [dict(hook.keywords) for hook in hooks if "argument" in hook.keywords]


def _skips(base: nn.Module) -> dict[str, list[int | bool]]:
    found: dict[str, list[int | bool]] = {}
    for path, module in base.named_modules():
        if is_skip(module):
            skip: Any = module
            found[path] = [skip.outputs, skip.width, skip.bias is not None]
    return found


def _linears(base: nn.Module, plain: nn.Module) -> dict[str, list[int]]:
    stock = {path: features(m) for path, m in plain.named_modules() if isinstance(m, LINEAR_TYPES)}
    have = {path: features(m) for path, m in base.named_modules() if isinstance(m, LINEAR_TYPES)}
    return {path: list(size) for path, size in have.items() if stock.get(path, size) != size}


def _attributes(base: nn.Module, plain: nn.Module) -> dict[str, dict[str, int]]:
    found: dict[str, dict[str, int]] = {}
    for group in discover(base).groups:
        for edit in group.edits:
            value = vars(base.get_submodule(edit.path))[edit.attribute]
            if value != vars(plain.get_submodule(edit.path))[edit.attribute]:
                found.setdefault(edit.path, {})[edit.attribute] = value
    return found


def _selects(base: nn.Module) -> dict[str, dict[str, Any]]:
    return {path: select for path, module in base.named_modules() for select in selects_of(module)}


def _shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
