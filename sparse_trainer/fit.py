"""Bring the config of a cut model as near to it as its stock class understands: by trying, not by lists of models."""

import copy
import itertools
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from patchers import Structure, discover
from patchers.groups import Group
from patchers.modeling_pruned import overridden, stock_class_of, stock_config

_LAYER_FIELDS = (
    "num_hidden_layers", "num_layers", "n_layer", "n_layers", "encoder_layers", "decoder_layers", "num_decoder_layers",
    "num_encoder_layers", "depth", "encoder_num_layers", "decoder_num_layers", "encoder_num_hidden_layers",
    "decoder_num_hidden_layers", "num_blocks", "num_transformer_layers",
)  # fmt: skip
_CHANNEL_FIELDS = (
    "intermediate_size", "ffn_dim", "d_ff", "n_inner", "d_inner", "encoder_ffn_dim", "decoder_ffn_dim", "hidden_dim",
    "ffn_hidden_size", "dim_feedforward", "mlp_dim", "moe_intermediate_size", "shared_expert_intermediate_size", "dff",
    "dim_ff", "shared_intermediate_size", "encoder_intermediate_size", "decoder_intermediate_size",
)  # fmt: skip
_HEAD_FIELDS = (
    "num_attention_heads", "n_head", "n_heads", "num_heads", "encoder_attention_heads", "decoder_attention_heads",
)  # fmt: skip
_GROUP_FIELDS = ("num_key_value_heads", "num_kv_heads", "n_head_kv")
_WIDTH_FIELDS = ("head_dim", "d_kv", "attention_head_size")
_PER_LAYER = ("layer", "types", "pattern", "rope", "sliding", "interleave", "window", "kernels", "dilations")
"""Parts of the names of config fields with one entry per layer."""

_INDICES = ("indices", "idx", "_layers", "layer_ids")
"""Parts of the names of config fields that list layers by number."""

Shapes = dict[str, tuple[int, ...]]
Change = list[tuple[PreTrainedConfig, str, Any]]


@dataclass(frozen=True, kw_only=True)
class Cut:
    """What a cut did, in the terms of a config."""

    before: Structure
    after: Structure
    gone: Mapping[str, Set[int]]
    """Layers that were taken away, by path of their stack."""


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
        if misses:
            for change in [*_channel_changes(model.config, cut), *_head_changes(model.config, cut)]:
                trial = _try(model, change, want)
                if trial is not None and trial[0] < misses:
                    misses, built = trial
                    _apply(change)
                if not misses:
                    break
    return Fit(built=built, build=kept)


def _fit_layers(model: PreTrainedModel, cut: Cut, stack: str, want: Shapes, kept: dict[str, Any]) -> None:
    """Say in the config that layers are gone; where its class would leave out others, note what it must build."""
    prefix = f"{stack}."
    changes = list(_layer_changes(model.config, cut, stack))
    for change in changes:
        with overridden(model.config, kept):
            trial = _try(model, change, want)
        if trial is not None and _same_names(want, shapes_of(trial[1]), prefix):
            _apply(change)
            return
    for change in changes:
        if _try(model, change, want) is not None:
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


def configs_of(config: PreTrainedConfig) -> Iterator[PreTrainedConfig]:
    """Yield a config and the configs inside it."""
    yield config
    for value in list(vars(config).values()):
        if isinstance(value, PreTrainedConfig):
            yield from configs_of(value)


def widest(model: PreTrainedModel, structure: Structure) -> PreTrainedConfig:
    """Return a stock config with as few channels as the widest layer of each stack has, where its class allows that."""
    config: PreTrainedConfig = stock_config(model.config)
    for stack in structure.stacks:
        here = [g for g in structure.of(["channels"]) if g.stack == stack.path]
        for inner in dict.fromkeys(_inner(g) for g in here):
            most = max(1, *(g.num_units for g in here if _inner(g) == inner))
            _widen(model, config, stack.path, inner, most)
    return config


def _widen(model: PreTrainedModel, config: PreTrainedConfig, stack: str, inner: str, width: int) -> None:
    now = _channels(build(model, config), stack, inner)
    if now == width:
        return
    for part in configs_of(config):
        for name in _CHANNEL_FIELDS:
            value = vars(part).get(name, 0)
            if value is None or value == now:
                _apply([(part, name, width)])
                if _channels(build(model, config), stack, inner) == width:
                    return
                _apply([(part, name, value)])


def _channels(built: PreTrainedModel, stack: str, inner: str) -> int:
    groups = discover(built, ["channels"]).groups
    return next(g.num_units for g in groups if g.stack == stack and _inner(g) == inner)


def _drop_ours(config: PreTrainedConfig) -> None:
    vars(config).pop("pruning", None)
    auto_map = vars(config).get("auto_map")
    if isinstance(auto_map, dict) and all("modeling_pruned." in str(ref) for ref in auto_map.values()):
        del vars(config)["auto_map"]


