"""Adapters merged into the weights they stand beside, and taken away: for peft models, whole or injected.

Nothing here imports peft. A wrapper knows how it is taken away: it merges, or returns what takes its place.
Only active adapters are merged; where adapters are disabled, nothing is.
"""

import copy
from collections.abc import Iterator, Mapping
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn
from transformers import PreTrainedModel

from patchers.errors import UnsupportedModelError
from patchers.layers import BASE

_LIBRARY = "peft"
_NOTES = ("peft_config", "_hf_peft_config_loaded")
"""What injected adapters leave on a model: with it, `save_pretrained` writes adapters only."""


@runtime_checkable
class _Whole(Protocol):
    """A model around a model."""

    peft_config: Mapping[str, Any]

    def get_base_model(self) -> nn.Module: ...


@runtime_checkable
class _Replaces(Protocol):
    """A wrapper that returns what takes its place."""

    disable_adapters: bool

    def unload_and_optionally_merge_module(
        self, merge: bool, safe_merge: bool, adapter_names: Any
    ) -> nn.Module: ...


@runtime_checkable
class _Merges(Protocol):
    """A wrapper that merges into its `base_layer`."""

    disable_adapters: bool
    merged: bool
    active_adapters: list[str]

    def merge(self) -> None: ...
    def unmerge(self) -> None: ...
    def get_base_layer(self) -> nn.Module: ...


def has_adapters(model: nn.Module) -> bool:
    """Tell whether adapters stand in or around a model."""
    return isinstance(model, _Whole) or any(_wrappers(model))


def base_model(model: nn.Module) -> nn.Module:
    """Return the model that peft has wrapped, or the model itself."""
    return model.get_base_model() if isinstance(model, _Whole) else model


def active_adapters(model: nn.Module) -> list[str]:
    """Return the names of the adapters that are active in a model, in order."""
    found = (wrapper.active_adapters for _, wrapper in _wrappers(model) if isinstance(wrapper, _Merges))
    return list(dict.fromkeys(name for names in found for name in names))


def merge_adapters(model: nn.Module) -> nn.Module:
    """Return the model without adapters, its parameters trainable again; in place.

    Raises:
        UnsupportedModelError: an adapter cannot be merged, see `check_mergeable`.
    """
    check_mergeable(model)
    base = base_model(model)
    done: dict[int, nn.Module] = {}
    for path, wrapper in list(_wrappers(base)):
        if id(wrapper) not in done:
            done[id(wrapper)] = _merged(wrapper)
        parent, _, leaf = path.rpartition(".")
        setattr(base.get_submodule(parent), leaf, done[id(wrapper)])
    for parameter in base.parameters():
        if parameter.is_floating_point():
            parameter.requires_grad_(True)
    for name in _NOTES:
        vars(base).pop(name, None)
    if isinstance(base, PreTrainedModel):
        _tell_untied(base)
    return base


def check_mergeable(model: nn.Module) -> None:
    """Raise `UnsupportedModelError` for adapters that no merge leaves the outputs unchanged of: before any training."""
    if isinstance(model, _Whole):
        for name, config in model.peft_config.items():
            if config.is_prompt_learning:
                raise UnsupportedModelError(
                    f"{type(model).__name__}: {name}",
                    f"{config.peft_type.value} merges into no weight, so that a smaller model would lose it.",
                    "Prune with adapters that merge, such as LoRA; or prune first and train the prompt on the result.",
                )
    base = base_model(model)
    places = _places_of_tensors(base)
    for path, wrapper in _wrappers(base):
        reason = _tied(path, wrapper, places) or _merge_fails(wrapper)
        if reason is not None:
            raise UnsupportedModelError(
                path,
                f"is an adapter ({type(wrapper).__name__}) that cannot be merged: {reason}",
                "Leave this module out of the adapter, or take an adapter that merges, such as LoRA.",
            )


def _wrappers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the outermost modules of peft inside a model, at every path at which they stand."""
    inside: str | None = None
    for path, module in model.named_modules(remove_duplicate=False):
        if inside is not None and path.startswith(inside):
            continue
        if path and type(module).__module__.partition(".")[0] == _LIBRARY:
            inside = f"{path}."
            yield path, module


def _merged(wrapper: nn.Module) -> nn.Module:
    if isinstance(wrapper, _Replaces):
        return wrapper.unload_and_optionally_merge_module(
            merge=not wrapper.disable_adapters, safe_merge=False, adapter_names=None
        )
    assert isinstance(wrapper, _Merges)
    if not wrapper.disable_adapters:
        wrapper.merge()
    elif wrapper.merged:
        wrapper.unmerge()
    return wrapper.get_base_layer()


def _merge_fails(wrapper: nn.Module) -> str | None:
    """Return why a wrapper does not merge: found by trying it on a copy without numbers."""
    if not isinstance(wrapper, _Replaces | _Merges):
        return "it has no merge."
    memo: dict[int, Any] = {
        id(p): nn.Parameter(torch.empty_like(p, device="meta"), requires_grad=p.requires_grad)
        for p in wrapper.parameters()
    }
    memo |= {id(b): torch.empty_like(b, device="meta") for b in wrapper.buffers()}
    try:
        _merged(copy.deepcopy(wrapper, memo))
    except (NotImplementedError, RuntimeError, ValueError) as error:
        return str(error).strip().partition("\n")[0] or f"{type(error).__name__}."
    return None


def _places_of_tensors(model: nn.Module) -> dict[int, list[str]]:
    places: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        places.setdefault(id(parameter), []).append(name)
    return places


def _tied(path: str, wrapper: nn.Module, places: Mapping[int, list[str]]) -> str | None:
    """Return why a merge would change another module: one that shares the weight."""
    base = wrapper._modules.get(BASE)
    if base is None:
        return None
    for parameter in base.parameters():
        elsewhere = [name for name in places[id(parameter)] if not name.startswith(f"{path}.")]
        if elsewhere:
            return f"its weight is tied to {elsewhere[0]}, which the merge would change too."
    return None


def _tell_untied(model: PreTrainedModel) -> None:
    """Write into the config that input and output embeddings are two tensors now, where copies were trained apart."""
    inputs, outputs = model.get_input_embeddings(), model.get_output_embeddings()
    tied = inputs is None or outputs is None or inputs.weight is outputs.weight
    config = model.config.get_text_config(decoder=True)
    if not tied and config.tie_word_embeddings:
        config.tie_word_embeddings = model.config.tie_word_embeddings = False
        model.all_tied_weights_keys = {}
