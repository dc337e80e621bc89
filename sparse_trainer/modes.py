"""Evaluation mode for a while."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


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
