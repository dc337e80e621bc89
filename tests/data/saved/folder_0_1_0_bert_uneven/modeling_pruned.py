"""Pruned models of any stock class, from nothing but torch and transformers.

This file travels inside saved folders. `config.pruning["layout"]` says what differs from the stock model:
layers that are gone, no-ops, norms without statistics, shapes of tensors, those in other task heads of the type,
attributes, selections. The module's `__getattr__` makes the subclass of any stock class on demand, under the stock
name, so that `AutoModelFor….from_pretrained(folder, trust_remote_code=True)` finds it.
"""

import copy
import operator
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

FORMAT = 1
_PARTS = ("layers", "skips", "norms", "shapes", "heads", "attributes", "selects")
_LATER: dict[str, Any] = {"norms": {}, "heads": {}}
"""Parts that older folders do not have."""
ROOT = "/"
"""Begins a path that counts from the whole model: what lies outside the part that all heads share."""


class LayoutError(ValueError):
    """A `config.pruning` that does not describe a pruned form of the model at hand."""


class Skip(nn.Module):
    """Takes the place of attention where no head is left: nothing, or a constant, for every token."""

    def __init__(self, outputs: int, width: int, bias: bool, layer_idx: int | None = None) -> None:
        super().__init__()
        self.outputs, self.width, self.layer_idx = outputs, width, layer_idx
        self.bias = nn.Parameter(torch.zeros(width)) if bias else None

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return [..., width] zeros or the bias, in the form of the module it replaces."""
        hidden_states: Tensor = next(v for v in (*args, *kwargs.values()) if isinstance(v, Tensor))
        hidden_states = kwargs.get("hidden_states", hidden_states)
        self._count_tokens(hidden_states, kwargs)
        out = hidden_states.new_zeros((*hidden_states.shape[:-1], self.width))
        if self.bias is not None:
            out = out + self.bias.to(out.dtype)
        # MPNet's attention returns its probabilities only when asked to.
        outputs = (
            max(self.outputs, 1 + bool(kwargs.get("output_attentions"))) if self.outputs < 2 else self.outputs
        )
        return out if self.outputs == 0 else (out,) + (None,) * (outputs - 1)

    def _count_tokens(self, hidden_states: Tensor, kwargs: dict[str, Any]) -> None:
        """Tell the cache how many tokens passed: masks and positions of all layers may be counted at this one."""
        cache = kwargs.get("past_key_values")
        other = (kwargs.get(name) for name in ("key_value_states", "encoder_hidden_states"))
        if cache is None or self.layer_idx is None or any(states is not None for states in other):
            return
        cache = getattr(cache, "self_attention_cache", cache)
        nothing = hidden_states.new_zeros((hidden_states.shape[0], 1, hidden_states.shape[1], 1))
        cache.update(nothing, nothing, self.layer_idx)

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


def is_skip(module: nn.Module) -> bool:
    """Tell whether a module is a no-op of ours, also one whose class came with a saved folder."""
    return type(module).__name__ == Skip.__name__ and type(module).__module__.endswith("modeling_pruned")


class NoNorm(nn.Module):
    """y = weight * x + bias, feature by feature: what is left of a LayerNorm without statistics.

    Under the same names, a stock class would take weight and bias for those of a LayerNorm. So the weight has a leading
    axis of 1, which every stock loader refuses as a size mismatch.
    """

    def __init__(self, weight_D: Tensor, bias_D: Tensor | None) -> None:
        super().__init__()
        bias_D = torch.zeros_like(weight_D) if bias_D is None else bias_D
        self.weight = nn.Parameter(weight_D.detach().clone().unsqueeze(0))
        self.bias = nn.Parameter(bias_D.detach().clone())

    def forward(self, x_BD: Tensor) -> Tensor:
        """Return the affine map of the input."""
        return torch.addcmul(self.bias.to(x_BD.dtype), x_BD, self.weight[0].to(x_BD.dtype))


def is_no_norm(module: nn.Module) -> bool:
    """Tell whether a module is a NoNorm of ours, also one whose class came with a saved folder."""
    return type(module).__name__ == NoNorm.__name__ and type(module).__module__.endswith("modeling_pruned")


class Selection:
    """Picks the entries of the remaining units in an argument that has one per original unit.

    Args:
        argument: Its name.
        position: Where it stands among positional arguments.
        dim: Dimension that runs over units, or over rows x units.
        index: Entries that remain.
        of: Entries that there were.
        returned: Where in its output the module hands the argument on: the next module must get it whole.
    """

    def __init__(
        self,
        *,
        argument: str,
        position: int,
        dim: int,
        index: list[int],
        of: int,
        returned: int | None = None,
    ) -> None:
        self.argument, self.position, self.dim = argument, position, dim
        self.index, self.of, self.returned = tuple(index), of, returned
        self._given: Tensor | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the arguments that make an equal selection."""
        shown = {name: value for name, value in vars(self).items() if not name.startswith("_")}
        return {**shown, "index": list(self.index)}

    def before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Narrow the argument (forward pre-hook)."""
        name, place = self.argument, self.position
        value = kwargs[name] if name in kwargs else args[place] if len(args) > place else None
        self._given = value if self.returned is not None else None
        if value is None or value.dim() <= self.dim or value.shape[self.dim] % self.of:
            return args, kwargs
        narrow = value.unflatten(self.dim, (-1, self.of))
        narrow = narrow.index_select(self.dim + 1, _index_on(self.index, value.device))
        narrow = narrow.flatten(self.dim, self.dim + 1)
        if name in kwargs:
            return args, {**kwargs, name: narrow}
        return (*args[:place], narrow, *args[place + 1 :]), kwargs

    def after(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        """Hand the argument on as it came (forward hook)."""
        given, self._given = self._given, None
        if self.returned is None or not isinstance(output, tuple):
            return output
        return (*output[: self.returned], given, *output[self.returned + 1 :])


@lru_cache(maxsize=1024)
def _index_on(index: tuple[int, ...], device: torch.device) -> Tensor:
    """Copy an index to a device once, not once per forward; for training too, whatever mode it is first used in."""
    with torch.inference_mode(False):
        return torch.tensor(index, device=device)


def add_select(module: nn.Module, **select: Any) -> Selection:
    """Make `module` see only the entries of its remaining units."""
    selection = Selection(**select)
    module.register_forward_pre_hook(selection.before, with_kwargs=True)
    if selection.returned is not None:
        module.register_forward_hook(selection.after)
    return selection


def selections_of(module: nn.Module) -> list[Any]:
    """Return the selections that hang on a module, also ones whose class came with a saved folder."""
    owners = [getattr(hook, "__self__", None) for hook in module._forward_pre_hooks.values()]
    return [owner for owner in owners if type(owner).__name__ == Selection.__name__]


class OwnConfig:
    """A module's view of a config that other modules share, with a few fields of its own."""

    def __init__(self, shared: Any, **own: Any) -> None:
        self._shared, self._own = shared, own

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name in ("_shared", "_own"):
            raise AttributeError(name)
        return self._own[name] if name in self._own else getattr(self._shared, name)


