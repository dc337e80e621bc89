"""Channels: read a feed-forward module by the table of its form."""

from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache

from torch import nn
from transformers.pytorch_utils import Conv1D

from patchers.discovery.findings import Part, Refusal, join
from patchers.discovery.source_code import called_around, is_called_before
from patchers.discovery.tables.exceptions import CHANNELS_STAY
from patchers.discovery.tables.forms import FfnForm
from patchers.discovery.tables.names import FFN_WIDTH
from patchers.discovery.tables.registry import ffn_forms
from patchers.layers import LINEAR_TYPES, features, is_linear, linear_at, present
from patchers.units import CHANNELS, FFN, Edit, Slice


def ffn_form_of(module: nn.Module) -> FfnForm | None:
    """Return the first form whose parts `module` has with fitting shapes, or None."""
    paths = present(module)
    for form in ffn_forms():
        if paths.issuperset((*form.up, form.down)) and _fits(module, form):
            return form
    return None


def _fits(module: nn.Module, form: FfnForm) -> bool:
    if form.down.isdigit() and not isinstance(module, nn.Sequential):
        return False
    roles = [*form.up, form.down]
    if not all(is_linear(module.get_submodule(name)) for name in roles):
        return True
    _, width = features(linear_at(module, form.down))
    allowed = (width,) if form.fused is None else (width, 2 * width)
    return all(features(linear_at(module, name))[0] in allowed for name in form.up)


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


@lru_cache(maxsize=16)
def pair_index(width: int, *, concatenated: bool) -> tuple[tuple[int, int], ...]:
    """Return the rows of gate and up of each channel.

    >>> pair_index(2, concatenated=True), pair_index(2, concatenated=False)
    (((0, 2), (1, 3)), ((0, 1), (2, 3)))
    """
    if concatenated:
        return tuple((u, u + width) for u in range(width))
    return tuple((2 * u, 2 * u + 1) for u in range(width))


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


def width_edits(model: nn.Module, paths: Iterable[str], width: int) -> Iterator[Edit]:
    """Yield the attributes of these modules that count the channels."""
    for path in paths:
        own = vars(model.get_submodule(path))
        for name in FFN_WIDTH:
            # An attribute that counts the hidden features may be as large by chance.
            if own.get(name) == width and width not in (own.get("hidden_size"), own.get("embed_dim")):
                yield Edit(path=path, attribute=name, per_unit=1)
