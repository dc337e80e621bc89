"""Zero-pad an uneven model to common widths, for tools that know the stock class only."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from patchers import Group, Structure, discover
from patchers.modeling_pruned import selections_of, stock_class_of
from sparse_trainer.fit import widest
from sparse_trainer.layout import is_skip
from sparse_trainer.probe import check_same, outputs_of

# Shape legend: K = units that are left, F = features of those units, O = outputs and I = inputs of a linear.

Places = dict[str, dict[int, Tensor]]
"""By path of a linear: for each dimension of its weight as stored, where the remaining features go."""


@torch.no_grad()
def padded(model: PreTrainedModel) -> PreTrainedModel:
    """Return a stock model with the outputs of `model`: channels padded to the widest layer, heads to the full number.

    Padded heads have zero value rows and zero output columns, so they add nothing whatever their attention weights are.

    Raises:
        SelfCheckError: the padded model does not compute what the uneven one does.
    """
    structure = discover(model)
    config = widest(model, structure)
    # Its random start must not disturb the random numbers of whoever saves a model in the middle of a run.
    with torch.random.fork_rng(devices=[]):
        target: PreTrainedModel = stock_class_of(model)(config)
    target.load_state_dict(_padded_state(model, structure, target), assign=True)
    target.tie_weights()
    target.train(model.training)
    check_same(outputs_of(model), target, what="the outputs of the uneven and of the padded model")
    return target


def _padded_state(model: nn.Module, structure: Structure, target: nn.Module) -> dict[str, Tensor]:
    skips = {path: module for path, module in model.named_modules() if is_skip(module)}
    under_skips = tuple(f"{path}." for path in skips)
    own = {n: t for n, t in model.state_dict().items() if not n.startswith(under_skips or ("\0",))}
    places: Places = {}
    left = {group.name: group for group in structure.groups}
    for group in discover(target).of(["heads", "channels"]):
        _place(model, target, group, left.get(group.name), places)
        skip: Any = skips.get(group.core.path) if group.core is not None else None
        if skip is not None and skip.bias is not None:
            own[f"{group.consumer}.bias"] = skip.bias
    reference = next(model.parameters())
    state = {}
    for name, whole in target.state_dict().items():
        path, _, leaf = name.rpartition(".")
        zeros = torch.zeros(whole.shape, dtype=reference.dtype, device=reference.device)
        state[name] = _fill(zeros, own.get(name), places.get(path, {}), leaf)
    return state


def _fill(zeros: Tensor, values: Tensor | None, places: dict[int, Tensor], leaf: str) -> Tensor:
    """Return `values` at their places among zeros; as they are where nothing was padded."""
    if values is None:
        return zeros
    if values.shape == zeros.shape and not places:
        return values
    zeros = zeros.to(values.dtype)
    for dim in range(zeros.dim()):
        index = places.get(dim if leaf == "weight" else _BIAS)
        if index is not None:
            index = index.to(values.device)
            size = (*values.shape[:dim], zeros.shape[dim], *values.shape[dim + 1 :])
            values = values.new_zeros(size).index_copy(dim, index, values)
    return values


_BIAS = -1


def _place(model: nn.Module, target: nn.Module, whole: Group, left: Group | None, places: Places) -> None:
    positions_K = _positions(model, left)
    for s in whole.slices:
        linear = target.get_submodule(s.path)
        features_F = s.index_UW[positions_K].flatten()
        out_dim = 1 if isinstance(linear, Conv1D) else 0
        if s.axis == "out":
            places.setdefault(s.path, {}).update({out_dim: features_F, _BIAS: features_F})
        else:
            places.setdefault(s.path, {})[1 - out_dim] = features_F


def _positions(model: nn.Module, left: Group | None) -> Tensor:
    """Return where the remaining units stand among all: where their table of outside arguments expects them."""
    if left is None:
        return torch.empty(0, dtype=torch.long)
    for select in left.selects:
        for hung in selections_of(model.get_submodule(select.path)):
            return torch.tensor(hung.index[:: select.width]) // select.width
    return torch.arange(left.num_units)
