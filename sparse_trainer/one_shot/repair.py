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
from sparse_trainer.one_shot.options import Options
from sparse_trainer.one_shot.repairs.reconstruct import Repaired, fold_mean, least_squares, scale
from sparse_trainer.statistics.blockwise import Blockwise
from sparse_trainer.statistics.calibration import Batches
from sparse_trainer.statistics.moments import Moments, MomentSums
from sparse_trainer.statistics.requests import Statistic, Statistics

# Shape legend: O = outputs, I = input features of a consumer, U = units, W = features of a unit.


def repair_requests(options: Options) -> tuple[Statistic[Any], ...]:
    """Return what the repair has to know of the consumers' inputs."""
    if options.reconstruct is None or options.sequential or options.by_block:
        return ()
    return (_request(options),)


def _request(options: Options) -> Moments:
    return Moments(covariance=options.reconstruct != "bias")


def prepare_biases(model: Any, structure: Structure, options: Options) -> None:
    """Make sure that the consumers have a bias where the repair writes one.

    Raises:
        ArgumentError: the config of the model knows no bias there.
    """
    wanted = options.reconstruct == "bias" or options.reconstruct_bias
    if options.reconstruct is None or not wanted:
        return
    missing = [g for g in structure.groups if _bias(bare_linear_at(model, g.consumer)) is None]
    if missing:
        _add_biases(model, missing)


def repair(
    model: Any, structure: Structure, keep: Mapping[str, Tensor], statistics: Statistics, batches: Batches | None,
    options: Options,
) -> None:  # fmt: skip
    """Change the consumers so that they say with the kept units what they said with all, in place."""
    touched = tuple(g for g in structure.groups if not bool(keep[g.name].all()))
    if options.reconstruct is None or not touched:
        return
    if not options.sequential and not options.by_block:
        for name, moments in statistics.by_group(_request(options), touched).items():
            _repair_one(model, structure[name], keep[name], moments, options)
        return
    assert batches is not None
    part = replace(structure, groups=touched)
    with gated(model, structure, keep) if options.sequential else nullcontext():
        walk = Blockwise(model, part, batches, changing=options.sequential, device=options.device)
        for groups in walk:
            for together in [(group,) for group in groups] if options.sequential else [groups]:
                found = walk.collect(together, [_request(options)]).by_group(_request(options), together)
                for name, moments in found.items():
                    _repair_one(model, structure[name], keep[name], moments, options)


@torch.no_grad()
def _repair_one(
    model: nn.Module, group: Group, keep_U: Tensor, moments: MomentSums, options: Options
) -> None:
    linear = bare_linear_at(model, group.consumer)
    stored_OI = weight_OI(linear)
    weight = stored_OI.to(moments.mean_I.dtype)
    index_UW = group.consumer_slice.index_UW.to(weight.device)
    keep_I = torch.ones(weight.shape[1], dtype=torch.bool, device=weight.device)
    keep_I[index_UW[~keep_U.to(weight.device)].flatten()] = False
    repaired = _repaired(weight, moments, keep_I, index_UW, _bias(linear) is not None, group, options)
    stored_OI[:, keep_I] = repaired.weight_OK.to(stored_OI.dtype)
    if repaired.shift_O is not None:
        bias = _bias(linear)
        assert bias is not None
        bias.add_(repaired.shift_O.to(bias.dtype))


def _repaired(
    weight_OI: Tensor, moments: MomentSums, keep_I: Tensor, index_UW: Tensor, has_bias: bool, group: Group,
    options: Options,
) -> Repaired:  # fmt: skip
    if options.reconstruct == "bias":
        return fold_mean(weight_OI, moments, keep_I)
    if options.reconstruct == "scale":
        units = len(index_UW)
        unit_I = torch.arange(units, units + len(keep_I), device=keep_I.device)
        unit_I[index_UW.flatten()] = torch.arange(units, device=keep_I.device).repeat_interleave(
            index_UW.shape[1]
        )
        return scale(weight_OI, moments, keep_I, unit_I, damping=options.damping, name=group.consumer)
    bias = has_bias if options.reconstruct_bias is None else options.reconstruct_bias
    return least_squares(weight_OI, moments, keep_I, damping=options.damping, bias=bias, name=group.consumer)


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
