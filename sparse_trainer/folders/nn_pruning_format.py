"""Read checkpoints of the nn_pruning era: `pruned_heads` in the config, attention already cut, zeros left in the FFNs.

Some have norms that only scale and shift, under the names of LayerNorms: their config says `layer_norm_type` `no_norm`.
transformers 4 cut the heads of its model when it met `pruned_heads`; transformers 5 does not know the entry. Here the
same heads are cut out of the shape of the model, and transformers loads the weights into that.
"""

import copy
import re
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass
from pickle import UnpicklingError
from typing import Any
from zipfile import is_zipfile

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, WEIGHTS_INDEX_NAME, WEIGHTS_NAME
from transformers.utils.hub import cached_file

from patchers.discovery.discover import discover
from patchers.patching.blends import read_as_no_norms
from patchers.units import HEADS, Structure
from sparse_trainer.cut.carry_out import carry_out
from sparse_trainer.cut.decision import Decision, Request
from sparse_trainer.cut.model_class import adopt
from sparse_trainer.cut.record import attach_plan, plan_of
from sparse_trainer.errors import ArgumentError, CheckpointError
from sparse_trainer.plan.document import Plan

# Shape legend: U = heads of a layer.

HEADS_FIELD = "pruned_heads"
METHOD = "nn_pruning"
_NORM_FIELD, _NO_NORM = "layer_norm_type", "no_norm"
_SAFE_FILES = (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME)
_PICKLED_FILES = (WEIGHTS_NAME, WEIGHTS_INDEX_NAME)
# What the classes of that time stored and those of today do not have.
_OBSOLETE = re.compile(r"(^|\.)(position_ids|pooler\.dense\.(weight|bias))$")
_REPAIR = 'Correct the entry: {"LAYER": [removed heads, as numbered before any was removed]}.'
_RESTORE = "Restore the folder, or get it again."
# What the unpickler says to a file that is damaged, or that holds code, depends on the byte it stops at.
_PICKLE_ERRORS = (
    UnpicklingError,
    OSError,
    RuntimeError,
    EOFError,
    LookupError,
    ValueError,
    TypeError,
    AttributeError,
)


@dataclass(frozen=True, kw_only=True)
class CutShape:
    """A model without the removed heads, and what its checkpoint holds beyond it."""

    model: PreTrainedModel
    """On the meta device: class, config and shapes, no weights."""
    plan: Plan
    """The record of the heads that are gone."""
    gone: frozenset[str]
    """Parameters of attentions without heads, by their name in the checkpoint."""
    renamed: Mapping[str, str]
    """Those among them that live on under another name."""
    no_norms: bool
    """Whether what it stores as LayerNorms are NoNorms."""

    def lacks(self, entry: str) -> bool:
        """Tell whether an entry of the checkpoint is rightly without a place in the model."""
        return entry in self.gone or (bool(_OBSOLETE.search(entry)) and entry not in _names(self.model))


def removed_heads(config_values: Mapping[str, Any], where: str = "config.json") -> dict[int, set[int]]:
    """Return the removed heads by layer, in the numbering of the model before any was removed; {} where none are.

    Raises:
        CheckpointError: an entry that is no layer or lists no heads; names it.

    >>> removed_heads({"pruned_heads": {"0": [2, 1], "3": []}})
    {0: {1, 2}}
    """
    place = f"{where}: {HEADS_FIELD}"
    entries = config_values.get(HEADS_FIELD) or {}
    if not isinstance(entries, Mapping):
        raise CheckpointError(place, f"{entries!r} is not a mapping of layers.", _REPAIR)
    removed: dict[int, set[int]] = {}
    for layer, heads in entries.items():
        if not re.fullmatch("[0-9]+", str(layer)):
            raise CheckpointError(place, f"{layer!r} is not the number of a layer.", _REPAIR)
        if not isinstance(heads, list | tuple | set) or not set(map(type, heads)) <= {int}:
            raise CheckpointError(f"{place}.{layer}", f"{heads!r} is not a list of head numbers.", _REPAIR)
        if heads:
            removed.setdefault(int(layer), set()).update(heads)
    return removed


def is_of_nn_pruning(config_values: Mapping[str, Any], where: str = "config.json") -> bool:
    """Tell whether a checkpoint is one that transformers reads wrongly or not at all.

    Raises:
        CheckpointError: as `removed_heads`.

    >>> is_of_nn_pruning({"layer_norm_type": "no_norm"}), is_of_nn_pruning({"pruned_heads": {}})
    (True, False)
    """
    if "pruning" in config_values:  # read, and saved again
        return False
    return bool(removed_heads(config_values, where)) or config_values.get(_NORM_FIELD) == _NO_NORM


def complete(model: Any, shape: CutShape) -> None:
    """Attach the plan of a loaded checkpoint, and exchange its norms where it has none that normalize, in place."""
    attach_plan(model, shape.plan)
    if shape.no_norms:
        read_as_no_norms(model)
        adopt(model, METHOD)


