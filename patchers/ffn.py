"""Channels: read a feed-forward module by the table of its form, and experts by what they say of themselves."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers.pytorch_utils import Conv1D

from patchers.errors import UnsupportedModelError
from patchers.families import FfnForm, ffn_forms
from patchers.families.exceptions import CHANNELS_STAY
from patchers.groups import Edit, Slice, TensorSlice
from patchers.layers import features, is_linear, linear_at, present
from patchers.parts import Refusal, join

_DEFAULT_EXPERTS = ("has_gate", "has_bias", "is_transposed", "is_concatenated")
_WIDTHS = (
    "intermediate_size",
    "intermediate_dim",
    "ffn_dim",
    "hidden_dim",
    "expert_dim",
    "inner_dim",
    "mlp_dim",
)


@dataclass(frozen=True, kw_only=True)
class Ffn:
    """What one feed-forward module gives to a group of channels."""

    path: str
    form: str
    units: int
    consumer: str
    slices: tuple[Slice, ...] = ()
    tensors: tuple[TensorSlice, ...] = ()
    edits: tuple[Edit, ...] = ()
    active: float = 1.0
    can_be_empty: bool = False


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


def read_ffn(model: nn.Module, path: str, form: FfnForm) -> Ffn | Refusal:
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
            index = _pair_index(width, concatenated=form.fused != "pairs")
            slices.append(
                Slice(path=join(path, name), axis="out", units=width, width=2, index=index, is_value=True)
            )
    slices.append(Slice(path=join(path, form.down), axis="in", units=width, width=1))
    # Conv1D reshapes by its sizes, which fails at zero.
    plain = not any(isinstance(linear_at(model, s.path), Conv1D) for s in slices)
    return Ffn(
        path=path,
        form=form.name,
        units=width,
        consumer=join(path, form.down),
        slices=tuple(slices),
        can_be_empty=plain,
    )


def _pair_index(width: int, *, concatenated: bool) -> tuple[tuple[int, int], ...]:
    """Return the rows of gate and up of each channel.

    >>> _pair_index(2, concatenated=True), _pair_index(2, concatenated=False)
    (((0, 2), (1, 3)), ((0, 1), (2, 3)))
    """
    if concatenated:
        return tuple((u, u + width) for u in range(width))
    return tuple((2 * u, 2 * u + 1) for u in range(width))


def _between(module: nn.Module, form: FfnForm, width: int) -> str | None:
    """Return the name of something that works on the channels and that the form does not know."""
    roles = (*form.up, form.down)
    parents = dict.fromkeys(role.rpartition(".")[0] for role in roles)
    inputs = features(linear_at(module, form.up[0]))[1]
    for parent in parents:
        owner = module.get_submodule(parent)
        for name, child in owner.named_children():
            if join(parent, name) in roles:
                continue
            kind = type(child).__name__.lower()
            if is_linear(child) or "conv" in kind:
                return join(parent, name)
            # A norm as wide as the input is the block's own; it may be as wide as the channels by chance.
            if "norm" in kind and width in _sizes(child) and inputs != width:
                return join(parent, name)
        for name, tensor in owner.named_parameters(recurse=False):
            if width in tensor.shape and inputs != width:
                return join(parent, name)
    return None


def _sizes(module: nn.Module) -> set[int]:
    return {size for tensor in module.parameters() for size in tensor.shape}


def is_experts(module: nn.Module) -> bool:
    """Tell whether a module holds stacked experts and describes them as transformers' experts interface asks."""
    own = vars(module)
    return all(name in own for name in _DEFAULT_EXPERTS) and "down_proj" in dict(module.named_parameters())


def read_experts(model: nn.Module, path: str) -> Ffn | Refusal:
    """Return the channels of stacked experts: a channel goes in every expert at once."""
    experts: Any = model.get_submodule(path)
    own, tensors = vars(experts), dict(experts.named_parameters(recurse=False))
    up = "gate_up_proj" if own["has_gate"] else "up_proj"
    if up not in tensors or tensors["down_proj"].dim() != 3:
        return Refusal(path=join(path, "down_proj"), reason="the weights of the experts are not stacked")
    in_dim, out_dim = (1, 2) if own["is_transposed"] else (2, 1)
    width = tensors["down_proj"].shape[in_dim]
    if tensors[up].shape[out_dim] != (2 * width if own["has_gate"] else width):
        raise UnsupportedModelError(
            join(path, up), f"{tensors[up].shape[out_dim]} output features for {width} channels.",
            "The weights contradict each other.",
        )  # fmt: skip
    index = _pair_index(width, concatenated=own["is_concatenated"]) if own["has_gate"] else None
    per = 2 if own["has_gate"] else 1
    slices = [TensorSlice(name=join(path, up), dim=out_dim, units=width, width=per, index=index)]
    if f"{up}_bias" in tensors:
        slices.append(TensorSlice(name=join(path, f"{up}_bias"), dim=1, units=width, width=per, index=index))
    slices.append(
        TensorSlice(name=join(path, "down_proj"), dim=in_dim, units=width, width=1, is_consumer=True)
    )
    count = tensors["down_proj"].shape[0]
    return Ffn(
        path=path,
        form="experts",
        units=width,
        consumer=path,
        tensors=tuple(slices),
        edits=tuple(_edits(experts, path, width)),
        active=_active(model, path, count),
    )


def _edits(experts: nn.Module, path: str, width: int) -> Iterator[Edit]:
    for name in _WIDTHS:
        if vars(experts).get(name) == width:
            yield Edit(path=path, attribute=name, per_unit=1)


def _active(model: nn.Module, path: str, count: int) -> float:
    """Return the share of the experts that a token meets, as the router beside them says."""
    block = model.get_submodule(path.rpartition(".")[0])
    for module in (block, *(child for _, child in block.named_children())):
        top = vars(module).get("top_k")
        if isinstance(top, int) and 0 < top <= count:
            return top / count
    return 1.0
