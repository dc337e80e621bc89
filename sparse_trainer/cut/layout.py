"""What differs between a cut model and the stock model of its config."""

import copy
from collections.abc import Iterable, Mapping, Set
from typing import Any, TypedDict

import torch
from torch import nn
from transformers import PreTrainedModel

from patchers.discovery.tables.names import NUM_EXPERTS, NUM_LAYERS, SORTS_OF_LAYERS
from patchers.modeling_pruned import (
    LayoutError,
    OwnConfig,
    apply_layout,
    is_no_norm,
    is_skip,
    layout_in,
    portable,
    selections_of,
)
from patchers.sharing import shared_parameters
from patchers.units import HIDDEN
from sparse_trainer.cut.config_changes import Cut
from sparse_trainer.cut.config_fit import Fit, shapes_of
from sparse_trainer.cut.task_heads import Sizes, other_heads
from sparse_trainer.errors import UnsupportedModelError

_PASSING = (
    "training", "gradient_checkpointing", "layer_types", "attention_type", "cache_key", "name_or_path",
)  # fmt: skip
"""Attributes that say what a module does at the moment, not what it is: BigBird's type of attention changes with the
length of its input. The sorts of layer that a rotary embedding once served, in no certain order. The name under which a
convolution finds its states in the cache, which only has to be its own. Where a model was loaded from, of which its
config may say something else by now."""


class Layout(TypedDict):
    """Differences by path, relative to the part that all heads of a model type share."""

    layers: dict[str, list[int]]
    """Of a list of blocks, those that are left: where no field of the config says so."""
    build: dict[str, Any]
    """Fields of the config that have other values while the stock class builds what `layers` then thins out."""
    skips: dict[str, list[int | bool]]
    """[outputs, width, bias] of each no-op that took the place of an attention."""
    norms: dict[str, str]
    """What took the place of each LayerNorm that is gone: `affine`."""
    shapes: dict[str, list[int]]
    """Shape of each tensor."""
    heads: dict[str, Sizes | str]
    """Of the other classes of the type: what is narrower in their task heads, or why they cannot be built."""
    attributes: dict[str, dict[str, Any]]
    selects: dict[str, list[dict[str, Any]]]
    routers: dict[str, list[int]]
    """[place in the output, width] of logits that lack experts which other layers have."""
    shares: dict[str, str]
    """Parameters that are one with a parameter of an earlier block, and that parameter."""


def empty_layout() -> Layout:
    """Return the layout of a stock model."""
    return Layout(
        layers={},
        build={},
        skips={},
        norms={},
        shapes={},
        heads={},
        attributes={},
        selects={},
        routers={},
        shares={},
    )


def layout_of(model: PreTrainedModel, fit: Fit, done: Cut, earlier: Layout) -> Layout:
    """Return how a cut model differs from the stock model that its config describes; that one is changed to be like it.

    Args:
        earlier: What an earlier cut had left, with the layers that the config could not describe.
    """
    stock = fit.built
    layout = empty_layout()
    layout["build"] = fit.build
    layout["layers"] = _layers(model, stock, done.gone, earlier["layers"])
    layout["skips"] = _skips(model)
    layout["norms"] = {portable(model, p): "affine" for p, m in model.named_modules() if is_no_norm(m)}
    layout["selects"] = _selects(model)
    apply_layout(stock, {**layout, "selects": {}, "shares": {}})
    layout["shares"] = _shares(model, stock, [stack.path for stack in done.after.stacks])
    have, plain = shapes_of(model), shapes_of(stock)
    layout["shapes"] = {
        portable(model, name): list(shape)
        for name, shape in have.items()
        if name in plain and plain[name] != shape
    }
    apply_layout(stock, {**layout, "layers": {}, "skips": {}, "norms": {}, "selects": {}, "shares": {}})
    layout["attributes"] = _attributes(model, stock)
    if layout["shapes"] and (earlier["heads"] or done.narrows):
        hidden = done.after.of([HIDDEN])
        layout["heads"] = (
            other_heads(model, hidden[0].num_units, fit.build, layout["shapes"])
            if hidden
            else earlier["heads"]
        )
    return layout


def earlier_layout(config: Any) -> Layout:
    """Return the layout that an earlier cut left in a config, an empty one where there was none."""
    if "pruning" not in vars(config):
        return empty_layout()
    return {**empty_layout(), **layout_in(config)}  # type: ignore[typeddict-item]


def refuse_shared(model: nn.Module) -> None:
    """Raise `UnsupportedModelError` for a model whose layers share their linears: a cut concerns one layer alone."""
    models = (part for part in model.modules() if isinstance(part, PreTrainedModel))
    if any(earlier_layout(part.config)["shares"] for part in models):
        raise UnsupportedModelError(
            type(model).__name__,
            "its layers share their weights, so that no unit can go from one of them alone.",
            "Prune first, and share the layers of what is left.",
        )


