"""What is timed: forward passes of a model, and of single blocks as the model calls them."""

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final, final

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

from patchers.surgery import cut
from patchers.units import Structure
from sparse_trainer.budget.time_target import COMPILE, DECODE, TimeTarget
from sparse_trainer.errors import ArgumentError
from sparse_trainer.inputs.kinds import field_of
from sparse_trainer.inputs.limits import check_positions, inputs_named, positions_of
from sparse_trainer.inputs.timed import timed_inputs

_CACHES: Final = ("cache", "past_key_values")
"""What models call their cache: newer ones the first."""
Arguments = tuple[tuple[Any, ...], dict[str, Any]]


def check_timed(model: PreTrainedModel, target: TimeTarget) -> None:
    """Refuse a model that cannot be run as a target says; one on the meta device will do.

    Raises:
        ArgumentError: more tokens than it has positions for, or a phase that it does not have.
    """
    decodes = target.phase == DECODE
    if decodes and _cache_of(model) is None:
        raise ArgumentError(
            "latency_phase",
            f"{type(model).__name__} does not decode token by token with a cache.",
            "Take 'prefill'.",
        )
    check_positions("sequence_length", target.sequence_length + decodes, positions_of(model.config))


def _cache_of(model: PreTrainedModel) -> str | None:
    """Return what a model that decodes calls its cache; None for an encoder whose class could be a decoder (BERT)."""
    if model.config.is_encoder_decoder or field_of(model.config, "is_decoder") is False:
        return None
    named = inputs_named(model)[0]
    return next((n for n in _CACHES if n in named), None)


@final
class Call:
    """A module with what it is called with; a cache holds as much before every call."""

    def __init__(self, module: nn.Module, arguments: Arguments, target: TimeTarget) -> None:
        self._args, self._kwargs = arguments
        self._run: Callable[..., Any] = module
        if target.runtime == COMPILE:
            self._run = torch.compile(module, dynamic=False)
        caches = (value for value in self._kwargs.values() if isinstance(value, Cache))
        layers = (layer for cache in caches for layer in cache.layers)
        self._layers = [layer for layer in layers if isinstance(layer, DynamicLayer)]

    def __call__(self) -> object:
        """Run the module."""
        return self._run(*self._args, **self._kwargs)

    def reset(self) -> None:
        """Take the token out of the cache that the last call put into it."""
        for layer in self._layers:
            if layer.is_initialized:
                layer.crop(-1)


@final
class Caller:
    """Makes calls of models and blocks under the conditions of a target.

    Raises:
        ArgumentError: sequences beyond the positions of the model, or decoding with a model that has no cache.
    """

    def __init__(self, target: TimeTarget) -> None:
        self.target = target

    def of_model(self, model: PreTrainedModel) -> Call:
        """Return the call of a whole model."""
        return Call(model, ((), self._inputs(model)), self.target)

    def of_blocks(self, model: PreTrainedModel, paths: Iterable[str]) -> Mapping[str, "BlockArguments"]:
        """Return what a model calls these blocks with."""
        prompt = self._prompt(model)
        whole = _arguments_of(model, paths, prompt)
        if self.target.phase != DECODE:
            return {path: BlockArguments(first=found, then=None) for path, found in whole.items()}
        step = _arguments_of(model, paths, self._inputs(model))
        return {path: BlockArguments(first=whole[path], then=step[path]) for path in whole}

    def _prompt(self, model: PreTrainedModel) -> dict[str, Any]:
        """Return what the whole sequence is read with, into a cache where the next phase needs one."""
        target = self.target
        check_timed(model, target)
        inputs: dict[str, Any] = dict(timed_inputs(model, target.batch, target.sequence_length))
        name = _cache_of(model)
        if target.phase != DECODE or name is None:
            return inputs | ({"use_cache": False} if "use_cache" in inputs_named(model)[0] else {})
        return inputs | {name: DynamicCache(config=model.config), "use_cache": True}

    def _inputs(self, model: PreTrainedModel) -> dict[str, Any]:
        """Return what a timed forward pass reads; in the phase `decode` one token, with all before it in a cache."""
        prompt = self._prompt(model)
        if self.target.phase != DECODE:
            return prompt
        with torch.inference_mode():
            model(**prompt)
        last = prompt["input_ids"][:, -1:]
        mask = torch.ones(len(last), self.target.sequence_length + 1, dtype=torch.long, device=last.device)
        return {**prompt, "input_ids": last, "attention_mask": mask}


@final
class BlockArguments:
    """What a model calls one block with.

    Args:
        first: For the whole sequence.
        then: For one more token with a cache, in the phase `decode`.
    """

    def __init__(self, *, first: Arguments, then: Arguments | None) -> None:
        self._first, self._then = first, then

    def call(self, block: nn.Module, target: TimeTarget) -> Call:
        """Return the call of a block that may have fewer units than the one which the model called."""
        if self._then is None:
            return Call(block, self._first, target)
        # The keys and values of a narrower block are its own.
        cache = DynamicCache()
        with torch.inference_mode():
            args, kwargs = _with_cache(self._first, cache)
            block(*args, **kwargs)
        return Call(block, _with_cache(self._then, cache), target)


def _with_cache(arguments: Arguments, cache: Cache) -> Arguments:
    args, kwargs = arguments
    return args, {name: cache if isinstance(value, Cache) else value for name, value in kwargs.items()}


def _arguments_of(
    model: PreTrainedModel, paths: Iterable[str], inputs: Mapping[str, Any]
) -> dict[str, Arguments]:
    """Return what a forward pass calls blocks with."""
    found: dict[str, Arguments] = {}

    def note(path: str) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            found[path] = (args, dict(kwargs))

        return hook

    hooks = [
        model.get_submodule(path).register_forward_pre_hook(note(path), with_kwargs=True) for path in paths
    ]
    try:
        with torch.inference_mode():
            model(**inputs)
    finally:
        for handle in hooks:
            handle.remove()
    return found


def narrowed(model: PreTrainedModel, structure: Structure, keep: Mapping[str, Tensor]) -> PreTrainedModel:
    """Return a copy of a model without the units that `keep` marks False; it shares the weights that stay whole."""
    whole = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    twin = copy.deepcopy(model, whole)
    cut(twin, structure, keep)
    return twin


@contextmanager
def compiling(target: TimeTarget) -> Iterator[None]:
    """Let as many graphs of one class be compiled as there are widths, for the time of a `with` block."""
    if target.runtime != COMPILE:
        yield
        return
    from torch import _dynamo  # Seconds to import; only the runtime compile needs it.

    with _dynamo.config.patch(recompile_limit=1024):
        yield