def _misses(want: Shapes, have: Shapes) -> int:
    return sum(want.get(name) != have.get(name) for name in want.keys() | have.keys())


def _same_names(want: Shapes, have: Shapes, prefix: str) -> bool:
    return {n for n in want if n.startswith(prefix)} == {n for n in have if n.startswith(prefix)}


def _try(model: PreTrainedModel, change: Change, want: Shapes) -> tuple[int, PreTrainedModel] | None:
    """Return what a change leaves to differ and the model that it builds, None where the class refuses it."""
    old = [(part, name, vars(part).get(name)) for part, name, _ in change]
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


def _apply(change: Change) -> None:
    for part, name, value in change:
        vars(part)[name] = value


def _layer_changes(config: PreTrainedConfig, cut: Cut, stack: str) -> Iterator[Change]:
    size = next(s.size for s in cut.before.stacks if s.path == stack)
    gone = cut.gone[stack]
    for part in configs_of(config):
        lists = [
            (part, name, type(value)(entry for layer, entry in enumerate(value) if layer not in gone))
            for name, value in vars(part).items()
            if isinstance(value, list | tuple)
            and len(value) == size
            and any(key in name for key in _PER_LAYER)
        ]
        indices = [
            (part, name, [i - sum(g < i for g in gone) for i in value if i not in gone])
            for name, value in vars(part).items()
            if isinstance(value, list) and any(key in name for key in _INDICES) and _is_numbering(value, size)
        ]
        kinds = vars(part).get("attention_types")
        if kinds is not None and "attention_layers" in vars(part):
            # GPT-Neo writes its list twice, the second time as [[kinds, how often], …].
            left = next((entry[2] for entry in lists if entry[1] == "attention_layers"), None)
            lists = [entry for entry in lists if entry[1] != "attention_types"]
            lists.append((part, "attention_types", [[list(left or []), 1]]))
        for name in _LAYER_FIELDS:
            if vars(part).get(name) == size:
                yield [(part, name, size - len(gone)), *lists]
                if indices:
                    lengths = {listed for _, listed, _ in indices}
                    others = [entry for entry in lists if entry[1] not in lengths]
                    yield [(part, name, size - len(gone)), *others, *indices]
        for name, value in vars(part).items():
            if isinstance(value, list | tuple) and name in ("depths", "num_layers", "depth"):
                for place, entry in enumerate(value):
                    if entry == size:
                        yield [
                            (part, name, type(value)([*value[:place], size - len(gone), *value[place + 1 :]]))
                        ]


def _is_numbering(values: list[Any], size: int) -> bool:
    """Tell whether a list numbers layers: whole numbers below their count, rising.

    >>> _is_numbering([1, 3], 4), _is_numbering([0, 1, 1], 4), _is_numbering(["full"], 4)
    (True, False, False)
    """
    whole = all(type(value) is int and 0 <= value < size for value in values)
    return whole and all(a < b for a, b in itertools.pairwise(values))


def _channel_changes(config: PreTrainedConfig, cut: Cut) -> Iterator[Change]:
    after = {(g.stack, g.name.rpartition(".")[2], _inner(g)): g for g in cut.after.of(["channels"])}
    seen = set()
    for old in cut.before.of(["channels"]):
        new = after.get((old.stack, "channels", _inner(old)))
        if new is None or (old.num_units, new.num_units) in seen or old.num_units == new.num_units:
            continue
        seen.add((old.num_units, new.num_units))
        for part in configs_of(config):
            for name in _CHANNEL_FIELDS:
                value = vars(part).get(name, 0)
                if value == old.num_units or value is None:
                    yield [(part, name, new.num_units)]


def _head_changes(config: PreTrainedConfig, cut: Cut) -> Iterator[Change]:
    after = {(g.stack, _inner(g)): g for g in cut.after.of(["heads"])}
    seen = set()
    for old in cut.before.of(["heads"]):
        new = after.get((old.stack, _inner(old)))
        if new is None or old.num_units == new.num_units or (old.num_units, new.num_units) in seen:
            continue
        seen.add((old.num_units, new.num_units))
        for part in configs_of(config):
            heads = next((n for n in _HEAD_FIELDS if isinstance(vars(part).get(n), int)), None)
            if heads is None or vars(part)[heads] % old.num_units:
                continue
            count = vars(part)[heads]
            per_unit = count // old.num_units
            change: Change = [(part, heads, per_unit * new.num_units)]
            for name in _GROUP_FIELDS:
                if vars(part).get(name) == old.num_units:
                    change.append((part, name, new.num_units))
            width = old.consumer_slice.width // per_unit
            change += [(part, name, width) for name in _WIDTH_FIELDS if name in vars(part)]
            yield change


def _inner(group: Group) -> str:
    """Return a group's name without its layer: what it is in every block."""
    return group.name.removeprefix(group.block)
