"""Which groups one-shot pruning may touch: of the kinds asked for those included, less the protected ones."""

from collections.abc import Collection, Sequence
from dataclasses import replace

from torch import nn

from patchers.discovery.discover import matches
from patchers.discovery.towers import is_inside, towers_of
from patchers.units import Kind, Structure
from sparse_trainer.errors import ArgumentError, BudgetError

Protect = str | int
"""A layer, layers (`first`, `last`, `3-5`), or a pattern of group names."""


def prunable(
    model: nn.Module,
    found: Structure,
    kinds: Collection[Kind],
    protect: Sequence[Protect],
    include: Sequence[str] = (),
) -> Structure:
    """Return what is found in a model, with only the groups that may be pruned.

    Args:
        include: Patterns of the only groups; none = all but those in the towers of an image-text model.

    Raises:
        ArgumentError: a pattern that matches nothing.
        BudgetError: everything is protected.
    """
    asked = replace(found, groups=found.of(kinds))
    names = protected(asked, protect)
    meant = _included(asked, include) if include else _outside_of_towers(model, asked)
    left = tuple(g for g in asked.groups if g.name in meant and g.name not in names)
    if not left:
        what = "everything is protected" if names else f"has no {' or '.join(kinds)} to prune"
        raise BudgetError(
            "protect" if names else type(model).__name__, f"{what}.", "Protect less, or name other units."
        )
    return replace(asked, groups=left)


def _included(structure: Structure, patterns: Sequence[str]) -> set[str]:
    names: set[str] = set()
    for pattern in patterns:
        found = _matching(structure, pattern)
        if not found:
            example = next((group.name for group in structure.groups), "none of these units")
            raise ArgumentError(
                "include", f"{pattern!r} matches no group.", f"Give patterns of group names, such as {example}."
            )  # fmt: skip
        names |= found
    return names


def _outside_of_towers(model: nn.Module, structure: Structure) -> set[str]:
    towers = towers_of(model)
    return {group.name for group in structure.groups if not is_inside(group.name, towers)}


def protected(structure: Structure, protect: Sequence[Protect]) -> set[str]:
    """Return the names of the groups that `first`, `last`, `3`, `3-5` or patterns of names protect."""
    names: set[str] = set()
    for entry in protect:
        found = {g.name for g in structure.groups if g.layer in _layers(structure, g.stack, entry)}
        if not found:
            found = _matching(structure, str(entry))
        if not found:
            layers = max((stack.size for stack in structure.stacks), default=0)
            raise ArgumentError(
                "protect", f"{entry!r} matches no group.",
                f"Give first, last, layers such as 3 or 3-5 (below {layers}), or a pattern of group names.",
            )  # fmt: skip
        names |= found
    return names


def _layers(structure: Structure, stack: str, entry: Protect) -> range:
    size = next((s.size for s in structure.stacks if s.path == stack), 0)
    text = str(entry)
    if text in ("first", "last"):
        return range(1) if text == "first" else range(size - 1, size)
    first, _, last = text.partition("-")
    if not first.isdigit() or not (last or first).isdigit():
        return range(0)
    return range(int(first), int(last or first) + 1)


def _matching(structure: Structure, pattern: str) -> set[str]:
    return {g.name for g in structure.groups if matches(pattern, g.name)}
