"""Which groups one-shot pruning may touch: those of the kinds asked for, less the protected ones."""

from collections.abc import Collection, Sequence
from dataclasses import replace

from torch import nn

from patchers.discovery.discover import matches
from patchers.units import Kind, Structure
from sparse_trainer.errors import ArgumentError, BudgetError

Protect = str | int
"""A layer, layers (`first`, `last`, `3-5`), or a pattern of group names."""


def prunable(
    model: nn.Module, found: Structure, kinds: Collection[Kind], protect: Sequence[Protect]
) -> Structure:
    """Return what is found in a model, with only the groups that may be pruned.

    Raises:
        BudgetError: everything is protected.
    """
    asked = replace(found, groups=found.of(kinds))
    names = protected(asked, protect)
    left = tuple(g for g in asked.groups if g.name not in names)
    if not left:
        what = "everything is protected" if names else f"has no {' or '.join(kinds)} to prune"
        raise BudgetError(
            "protect" if names else type(model).__name__, f"{what}.", "Protect less, or name other units."
        )
    return replace(asked, groups=left)


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
