"""Channels: read a feed-forward module by the table of its form."""

from collections.abc import Sequence

from torch import nn
from transformers.pytorch_utils import Conv1D

from patchers.discovery.channels import pair_index, width_edits
from patchers.discovery.findings import Part, Refusal
from patchers.discovery.source_code import called_around, is_called_before
from patchers.discovery.tables.exceptions import CHANNELS_STAY
from patchers.discovery.tables.forms import FfnForm
from patchers.layers import LINEAR_TYPES, features, is_linear, join, linear_at
from patchers.units import CHANNELS, FFN, Slice


def read_ffn(model: nn.Module, path: str, form: FfnForm) -> Part | Refusal:
    """Return the channels of a feed-forward module, or why it is left alone."""
    module = model.get_submodule(path)
    for name in (*form.up, form.down):
        part = module.get_submodule(name)
        if not is_linear(part):
            return Refusal(
                path=join(path, name), reason=f"it is a {type(part).__name__}, no plain linear layer"
            )
    _, width = features(linear_at(model, join(path, form.down)))
    if type(module).__name__ in CHANNELS_STAY:
        return Refusal(path=path, reason=CHANNELS_STAY[type(module).__name__])
    inside = _between(module, form, width)
    if inside is not None:
        return Refusal(path=join(path, form.down), reason=f"{inside} mixes or normalises the channels")
    slices = []
    for name in form.up:
        rows, _ = features(linear_at(model, join(path, name)))
        if rows == width:
            slices.append(Slice(path=join(path, name), axis="out", units=width, width=1, is_value=True))
        else:
            index = pair_index(width, concatenated=form.fused != "pairs")
            slices.append(
                Slice(path=join(path, name), axis="out", units=width, width=2, index=index, is_value=True)
            )
    slices.append(Slice(path=join(path, form.down), axis="in", units=width, width=1))
    owners = (join(path, role).rpartition(".")[0] for role in (*form.up, form.down))
    # Conv1D reshapes by its sizes, which fails at zero.
    plain = not any(isinstance(linear_at(model, s.path), Conv1D) for s in slices)
    return Part(
        path=path,
        form=form.name,
        kind=CHANNELS,
        units=width,
        consumer=join(path, form.down),
        slices=tuple(slices),
        edits=tuple(width_edits(model, dict.fromkeys((path, *owners)), width)),
        min_units=0 if plain else 1,
        branch=FFN if plain else None,
        entry=slices[0].path,
    )


def _between(module: nn.Module, form: FfnForm, width: int) -> str | None:
    """Return the name of something that works on the channels and that the form does not know."""
    roles = (*form.up, form.down)
    inputs = features(linear_at(module, form.up[0]))[1]
    for parent in dict.fromkeys(role.rpartition(".")[0] for role in roles):
        owner = module.get_submodule(parent)
        own_roles = [role.removeprefix(f"{parent}.") for role in roles if role.rpartition(".")[0] == parent]
        for name, child in owner.named_children():
            if name in own_roles:
                continue
            if _meets_channels(child, width, inputs) and not _is_aside(owner, own_roles, name, form):
                return join(parent, name)
        for name, tensor in owner.named_parameters(recurse=False):
            if width in tensor.shape and inputs != width:
                return join(parent, name)
    return None


def _meets_channels(child: nn.Module, width: int, inputs: int) -> bool:
    """Tell whether a neighbour of the two linears may work on what lies between them."""
    kind = type(child).__name__.lower()
    if is_linear(child) or "conv" in kind:
        return True
    if isinstance(child, nn.ModuleList):
        # Linears in a row, or adapters: a list of blocks has none of its own as wide as the channels.
        inner = (m for m in child.modules() if isinstance(m, LINEAR_TYPES))
        return any({width, 2 * width} & set(features(linear)) for linear in inner)
    if any(isinstance(m, LINEAR_TYPES) for m in child.modules()):
        return False
    return width in _sizes(child)


def _is_aside(owner: nn.Module, roles: Sequence[str], name: str, form: FfnForm) -> bool:
    """Tell whether the source of `owner` shows that a child works before or behind the channels, not on them."""
    forward = type(owner).forward
    if isinstance(owner.get_submodule(name), nn.ModuleList):
        return False
    first = [role for role in roles if role != form.down.rpartition(".")[2]]
    last = form.down.rpartition(".")[2]
    if last not in roles:
        # An owner of the producers alone: what it calls before the first of them sees the input.
        return is_called_before(forward, name, first[0])
    if not first:
        return is_called_before(forward, last, name)
    around = called_around(forward, first[0], last)
    return around is not None and name in around


def _sizes(module: nn.Module) -> set[int]:
    return {size for tensor in module.parameters() for size in tensor.shape}
