"""The other task heads of a model type: what of them would read hidden features that are gone."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel

from patchers.discovery.discover import discover
from patchers.modeling_pruned import ROOT, overridden, portable, stock_class_of, stock_config
from patchers.surgery import cut
from patchers.units import HIDDEN
from sparse_trainer.cut.auto_classes import heads_of
from sparse_trainer.cut.config_fit import shapes_of
from sparse_trainer.errors import UnsupportedModelError

Sizes = dict[str, list[list[int]]]
"""[dimension, size] of what gets narrower, by tensor."""


def other_heads(
    model: PreTrainedModel, count: int, build: Mapping[str, Any], shapes: Mapping[str, Any]
) -> dict[str, Sizes | str]:
    """Return what each other class of a model's type has narrower outside its blocks, or why it cannot be built.

    Args:
        count: Hidden features that are left.
        build: Fields of the config that have other values while a stock class builds.
        shapes: Shapes of the layout: what they say of the shared part is not said again.
    """
    names = {name for classes in heads_of(model.config.model_type).values() for name in classes}
    names -= {stock_class_of(model).__name__}
    return {
        name: _narrowed(getattr(transformers, name), model, count, build, shapes) for name in sorted(names)
    }


def _narrowed(
    stock: type[PreTrainedModel],
    model: PreTrainedModel,
    count: int,
    build: Mapping[str, Any],
    shapes: Mapping[str, Any],
) -> Sizes | str:
    config = stock_config(model.config)
    try:
        with overridden(config, dict(build)), torch.device("meta"), _silence():
            other = stock(config)
    except Exception as error:  # noqa: BLE001 - a class may refuse the config of another one with any error
        return f"it does not build from this config: {error}"
    try:
        structure = discover(other, [HIDDEN])
    except UnsupportedModelError as error:
        # Helium's output projection is as wide as the stream, whatever its heads are: no config says both.
        return f"hidden features are gone, and of its own {error.what}"
    group = next(iter(structure.of([HIDDEN])), None)
    if group is None:
        reason = next(iter(structure.refused_hidden.values()), "has none")
        return f"hidden features are gone, and of its own it {reason}"
    blocks = tuple(f"{stack.path}." for stack in structure.stacks)
    before, known = shapes_of(other), {name for name in shapes if not name.startswith(ROOT)}
    cut(other, structure, {group.name: torch.arange(group.num_units) < count})
    after = shapes_of(other)
    return {
        portable(other, name): [[dim, size] for dim, size in enumerate(after[name]) if size != was[dim]]
        for name, was in before.items()
        if after[name] != was and not name.startswith(blocks) and portable(other, name) not in known
    }


@contextmanager
def _silence() -> Iterator[None]:
    """Keep a class that is built only to be looked at from giving advice on its use."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