def set_attribute(module: Any, name: str, value: Any) -> None:
    """Set an attribute of a module; `config.NAME` goes into a view of its own config."""
    _, _, rest = name.partition(".")
    if not rest:
        setattr(module, name, value)
    elif type(module.config).__name__ == OwnConfig.__name__:  # its class may have come with a saved folder
        module.config._own[rest] = value
    else:
        module.config = OwnConfig(module.config, **{rest: value})


_LAYER_COUNTS = ("n_layers", "n_layer", "num_layers", "num_hidden_layers", "num_blocks")
"""Attributes beside a list of blocks that count them."""
_LAYER_NUMBERS = ("layer_idx", "layer_id")
"""Attributes of what lies in a block: its place in the cache."""


def keep_layers(model: nn.Module, stack: str, kept: list[int]) -> None:
    """Leave only these blocks in a list of blocks, and number them anew."""
    whole = list(model.get_submodule(stack).children())
    blocks = [block for layer, block in enumerate(whole) if layer in set(kept)]
    model.set_submodule(stack, nn.ModuleList(blocks))
    owner = vars(model.get_submodule(stack.rpartition(".")[0]))
    owner.update({name: len(blocks) for name in _LAYER_COUNTS if owner.get(name) == len(whole)})
    for layer, block in enumerate(blocks):
        for module in block.modules():
            own = vars(module)
            own.update({name: layer for name in _LAYER_NUMBERS if isinstance(own.get(name), int)})


