"""Find what of a model can be pruned: match its blocks against the tables of the families."""

import re
from collections.abc import Iterable, Iterator, Sequence
from fnmatch import fnmatchcase

from torch import nn

from patchers.errors import UnsupportedModelError
from patchers.families import FAMILIES, AttentionTable, Family, FfnTable
from patchers.groups import KINDS, Core, Edit, Group, Kind, Select, Slice, Stack, Structure
from patchers.layers import LINEAR_TYPES, features, linear_at


def discover(model: nn.Module, kinds: Iterable[Kind] = KINDS, exclude: Sequence[str] = ()) -> Structure:
    """Return the groups of `model`; works on the meta device and on models that were cut before.

    Args:
        kinds: Kinds of unit to return.
        exclude: Patterns of group names that stay dense: a glob (`*.layer.0.*`) or a part of the name.

    Raises:
        UnsupportedModelError: no block of the model belongs to a known family, or its shapes contradict each other.
    """
    groups: list[Group] = []
    stacks: list[Stack] = []
    for path, blocks in model.named_modules():
        if isinstance(blocks, nn.ModuleList) and len(blocks) > 0:
            family = _family_of(blocks)
            if family is not None:
                stacks.append(_stack(model, path, blocks, family))
                groups.extend(_groups_of_stack(model, stacks[-1], family))
    if not stacks:
        raise UnsupportedModelError(
            type(model).__name__,
            f"no block of a known family ({', '.join(FAMILIES)}). Its linears: {_linear_summary(model)}.",
            "Add a table to patchers/families for its naming.",
        )
    wanted, dropped = set(kinds), set(exclude)
    unmatched = [p for p in exclude if not any(matches(p, g.name) for g in groups)]
    if unmatched:
        raise UnsupportedModelError(
            "exclude", f"{unmatched[0]!r} matches no group.", f"Groups are named like {groups[0].name!r}."
        )
    chosen = tuple(g for g in groups if g.kind in wanted and not any(matches(p, g.name) for p in dropped))
    return Structure(groups=chosen, stacks=tuple(stacks), untouched=_untouched(model, groups, chosen, stacks))


def matches(pattern: str, name: str) -> bool:
    """Tell whether a glob, or a run of whole name parts, selects `name`.

    >>> matches("layer.1", "bert.encoder.layer.1.heads"), matches("layer.1", "bert.encoder.layer.11.heads")
    (True, False)
    >>> matches("*.heads", "bert.encoder.layer.1.heads")
    True
    """
    return fnmatchcase(name, pattern) or f".{pattern}." in f".{name}."


def _family_of(blocks: nn.ModuleList) -> Family | None:
    """Return the family that names the parts of every block, or None."""
    for family in FAMILIES.values():
        if all(_has_all(block, _required_paths(family)) for block in blocks):
            return family
    return None


def _required_paths(family: Family) -> list[str]:
    paths: list[str] = []
    if family.attention is not None:
        paths += [family.attention.value, family.attention.output, *family.attention.queries[:2]]
    if family.ffn is not None:
        paths += [*family.ffn.up, family.ffn.down]
    return paths


def _has_all(block: nn.Module, paths: Iterable[str]) -> bool:
    """Tell whether every path is there: a layer, or the no-op that took the place of its attention."""
    present = {path for path, _ in block.named_modules()}
    gone = {path for path, module in block.named_modules() if module.__class__.__name__ == "Skip"}
    return all(path in present or any(path.startswith(f"{g}.") for g in gone) for path in paths)


def _stack(model: nn.Module, path: str, blocks: nn.ModuleList, family: Family) -> Stack:
    fixed = False
    if family.pins_first_layer is not None:
        parent = model.get_submodule(path.rpartition(".")[0])
        fixed = dict(parent.named_children()).get(family.pins_first_layer) is not None
    return Stack(
        path=path,
        size=len(blocks),
        family=family.name,
        config_keys=family.config_keys,
        fixed_layers=frozenset({0}) if fixed else frozenset(),
    )


def _groups_of_stack(model: nn.Module, stack: Stack, family: Family) -> Iterator[Group]:
    for layer in range(stack.size):
        block = f"{stack.path}.{layer}"
        modules = {path for path, _ in model.get_submodule(block).named_modules()}
        if family.attention is not None and family.attention.value in modules:
            heads = _heads(model, stack, layer, family.attention, modules)
            yield heads
            yield _branch(heads, "attention")
        if family.ffn is not None:
            channels = _channels(model, stack, layer, family.ffn)
            if channels.num_units > 0:
                yield channels
                yield _branch(channels, "ffn")
        if layer not in stack.fixed_layers and stack.size > 1:
            yield Group(
                name=f"{block}.layer", kind="layers", layer=layer, stack=stack.path, block=block,
                num_units=1, consumer=block,
            )  # fmt: skip


