"""`merge_kv_heads`: layers with fewer KV heads and all their query heads, for smaller caches."""

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, TypeVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from patchers.discovery.discover import discover
from patchers.kv_heads import Projections, as_pairs, from_pairs, install, merge_projections, projections_of
from patchers.patching.merging import has_adapters
from patchers.patching.patch import is_patched
from patchers.patching.shards import is_sharded
from patchers.units import CHANNELS, HEADS, KINDS, Group, Structure
from sparse_trainer.cut.config_changes import Cut
from sparse_trainer.cut.decision import Decision, Request
from sparse_trainer.cut.layout import refuse_shared
from sparse_trainer.cut.model_class import record, take_class
from sparse_trainer.cut.record import make_plan, measures_of
from sparse_trainer.cut.share import layers_in_words
from sparse_trainer.errors import ArgumentError, UnsupportedModelError
from sparse_trainer.inputs.evaluating import evaluating
from sparse_trainer.inputs.sample import sample_batch
from sparse_trainer.one_shot.repairs.base import DAMPING
from sparse_trainer.one_shot.repairs.runs import Heir, refit_to_target, wanted_states
from sparse_trainer.statistics.blockwise import Blockwise
from sparse_trainer.statistics.calibration import Batches
from sparse_trainer.statistics.moments import Moments, MomentSums

# Shape legend: N = KV heads, D = features of a head, P = pairs of features, I = inputs.

M = TypeVar("M", bound=PreTrainedModel)
_TURNED: Final = 0.03
"""Relative difference up to which an attention says the same: rounding of bfloat16."""


@dataclass(frozen=True, kw_only=True, slots=True)
class KvMergeOptions:
    """How many KV heads stay in which layers."""

    kv_heads: int
    """KV heads that each of these layers keeps: a divisor of those that it has."""
    layers: tuple[int, ...] | None = None
    """Numbers of the layers, counted after pruning; None = all."""
    damping: float = DAMPING
    """Of the refit of the output projection, relative to the mean of the moments' diagonal."""

    def __post_init__(self) -> None:
        if self.kv_heads < 1:
            raise ArgumentError("kv_heads", f"{self.kv_heads} leaves no keys.", "Give 1 or more.")
        if self.layers is not None and not self.layers:
            raise ArgumentError("layers", "is empty.", "Name some, or leave it out: all layers.")
        if not self.damping > 0:
            raise ArgumentError("damping", f"{self.damping} is not positive.", "Give e.g. 0.1.")

    @property
    def method(self) -> str:
        """What plans and cards call it."""
        return f"KV heads merged into {self.kv_heads} ({layers_in_words(self.layers)})"


def merge_kv_heads(
    model: M,
    calibration: Iterable[Mapping[str, Any]] | None = None,
    *,
    kv_heads: int,
    layers: Sequence[int] | None = None,
    damping: float = DAMPING,
    device: torch.device | str | None = None,
    inplace: bool = False,
) -> M:
    """Return the model with fewer KV heads, in runs of neighbours that become one; all query heads stay.

    Caches of keys and values shrink by as much; parameters only by theirs. Where all layers end up with as many, the
    result is of the stock class, and any engine with grouped-query attention serves it. `patchers.kv_heads` says how.

    Args:
        calibration: Batches of token ids. With them, what is lost is weighed by what occurs, and the output projections
            are refitted by least squares, layer after layer, to the hidden states of the whole model.
        kv_heads: KV heads that each layer keeps: a divisor of those that it has.
        layers: Numbers of the layers; None = all.
        damping: Of the refit, relative to the mean of the moments' diagonal.
        device: Where blocks are run for calibration, one at a time; None = where the model is.
        inplace: Change `model` itself and spare the copy. If this raises, the model is not to be used.

    Raises:
        ArgumentError: no such layers, or a number that does not divide their KV heads.
        DataError: the calibration set does not fit the model, or is too short.
        UnsupportedModelError: attention of another form, gates, adapters or shared layers.
    """
    options = KvMergeOptions(
        kv_heads=kv_heads, layers=None if layers is None else tuple(layers), damping=damping
    )
    return merge_kv_by(options, model, calibration, device=device, inplace=inplace)