def mark_skips(model: PreTrainedModel, stock: PreTrainedModel) -> None:
    """Leave an empty entry for a weight that every no-op replaced, so that the stock class refuses the weights."""
    for path, module in model.named_modules():
        if is_skip(module) and not dict(module.named_buffers()):
            skip: Any = module
            name = next(name for name, _ in stock.get_submodule(path).named_buffers())
            skip.stand_for(name, next(model.parameters()))


def check_builds(model: PreTrainedModel) -> None:
    """Build the model's class from its config on the meta device, and compare every shape.

    Raises:
        UnsupportedModelError: the model has something that neither config nor layout can say.
    """
    try:
        with torch.device("meta"):
            built = type(model)(copy.deepcopy(model.config))
    except LayoutError as error:
        raise UnsupportedModelError(
            type(model).__name__, f"is cut, but cannot be described: {error}.", "Cut other kinds of units."
        ) from error
    have, want = shapes_of(model), shapes_of(built)
    for name in sorted(have.keys() | want.keys()):
        if have.get(name) != want.get(name):
            raise UnsupportedModelError(
                name,
                f"has shape {have.get(name)}; {type(model).__name__} builds {want.get(name)} from this config.",
                "Undo changes to the model that its config does not describe.",
            )


def is_native(layout: Layout) -> bool:
    """Tell whether the stock class builds the model all by itself.

    >>> is_native(empty_layout()), is_native({**empty_layout(), "norms": {"LayerNorm": "affine"}})
    (True, False)
    """
    return not any(layout.values())


def _layers(
    model: PreTrainedModel,
    stock: PreTrainedModel,
    gone: Mapping[str, Set[int]],
    earlier: Mapping[str, list[int]],
) -> dict[str, list[int]]:
    found = {}
    paths = {portable(model, stack): stack for stack in gone} | dict.fromkeys(earlier, "")
    for name in paths:
        stack = paths[name] or next(p for p, _ in model.named_modules() if portable(model, p) == name)
        size = len(list(stock.get_submodule(stack).children()))
        if size != len(list(model.get_submodule(stack).children())):
            before = earlier.get(name, list(range(size)))
            found[name] = [layer for place, layer in enumerate(before) if place not in gone.get(stack, set())]
    return found


def _skips(model: PreTrainedModel) -> dict[str, list[int | bool]]:
    found: dict[str, list[int | bool]] = {}
    for path, module in model.named_modules():
        if is_skip(module):
            skip: Any = module
            found[portable(model, path)] = [skip.outputs, skip.width, skip.bias is not None]
    return found


def _selects(model: PreTrainedModel) -> dict[str, list[dict[str, Any]]]:
    found = {}
    for path, module in model.named_modules():
        selections = selections_of(module)
        if selections:
            found[portable(model, path)] = [selection.to_dict() for selection in selections]
    return found


def _shares(model: PreTrainedModel, stock: PreTrainedModel, stacks: Iterable[str]) -> dict[str, str]:
    """Return the parameters that blocks of a model share, where those of its stock class do not."""
    return {
        portable(model, name): portable(model, source)
        for stack in stacks
        for name, source in shared_parameters(model, stack).items()
        if name not in shared_parameters(stock, stack)
    }


def follow_counts(model: PreTrainedModel, built: PreTrainedModel, stacks: Iterable[str]) -> None:
    """Give what stands outside the blocks the counts, and the sorts of layer, that the config has now, in place."""
    plain, inside = dict(built.named_modules()), tuple(f"{stack}." for stack in stacks)
    for path, module in model.named_modules():
        if path in plain and not path.startswith(inside or ("\0",)):
            own, other = vars(module), vars(plain[path])
            own.update(
                {
                    name: other[name]
                    for name in (*NUM_EXPERTS, *NUM_LAYERS, *SORTS_OF_LAYERS)
                    if type(own.get(name)) in (int, bool) and name in other
                }
            )


def _attributes(model: PreTrainedModel, stock: PreTrainedModel) -> dict[str, dict[str, Any]]:
    """Return the plain attributes in which the modules of two models differ."""
    found: dict[str, dict[str, Any]] = {}
    plain = dict(stock.named_modules())
    for path, module in model.named_modules():
        twin = plain.get(path)
        if twin is None or is_skip(module):
            continue
        other = vars(twin)
        for name, value in vars(module).items():
            if (
                _is_plain(name, value)
                and name in other
                and type(other[name]) is type(value)
                and other[name] != value
            ):
                found.setdefault(portable(model, path), {})[name] = value
        config = vars(module).get("config")
        if type(config).__name__ == OwnConfig.__name__:
            own = {f"config.{name}": value for name, value in config._own.items()}
            found.setdefault(portable(model, path), {}).update(own)
    return found


def _is_plain(name: str, value: object) -> bool:
    if name.startswith("_") or name in _PASSING:
        return False
    return isinstance(value, int | float | str) or (
        isinstance(value, list | tuple) and all(isinstance(entry, int | float | str) for entry in value)
    )
