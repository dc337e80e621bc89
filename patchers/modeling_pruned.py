"""Pruned models of any stock class, from nothing but torch and transformers.

This file travels inside saved folders. `config.pruning["layout"]` says what differs from the stock model:
layers that are gone, no-ops, norms without statistics, shapes of tensors, those in other task heads of the type,
attributes, selections, weights that several layers share. The module's `__getattr__` makes the subclass of any stock
class on demand, under the stock name, so that `AutoModelFor….from_pretrained(folder, trust_remote_code=True)` finds it.
"""

import copy
import inspect
import itertools
import reprlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import Cache, EncoderDecoderCache, PreTrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

FORMAT = 1
_PARTS = ("layers", "skips", "norms", "shapes", "heads", "attributes", "selects", "routers", "shares")
_LATER: dict[str, Any] = {"norms": {}, "heads": {}, "routers": {}, "shares": {}}
"""Parts that older folders do not have."""
ROOT = "/"
"""Begins a path that counts from the whole model: what lies outside the part that all heads share."""


class LayoutError(ValueError):
    """A `config.pruning` that does not describe a pruned form of the model at hand."""


_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 100


def _shown(value: object) -> str:
    """Return a value as messages show it; it may come from a stranger's folder."""
    return _SHORT.repr(value)


_OTHER_STATES = ("key_value_states", "encoder_hidden_states", "cross_attention_states")
"""Arguments that only cross-attention is given: keys and values of other tokens than those that pass."""
_LAYER_NUMBERS = ("layer_idx", "layer_id")
"""Attributes of what lies in a block: its place in the cache."""


class Skip(nn.Module):
    """Takes the place of attention where no head is left: nothing, or a constant, for every token.

    Args:
        outputs: How many values the attention returned; 0 stands for a bare tensor.
        width: Features of the result.
        bias: Whether the result is a constant that is learned, not zero.
        layer_idx: Place in the cache; None where the model keeps none.
        arguments: What the attention called its positional arguments.
    """

    def __init__(
        self,
        outputs: int,
        width: int,
        bias: bool,
        layer_idx: int | None = None,
        arguments: tuple[str, ...] = (),
    ) -> None:
        super().__init__()
        self.outputs, self.width = outputs, width
        self.layer_idx, self.arguments = layer_idx, arguments
        self.bias = nn.Parameter(torch.zeros(width)) if bias else None

    @classmethod
    def of(cls, attention: nn.Module, outputs: int, width: int, bias: bool) -> "Skip":
        """Return the no-op for this attention: it keeps its place in the cache, and the names of its arguments."""
        numbers = (vars(attention).get(name) for name in _LAYER_NUMBERS)
        layer_idx = next((number for number in numbers if number is not None), None)
        return cls(outputs, width, bias, layer_idx, tuple(inspect.signature(attention.forward).parameters))

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return [..., width] zeros or the bias, in the form of the module it replaces."""
        hidden_states: Tensor = next(v for v in (*args, *kwargs.values()) if isinstance(v, Tensor))
        hidden_states = kwargs.get("hidden_states", hidden_states)
        self._count_tokens(hidden_states, args, kwargs)
        out = hidden_states.new_zeros((*hidden_states.shape[:-1], self.width))
        if self.bias is not None:
            out = out + self.bias.to(out.dtype)
        # MPNet's attention returns its probabilities only when asked to.
        outputs = (
            max(self.outputs, 1 + bool(kwargs.get("output_attentions"))) if self.outputs < 2 else self.outputs
        )
        return out if self.outputs == 0 else (out,) + (None,) * (outputs - 1)

    def _count_tokens(self, hidden_states: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Tell the cache how many tokens passed: masks and positions of all layers may be counted at this one.

        The cache is known by its type: transformers has called it past_key_values, layer_past and cache. Its entry is
        the one that the call names (Zamba, whose layers share an attention), else that of the layer.
        """
        cache: Any = next((value for value in (*args, *kwargs.values()) if isinstance(value, Cache)), None)
        named = {**dict(zip(self.arguments, args, strict=False)), **kwargs}
        layer_idx = next((named[n] for n in _LAYER_NUMBERS if type(named.get(n)) is int), self.layer_idx)
        if cache is None or layer_idx is None:
            return
        others = next((named[n] for n in _OTHER_STATES if named.get(n) is not None), None)
        if others is None:
            own = cache.self_attention_cache if isinstance(cache, EncoderDecoderCache) else cache
            _write_nothing(own, layer_idx, hidden_states)
        elif isinstance(cache, EncoderDecoderCache) and not cache.is_updated.get(layer_idx):
            _write_nothing(cache.cross_attention_cache, layer_idx, others)
            cache.is_updated[layer_idx] = True

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


