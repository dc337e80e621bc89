"""Which blocks, and which units in them, take the same time: those of the same class and sizes are measured once."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from patchers.layers import features, linear_at
from patchers.units import LAYERS, WIDTH_KINDS, Group, Structure


@dataclass(frozen=True, kw_only=True)
class Block:
    """A block of a model, and the units in it whose number can change."""

    path: str
    stack: str
    layer: int
    groups: tuple[Group, ...]
    """Heads, channels, experts."""
    sorts: tuple[str, ...]
    """Of each group: see `timing_sort`."""
    sort: str
    """What it has in common with all blocks that take as long, given as many units."""


def timed_blocks(model: nn.Module, structure: Structure) -> tuple[Block, ...]:
    """Return the blocks of a model, in order.

    Args:
        structure: All that was found in it, widths at least.
    """
    found = []
    for stack in structure.stacks:
        for layer in range(stack.size):
            path = f"{stack.path}.{layer}"
            groups = tuple(g for g in structure.of(WIDTH_KINDS) if g.block == path)
            found.append(_block(model, path, stack.path, layer, groups))
    return tuple(found)


def _block(model: nn.Module, path: str, stack: str, layer: int, groups: tuple[Group, ...]) -> Block:
    sorts = tuple(timing_sort(model, group) for group in groups)
    named = type(model.get_submodule(path)).__name__
    sort = " + ".join([named, *(text.partition(": ")[2] for text in sorts)])
    return Block(path=path, stack=stack, layer=layer, groups=groups, sorts=sorts, sort=sort)


def timing_sort(model: nn.Module, group: Group) -> str:
    """Return what a group has in common with all in which so many units take as long: `channels of BertLayer: …`.

    The class of the block, the kind, and of every linear the entries of one unit, with those that they meet. How many
    units there are is not part of it.
    """
    block = type(model.get_submodule(group.block)).__name__
    parts = []
    for s in group.slices:
        outputs, inputs = features(linear_at(model, s.path))
        parts.append(f"{s.axis} {s.width}x{inputs if s.axis == 'out' else outputs}")
    parts += [f"dim {t.dim} {t.width}" for t in group.tensors]
    return f"{group.kind} of {block}: {group.kind} {', '.join(parts)}"


def largest_of_sorts(blocks: Sequence[Block]) -> Mapping[str, list[tuple[Block, Group]]]:
    """Return, by sort, the groups with the most units."""
    found: dict[str, list[tuple[Block, Group]]] = {}
    for block in blocks:
        for sort, group in zip(block.sorts, block.groups, strict=True):
            found.setdefault(sort, []).append((block, group))
    return {sort: _largest(members) for sort, members in found.items()}


def _largest(members: list[tuple[Block, Group]]) -> list[tuple[Block, Group]]:
    most = max(group.num_units for _, group in members)
    return [(block, group) for block, group in members if group.num_units == most]


def spare_layers(structure: Structure) -> tuple[Group, ...]:
    """Return the layers that a model can do without, so that one of every stack and sort is left."""
    left: set[tuple[str, str]] = set()
    found = []
    for group in structure.of([LAYERS]):
        if group.peers in left:
            found.append(group)
        left.add(group.peers)
    return tuple(found)
