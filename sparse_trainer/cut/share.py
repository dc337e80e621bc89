"""`share_layers`: groups of consecutive layers that share one set of linears."""

import copy
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from transformers import PreTrainedModel

from patchers.discovery.discover import discover
from patchers.errors import UnsupportedModelError
from patchers.patching.merging import has_adapters
from patchers.patching.patch import is_patched
from patchers.patching.shards import is_sharded
from patchers.sharing import STARTS, Start, check_shareable, share_blocks
from patchers.units import EXPERTS, KINDS, Structure
from sparse_trainer.cut.config_changes import Cut
from sparse_trainer.cut.decision import Decision, Request
from sparse_trainer.cut.model_class import record, take_class
from sparse_trainer.cut.record import make_plan, measures_of
from sparse_trainer.errors import ArgumentError, one_of

M = TypeVar("M", bound=PreTrainedModel)


@dataclass(frozen=True, kw_only=True, slots=True)
class SharingOptions:
    """Which layers share their linears, and what they start from."""

    size: int = 2
    """Consecutive layers that share one set of linears."""
    layers: tuple[int, ...] | None = None
    """Numbers of the layers that are to share, counted after pruning; None = all."""
    start: Start = "first"
    """What a group starts from: `first` = the weights of its first layer, `mean` = the mean over its layers."""
    own_biases: bool = True
    """Leave each layer the biases of its linears."""
    stack: str | None = None
    """Path of the list of layers, where a model has several (`encoder.block`)."""

    def __post_init__(self) -> None:
        one_of("start", self.start, STARTS)
        if self.size < 2:
            raise ArgumentError("size", f"groups of {self.size} share nothing.", "Give 2 or more.")
        if self.layers is None:
            return
        _groups(self.layers, self.size)

    @property
    def method(self) -> str:
        """What plans and cards call it."""
        return f"sharing in groups of {self.size} ({layers_in_words(self.layers)}; start: {self.start})"


def layers_in_words(layers: Sequence[int] | None) -> str:
    """Return numbers of layers as plans and cards name them; None = all.

    >>> layers_in_words(None), layers_in_words([2, 3])
    ('all layers', 'layers 2, 3')
    """
    return "all layers" if layers is None else f"layers {', '.join(map(str, layers))}"


def share_layers(
    model: M,
    size: int = 2,
    *,
    layers: Sequence[int] | None = None,
    start: Start = "first",
    own_biases: bool = True,
    stack: str | None = None,
    inplace: bool = False,
) -> M:
    """Return the model with groups of consecutive layers that share one set of linears; each keeps its norms.

    Fewer parameters, the same depth and work per token. The outputs change: train on, best with the unshared model as
    the teacher. Saved (`save_pruned` or `save_pretrained`), a group's weights are written once, with the share map in
    the config; loaded, they are one tensor in memory. Follows the idea of grouping in FoldGPT (Liu et al. 2024, arXiv
    2407.00928).

    Args:
        size: Layers of a group.
        layers: Numbers of the layers that are to share, in rising order: runs of `size` consecutive ones; None = all.
        start: `first` = a group starts from the weights of its first layer, `mean` = from the mean over its layers.
        own_biases: Leave each layer the biases of its linears.
        stack: Path of the list of layers, where a model has several, as `encoder.block` and `decoder.block`.
        inplace: Change `model` itself and spare the copy.

    Raises:
        ArgumentError: groups that do not divide the layers, or no such layers.
        UnsupportedModelError: gates, adapters or shared layers are in the model, or layers of a group are unlike.
    """
    options = SharingOptions(
        size=size, layers=None if layers is None else tuple(layers), start=start, own_biases=own_biases, stack=stack
    )  # fmt: skip
    return share_by(options, model, inplace=inplace)


