"""Sizes of single layers in a config, as transformers 5 words them (`per_layer_config`): for readers that know not us.

Caches are laid out by them, and vLLM's Transformers backend sizes its attention. The class that we make builds from the
layout alone, and does not read them.
"""

from collections.abc import Iterable
from typing import Any

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from patchers.discovery.discover import discover
from patchers.discovery.tables.names import HEAD_DIM
from patchers.modeling_pruned import OWN_SIZES
from patchers.units import CHANNELS, HEADS, Group, Structure

_SPEC = OWN_SIZES[0]


def write_layer_sizes(model: PreTrainedModel, found: Structure) -> None:
    """Say in the config of a cut model what its layers have, where it counts heads and channels by the usual names.

    Of a branch that is gone nothing is said: there is nothing to be sized.

    Args:
        found: What there is to prune in the cut model; looked for anew where it knows no heads or no channels.
    """
    if not {HEADS, CHANNELS} <= set(found.kinds.values()):
        found = discover(model, (HEADS, CHANNELS))
    config = model.config
    part = config.get_text_config(decoder=True)
    path = next((n for n, value in [("", config), *vars(config).items()] if value is part), None)
    sizes = _sizes(model, part, found)
    if path is None or _SPEC in vars(part) or not any(sizes.values()):
        return
    config.pruning["per_layer"] = path
    part.per_layer_config = sizes
    part.allow_global_per_layer_attribute_access = True


def drop_layer_sizes(config: PreTrainedConfig) -> None:
    """Take out of a config what `write_layer_sizes` has written, in place."""
    path = vars(config).get("pruning", {}).get("per_layer")
    if path is not None:
        part = config if path == "" else vars(config)[path]
        for name in OWN_SIZES:
            vars(part).pop(name, None)


def _sizes(
    model: PreTrainedModel, config: PreTrainedConfig, structure: Structure
) -> dict[int | str, dict[str, Any]]:
    """Return by layer what differs from the fields of the config, empty where they do not count this model's blocks."""
    stacks = [stack for stack in structure.stacks if stack.size == vars(config).get("num_hidden_layers")]
    if len(stacks) != 1:
        return {}
    found: dict[int | str, dict[str, Any]] = {}
    for layer in range(stacks[0].size):
        here = [g for g in structure.groups if (g.stack, g.layer) == (stacks[0].path, layer)]
        sizes = {**_heads(model, here), **_channels(here)}
        counted = {name: size for name, size in sizes.items() if isinstance(vars(config).get(name), int)}
        if any(size > vars(config)[name] for name, size in counted.items()):
            return {}
        found[layer] = {name: size for name, size in counted.items() if size != vars(config)[name]}
    return {layer: sizes for layer, sizes in found.items() if sizes}


def _heads(model: nn.Module, here: Iterable[Group]) -> dict[str, int]:
    """Return the heads of a layer with one attention that says how wide its heads are."""
    groups = [group for group in here if group.kind == HEADS and group.core is not None]
    if len(groups) != 1:
        return {}
    (group,) = groups
    attention = vars(model.get_submodule(group.core.path if group.core else ""))
    head_dim = next((attention[name] for name in HEAD_DIM if name in attention), None)
    if not isinstance(head_dim, int):
        return {}
    values = [s for s in group.slices if s.is_value]
    # With one KV head left, the units are query heads, and its values belong to none of them.
    shared = sum(s.units * s.width for s in values) // head_dim if values else 1
    return {
        "num_attention_heads": group.num_units * group.consumer_slice.width // head_dim,
        "num_key_value_heads": shared,
    }


def _channels(here: Iterable[Group]) -> dict[str, int]:
    """Return the channels of a layer with one feed-forward branch, which is no expert."""
    groups = [group for group in here if group.kind == CHANNELS and group.consumer_tensor is None]
    return {"intermediate_size": groups[0].num_units} if len(groups) == 1 else {}
