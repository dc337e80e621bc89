"""Ways to say in a config what a cut did: fields by name, tried one after the other by `fit`."""

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedConfig

from patchers.discovery.tables.names import (
    FFN_WIDTH,
    HEAD_DIM,
    HIDDEN_SIZE_FIELDS,
    LAYERS_OF_STAGES,
    NUM_EXPERTS,
    NUM_HEADS_FIELDS,
    NUM_KV_HEADS,
    NUM_LAYERS,
)
from patchers.units import CHANNELS, EXPERTS, HEADS, HIDDEN, Group, Kind, Structure

_PER_LAYER = ("layer", "types", "pattern", "rope", "sliding", "interleave", "window", "kernels", "dilations")
"""Parts of the names of config fields with one entry per layer."""

_SPEC = "_heterogeneity_spec"
"""Where a config of transformers 5 keeps `per_layer_config`."""
_INDICES = ("indices", "idx", "_layers", "layer_ids")
"""Parts of the names of config fields that list layers by number."""

Change = list[tuple[PreTrainedConfig, str, Any]]


@dataclass(frozen=True, kw_only=True)
class Cut:
    """What a cut did, in the terms of a config."""

    before: Structure
    after: Structure
    gone: Mapping[str, Set[int]]
    """Layers that were taken away, by path of their stack."""

    @property
    def narrows(self) -> bool:
        """Tell whether hidden features are gone."""
        left = sum(g.num_units for g in self.after.of([HIDDEN]))
        return left < sum(g.num_units for g in self.before.of([HIDDEN]))


def configs_of(config: PreTrainedConfig) -> Iterator[PreTrainedConfig]:
    """Yield a config and the configs inside it."""
    yield config
    for value in list(vars(config).values()):
        if isinstance(value, PreTrainedConfig):
            yield from configs_of(value)


def layer_changes(config: PreTrainedConfig, cut: Cut, stack: str) -> Iterator[Change]:
    """Yield the ways to say that layers of a stack are gone: a count with the lists that have an entry per layer."""
    size = next(s.size for s in cut.before.stacks if s.path == stack)
    gone = cut.gone[stack]
    for part in configs_of(config):
        lists, numberings = _thinned(part, size, gone), _renumbered(part, size, gone)
        for name in (name for name in NUM_LAYERS if vars(part).get(name) == size):
            yield [(part, name, size - len(gone)), *lists]
            if numberings:
                numbered = {listed for _, listed, _ in numberings}
                others = [entry for entry in lists if entry[1] not in numbered]
                yield [(part, name, size - len(gone)), *others, *numberings]
        yield from _stage_changes(part, size, len(gone))


def _thinned(part: PreTrainedConfig, size: int, gone: Set[int]) -> Change:
    """Return what has an entry per layer, without those of the layers that are gone."""
    lists: Change = [
        (part, name, type(value)(entry for layer, entry in enumerate(value) if layer not in gone))
        for name, value in vars(part).items()
        if isinstance(value, list | tuple) and len(value) == size and any(key in name for key in _PER_LAYER)
    ]
    lists += _overrides(part, gone)
    left = next((value for _, name, value in lists if name == "attention_layers"), None)
    if left is None or "attention_types" not in vars(part):
        return lists
    # GPT-Neo writes its list twice, the second time as [[kinds, how often], …].
    lists = [entry for entry in lists if entry[1] != "attention_types"]
    return [*lists, (part, "attention_types", [[list(left), 1]])]


def _overrides(part: PreTrainedConfig, gone: Set[int]) -> Change:
    """Return the fields that single layers have of their own (`per_layer_config` of transformers 5), numbered anew."""
    spec = vars(part).get(_SPEC)
    if spec is None:
        return []
    left = {layer - sum(g < layer for g in gone): own for layer, own in spec.per_layer_overrides.items()
            if layer not in gone}  # fmt: skip
    return [(part, _SPEC, dataclasses.replace(spec, per_layer_overrides=left))]


def _renumbered(part: PreTrainedConfig, size: int, gone: Set[int]) -> Change:
    """Return the lists of layers by number, as the remaining layers are numbered."""
    return [
        (part, name, [i - sum(g < i for g in gone) for i in value if i not in gone])
        for name, value in vars(part).items()
        if isinstance(value, list) and any(key in name for key in _INDICES) and _is_numbering(value, size)
    ]


def _stage_changes(part: PreTrainedConfig, size: int, gone: int) -> Iterator[Change]:
    """Yield the change of each entry of a list of depths, one per stage, that may be the stack's."""
    for name in LAYERS_OF_STAGES:
        value = vars(part).get(name)
        if isinstance(value, list | tuple):
            for place in (place for place, depth in enumerate(value) if depth == size):
                yield [(part, name, type(value)([*value[:place], size - gone, *value[place + 1 :]]))]