def share_by(options: SharingOptions, model: M, *, inplace: bool = False) -> M:
    """Do what `share_layers` does, for options that are made and checked already."""
    structure, path, groups = _checked(options, model)
    shared: Any = model if inplace else copy.deepcopy(model)
    request = Request(method=options.method)
    before = measures_of(shared, structure, request.sequence_length)
    share_blocks(shared, path, groups, start=options.start, own_biases=options.own_biases)
    take_class(shared, Cut(before=structure, after=structure, gone={}))
    after = measures_of(shared, structure, request.sequence_length)
    decision = Decision(structure=structure, keep={}, request=request)
    record(shared, make_plan(shared, decision, reached=1.0, before=before, after=after))
    result: M = shared
    return result


def check_sharing(options: SharingOptions, model: PreTrainedModel, left: int | None = None) -> None:
    """Raise, before a model is pruned, what can be known of `share_layers` after that; one without numbers will do.

    Args:
        left: Layers that pruning leaves; None = not known.
    """
    first = tuple(range(options.size)) if options.layers is None else options.layers
    _checked(replace(options, layers=first), model)
    if left is None:
        return
    layers = tuple(range(left)) if options.layers is None else options.layers
    if layers[-1] >= left:
        raise ArgumentError(
            "layers", f"there is no layer {layers[-1]} after pruning.", f"Layers 0 to {left - 1} are left."
        )
    _groups(layers, options.size)


def _checked(options: SharingOptions, model: Any) -> tuple[Structure, str, list[tuple[int, ...]]]:
    """Return what was found in the model, the list of layers, and the groups."""
    if (
        not isinstance(model, PreTrainedModel)
        or has_adapters(model)
        or is_patched(model)
        or is_sharded(model)
    ):
        raise UnsupportedModelError(
            type(model).__name__,
            "is not a bare model: a wrapper, adapters, gates, or weights that lie on several processes.",
            "Merge adapters (merge_and_unload), optimize_model what has gates, then share.",
        )
    structure = discover(model, KINDS)
    sizes = {stack.path: stack.size for stack in structure.stacks}
    if options.stack is None and len(sizes) > 1:
        raise ArgumentError(
            "stack", f"the model has several: {', '.join(sizes)}.", "Name one, and share in turn."
        )
    path = next(iter(sizes)) if options.stack is None else options.stack
    one_of("stack", path, sizes)
    layers = tuple(range(sizes[path])) if options.layers is None else options.layers
    if layers[-1] >= sizes[path]:
        raise ArgumentError(
            "layers", f"{path} has no layer {layers[-1]}.", f"It has layers 0 to {sizes[path] - 1}."
        )
    groups = _groups(layers, options.size)
    inside = {group.layer for group in structure.of([EXPERTS]) if group.stack == path}
    if inside & set(layers):
        raise UnsupportedModelError(
            f"{path}.{min(inside & set(layers))}",
            "is a mixture of experts, whose routers choose among experts of their own layer.",
            "Name layers without experts.",
        )
    check_shareable(model, path, groups)
    return structure, path, groups


def _groups(layers: Sequence[int], size: int) -> list[tuple[int, ...]]:
    """Return runs of `size` consecutive layers.

    >>> _groups([2, 3, 6, 7], 2)
    [(2, 3), (6, 7)]
    """
    if not layers or layers[0] < 0 or any(b <= a for a, b in itertools.pairwise(layers)):
        raise ArgumentError(
            "layers", f"{list(layers)} are no layers in rising order.", "Give e.g. 11, 12, 13, 14."
        )
    groups = [tuple(layers[start : start + size]) for start in range(0, len(layers), size)]
    if any(len(group) != size or group[-1] - group[0] != size - 1 for group in groups):
        raise ArgumentError(
            "layers",
            f"{len(layers)} layers ({_shown_layers(layers)}) are not runs of {size} consecutive ones.",
            f"Give `layers` in runs of {size}, or another `size`.",
        )
    return groups


def _shown_layers(layers: Sequence[int]) -> str:
    """Return layer numbers, long lists cut short.

    >>> _shown_layers(range(30))
    '0, 1, … 29'
    """
    return ", ".join(map(str, layers)) if len(layers) < 13 else f"{layers[0]}, {layers[1]}, … {layers[-1]}"