@torch.inference_mode(False)
def merge_kv_by(
    options: KvMergeOptions,
    model: M,
    calibration: Iterable[Mapping[str, Any]] | None = None,
    *,
    device: torch.device | str | None = None,
    inplace: bool = False,
) -> M:
    """Do what `merge_kv_heads` does, for options that are made and checked already."""
    structure, groups = check_kv_merge(options, model)
    merged: Any = model if inplace else copy.deepcopy(model)
    request = Request(method=options.method)
    before = measures_of(merged, structure, request.sequence_length)
    turns = _turns_pairs(merged, groups[0])
    if calibration is None:
        for group in groups:
            _merge(merged, group, None, options.kv_heads, turns=turns)
    else:
        _merge_and_refit(merged, structure, groups, Batches(merged, calibration), options, turns, device)
    after = discover(merged, KINDS)
    take_class(merged, Cut(before=structure, after=after, gone={}))
    sizes = measures_of(merged, after, request.sequence_length)
    decision = Decision(structure=structure, keep={}, request=request)
    record(merged, make_plan(merged, decision, reached=1.0, before=before, after=sizes))
    result: M = merged
    return result


def check_kv_merge(options: KvMergeOptions, model: Any) -> tuple[Structure, tuple[Group, ...]]:
    """Return what was found in a model, and the heads of the layers that are merged; weights may be on the meta device.

    Raises:
        ArgumentError, UnsupportedModelError: as `merge_kv_heads`.
    """
    if (
        not isinstance(model, PreTrainedModel)
        or has_adapters(model)
        or is_patched(model)
        or is_sharded(model)
    ):
        raise UnsupportedModelError(
            type(model).__name__,
            "is not a bare model: a wrapper, adapters, gates, or weights that lie on several processes.",
            "Merge adapters (merge_and_unload), optimize_model what has gates, then merge KV heads.",
        )
    refuse_shared(model)
    structure = discover(model, KINDS)
    heads = {g.layer: g for g in structure.of([HEADS]) if _is_of_llama_form(_attention(model, g))}
    if not heads or len(structure.stacks) != 1:
        raise UnsupportedModelError(
            type(model).__name__,
            "has no attention of the form of Llama: q_proj, k_proj, v_proj and o_proj, in one list of layers.",
            "Prune heads instead.",
        )
    layers = tuple(heads) if options.layers is None else options.layers
    for layer in layers:
        if layer not in heads:
            raise ArgumentError(
                "layers", f"{layer} has no such attention.", f"Give some of {', '.join(map(str, heads))}."
            )
        have = _kv_heads(_attention(model, heads[layer]))
        if have % options.kv_heads:
            raise ArgumentError(
                "kv_heads",
                f"{options.kv_heads} does not divide the {have} KV heads of layer {layer}.",
                "Give a divisor, or name `layers` that have others.",
            )
    if all(_kv_heads(_attention(model, heads[layer])) <= options.kv_heads for layer in layers):
        raise ArgumentError(
            "kv_heads", f"{options.kv_heads} is what all of these layers have already.", "Give fewer."
        )
    return structure, tuple(heads[layer] for layer in sorted(layers))


def _attention(model: nn.Module, group: Group) -> Any:
    return model.get_submodule(group.consumer.rpartition(".")[0])


def _is_of_llama_form(attention: nn.Module) -> bool:
    parts = dict(attention.named_children())
    linears = all(type(parts.get(name)) is nn.Linear for name in ("q_proj", "k_proj", "v_proj", "o_proj"))
    counts = {"head_dim", "num_key_value_groups"} <= vars(attention).keys()
    if not (linears and counts):
        return False
    # A query projection may be twice as wide, with an output gate in it.
    module: Any = attention
    return bool(module.q_proj.out_features == module.o_proj.in_features)


