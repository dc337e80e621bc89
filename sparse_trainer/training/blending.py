"""GELU to ReLU and LayerNorm to NoNorm while a model trains: blended in, then left alone."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, final

import torch
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from patchers.discovery.discover import discover
from patchers.patching.blends import BlendedNorm, blend_gelus, blend_norms, blended, take_in, unblend
from patchers.patching.patch import is_patched
from sparse_trainer.cut.fold_blends import fold_cheaper, gelus_of_config
from sparse_trainer.cut.model_class import adopt
from sparse_trainer.errors import UnsupportedModelError, one_of
from sparse_trainer.fields import check_share
from sparse_trainer.training.options import LAYERS, BlendingOptions


def cheapen(model: Any, layers: tuple[str, ...] = ("relu",), *, decay: float = 0.99) -> int:
    """Make a model ready to change GELU into ReLU, LayerNorm into NoNorm; return how many layers may.

    GELUs change wherever the config names them, in task heads too; norms in the blocks.

    In place, before a Trainer is made; outputs do not change yet.

    Args:
        layers: `relu`, `no_norm` or both.
        decay: Of the running statistics behind `no_norm`, per step.

    Raises:
        UnsupportedModelError: there is nothing to change, or the config does not say which activation it is.
    """
    for name in layers:
        one_of("layers", name, LAYERS)
    count = blend_gelus(model, gelus_of_config(model)) if "relu" in layers else 0
    if "no_norm" in layers:
        blocks = [model.get_submodule(stack.path) for stack in discover(model).stacks]
        count += sum(blend_norms(block, decay) for block in blocks)
    missing = set(layers) - {layer.layer for layer in blended(model)}
    if missing:
        unblend(model)
        raise UnsupportedModelError(
            type(model).__name__, f"it has no layer to change into {min(missing)}.", "Leave it out."
        )
    return count


def set_mix(model: nn.Module, mix: float) -> None:
    """Set how much of the original layers is in the blend: 1 = all, 0 = nothing. Call it after every optimizer step.

    Running statistics take in the batches since the last call, in every process those of all: call it in all of them.
    """
    layers = list(blended(model))
    for layer in layers:
        layer.mix.fill_(mix)
    take_in(layers)


def finish(model: Any) -> None:
    """Leave only the cheaper layers, in place, and make the model one that saves and loads like any other.

    A model with gates is left to `optimize_model`, which gives it the class that its cut needs as well.
    """
    cheaper = fold_cheaper(model)
    if cheaper and not is_patched(model):
        adopt(model, cheaper)


@final
class Blending:
    """Moves the blends of one model over a training. All state that a restart needs lives in the model.

    Raises:
        UnsupportedModelError: the model has no layer of a kind that is asked for.
    """

    def __init__(self, model: nn.Module, options: BlendingOptions) -> None:
        self.options = options
        if options.layers:
            cheapen(model, options.layers, decay=options.decay)
        self._layers = [layer for layer in blended(model) if layer.layer in options.layers]
        self._steps: dict[str, float] = {}
        self.finished = True

    def begin(self, total_steps: int, step: int) -> None:
        """Start, or go on at `step`."""
        self._steps = self.options.blend_steps(total_steps)
        self.step(step)

    def step(self, step: int) -> None:
        """Move to the state after optimizer step number `step`."""
        mixes = {name: max(0.0, 1.0 - step / steps) for name, steps in self._steps.items()}
        for layer in self._layers:
            layer.mix.fill_(mixes[layer.layer])
        take_in(self._layers)
        self.finished = not any(mixes.values())

    @property
    def final_from(self) -> int:
        """The first optimizer step after which nothing of the original layers is left."""
        return math.ceil(max(self._steps.values(), default=0))

    @contextmanager
    def final(self) -> Iterator[None]:
        """Show the cheaper layers alone for the time of a `with` block; norms that saw no batch yet stay."""
        kept = [layer.mix.clone() for layer in self._layers]
        for layer in self._layers:
            unready = layer.mix * (layer.seen == 0) if isinstance(layer, BlendedNorm) else torch.zeros(())
            layer.mix.copy_(unready)
        try:
            yield
        finally:
            for layer, mix in zip(self._layers, kept, strict=True):
                layer.mix.copy_(mix)


class Cheapening(TrainerCallback):
    """Moves the blend with the Trainer: linearly from the original layers to the cheaper ones.

    Args:
        until: Fraction of training after which only the cheaper layers count; the rest is for the weights to adapt.
    """

    def __init__(self, model: nn.Module, until: float = 0.7) -> None:
        check_share("until", until, "(0, 1]", "Give a fraction of training, e.g. 0.7.")
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