def _write_nothing(cache: Any, layer_idx: int, states: Tensor) -> None:
    """Write an entry of no content for these tokens: one head of width 1, or what room was made for ahead."""
    keys = values = states.new_empty(1, 1, 1, 1)
    layer = cache.layers[layer_idx] if layer_idx < len(cache.layers) else None
    if layer is not None and isinstance(layer.keys, Tensor) and layer.keys.dim() == 4:
        keys, values = layer.keys, layer.values
    entries = (
        states.new_zeros(states.shape[0], kv.shape[1], states.shape[1], kv.shape[3]) for kv in (keys, values)
    )
    cache.update(*entries, layer_idx)


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


UNITS = frozenset({
    "num_heads", "num_attention_heads", "n_heads", "n_head", "num_query_heads", "num_attn_heads", "heads",
    "num_key_value_heads", "num_kv_heads", "kv_heads", "n_kv_heads", "n_head_kv", "num_experts", "n_routed_experts",
    "num_local_experts", "n_experts", "num_routed_experts", "moe_num_experts",
})  # fmt: skip
"""Attributes of modules that count units: a cut makes them smaller."""
WIDTHS = frozenset({
    "num_key_value_groups", "n_rep", "kv_repeat", "all_head_size", "inner_dim", "split_size", "embed_dim",
    "attention_size", "hidden_size", "dim", "d_model", "projection_size", "q_size", "query_dim", "q_dim", "head_size",
    "kv_dim", "kv_size", "key_value_dim",
})  # fmt: skip
"""Fields of a config that count features or ratios of heads, of which a module may get a view of its own."""
_MOST_LAYERS, _MOST_ENTRIES = 4096, 2**20
_BUILD_COUNTS = frozenset({
    "num_hidden_layers", "num_layers", "n_layer", "n_layers", "encoder_layers", "decoder_layers", "num_decoder_layers",
    "num_encoder_layers", "depth", "encoder_num_layers", "decoder_num_layers", "encoder_num_hidden_layers",
    "decoder_num_hidden_layers", "num_blocks", "num_transformer_layers",
})  # fmt: skip
"""Fields of configs that count layers: what `build` may say, beside lists with an entry per layer or stage."""


