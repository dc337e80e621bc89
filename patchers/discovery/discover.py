"""Find what of a model can be pruned: match its modules against the tables of forms."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from torch import nn
from transformers import PreTrainedModel

from patchers.discovery.attention import read_attention
from patchers.discovery.experts import read_experts, read_router
from patchers.discovery.ffn import read_ffn
from patchers.discovery.findings import Part, Refusal, starred
from patchers.discovery.hidden import read_hidden
from patchers.discovery.matching import attention_form_of, ffn_form_of, is_experts, sort_of
from patchers.discovery.stacks import fixed_layers, number_in, stack_around
from patchers.errors import UnsupportedModelError
from patchers.layers import LINEAR_TYPES, features, linear_at
from patchers.units import BLOCK_KINDS, HEADS, HIDDEN, LAYERS, Group, Stack, Structure, kind_named


@dataclass
class _Block:
    """One block of a stack, and what was found in it."""

    path: str
    layer: int
    parts: list[Part] = field(default_factory=list)


def discover(
    model: nn.Module,
    kinds: Iterable[str] = BLOCK_KINDS,
    exclude: Sequence[str] = (),
    include: Sequence[str] = (),
) -> Structure:
    """Return the groups of `model`; works on the meta device and on models that were cut before.

    Args:
        kinds: Kinds of unit to return; default: all that lie in blocks.
        exclude: Patterns of group names that stay dense: a glob (`*.layer.0.*`) or a part of the name.
        include: Patterns of the only groups to return (`language_model`); none = all.

    Raises:
        SparseTrainerError: a kind that there is not.
        UnsupportedModelError: nothing in the model follows a known form, its shapes contradict each other, it is
            quantized, or a pattern matches no group.
    """
    configs = [module.config for module in model.modules() if isinstance(module, PreTrainedModel)]
    if any(vars(config).get("quantization_config") is not None for config in configs):
        raise UnsupportedModelError(
            type(model).__name__,
            "its weights are quantized.",
            "Prune the unquantized model, and quantize the result.",
        )
    stacks, refusals = _read(model)
    if not stacks:
        raise UnsupportedModelError(
            type(model).__name__,
            f"no attention or feed-forward module of a known form. {_summary(model, refusals)}",
            "Declare its naming with patchers.register_form (docs/architectures.md says how).",
        )
    groups = [group for stack, blocks in stacks for group in _groups_of_stack(stack, blocks)]
    wanted = set(map(kind_named, kinds))
    refused_hidden: dict[str, str] = {}
    if HIDDEN in wanted:
        hidden = read_hidden(model, [stack for stack, _ in stacks], groups, refusals)
        if isinstance(hidden, Group):
            groups.append(hidden)
        else:
            refusals.append(hidden)
            refused_hidden = {hidden.path: hidden.reason}
    for option, patterns in (("exclude", exclude), ("include", include)):
        lost = next((p for p in patterns if not any(matches(p, g.name) for g in groups)), None)
        if lost is not None:
            raise UnsupportedModelError(
                option,
                f"{lost!r} matches no group.",
                f"Give a pattern of group names, which are like {groups[0].name!r}.",
            )
    chosen = tuple(g for g in groups if g.kind in wanted and _is_meant(g.name, exclude, include))
    known = tuple(stack for stack, _ in stacks)
    untouched = _untouched(model, groups, chosen, known, refusals)
    if LAYERS in wanted:
        untouched |= {
            f"{stack.path}.{layer}": f"cannot go as a whole: {reason}"
            for stack in known
            for layer, reason in stack.fixed_layers.items()
        }
    return Structure(groups=chosen, stacks=known, untouched=untouched, refused_hidden=refused_hidden)


def _is_meant(name: str, exclude: Sequence[str], include: Sequence[str]) -> bool:
    return not any(matches(p, name) for p in exclude) and (
        not include or any(matches(p, name) for p in include)
    )


def matches(pattern: str, name: str) -> bool:
    """Tell whether a glob, or a run of whole name parts, selects `name`.

    >>> matches("layer.1", "bert.encoder.layer.1.heads"), matches("layer.1", "bert.encoder.layer.11.heads")
    (True, False)
    >>> matches("*.heads", "bert.encoder.layer.1.heads")
    True
    """
    return fnmatchcase(name, pattern) or f".{pattern}." in f".{name}."


def _read(model: nn.Module) -> tuple[list[tuple[Stack, list[_Block]]], list[Refusal]]:
    """Return the stacks with what their blocks hold, in model order, and what was recognised and refused."""
    lists = {p: m for p, m in model.named_modules() if isinstance(m, nn.ModuleList) and len(m) > 0}
    found: dict[str, dict[int, _Block]] = {}
    refusals: list[Refusal] = []
    pinned: dict[str, dict[int, str]] = {}
    taken: set[str] = set()
    for path, module in model.named_modules():
        for part in _parts_at(model, path, module):
            stack_path = stack_around(path, lists)
            if isinstance(part, Refusal) or stack_path is None:
                refusals.append(part if isinstance(part, Refusal) else _outside(part))
                if isinstance(part, Refusal) and part.pins_layer and stack_path is not None:
                    pinned.setdefault(stack_path, {})[number_in(path, stack_path)] = part.reason
            elif part.consumer not in taken:
                taken.add(part.consumer)
                layer = number_in(path, stack_path)
                blocks = found.setdefault(stack_path, {})
                block = blocks.setdefault(layer, _Block(path=f"{stack_path}.{layer}", layer=layer))
                block.parts.append(part)
    stacks = []
    for stack_path, blocks in found.items():
        parts = [part for block in blocks.values() for part in block.parts]
        narrowing = {
            layer: _CHANGES_WIDTH for layer, block in blocks.items() if not _keeps_width(model, block)
        }
        stack = Stack(
            path=stack_path,
            size=len(lists[stack_path]),
            sorts=tuple(map(sort_of, lists[stack_path])),
            forms=tuple(dict.fromkeys(part.form for part in parts)),
            fixed_layers=narrowing | pinned.get(stack_path, {}) | fixed_layers(model, stack_path),
        )
        stacks.append((stack, [blocks[layer] for layer in sorted(blocks)]))
    return stacks, refusals


_CHANGES_WIDTH = "it reads and writes different numbers of features"


def _parts_at(model: nn.Module, path: str, module: nn.Module) -> Iterator[Part | Refusal]:
    if is_experts(module):
        yield read_experts(model, path)
        router = read_router(model, path)
        if router is not None:
            yield router
        return
    if any(
        tensor.dim() == 3 and name == "down_proj" for name, tensor in module.named_parameters(recurse=False)
    ):
        yield Refusal(path=path, reason="stacked experts of a form of their own")
    if isinstance(module, nn.MultiheadAttention):
        yield Refusal(path=path, reason="torch's own attention checks the width of what it gets")
        return
    attention = attention_form_of(module)
    if attention is not None:
        found = read_attention(model, path, attention)
        yield found
        if isinstance(found, Part):
            yield from found.left
    ffn = ffn_form_of(module)
    if ffn is not None:
        yield read_ffn(model, path, ffn)


def _outside(part: Part) -> Refusal:
    return Refusal(path=part.consumer, reason="outside the blocks")


def _keeps_width(model: nn.Module, block: _Block) -> bool:
    """Tell whether everything in a block reads and writes the same number of features."""
    widths = set()
    for part in block.parts:
        if part.entry is not None:
            widths.add(features(linear_at(model, part.entry))[1])
        if part.slices:
            widths.add(features(linear_at(model, part.consumer))[0])
    return len(widths) < 2


def _groups_of_stack(stack: Stack, blocks: Sequence[_Block]) -> Iterator[Group]:
    found: list[Group] = []
    for block in blocks:
        # Attention first, whatever the order in which a class creates its parts.
        for part in sorted(block.parts, key=lambda part: part.kind != HEADS):
            like = [p for p in block.parts if p.kind == part.kind]
            inner = part.path.removeprefix(block.path).removeprefix(".") if len(like) > 1 else ""
            prefix = f"{block.path}.{inner}" if inner else block.path
            found += _groups_of_part(stack, block, part, prefix)
    yield from found
    if stack.size > 1:
        for layer in range(stack.size):
            if layer not in stack.fixed_layers:
                path = f"{stack.path}.{layer}"
                heads = [g for g in found if g.kind == HEADS and g.layer == layer]
                yield Group(
                    name=f"{path}.layer", kind=LAYERS, layer=layer, stack=stack.path, block=path,
                    num_units=1, consumer=path, sort=stack.sorts[layer],
                    heads_width=sum(g.num_units * g.consumer_slice.width for g in heads),
                )  # fmt: skip


def _groups_of_part(stack: Stack, block: _Block, part: Part, prefix: str) -> Iterator[Group]:
    if part.units == 0:
        return
    width = Group(
        name=f"{prefix}.{part.kind}", kind=part.kind, layer=block.layer, stack=stack.path, block=block.path,
        num_units=part.units, consumer=part.consumer, slices=part.slices, tensors=part.tensors, edits=part.edits,
        selects=part.selects, core=part.core, min_units=part.min_units, active=part.active, is_shared=part.is_shared,
        multiple_of=part.multiple_of, least_multiple=part.least_multiple,
    )  # fmt: skip
    yield width
    if part.branch is not None:
        yield Group(
            name=f"{prefix}.{part.branch}", kind=part.branch, layer=block.layer, stack=stack.path, block=block.path,
            num_units=1, consumer=width.consumer, inner=width.name, core=width.core, slices=width.slices,
            tensors=width.tensors,
        )  # fmt: skip


def _untouched(
    model: nn.Module,
    groups: Sequence[Group],
    chosen: Sequence[Group],
    stacks: Sequence[Stack],
    refusals: Sequence[Refusal],
) -> dict[str, str]:
    known = {s.path for g in groups for s in g.slices}
    in_chosen = {s.path for g in chosen for s in g.slices}
    whole = tuple(f"{g.block}." for g in chosen if g.kind == LAYERS) or ("\0",)
    reasons = {refusal.path: refusal.reason for refusal in refusals}
    refused = tuple(f"{path}." for path in reasons)
    for path, module in model.named_modules():
        if isinstance(module, LINEAR_TYPES) and path not in in_chosen and path not in reasons:
            if path in known:
                if not path.startswith(whole):
                    reasons[path] = "excluded, or of a kind that was not asked for"
            elif path.startswith(refused):
                continue
            elif not any(path.startswith(f"{stack.path}.") for stack in stacks):
                reasons[path] = "outside the blocks"
            elif not path.startswith(whole):
                reasons[path] = "not in the table of any form"
    return reasons


def _summary(model: nn.Module, refusals: Sequence[Refusal]) -> str:
    """Return the refusals and the distinct linear paths, layer numbers starred."""
    told = dict.fromkeys(f"{starred(r.path)}: {r.reason}" for r in refusals)
    recognised = f"Recognised, but left alone: {'; '.join(list(told)[:4])}. " if told else ""
    return f"{recognised}Its linears: {_linear_summary(model)}."


def _linear_summary(model: nn.Module, most: int = 12) -> str:
    """Return the distinct linear paths with layer numbers starred, a few of them."""
    names = dict.fromkeys(
        starred(path) for path, module in model.named_modules() if isinstance(module, LINEAR_TYPES)
    )
    listed = list(names)[:most]
    more = f", … {len(names) - most} more" if len(names) > most else ""
    return (", ".join(listed) + more) or "none"