def _is_numbering(values: list[Any], size: int) -> bool:
    """Tell whether a list numbers layers: whole numbers below their count, rising.

    >>> _is_numbering([1, 3], 4), _is_numbering([0, 1, 1], 4), _is_numbering(["full"], 4)
    (True, False, False)
    """
    whole = all(type(value) is int and 0 <= value < size for value in values)
    return whole and all(a < b for a, b in itertools.pairwise(values))


def channel_changes(config: PreTrainedConfig, cut: Cut) -> Iterator[Change]:
    """Yield the ways to say how many channels are left."""
    for before, now in _resized(cut, CHANNELS):
        for part in configs_of(config):
            for name in FFN_WIDTH:
                value = vars(part).get(name, 0)
                if value == before or value is None:
                    yield [(part, name, now)]
            yield from _ratio_changes(part, before, now)


def _resized(cut: Cut, kind: Kind) -> list[tuple[int, int]]:
    """Return the numbers of units that a cut changed, before and after, each pair once."""
    after = {(g.stack, inner_name(g)): g.num_units for g in cut.after.of([kind])}
    pairs = ((g.num_units, after.get((g.stack, inner_name(g)), g.num_units)) for g in cut.before.of([kind]))
    return [(before, now) for before, now in dict.fromkeys(pairs) if before != now]


def _ratio_changes(part: PreTrainedConfig, before: int, now: int) -> Iterator[Change]:
    """Yield the change of a ratio of channels to hidden features, where the new one comes out whole."""
    ratio = vars(part).get("mlp_ratio")
    for name in HIDDEN_SIZE_FIELDS:
        hidden = vars(part).get(name)
        if not isinstance(ratio, int | float) or not isinstance(hidden, int) or int(hidden * ratio) != before:
            continue
        if int(hidden * (now / hidden)) == now:
            whole = isinstance(ratio, int) and now % hidden == 0
            yield [(part, "mlp_ratio", now // hidden if whole else now / hidden)]


def head_changes(config: PreTrainedConfig, cut: Cut) -> Iterator[tuple[Change, list[str]]]:
    """Yield the ways to say how many heads are left, with the weights that must then have the right shape."""
    for stack, inner in dict.fromkeys((g.stack, inner_name(g)) for g in cut.before.of([HEADS])):
        old, new = (
            [g for g in structure.of([HEADS]) if (g.stack, inner_name(g)) == (stack, inner)]
            for structure in (cut.before, cut.after)
        )
        sizes = {_size_of(g) for g in new}
        if len(sizes) != 1 or not old or _size_of(old[0]) in sizes:
            continue
        units, width, is_shared = sizes.pop()
        weights = [f"{s.path}.weight" for g in new for s in g.slices]
        for part in configs_of(config):
            change = _heads_in(part, old[0], units, width, 1 if is_shared else units)
            if change:
                yield change, weights


def _size_of(group: Group) -> tuple[int, int, bool]:
    """Return units, features of one, and whether one KV head serves all: then queries are the units, without values."""
    shared = not any(s.is_value for s in group.slices)
    return group.num_units, group.consumer_slice.width, shared


def _heads_in(part: PreTrainedConfig, old: Group, units: int, width: int, groups: int) -> Change:
    """Return the change of one config to `units` with `width` features each; empty where it counts other heads.

    Args:
        groups: KV heads that are left.
    """
    name = next((n for n in NUM_HEADS_FIELDS if isinstance(vars(part).get(n), int)), None)
    if name is None or vars(part)[name] % old.num_units:
        return []
    head_dim = old.consumer_slice.width // (vars(part)[name] // old.num_units)
    left = units * width // head_dim
    change: Change = [(part, name, left)]
    change += [(part, field, groups) for field in NUM_KV_HEADS if vars(part).get(field) == old.num_units]
    return change + [(part, field, head_dim) for field in HEAD_DIM if field in vars(part)]


def expert_changes(config: PreTrainedConfig, cut: Cut) -> Iterator[Change]:
    """Yield the ways to say how many experts are left."""
    for before, now in _resized(cut, EXPERTS):
        for part in configs_of(config):
            yield from ([(part, name, now)] for name in NUM_EXPERTS if vars(part).get(name) == before)


def hidden_changes(config: PreTrainedConfig, cut: Cut) -> Iterator[Change]:
    """Yield the ways to say how many hidden features are left; heads stay as wide as they were."""
    heads = cut.before.of([HEADS])
    for before, now in _resized(cut, HIDDEN):
        for part in configs_of(config):
            names = [name for name in HIDDEN_SIZE_FIELDS if vars(part).get(name) == before]
            counts = [vars(part)[name] for name in NUM_HEADS_FIELDS if isinstance(vars(part).get(name), int)]
            for name in names:
                yield [(part, name, now)]
                if heads and counts:
                    width = heads[0].num_units * heads[0].consumer_slice.width // counts[0]
                    yield [(part, name, now), (part, "head_dim", width)]


def inner_name(group: Group) -> str:
    """Return a group's name without its layer: what it is in every block."""
    return group.name.removeprefix(group.block)