class RouterLogits:
    """Shows as many logits as the config counts experts, -inf for those gone: losses add up the routers of all layers.

    Args:
        index: Where the logits stand in the output of the module.
        width: How many there are to be.
    """

    def __init__(self, index: int, width: int) -> None:
        self.index, self.width = index, width

    def after(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        """Widen the logits (forward hook)."""
        if not isinstance(output, tuple):
            return self._wide(output)
        return (*output[: self.index], self._wide(output[self.index]), *output[self.index + 1 :])

    def _wide(self, logits: Tensor) -> Tensor:
        missing = max(0, self.width - logits.shape[-1])
        return nn.functional.pad(logits, (0, missing), value=-torch.inf)


def widen_routers(model: nn.Module, routers: dict[str, tuple[int, int]]) -> None:
    """Make these modules, by path, and no others show router logits of a width: (place in the output, width)."""
    for path, module in model.named_modules():
        for key, hook in list(module._forward_hooks.items()):
            if type(getattr(hook, "__self__", None)).__name__ == RouterLogits.__name__:
                del module._forward_hooks[key]
        if path in routers:
            # Before what records them.
            module.register_forward_hook(RouterLogits(*routers[path]).after, prepend=True)


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
    return path.startswith(ROOT) and path.removeprefix(ROOT).partition(".")[0] not in model._modules


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
        raise LayoutError(
            f"config.pruning has format {_shown(pruning.get('format'))}; this code reads {FORMAT}."
        )
    layout: dict[str, Any] = {**_LATER, **pruning["layout"]}
    for part in ("build", *_PARTS):
        if not isinstance(layout.get(part), dict):
            raise LayoutError(
                f"config.pruning: layout.{part} is {_shown(layout.get(part))}, not a mapping of module paths."
            )
        if not all(isinstance(path, str) for path in layout[part]):
            raise LayoutError(f"config.pruning: layout.{part} names a module by something that is no text.")
    return layout


def apply_layout(model: nn.Module, layout: dict[str, Any]) -> None:
    """Give a stock model the sizes of a pruned one, in place. Weights are left to be loaded.

    The layout may come from a stranger's folder. So each entry is held against the model before it changes anything.

    Raises:
        LayoutError: the layout is of another model, or asks for what no cut does.
    """
    for part in _PARTS:
        for path, value in layout[part].items():
            module = path.rpartition(".")[0] if part in ("shapes", "shares") else path
            if part in ("shapes", "shares", "attributes") and _is_elsewhere(model, layout, module):
                continue
            if part == "heads" and path != _class_name(model):
                continue
            try:
                _APPLY[part](model, path if part == "heads" else local(model, path), value)
            except (AttributeError, TypeError, ValueError, RuntimeError, LookupError, StopIteration) as error:
                raise LayoutError(
                    f"config.pruning: layout.{part}[{_shown(path)}] does not fit {type(model).__name__}: {error}"
                ) from error


def _refuse_unless(condition: bool, what: str) -> None:
    if not condition:
        raise ValueError(what)


def _is_count(value: object, most: int) -> bool:
    """Tell whether a value is a whole number from 0 to `most`."""
    return type(value) is int and 0 <= value <= most


def _are_places(values: object, of: int) -> bool:
    """Tell whether a value lists some of `of` places, in rising order."""
    if not isinstance(values, list) or not all(_is_count(value, of - 1) for value in values):
        return False
    return all(first < second for first, second in itertools.pairwise(values))


def _apply_layers(model: nn.Module, path: str, kept: list[int]) -> None:
    stack = model.get_submodule(path)
    _refuse_unless(isinstance(stack, nn.ModuleList | nn.Sequential), "it is no list of blocks")
    size = len(list(stack.children()))
    _refuse_unless(bool(kept) and _are_places(kept, size), f"{_shown(kept)} are not layers of {size}")
    keep_layers(model, path, kept)


def _apply_skip(model: nn.Module, path: str, value: list[Any]) -> None:
    outputs, width, bias = value
    replaced = model.get_submodule(path)
    name, reference = next(replaced.named_parameters())
    widest = max(size for tensor in replaced.parameters() for size in tensor.shape)
    fits = _is_count(outputs, 16) and _is_count(width, widest) and type(bias) is bool
    _refuse_unless(fits, f"{_shown(value)} is no answer of the attention there")
    with reference.device:  # whatever device the model is built on: some make single parts elsewhere
        skip = Skip.of(replaced, outputs, width, bias).to(dtype=reference.dtype)
    skip.stand_for(name, reference)
    model.set_submodule(path, skip)


def _apply_norm(model: nn.Module, path: str, kind: str) -> None:
    """Put another norm in the place of a LayerNorm; there is one kind, `affine`."""
    _refuse_unless(kind == "affine", f"unknown kind of norm {_shown(kind)}")
    norm: Any = model.get_submodule(path)
    _refuse_unless(norm.weight.dim() == 1, "it is no norm")
    model.set_submodule(path, NoNorm(norm.weight, norm.bias))


def _place_of(model: nn.Module, name: str) -> tuple[nn.Module, str, Tensor]:
    """Return the module that holds a parameter or buffer, its name there, and the tensor.

    It is looked up where tensors are registered and nowhere else.
    """
    *parts, leaf = name.split(".")
    owner: nn.Module | None = model
    for part in parts:  # `get_submodule` asks more at each, and layouts name hundreds of tensors
        owner = None if owner is None else owner._modules.get(part)
    tensor = None if owner is None else owner._parameters.get(leaf, owner._buffers.get(leaf))
    if owner is None or tensor is None:
        raise AttributeError(f"no tensor {name!r}")
    return owner, leaf, tensor


def _tensor_at(model: nn.Module, name: str) -> Tensor:
    return _place_of(model, name)[2]


def _apply_shape(model: nn.Module, name: str, shape: list[int]) -> None:
    """Give a tensor another shape; its new values are not set."""
    owner, leaf, old = _place_of(model, name)
    # Outside the blocks a tensor may have an entry for every head of every layer (ESM): also of those that are gone.
    most = 0 if any(part.isdigit() for part in name.split(".")) else _MOST_LAYERS
    fits = isinstance(shape, list) and len(shape) == old.dim()
    fits = fits and all(_is_count(new, max(size, most)) for new, size in zip(shape, old.shape, strict=False))
    if not fits:  # there are many shapes, and none of them is worded unless it is wrong
        raise ValueError(f"{_shown(shape)} cannot be left of {list(old.shape)}")
    if leaf in owner._buffers:
        owner._buffers[leaf] = old.new_empty(shape)
        return
    owner._parameters[leaf] = nn.Parameter(old.new_empty(shape), requires_grad=old.requires_grad)
    if leaf == "weight":
        _count_features(owner, shape)


_COUNTS = {
    nn.Linear: ("out_features", "in_features"),
    Conv1D: ("nx", "nf"),
    nn.Embedding: ("num_embeddings", "embedding_dim"),
}
"""What a layer calls the sizes of its weight."""


def _count_features(owner: nn.Module, shape: list[int]) -> None:
    """Make the attributes of a module that count features agree with the shape of its weight."""
    if isinstance(owner, nn.LayerNorm | nn.RMSNorm):
        vars(owner)["normalized_shape"] = tuple(shape)
        return
    names = next((names for cls, names in _COUNTS.items() if isinstance(owner, cls)), ())
    vars(owner).update(zip(names, shape, strict=bool(names)))


def _apply_heads(model: nn.Module, name: str, value: dict[str, list[list[int]]] | str) -> None:
    """Narrow what a class other than the one that was cut has beside it: [dimension, size] by tensor.

    Text says why this class cannot be built.
    """
    if isinstance(value, str):
        raise ValueError(value)
    for path, sizes in value.items():
        tensor = local(model, path)
        shape = list(_tensor_at(model, tensor).shape)
        for dim, size in sizes:
            _refuse_unless(_is_count(dim, len(shape) - 1), f"{tensor} has no dimension {_shown(dim)}")
            shape[dim] = size
        _apply_shape(model, tensor, shape)


def _apply_attributes(model: nn.Module, path: str, attributes: dict[str, Any]) -> None:
    module = model.get_submodule(path)
    for name, value in attributes.items():
        _check_attribute(module, name, value)
    for name, value in attributes.items():
        set_attribute(module, name, value)


def _check_attribute(module: nn.Module, name: str, value: object) -> None:
    """Raise unless a module holds a number, or a list of such, under this name, and the new one is of that sort.

    So nothing that is called, holds tensors or is switched can be set, and there are no more units than there were.
    """
    field = name.removeprefix("config.")
    if field == name:
        old = None if field.startswith("_") else vars(module).get(field)
    else:
        old = getattr(vars(module)["config"], field, None) if field in UNITS | WIDTHS else None
    if field in UNITS:
        fits = type(old) is int and _is_count(value, old)
    elif isinstance(old, list | tuple) and isinstance(value, list | tuple):
        # One entry per layer, in what runs the layers: whole where the config counts only those that are left.
        fits = len(value) <= _MOST_LAYERS and all(isinstance(e, str) or _is_number(e) for e in value)
    else:
        fits = type(value) is type(old) and _is_number(value)
    _refuse_unless(fits, f"{_shown(name)} cannot become {_shown(value)} where it is {_shown(old)}")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= _MOST_ENTRIES


def _apply_selects(model: nn.Module, path: str, selects: list[dict[str, Any]]) -> None:
    module = model.get_submodule(path)
    for select in selects:
        of, returned = select["of"], select.get("returned")
        fits = (
            isinstance(select["argument"], str)
            and _is_count(select["position"], 100)
            and _is_count(select["dim"], 10)
            and _is_count(of, 2**16)
            and (returned is None or _is_count(returned, 100))
            and _are_places(select["index"], of)
        )
        _refuse_unless(fits, f"{_shown(select)} is no selection")
    for select in selects:
        add_select(module, **select)


def _apply_router(model: nn.Module, path: str, value: list[int]) -> None:
    """Make a module show router logits of a width; `value` is [place in the output, width]."""
    index, width = value
    _refuse_unless(_is_count(index, 10) and _is_count(width, 2**16), f"{_shown(value)} is no width of logits")
    module = model.get_submodule(path)
    module.register_forward_hook(RouterLogits(index, width).after, prepend=True)


_SHARES = "_shared_parameters"
"""Attribute of a model: name of a parameter that is one with an earlier one -> name of that."""


def share_parameter(model: Any, name: str, source: str) -> None:
    """Make a parameter the same object as another one, and say so where transformers saves, loads and ties weights."""
    path, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(path), leaf, model.get_parameter(source))
    vars(model).setdefault(_SHARES, {})[name] = source
    model._tied_weights_keys = {**(model._tied_weights_keys or {}), name: source}
    model.all_tied_weights_keys = {**model.all_tied_weights_keys, name: source}


