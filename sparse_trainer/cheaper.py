"""GELU to ReLU and LayerNorm to NoNorm while a model trains: `cheapen`, train with `Cheapening`, `finish`."""

from typing import Any

from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from patchers import discover
from patchers.cheaper import BlendedActivation, NoNorm, blend, blended, fold
from sparse_trainer.errors import ArgumentError, UnsupportedModelError, nearest

LAYERS = ("relu", "no_norm")
_FIELDS = ("hidden_act", "activation_function", "activation", "hidden_activation", "hidden_activation_fn")
"""Where configs name the activation of the feed-forward blocks."""


def cheapen(model: Any, layers: tuple[str, ...] = ("relu",), *, decay: float = 0.99) -> int:
    """Make the blocks of a model ready to change GELU into ReLU, LayerNorm into NoNorm; return how many layers may.

    In place, before a Trainer is made; outputs do not change yet.

    Args:
        layers: `relu`, `no_norm` or both. With `no_norm` the result runs in memory and in exports of its graph; no
            stock class can express it, and `save_pruned` refuses it.
        decay: Of the running statistics behind `no_norm`, per step.

    Raises:
        UnsupportedModelError: there is nothing to change, or the config does not say which activation it is.
    """
    for name in layers:
        if name not in LAYERS:
            raise ArgumentError("layers", f"unknown value {name!r}.", nearest(name, LAYERS))
    if "relu" in layers:
        _activation_fields(model)
    blocks = [model.get_submodule(stack.path) for stack in discover(model).stacks]
    count = sum(
        blend(block, gelus="relu" in layers, norms="no_norm" in layers, decay=decay) for block in blocks
    )
    if not count:
        raise UnsupportedModelError(
            type(model).__name__,
            f"its blocks have no layer to change into {' or '.join(layers)}.",
            "Leave them.",
        )
    return count


def _activation_fields(model: Any) -> list[str]:
    values = model.config.to_dict()
    found = [name for name in _FIELDS if str(values.get(name)).startswith(("gelu", "quick_gelu"))]
    if not found:
        raise UnsupportedModelError(
            type(model.config).__name__,
            f"none of {', '.join(_FIELDS)} is a GELU, so that ReLU could not be written into the config.",
            "Leave the activation as it is.",
        )
    return found


def set_mix(model: nn.Module, mix: float) -> None:
    """Set how much of the original layers is in the blend: 1 = all, 0 = nothing."""
    for layer in blended(model):
        layer.mix.fill_(mix)


def finish(model: Any) -> None:
    """Leave only the cheaper layers, in place, and write the new activation into the config."""
    if any(isinstance(layer, BlendedActivation) for layer in blended(model)):
        for name in _activation_fields(model):
            setattr(model.config, name, "relu")
    fold(model)


def refuse_no_norm(model: nn.Module) -> None:
    """Raise `UnsupportedModelError` for a model that its class could not rebuild from a folder."""
    path = next((path for path, m in model.named_modules() if isinstance(m, NoNorm)), None)
    if path is not None:
        raise UnsupportedModelError(
            path,
            "is a NoNorm, which no class of transformers builds.",
            "Export the graph, or keep LayerNorm.",
        )


class Cheapening(TrainerCallback):
    """Moves the blend with the Trainer: linearly from the original layers to the cheaper ones.

    Args:
        until: Fraction of training after which only the cheaper layers count; the rest is for the weights to adapt.
    """

    def __init__(self, model: nn.Module, until: float = 0.7) -> None:
        if not 0 < until <= 1:
            raise ArgumentError(
                "until", f"{until!r} is not in (0, 1].", "Give a fraction of training, e.g. 0.7."
            )
        self.model, self.until = model, until

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start, or go on."""
        self._move(state)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Follow the step."""
        self._move(state)

    def _move(self, state: TrainerState) -> None:
        set_mix(self.model, max(0.0, 1.0 - state.global_step / (self.until * max(1, state.max_steps))))