def base_of(model: nn.Module) -> nn.Module:
    """Return the part that all heads of a model type share: layouts are written relative to it."""
    return getattr(model, getattr(model, "base_model_prefix", "") or "_", model)


def portable(model: nn.Module, path: str) -> str:
    """Return a path as layouts write it: from the shared part where it lies there, else from the whole model."""
    prefix = getattr(model, "base_model_prefix", "")
    if base_of(model) is model:
        return path
    return path.removeprefix(f"{prefix}.") if path.startswith(f"{prefix}.") else f"{ROOT}{path}"


def local(model: nn.Module, path: str) -> str:
    """Return the path in `model` of what a layout calls `path`."""
    if base_of(model) is model:
        return path.removeprefix(ROOT)
    return (
        path.removeprefix(ROOT)
        if path.startswith(ROOT)
        else f"{getattr(model, 'base_model_prefix', '')}.{path}"
    )


def _is_elsewhere(model: nn.Module, layout: dict[str, Any], path: str) -> bool:
    """Tell whether a module that a layout names lies in a task head, or a pooler, that this class lacks."""
    if _class_name(model) in layout["heads"]:
        return path.startswith(ROOT) or not _has(model, local(model, path))
    children = dict(model.named_children())
    return path.startswith(ROOT) and path.removeprefix(ROOT).partition(".")[0] not in children


def _has(model: nn.Module, path: str) -> bool:
    try:
        model.get_submodule(path)
    except AttributeError:
        return False
    return True


def layout_in(config: Any) -> dict[str, Any]:
    """Return the layout of a pruned model's config.

    Raises:
        LayoutError: there is none, or one that this file cannot read.
    """
    pruning = vars(config).get("pruning")
    if not isinstance(pruning, dict) or not isinstance(pruning.get("layout"), dict):
        raise LayoutError(
            "config.pruning has no layout: the config was damaged, or is of a model never pruned."
        )
    if pruning.get("format") != FORMAT:
        raise LayoutError(f"config.pruning has format {pruning.get('format')!r}; this code reads {FORMAT}.")
    layout: dict[str, Any] = {**_LATER, **pruning["layout"]}
    for part in ("build", *_PARTS):
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
    for part in _PARTS:
        for path, value in layout[part].items():
            module = path.rpartition(".")[0] if part == "shapes" else path
            if part in ("shapes", "attributes") and _is_elsewhere(model, layout, module):
                continue
            if part == "heads" and path != _class_name(model):
                continue
            try:
                _APPLY[part](model, path if part == "heads" else local(model, path), value)
            except (AttributeError, TypeError, ValueError, RuntimeError, StopIteration) as error:
                raise LayoutError(
                    f"config.pruning: layout.{part}[{path!r}] does not fit {type(model).__name__}: {error}"
                ) from error


def _apply_skip(model: nn.Module, path: str, value: list[Any]) -> None:
    outputs, width, bias = value
    replaced = model.get_submodule(path)
    name, reference = next(replaced.named_parameters())
    skip = Skip(outputs, width, bias, vars(replaced).get("layer_idx")).to(
        device=reference.device, dtype=reference.dtype
    )
    skip.stand_for(name, reference)
    model.set_submodule(path, skip)


def _apply_norm(model: nn.Module, path: str, kind: str) -> None:
    """Put another norm in the place of a LayerNorm; there is one kind, `affine`."""
    if kind != "affine":
        raise ValueError(f"unknown kind of norm {kind!r}")
    norm: Any = model.get_submodule(path)
    model.set_submodule(path, NoNorm(norm.weight, norm.bias))


