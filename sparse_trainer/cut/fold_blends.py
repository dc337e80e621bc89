"""Cheaper layers once they alone count: folded, and written into the config."""

import copy
from typing import Any

import torch
from torch import nn

from patchers.discovery.tables.names import ACTIVATION
from patchers.patching.blends import GELUS, blended, fold
from sparse_trainer.errors import UnsupportedModelError


def activation_fields(model: Any) -> list[str]:
    """Return the fields of the config that name a GELU.

    Raises:
        UnsupportedModelError: there are none.
    """
    values = model.config.to_dict()
    found = [name for name in ACTIVATION if str(values.get(name)).startswith(("gelu", "quick_gelu"))]
    if not found:
        raise UnsupportedModelError(
            type(model.config).__name__,
            f"none of {', '.join(ACTIVATION)} is a GELU, so that ReLU could not be written into the config.",
            "Leave the activation as it is.",
        )
    return found


def gelus_of_config(model: Any) -> set[str]:
    """Return the paths of the GELUs that the config names: a model built with ReLU in their fields has none there.

    Those of task heads are among them, in most models; a GELU that its class takes whatever the config says is not.

    Raises:
        UnsupportedModelError: the config names no GELU.
    """
    config = copy.deepcopy(model.config)
    for name in activation_fields(model):
        setattr(config, name, "relu")
    with torch.device("meta"):
        twins = dict(type(model)(config).named_modules(remove_duplicate=False))
    found = model.named_modules(remove_duplicate=False)
    return {path for path, m in found if isinstance(m, GELUS) and not isinstance(twins.get(path, m), GELUS)}


def fold_cheaper(model: Any) -> str:
    """Leave only the cheaper layers, in place, and write the new activation into the config.

    Returns:
        What changed, for plans: `relu`, `no_norm`, `relu + no_norm`, or nothing.
    """
    names = sorted({layer.layer for layer in blended(model)}, reverse=True)
    if "relu" in names:
        for name in activation_fields(model):
            setattr(model.config, name, "relu")
    fold(model)
    return " + ".join(names)


def refuse_blends(model: nn.Module) -> None:
    """Raise `UnsupportedModelError` while the original layers still count: nothing could express the blend."""
    left = max((float(layer.mix) for layer in blended(model)), default=0.0)
    if left > 0:
        raise UnsupportedModelError(
            type(model).__name__,
            f"its cheaper layers are still blended with the original ones, which count {left:.0%}.",
            "Train to the end; or call sparse_trainer.cheaper.finish(model), which leaves only the cheaper ones.",
        )