def _apply_share(model: nn.Module, name: str, source: str) -> None:
    _refuse_unless(isinstance(source, str), f"{_shown(source)} is no name of a tensor")
    own, other = _tensor_at(model, name), _tensor_at(model, local(model, source))
    parameters = isinstance(own, nn.Parameter) and isinstance(other, nn.Parameter)
    fits = parameters and own is not other and own.shape == other.shape and own.dtype == other.dtype
    _refuse_unless(fits, f"it cannot be shared with {_shown(source)}")
    share_parameter(model, name, local(model, source))


_APPLY: dict[str, Any] = {
    "layers": _apply_layers,
    "skips": _apply_skip,
    "norms": _apply_norm,
    "shapes": _apply_shape,
    "heads": _apply_heads,
    "attributes": _apply_attributes,
    "selects": _apply_selects,
    "routers": _apply_router,
    "shares": _apply_share,
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


def _field_at(config: Any, path: str) -> tuple[Any, str]:
    """Return the config that holds a field, and the field's name there.

    Raises:
        LayoutError: there is no such field.
    """
    *parents, name = path.split(".")
    owner = config
    for parent in parents:
        owner = vars(owner).get(parent)
        if not isinstance(owner, PreTrainedConfig):
            break
    if not isinstance(owner, PreTrainedConfig) or name not in vars(owner):
        raise LayoutError(f"config.pruning: layout.build names {_shown(path)}, which the config lacks.")
    return owner, name


@contextmanager
def overridden(config: Any, values: dict[str, Any]) -> Iterator[None]:
    """Give fields of a config, or of a config in it (`text_config.num_hidden_layers`), other values for a while."""
    before = []
    for path, value in values.items():
        owner, name = _field_at(config, path)
        before.append((owner, name, vars(owner)[name]))
        vars(owner)[name] = value
    try:
        yield
    finally:
        for owner, name, value in before:
            vars(owner)[name] = value


OWN_SIZES = ("_heterogeneity_spec", "allow_global_per_layer_attribute_access")
"""Where a config of transformers keeps `per_layer_config`, and the leave to read the sizes that it has beside them."""


@contextmanager
def without_layer_sizes(config: Any) -> Iterator[None]:
    """Take the `per_layer_config` that a cut wrote out of a config for a while.

    It is for other readers: a stock class that builds by it would make shapes that the layout does not expect.
    """
    place = vars(config).get("pruning")
    path = place.get("per_layer") if isinstance(place, dict) else None
    part = config if path == "" else vars(config).get(path) if isinstance(path, str) else None
    if not isinstance(part, PreTrainedConfig):
        yield
        return
    taken = {name: vars(part).pop(name) for name in OWN_SIZES if name in vars(part)}
    try:
        yield
    finally:
        vars(part).update(taken)


def check_build(config: Any, values: dict[str, Any]) -> None:
    """Raise `LayoutError` unless `values` say nothing but how many layers a class builds, and which.

    They must be more than the config counts, as layers that only the layout leaves out must be built first.
    """
    for path, value in values.items():
        owner, name = _field_at(config, path)
        now = vars(owner)[name]
        if isinstance(now, list | tuple):
            fits = (
                isinstance(value, list | tuple)
                and len(now) <= len(value) <= _MOST_LAYERS
                and _are_plain(value)
            )
        else:
            fits = (
                name in _BUILD_COUNTS and type(now) is int and _is_count(value, _MOST_LAYERS) and value >= now
            )
        if not fits:
            raise LayoutError(
                f"config.pruning: layout.build[{_shown(path)}] is {_shown(value)}, which is no number of "
                f"layers to build where the config says {_shown(now)}."
            )


def _are_plain(values: Any, depth: int = 3) -> bool:
    """Tell whether a list holds short texts, numbers that can count layers or widths, and such lists."""
    return all(
        _are_plain(value, depth - 1)
        if isinstance(value, list | tuple) and depth and len(value) <= _MOST_LAYERS
        else value is None or isinstance(value, bool | float | str) or _is_count(value, _MOST_ENTRIES)
        for value in values
    )


_CLASSES: dict[type, type] = {}


def pruned_class(stock: type[PreTrainedModel]) -> type[PreTrainedModel]:
    """Return the subclass of `stock` that reads `config.pruning`; it keeps the stock name."""
    if stock not in _CLASSES:

        def __init__(self: Any, config: Any, *args: Any, **kwargs: Any) -> None:
            # A head class builds its base through the stock class, so only the outermost model applies the layout.
            layout = layout_in(config)
            check_build(config, layout["build"])
            with without_layer_sizes(config), overridden(config, layout["build"]):
                stock.__init__(self, config, *args, **kwargs)
            apply_layout(self, layout)
            _initialise(self, layout)

        def is_custom_code(cls: Any) -> bool:
            # Else loading skips modules that compute buffers for others (FalconH1), as it does for custom code.
            return bool(stock.is_custom_code())

        def get_expanded_tied_weights_keys(self: Any, all_submodels: bool = False) -> dict[str, str]:
            return {
                **stock.get_expanded_tied_weights_keys(self, all_submodels),
                **vars(self).get(_SHARES, {}),
            }

        def _adjust_bias(self: Any, layer: nn.Module, source: Tensor) -> None:
            # Transformers gives the bias beside a tied weight as many entries as the weight's first dimension has: of
            # a Conv1D that is its input.
            if not isinstance(layer, Conv1D):
                stock._adjust_bias(self, layer, source)

        body = {"__init__": __init__, "__module__": __name__, "__doc__": stock.__doc__, "stock_class": stock}
        body["is_custom_code"] = classmethod(is_custom_code)
        body["get_expanded_tied_weights_keys"] = get_expanded_tied_weights_keys
        body["_adjust_bias"] = _adjust_bias
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
    with without_layer_sizes(config):
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
