"""Pruned models of any stock class, from nothing but torch and transformers.

This file travels inside saved folders. `config.pruning["layout"]` says what differs from the stock model:
sizes of linears, attributes, no-ops, selections. The module's `__getattr__` makes the subclass of any stock class on
demand, under the stock name, so that `AutoModelFor….from_pretrained(folder, trust_remote_code=True)` finds it.
"""

import copy
from functools import lru_cache, partial
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

FORMAT = 1
_PARTS = ("skips", "linears", "attributes", "selects")


class LayoutError(ValueError):
    """A `config.pruning` that does not describe a pruned form of the model at hand."""


class Skip(nn.Module):
    """Takes the place of attention where no head is left: nothing, or a constant, for every token."""

    def __init__(self, outputs: int, width: int, bias: bool) -> None:
        super().__init__()
        self.outputs, self.width = outputs, width
        self.bias = nn.Parameter(torch.zeros(width)) if bias else None

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Return [..., width] zeros or the bias, in the form of the module it replaces."""
        out = hidden_states.new_zeros((*hidden_states.shape[:-1], self.width))
        if self.bias is not None:
            out = out + self.bias.to(out.dtype)
        # MPNet's attention returns its probabilities only when asked to.
        outputs = max(self.outputs, 1 + bool(kwargs.get("output_attentions")))
        return out if self.outputs == 0 else (out,) + (None,) * (outputs - 1)

    def stand_for(self, name: str, reference: Tensor) -> None:
        """Hold an empty entry under the name of a weight that is gone.

        The stock class would fill in random weights and only warn; an entry of the wrong size it refuses.
        """
        *parts, leaf = name.split(".")
        owner: nn.Module = self
        for part in parts:
            owner.add_module(part, nn.Module())
            owner = owner.get_submodule(part)
        owner.register_buffer(leaf, reference.new_empty(0))


def select_argument(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], *, argument: str, position: int, dim: int,
    index: list[int],
) -> tuple[tuple[Any, ...], dict[str, Any]]:  # fmt: skip
    """Keep the entries of the remaining units in an argument that has one per original unit (forward pre-hook)."""
    value = kwargs.get(argument) if argument in kwargs else args[position] if len(args) > position else None
    if value is None:
        return args, kwargs
    value = value.index_select(dim, _index_on(tuple(index), value.device))
    if argument in kwargs:
        return args, {**kwargs, argument: value}
    return (*args[:position], value, *args[position + 1 :]), kwargs


@lru_cache(maxsize=1024)
def _index_on(index: tuple[int, ...], device: torch.device) -> Tensor:
    """Copy an index to a device once, not once per forward."""
    return torch.tensor(index, device=device)


def add_select(module: nn.Module, *, argument: str, position: int, dim: int, index: list[int]) -> Any:
    """Make `module` see only the entries of its remaining units; return the handle."""
    hook = partial(select_argument, argument=argument, position=position, dim=dim, index=index)
    return module.register_forward_pre_hook(hook, with_kwargs=True)


def base_of(model: nn.Module) -> nn.Module:
    """Return the part that all heads of a model type share: layouts are written relative to it."""
    return getattr(model, getattr(model, "base_model_prefix", "") or "_", model)


def layout_in(config: Any) -> dict[str, Any]:
    """Return the layout of a pruned model's config.

    Raises:
        LayoutError: there is none, or one that this file cannot read.
    """
    pruning = config.to_dict().get("pruning")
    if not isinstance(pruning, dict) or not isinstance(pruning.get("layout"), dict):
        raise LayoutError(
            "config.pruning has no layout: the config was damaged, or is of a model never pruned."
        )
    if pruning.get("format") != FORMAT:
        raise LayoutError(f"config.pruning has format {pruning.get('format')!r}; this code reads {FORMAT}.")
    layout: dict[str, Any] = pruning["layout"]
    for part in _PARTS:
        if not isinstance(layout.get(part), dict):
            raise LayoutError(
                f"config.pruning: layout.{part} is {layout.get(part)!r}, not a mapping of module paths."
            )
    return layout


def apply_layout(model: nn.Module, layout: dict[str, Any]) -> None:
    """Give a stock model the sizes of a pruned one, in place. Weights are left to be loaded.

    Raises:
        LayoutError: the layout is of another model.
    """
    base = base_of(model)
    modules = dict(base.named_modules())
    for part in _PARTS:
        for path in layout[part]:
            if path not in modules:
                raise LayoutError(
                    f"config.pruning: layout.{part} names {path!r}, which {type(base).__name__} lacks."
                )
    try:
        _apply(base, modules, layout)
    except (AttributeError, TypeError, ValueError, RuntimeError) as error:
        raise LayoutError(
            f"config.pruning: the layout does not fit {type(base).__name__}: {error}"
        ) from error


def _apply(base: nn.Module, modules: dict[str, nn.Module], layout: dict[str, Any]) -> None:
    for path, (outputs, width, bias) in layout["skips"].items():
        name, reference = next(base.get_submodule(path).named_parameters())
        skip = Skip(outputs, width, bias).to(device=reference.device, dtype=reference.dtype)
        skip.stand_for(name, reference)
        base.set_submodule(path, skip)
    for path, (outputs, inputs) in layout["linears"].items():
        _resize(modules[path], outputs, inputs)
    for path, attributes in layout["attributes"].items():
        for name, value in attributes.items():
            setattr(modules[path], name, value)
    for path, select in layout["selects"].items():
        add_select(modules[path], **select)


def _resize(linear: Any, outputs: int, inputs: int) -> None:
    """Change the sizes of a linear; its new weight is uninitialised."""
    old = linear.weight
    shape = (inputs, outputs) if isinstance(linear, Conv1D) else (outputs, inputs)
    linear.weight = nn.Parameter(old.new_empty(shape), requires_grad=old.requires_grad)
    if linear.bias is not None and linear.bias.numel() != outputs:
        linear.bias = nn.Parameter(linear.bias.new_empty(outputs), requires_grad=linear.bias.requires_grad)
    if isinstance(linear, Conv1D):
        linear.nf, linear.nx = outputs, inputs
    else:
        linear.out_features, linear.in_features = outputs, inputs


@torch.no_grad()
def _initialise(model: Any, layout: dict[str, Any]) -> None:
    """Give resized linears fresh values when nothing will be loaded into them (`from_config`)."""
    base = base_of(model)
    for path in layout["linears"]:
        linear: Any = base.get_submodule(path)
        if linear.weight.device.type != "meta" and linear.weight.numel() > 0:
            model._init_weights(linear)


_CLASSES: dict[type, type] = {}


def pruned_class(stock: type[PreTrainedModel]) -> type[PreTrainedModel]:
    """Return the subclass of `stock` that reads `config.pruning`; it keeps the stock name."""
    if stock not in _CLASSES:

        def __init__(self: Any, config: Any, *args: Any, **kwargs: Any) -> None:
            # A head class builds its base through the stock class, so only the outermost model applies the layout.
            layout = layout_in(config)
            stock.__init__(self, config, *args, **kwargs)
            apply_layout(self, layout)
            _initialise(self, layout)

        body = {"__init__": __init__, "__module__": __name__, "__doc__": stock.__doc__, "stock_class": stock}
        if getattr(transformers, stock.__name__, None) is stock:
            # Makes `save_pretrained` copy this file; a class that transformers does not know could not be found again.
            body["_auto_class"] = property(_auto_class)
        _CLASSES[stock] = type(stock.__name__, (stock,), body)
    return _CLASSES[stock]


def _auto_class(model: PreTrainedModel) -> str:
    """Return the auto class that leads to this class, as the config says."""
    own = f".{type(model).__name__}"
    auto_map = model.config.to_dict().get("auto_map") or {}
    return next((auto for auto, reference in auto_map.items() if str(reference).endswith(own)), "AutoModel")


def stock_class_of(model: Any) -> type[PreTrainedModel]:
    """Return the transformers class that a model, pruned or not, comes from."""
    return getattr(type(model), "stock_class", type(model))


def stock_config(config: Any) -> Any:
    """Return a copy of `config` without our entries."""
    clean = copy.deepcopy(config)
    for name in ("pruning", "auto_map"):
        if name in clean.__dict__:
            delattr(clean, name)
    return clean


def __getattr__(name: str) -> Any:
    """Make the pruned class of any stock class of transformers."""
    stock = None if name.startswith("_") else getattr(transformers, name, None)
    if isinstance(stock, type) and issubclass(stock, PreTrainedModel):
        return pruned_class(stock)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
