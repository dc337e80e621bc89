"""The model alone: without what a training, a Trainer or adapters left around its layers."""

import copy
from typing import Any

from torch import nn

from patchers.patching.merging import has_adapters, merge_adapters
from sparse_trainer.cut.fold_blends import fold_cheaper, refuse_blends


def bare(model: nn.Module, *, inplace: bool) -> tuple[Any, str]:
    """Return the model that is to be cut: adapters merged, cheaper layers folded, wrappers taken off.

    Args:
        inplace: Change `model` itself and spare the copy.

    Returns:
        The model, and what `fold_cheaper` changed, for plans.

    Raises:
        UnsupportedModelError: adapters that do not merge, or cheaper layers half blended in.
    """
    refuse_blends(model)
    compact: Any = model if inplace else copy.deepcopy(model)
    _drop_wrapped_forward(compact)
    if has_adapters(compact):
        compact = merge_adapters(compact)
        _drop_wrapped_forward(compact)
    return compact, fold_cheaper(compact)


def _drop_wrapped_forward(model: nn.Module) -> None:
    """Take off what a Trainer leaves on a trained model: accelerate's mixed precision, trl's fused head.

    The forward pass that such a wrapper remembers is that of the model before it was copied and cut.
    """
    vars(model).pop("_original_forward", None)
    if "_hf_hook" not in vars(model):
        vars(model).pop("forward", None)