def _apply_shape(model: nn.Module, name: str, shape: list[int]) -> None:
    """Give a tensor another shape; its new values are not set."""
    path, _, leaf = name.rpartition(".")
    owner: Any = model.get_submodule(path)
    if leaf in owner._buffers:
        owner._buffers[leaf] = owner._buffers[leaf].new_empty(shape)
        return
    old = owner.get_parameter(leaf)
    setattr(owner, leaf, nn.Parameter(old.new_empty(shape), requires_grad=old.requires_grad))
    if isinstance(owner, nn.Linear):
        owner.out_features, owner.in_features = owner.weight.shape
    elif isinstance(owner, Conv1D):
        owner.nx, owner.nf = owner.weight.shape
    elif isinstance(owner, nn.Embedding):
        owner.num_embeddings, owner.embedding_dim = owner.weight.shape
    elif isinstance(owner, nn.LayerNorm | nn.RMSNorm):
        owner.normalized_shape = tuple(owner.weight.shape)


def _apply_heads(model: nn.Module, name: str, value: dict[str, list[list[int]]] | str) -> None:
    """Narrow what a class other than the one that was cut has beside it: [dimension, size] by tensor.

    Text says why this class cannot be built.
    """
    if isinstance(value, str):
        raise ValueError(value)
    for path, sizes in value.items():
        tensor = local(model, path)
        shape = list(operator.attrgetter(tensor)(model).shape)
        for dim, size in sizes:
            shape[dim] = size
        _apply_shape(model, tensor, shape)


def _apply_attributes(model: nn.Module, path: str, attributes: dict[str, Any]) -> None:
    module = model.get_submodule(path)
    for name, value in attributes.items():
        set_attribute(module, name, value)


def _apply_selects(model: nn.Module, path: str, selects: list[dict[str, Any]]) -> None:
    module = model.get_submodule(path)
    for select in selects:
        add_select(module, **select)


_APPLY: dict[str, Any] = {
    "layers": keep_layers,
    "skips": _apply_skip,
    "norms": _apply_norm,
    "shapes": _apply_shape,
    "heads": _apply_heads,
    "attributes": _apply_attributes,
    "selects": _apply_selects,
}


@torch.no_grad()
def _initialise(model: Any, layout: dict[str, Any]) -> None:
    """Give resized tensors fresh values when nothing will be loaded into them (`from_config`)."""
    if next(model.parameters()).device.type == "meta":
        return
    names = [n for n in layout["shapes"] if not _is_elsewhere(model, layout, n.rpartition(".")[0])]
    for name in (*names, *layout["heads"].get(_class_name(model), ())):
        owner: Any = model.get_submodule(local(model, name).rpartition(".")[0])
        tensors = list(owner.parameters(recurse=False))
        if tensors and tensors[0].numel() > 0:
            model._init_weights(owner)


@contextmanager
def overridden(config: Any, values: dict[str, Any]) -> Iterator[None]:
    """Give fields of a config, or of a config in it (`text_config.num_hidden_layers`), other values for a while."""
    before = []
    for path, value in values.items():
        *parents, name = path.split(".")
        owner = config
        for parent in parents:
            owner = getattr(owner, parent, None)
        if name not in vars(owner or nn.Module):
            raise LayoutError(f"config.pruning: layout.build names {path!r}, which the config lacks.")
        before.append((owner, name, vars(owner)[name]))
        vars(owner)[name] = value
    try:
        yield
    finally:
        for owner, name, value in before:
            vars(owner)[name] = value


_CLASSES: dict[type, type] = {}


def pruned_class(stock: type[PreTrainedModel]) -> type[PreTrainedModel]:
    """Return the subclass of `stock` that reads `config.pruning`; it keeps the stock name."""
    if stock not in _CLASSES:

        def __init__(self: Any, config: Any, *args: Any, **kwargs: Any) -> None:
            # A head class builds its base through the stock class, so only the outermost model applies the layout.
            layout = layout_in(config)
            with overridden(config, layout["build"]):
                stock.__init__(self, config, *args, **kwargs)
            apply_layout(self, layout)
            _initialise(self, layout)

        def is_custom_code(cls: Any) -> bool:
            # Else loading skips modules that compute buffers for others (FalconH1), as it does for custom code.
            return bool(stock.is_custom_code())

        body = {"__init__": __init__, "__module__": __name__, "__doc__": stock.__doc__, "stock_class": stock}
        body["is_custom_code"] = classmethod(is_custom_code)
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


def _class_name(model: Any) -> str:
    return stock_class_of(model).__name__


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
