"""Bring the config of a cut model as near to it as its stock class understands: by trying, not by lists of models."""

import copy
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from patchers.discovery.discover import discover
from patchers.discovery.tables.names import FFN_WIDTH, HEAD_DIM
from patchers.modeling_pruned import is_skip, overridden, stock_class_of, stock_config
from patchers.units import CHANNELS, Structure
from sparse_trainer.cut.config_changes import (
    Change,
    Cut,
    channel_changes,
    configs_of,
    expert_changes,
    head_changes,
    hidden_changes,
    inner_name,
    layer_changes,
)
from sparse_trainer.cut.layer_sizes import drop_layer_sizes
from sparse_trainer.files.foreign_code import drop_code_names

Shapes = dict[str, tuple[int, ...]]
T = TypeVar("T")


def build(model: PreTrainedModel, config: PreTrainedConfig) -> PreTrainedModel:
    """Return the stock model of a config, on the meta device."""
    with torch.device("meta"):
        return stock_class_of(model)(stock_config(config))


def shapes_of(model: torch.nn.Module) -> Shapes:
    """Return the shape of every parameter and saved buffer."""
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


@dataclass(frozen=True, kw_only=True)
class Fit:
    """How near a config came."""

    built: PreTrainedModel
    """The stock model that the config builds, on the meta device, with `build` in force."""
    build: dict[str, Any]
    """Fields of the config that must have other values while the stock class builds: of layers it cannot leave out."""


def fit_config(model: PreTrainedModel, cut: Cut, earlier: Mapping[str, Any] | None = None) -> Fit:
    """Change `model.config` in place until its stock class comes as near to the model as it can.

    Each candidate field is tried on a copy; it stays where the class that it builds then differs in fewer tensors.

    Args:
        earlier: Fields that an earlier cut had to leave as they were while building.
    """
    _drop_ours(model.config)
    kept: dict[str, Any] = dict(earlier or {})
    want = shapes_of(model)
    for stack in cut.gone:
        _fit_layers(model, cut, stack, want, kept)
    with overridden(model.config, kept):
        built = build(model, model.config)
        misses = _misses(want, shapes_of(built))
        for change, weights, is_free in _width_changes(model.config, cut):
            if not misses:
                break
            trial = _try(model, change, want)
            have = shapes_of(trial[1]) if trial is not None else {}
            exact = all(have.get(name) == want.get(name) for name in weights)
            if trial is None or trial[0] >= misses or not exact or not _covers(have, want):
                continue
            if is_free or _same_heads(model, trial[1]):
                misses, built = trial
                _apply(change)
    return Fit(built=built, build=kept)


def _width_changes(config: PreTrainedConfig, cut: Cut) -> Iterator[tuple[Change, list[str], bool]]:
    """Yield the ways to say that widths changed, the weights that must then be right, whether heads may differ."""
    yield from ((change, [], False) for change in hidden_changes(config, cut))
    for changes in (channel_changes, expert_changes):
        yield from ((change, [], True) for change in changes(config, cut))
    yield from ((change, weights, True) for change, weights in head_changes(config, cut))


def _fit_layers(model: PreTrainedModel, cut: Cut, stack: str, want: Shapes, kept: dict[str, Any]) -> None:
    """Say in the config that layers are gone; where its class would leave out others, note what it must build."""
    prefix = f"{stack}."
    skipped = tuple(f"{path}." for path, module in model.named_modules() if is_skip(module))
    changes = list(layer_changes(model.config, cut, stack))
    with overridden(model.config, kept):
        before = build(model, model.config)
    for change in changes:
        with overridden(model.config, kept):
            trial = _try(model, change, want)
        if (
            trial is not None
            and _same_names(want, shapes_of(trial[1]), prefix, skipped)
            and _alike(before, trial[1], prefix)
        ):
            _apply(change)
            return
    left, before = _size(model, stack), build(model, model.config)
    for change in changes:
        trial = _try(model, change, want)
        if trial is not None and _size(trial[1], stack) == left and _alike(before, trial[1], prefix):
            for part, name, _ in change:
                kept.setdefault(_path_of(model.config, part, name), vars(part)[name])
            _apply(change)
            return


def _path_of(config: PreTrainedConfig, part: PreTrainedConfig, name: str) -> str:
    if part is config:
        return name
    for field, value in vars(config).items():
        if isinstance(value, PreTrainedConfig) and any(inner is part for inner in configs_of(value)):
            return f"{field}.{_path_of(value, part, name)}"
    raise KeyError(name)


