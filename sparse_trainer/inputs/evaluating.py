"""Evaluation mode, frozen weights and outputs without extras, for the time of a `with` block."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from transformers import PreTrainedConfig


@contextmanager
def evaluating(*models: nn.Module) -> Iterator[None]:
    """Put every module in evaluation mode for the time of a `with` block, and back in the mode it was in.

    >>> model = nn.Sequential(nn.Dropout()).train()
    >>> with evaluating(model):
    ...     model[0].training
    False
    >>> model[0].training
    True
    """
    modes = {module: module.training for model in models for module in model.modules()}
    for module in modes:
        module.training = False
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Let no weight ask for a gradient for the time of a `with` block."""
    asked = [p for p in model.parameters() if p.requires_grad]
    for parameter in asked:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in asked:
            parameter.requires_grad_(True)


@contextmanager
def plain_outputs(model: nn.Module) -> Iterator[None]:
    """Switch off the extra outputs that configs ask for (attention maps, hidden states, router logits)."""
    named = (vars(module).get("config") for module in model.modules())
    configs = {
        id(c): vars(c) for config in named if isinstance(config, PreTrainedConfig) for c in _all(config)
    }
    asked = [
        (fields, name)
        for fields in configs.values()
        for name, value in fields.items()
        if name.lstrip("_").startswith("output_") and value is True
    ]
    for fields, name in asked:
        fields[name] = False
    try:
        yield
    finally:
        for fields, name in asked:
            fields[name] = True


def _all(config: PreTrainedConfig) -> Iterator[PreTrainedConfig]:
    yield config
    for value in list(vars(config).values()):
        if isinstance(value, PreTrainedConfig):
            yield from _all(value)


@contextmanager
def fresh_casts() -> Iterator[None]:
    """Let autocast keep no casts of weights for the time of a `with` block, in which these are changed in place.

    Otherwise a weight that asks for a gradient would go on as it was when it was first read.
    """
    kept = torch.is_autocast_cache_enabled()
    torch.clear_autocast_cache()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(kept)