def cut_shape(
    stock: Any, config: PreTrainedConfig, removed: Mapping[int, Set[int]], where: str = "config.json"
) -> CutShape:
    """Build a model without the removed heads, on the meta device; its norms are still those of its class.

    Args:
        stock: Its class in transformers.
        config: The checkpoint's; left as it is.
        removed: What `removed_heads` found in it.

    Raises:
        CheckpointError: a layer or head that the model does not have.
    """
    config = copy.deepcopy(config)
    vars(config).pop(HEADS_FIELD, None)
    no_norms = vars(config).pop(_NORM_FIELD, None) == _NO_NORM
    with torch.device("meta"):
        model: Any = stock._from_config(config)
    structure, before = discover(model), _names(model)
    kept = _kept_heads(structure, removed, f"{where}: {HEADS_FIELD}")
    carry_out(model, Decision(structure=structure, keep=kept, request=Request(method=METHOD)), check=False)
    plan = plan_of(model)
    assert plan is not None
    gone = before - _names(model)
    consumers = [structure[name].consumer for name, keep_U in kept.items() if not bool(keep_U.any())]
    renamed = _renamed(consumers, _names(model) - before)
    return CutShape(model=model, plan=plan, gone=frozenset(gone), renamed=renamed, no_norms=no_norms)


def loading_options(
    stock: Any,
    values: Mapping[str, Any],
    removed: Mapping[int, Set[int]],
    where: str,
    hub: Mapping[str, Any],
    kwargs: Mapping[str, Any],
) -> tuple[CutShape, str, dict[str, Any]]:
    """Return what to load, from which file, and the arguments of `from_pretrained` that do it.

    Args:
        values: The checkpoint's config.
        where: A folder, or a name on the hub.
        hub: Those of `kwargs` that say how to get files.
        kwargs: What the caller wants of `from_pretrained`.

    Raises:
        ArgumentError: `kwargs` holds a config of its own.
        CheckpointError: as `cut_shape`; or there are no weights.
    """
    if "config" in kwargs:
        raise ArgumentError(
            "config",
            f"is of no use here: {HEADS_FIELD} in the checkpoint's own says what the weights are.",
            "Pass single values, e.g. num_labels=3.",
        )
    # from_pretrained reads the dtype itself: in a config, "auto" would be a value.
    dtypes = {name: value for name, value in kwargs.items() if name in ("dtype", "torch_dtype")}
    others = {name: value for name, value in kwargs.items() if name not in dtypes}
    config, rest = stock.config_class.from_dict(dict(values), return_unused_kwargs=True, **others)
    shape = cut_shape(stock, config, removed, f"{where}: config.json")
    file = _weights_file(where, hub)
    options = {
        **rest,
        **dtypes,
        "config": shape.model.config,
        "key_mapping": {re.escape(old): new for old, new in shape.renamed.items()} or None,
        # Many of these checkpoints are pickles. Only tensors are read from one, never code.
        "use_safetensors": file in _SAFE_FILES,
        "weights_only": True,
    }
    return shape, file, options


def _weights_file(where: str, hub: Mapping[str, Any]) -> str:
    """Return the name of the weights, or of their index; safetensors where there are any."""
    for name in (*_SAFE_FILES, *_PICKLED_FILES):
        found = cached_file(
            where,
            name,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
            **hub,
        )
        if found is not None:
            if name == WEIGHTS_NAME:
                _check_pickle(found, f"{where}: {name}")
            return name
    raise CheckpointError(where, f"has neither {SAFE_WEIGHTS_NAME} nor {WEIGHTS_NAME}.", _RESTORE)


def _check_pickle(file: str, place: str) -> None:
    """Raise `CheckpointError` for a pickle of anything but named tensors; what is not needed to tell is not read."""
    try:
        content = torch.load(file, map_location="cpu", weights_only=True, mmap=is_zipfile(file))
    except _PICKLE_ERRORS as error:
        raise CheckpointError(
            place, f"is no pickle of tensors ({type(error).__name__}).", _RESTORE
        ) from error
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise CheckpointError(place, "holds more than tensors by name.", _RESTORE)


def _kept_heads(structure: Structure, removed: Mapping[int, Set[int]], place: str) -> dict[str, Tensor]:
    """Return which heads stay in the layers that lose some: booleans, shape [U], by group name."""
    groups = {group.layer: group for group in structure.of([HEADS])}
    if len(groups) < len(structure.of([HEADS])):
        raise CheckpointError(place, "does not say which of several stacks it means.", "Load an encoder.")
    kept: dict[str, Tensor] = {}
    for layer, heads in removed.items():
        if layer not in groups:
            raise CheckpointError(
                f"{place}.{layer}", f"no such layer: there are {len(groups)}, counted from 0.", _REPAIR
            )
        group = groups[layer]
        strangers = sorted(heads - set(range(group.num_units)))
        if strangers:
            raise CheckpointError(
                f"{place}.{layer}",
                f"no head {strangers[0]}: there are {group.num_units}, counted from 0.",
                _REPAIR,
            )
        kept[group.name] = torch.tensor([head not in heads for head in range(group.num_units)])
    if len(kept) == len(groups) and not any(bool(keep_U.any()) for keep_U in kept.values()):
        raise CheckpointError(place, "lists every head of every layer.", _REPAIR)
    return kept


def _names(model: nn.Module) -> set[str]:
    return {name for name, _ in model.named_parameters()}


def _renamed(consumers: Iterable[str], fresh: Set[str]) -> dict[str, str]:
    """Map the biases of vanished output linears to the parameters that took their place.

    >>> _renamed(["layer.0.attention.out_lin", "layer.1.output.dense"], {"layer.0.attention.bias"})
    {'layer.0.attention.out_lin.bias': 'layer.0.attention.bias'}
    """
    return {
        f"{consumer}.bias": name
        for consumer in consumers
        for name in fresh
        if consumer.startswith(name.removesuffix("bias"))
    }