def _heads(model: nn.Module, stack: Stack, layer: int, table: AttentionTable, modules: set[str]) -> Group:
    block = f"{stack.path}.{layer}"
    core = f"{block}.{table.core}"
    num_heads = getattr(model.get_submodule(core), table.num_heads)
    rows, _ = features(linear_at(model, f"{block}.{table.value}"))
    if num_heads < 1 or rows % num_heads:
        raise UnsupportedModelError(
            f"{block}.{table.value}",
            f"{rows} output features do not divide into {num_heads} heads.",
            f"Check {table.num_heads} of the config against the weights.",
        )
    head_dim = rows // num_heads
    producers = [q for q in table.queries if q in modules]
    slices = [Slice(path=f"{block}.{q}", axis="out", units=num_heads, width=head_dim) for q in producers]
    slices.append(
        Slice(path=f"{block}.{table.value}", axis="out", units=num_heads, width=head_dim, is_value=True)
    )
    slices.append(Slice(path=f"{block}.{table.output}", axis="in", units=num_heads, width=head_dim))
    _check_sizes(model, slices)
    edits = [Edit(path=core, attribute=table.num_heads, per_unit=1)]
    if table.all_head_size is not None:
        edits.append(Edit(path=core, attribute=table.all_head_size, per_unit=head_dim))
    return Group(
        name=f"{block}.heads",
        kind="heads",
        layer=layer,
        stack=stack.path,
        block=block,
        num_units=num_heads,
        consumer=f"{block}.{table.output}",
        slices=tuple(slices),
        edits=tuple(edits),
        selects=tuple(Select(path=core, argument=a, position=p, dim=d) for a, p, d in table.selects),
        core=Core(path=core, outputs=table.core_outputs, owns_output=table.core_owns_output),
    )


def _channels(model: nn.Module, stack: Stack, layer: int, table: FfnTable) -> Group:
    block = f"{stack.path}.{layer}"
    _, width = features(linear_at(model, f"{block}.{table.down}"))
    slices = [Slice(path=f"{block}.{u}", axis="out", units=width, width=1, is_value=True) for u in table.up]
    slices.append(Slice(path=f"{block}.{table.down}", axis="in", units=width, width=1))
    _check_sizes(model, slices)
    return Group(
        name=f"{block}.channels",
        kind="channels",
        layer=layer,
        stack=stack.path,
        block=block,
        num_units=width,
        consumer=f"{block}.{table.down}",
        slices=tuple(slices),
    )


def _branch(width: Group, kind: Kind) -> Group:
    """Return the branch around a group of heads or channels, as one unit."""
    return Group(
        name=f"{width.block}.{kind}", kind=kind, layer=width.layer, stack=width.stack, block=width.block,
        num_units=1, consumer=width.consumer, inner=width.name, core=width.core, slices=width.slices,
    )  # fmt: skip


def _check_sizes(model: nn.Module, slices: Sequence[Slice]) -> None:
    for s in slices:
        outputs, inputs = features(linear_at(model, s.path))
        have = outputs if s.axis == "out" else inputs
        if have != s.units * s.width:
            raise UnsupportedModelError(
                s.path,
                f"{have} {s.axis}put features, expected {s.units} units x {s.width}.",
                "The weights contradict the config.",
            )


def _untouched(
    model: nn.Module, groups: Sequence[Group], chosen: Sequence[Group], stacks: Sequence[Stack]
) -> dict[str, str]:
    known = {s.path for g in groups for s in g.slices}
    in_chosen = {s.path for g in chosen for s in g.slices}
    whole = tuple(f"{g.block}." for g in chosen if g.kind == "layers")
    reasons: dict[str, str] = {}
    for path, module in model.named_modules():
        if (
            isinstance(module, LINEAR_TYPES)
            and path not in in_chosen
            and not path.startswith(whole or ("\0",))
        ):
            if path in known:
                reasons[path] = "excluded, or of a kind that was not asked for"
            elif any(path.startswith(f"{stack.path}.") for stack in stacks):
                reasons[path] = "not in the table of its family"
            else:
                reasons[path] = "outside the blocks"
    return reasons


def _linear_summary(model: nn.Module, most: int = 12) -> str:
    """Return the distinct linear paths with layer numbers starred, a few of them."""
    names = dict.fromkeys(
        re.sub(r"\.\d+\.", ".*.", p) for p, m in model.named_modules() if isinstance(m, LINEAR_TYPES)
    )
    listed = list(names)[:most]
    more = f", … {len(names) - most} more" if len(names) > most else ""
    return (", ".join(listed) + more) or "none"