def widest(model: PreTrainedModel, structure: Structure) -> PreTrainedConfig:
    """Return a stock config with as few channels as the widest layer of each stack has, where its class allows that."""
    config: PreTrainedConfig = stock_config(model.config)
    for stack in structure.stacks:
        here = [g for g in structure.of([CHANNELS]) if g.stack == stack.path]
        for inner in dict.fromkeys(inner_name(g) for g in here):
            most = max(1, *(g.num_units for g in here if inner_name(g) == inner))
            _widen(model, config, stack.path, inner, most)
    return config


def _widen(model: PreTrainedModel, config: PreTrainedConfig, stack: str, inner: str, width: int) -> None:
    now = _channels(build(model, config), stack, inner)
    if now == width:
        return
    for part in configs_of(config):
        for name in FFN_WIDTH:
            value = vars(part).get(name, 0)
            if value is None or value == now:
                _apply([(part, name, width)])
                built = build(model, config)
                # Another stack may count its channels by the same field.
                if _channels(built, stack, inner) == width and _covers(shapes_of(built), shapes_of(model)):
                    return
                _apply([(part, name, value)])


def _channels(built: PreTrainedModel, stack: str, inner: str) -> int:
    groups = discover(built, [CHANNELS]).groups
    return next(g.num_units for g in groups if g.stack == stack and inner_name(g) == inner)


def _drop_ours(config: PreTrainedConfig) -> None:
    drop_layer_sizes(config)
    vars(config).pop("pruning", None)
    drop_code_names(config)


def _misses(want: Shapes, have: Shapes) -> int:
    return sum(want.get(name) != have.get(name) for name in want.keys() | have.keys())


def _same_heads(model: PreTrainedModel, built: PreTrainedModel) -> bool:
    """Tell whether heads are as wide in both, by what modules count and by buffers that no folder holds (rotary)."""
    if any(a.shape != b.shape for a, b in _shared(model.named_buffers(), built.named_buffers())):
        return False
    pairs = _shared(model.named_modules(), built.named_modules())
    return all(vars(one).get(name) == vars(other).get(name) for one, other in pairs for name in HEAD_DIM)


def _shared(first: Iterable[tuple[str, T]], second: Iterable[tuple[str, T]]) -> Iterator[tuple[T, T]]:
    """Yield what two models have under the same name."""
    others = dict(second)
    return ((one, others[name]) for name, one in first if name in others)


def _alike(one: PreTrainedModel, other: PreTrainedModel, prefix: str) -> bool:
    """Tell whether two models have the same tensors outside a list of blocks: a count may be shared by two lists."""
    first, second = ({n for n in shapes_of(m) if not n.startswith(prefix)} for m in (one, other))
    return first == second


def _size(model: PreTrainedModel, stack: str) -> int:
    """Return the number of blocks in a list, 0 where the block around the list is gone."""
    return len(
        {n.removeprefix(f"{stack}.").partition(".")[0] for n in shapes_of(model) if n.startswith(f"{stack}.")}
    )


def _covers(have: Shapes, want: Shapes) -> bool:
    """Tell whether no tensor of the model is larger than what the config builds: it then stays room for padding."""
    shared = have.keys() & want.keys()
    return all(a >= b for name in shared for a, b in zip(have[name], want[name], strict=False))


def _same_names(want: Shapes, have: Shapes, prefix: str, skipped: tuple[str, ...]) -> bool:
    """Tell whether two models have the same tensors below a prefix, no-ops left out."""

    def below(shapes: Shapes) -> set[str]:
        return {
            name for name in shapes if name.startswith(prefix) and not name.startswith(skipped or ("\0",))
        }

    return below(want) == below(have)


def _try(model: PreTrainedModel, change: Change, want: Shapes) -> tuple[int, PreTrainedModel] | None:
    """Return what a change leaves to differ and the model that it builds, None where the class refuses it."""
    old = [(part, name, vars(part).get(name, _ABSENT)) for part, name, _ in change]
    _apply(change)
    try:
        config = type(model.config).from_dict(copy.deepcopy(model.config).to_dict())
        vars(config)["_attn_implementation_internal"] = vars(model.config).get(
            "_attn_implementation_internal"
        )
        built = build(model, config)
    except Exception:  # noqa: BLE001 - a config class may refuse a combination with any error; then it is none for us
        return None
    finally:
        _apply(old)
    return _misses(want, shapes_of(built)), built


_ABSENT = object()
"""The value of a field that a config does not have."""


def _apply(change: Change) -> None:
    for part, name, value in change:
        if value is _ABSENT:
            del vars(part)[name]
        else:
            vars(part)[name] = value