def _kv_heads(attention: Any) -> int:
    return int(attention.k_proj.out_features // attention.head_dim)


def _merge(model: nn.Module, group: Group, moments: MomentSums | None, kv_heads: int, *, turns: bool) -> None:
    attention = _attention(model, group)
    whole = projections_of(attention)
    if len(whole.key_NDI) > kv_heads:
        second_II = _second(moments, whole.key_NDI)
        install(attention, merge_projections(whole, second_II, kv_heads, turns_pairs=turns))


def _second(moments: MomentSums | None, like_NDI: Tensor) -> Tensor:
    """Return E[x x^T] of what an attention reads, with a 1 behind x for biases."""
    inputs = like_NDI.shape[-1]
    second_II = torch.eye(inputs, dtype=like_NDI.dtype, device=like_NDI.device)
    if moments is not None:
        second_II[:-1, :-1] = moments.second_II
        second_II[-1, :-1] = second_II[:-1, -1] = moments.mean_I
    return second_II


def _merge_and_refit(
    model: Any,
    structure: Structure,
    groups: Sequence[Group],
    batches: Batches,
    options: KvMergeOptions,
    turns: bool,
    device: torch.device | str | None,
) -> None:
    """Merge layer after layer, each on what the merged ones before it return, and refit what reads its values."""
    ends = {g.block: g for g in structure.of([CHANNELS]) if g.consumer_tensor is None}
    whole = Blockwise(
        model, replace(structure, groups=_ends(groups, ends)), batches, changing=False, device=device
    )
    merged = Blockwise(model, replace(structure, groups=tuple(groups)), batches, changing=True, device=device)
    for (group,) in merged:
        end = ends.get(group.block, group)
        heir = Heir(group=group, until=end, last=None if end is group else end.consumer)
        (wanted,) = wanted_states(whole, [heir], {})
        reads = replace(group, consumer=f"{group.consumer.rpartition('.')[0]}.k_proj")
        request = Moments(covariance=True)
        moments = merged.collect([reads], [request]).of(request)[reads.consumer]
        _merge(model, group, moments, options.kv_heads, turns=turns)
        target = merged.collect([group], [wanted]).of(wanted)[group.consumer]
        refit_to_target(model, group, {}, target, options.damping, None)


def _ends(groups: Iterable[Group], ends: Mapping[str, Group]) -> tuple[Group, ...]:
    return tuple(ends.get(group.block, group) for group in groups)


@torch.no_grad()
def _turns_pairs(model: PreTrainedModel, group: Group) -> bool:
    """Tell, by trying, whether features p and p + D/2 of queries and keys may be turned together."""
    attention = _attention(model, group)
    if attention.head_dim % 2:
        return False
    whole = projections_of(attention)
    angle_NP = torch.rand(
        len(whole.key_NDI), attention.head_dim // 2, generator=torch.Generator().manual_seed(0)
    )
    turn_NP1 = torch.polar(torch.ones_like(angle_NP), 6.0 * angle_NP).to(whole.key_NDI.device).unsqueeze(-1)
    each = len(whole.query_QDI) // len(whole.key_NDI)
    turned = Projections(
        query_QDI=from_pairs(as_pairs(whole.query_QDI) * turn_NP1.repeat_interleave(each, 0)),
        key_NDI=from_pairs(as_pairs(whole.key_NDI) * turn_NP1),
        value_NDI=whole.value_NDI,
        output_OQD=whole.output_OQD,
    )
    seen: list[Tensor] = []
    handle = attention.o_proj.register_forward_pre_hook(lambda _, args: seen.append(args[0].double()))
    batch = sample_batch(model)
    try:
        with evaluating(model):
            model(**batch)
            install(attention, turned)
            model(**batch)
    finally:
        install(attention, whole)
        handle.remove()
    real = batch["attention_mask"].bool() if "attention_mask" in batch else ...
    before, now = (values[real] for values in seen)
    return bool((before - now).norm() <= _TURNED * before.norm())
