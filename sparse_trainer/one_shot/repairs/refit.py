"""Put the closed-form repair into a model whose units are about to go."""

import copy
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from patchers.discovery.tables.names import BIASES
from patchers.layers import Linear, bare_linear_at, features, weight_OI
from patchers.patching.patch import gated
from patchers.units import Group, Structure
from sparse_trainer.errors import ArgumentError
from sparse_trainer.one_shot.repairs.base import Consumer, Repair
from sparse_trainer.statistics.blockwise import Blockwise
from sparse_trainer.statistics.calibration import Batches
from sparse_trainer.statistics.moments import MomentSums
from sparse_trainer.statistics.requests import Statistics

# Shape legend: O = outputs, I = input features of a consumer, U = units, W = features of a unit.


def prepare_biases(model: Any, structure: Structure, repair: Repair) -> None:
    """Make sure that the consumers have a bias where the repair writes one.

    Raises:
        ArgumentError: the config of the model knows no bias there.
    """
    wanted = structure.groups if repair.adds_bias else ()
    missing = [g for g in wanted if _bias(bare_linear_at(model, g.consumer)) is None]
    if missing:
        _add_biases(model, missing)


def refit(
    model: Any, structure: Structure, keep: Mapping[str, Tensor], repair: Repair, statistics: Statistics
) -> None:
    """Repair the consumers of units that go, by what a calibration pass collected, in place."""
    found = statistics.by_group(repair.request, _touched(structure, keep))
    for name, moments in found.items():
        _refit_one(model, structure[name], keep[name], moments, repair)


def refit_by_block(
    model: Any,
    structure: Structure,
    keep: Mapping[str, Tensor],
    repair: Repair,
    batches: Batches,
    *,
    sequential: bool,
    device: torch.device | str | None,
) -> None:
    """Repair the consumers of units that go, block after block, in place.

    Args:
        sequential: Repair each consumer against inputs from the repaired ones before.
        device: Where blocks are run, one at a time; None = where the model is.
    """
    part = replace(structure, groups=_touched(structure, keep))
    if not part.groups:
        return
    request = repair.request
    with gated(model, structure, keep) if sequential else nullcontext():
        blocks = Blockwise(model, part, batches, changing=sequential, device=device)
        for groups in blocks:
            for together in [(group,) for group in groups] if sequential else [groups]:
                found = blocks.collect(together, [request]).by_group(request, together)
                for name, moments in found.items():
                    _refit_one(model, structure[name], keep[name], moments, repair)


def _touched(structure: Structure, keep: Mapping[str, Tensor]) -> tuple[Group, ...]:
    return tuple(g for g in structure.groups if not bool(keep[g.name].all()))


def _refit_one(model: nn.Module, group: Group, keep_U: Tensor, moments: MomentSums, repair: Repair) -> None:
    linear = bare_linear_at(model, group.consumer)
    stored_OI, bias = weight_OI(linear), _bias(linear)
    weight, shifted = refitted(stored_OI, bias, group, keep_U, moments, repair)
    with torch.no_grad():
        stored_OI.copy_(weight)
        if bias is not None and shifted is not None:
            bias.copy_(shifted)


@torch.no_grad()
def refitted(
    stored_OI: Tensor,
    bias: Tensor | None,
    group: Group,
    keep_U: Tensor,
    moments: MomentSums,
    repair: Repair,
) -> tuple[Tensor, Tensor | None]:
    """Return the weight and bias of a consumer that loses units; columns of these are as they were.

    Args:
        stored_OI: The weight before, [O, I].
        bias: The bias before, [O].
        keep_U: Units of the group that stay.
    """
    weight = stored_OI.to(moments.mean_I.dtype)
    keep_I = kept_features(group, keep_U, weight)
    index_UW = group.consumer_slice.index_UW.to(weight.device)
    repaired = repair.refit(
        Consumer(
            name=group.consumer,
            weight_OI=weight,
            has_bias=bias is not None,
            moments=moments,
            keep_I=keep_I,
            unit_I=_units_of(index_UW, len(keep_I)),
        )
    )
    found_OI = stored_OI.detach().clone()
    found_OI[:, keep_I] = repaired.weight_OK.to(stored_OI.dtype)
    if repaired.shift_O is None:
        return found_OI, bias
    assert bias is not None
    return found_OI, bias.detach() + repaired.shift_O.to(bias.dtype)


def kept_features(group: Group, keep_U: Tensor | None, stored_OI: Tensor) -> Tensor:
    """Return which inputs of a consumer stay, shape [I]: those of units that do, and of no unit; None keeps all."""
    keep_I = torch.ones(stored_OI.shape[1], dtype=torch.bool, device=stored_OI.device)
    if keep_U is not None:
        index_UW = group.consumer_slice.index_UW.to(stored_OI.device)
        keep_I[index_UW[~keep_U.to(stored_OI.device)].flatten()] = False
    return keep_I


def _units_of(index_UW: Tensor, features: int) -> Tensor:
    """Return the number of the unit of every input feature, shape [I]."""
    units, width = index_UW.shape
    unit_I = torch.arange(units, units + features, device=index_UW.device)
    unit_I[index_UW.flatten()] = torch.arange(units, device=index_UW.device).repeat_interleave(width)
    return unit_I


def _bias(linear: Linear) -> Tensor | None:
    bias: Tensor | None = linear.bias
    return bias


def _add_biases(model: Any, missing: Sequence[Group]) -> None:
    """Turn on the config fields that give these consumers a bias, and fill all new biases with zeros."""
    text = model.config.get_text_config()
    left = {f"{g.consumer}.bias" for g in missing}
    before = dict(model.named_parameters())
    for name in BIASES:
        if not left or text.to_dict().get(name) is not False:
            continue
        config = copy.deepcopy(model.config)
        setattr(config.get_text_config(), name, True)
        with torch.device("meta"):
            new = {n for n, _ in type(model)(config).named_parameters()} - set(before)
        if new & left and all(n.endswith(".bias") for n in new):
            setattr(text, name, True)
            for path in new:
                _zero_bias(bare_linear_at(model, path.removesuffix(".bias")))
            left -= new
    if left:
        raise ArgumentError(
            "reconstruct", f"{min(left)} does not exist, and no field of {type(text).__name__} adds it.",
            "Use `reconstruct='least_squares'` with `reconstruct_bias=False`.",
        )  # fmt: skip


def _zero_bias(linear: Linear) -> None:
    outputs, _ = features(linear)
    zeros = torch.zeros(outputs, dtype=linear.weight.dtype, device=linear.weight.device)
    linear.bias = nn.Parameter(zeros, requires_grad=linear.weight.requires_grad)
