"""Zero-pad an uneven model to common widths, for tools that know the stock class only."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from patchers.discovery.discover import discover
from patchers.modeling_pruned import local, selections_of, stock_class_of
from patchers.surgery import cut
from patchers.units import EXPERTS, HIDDEN, WIDTH_KINDS, Group, Structure
from sparse_trainer.cut.config_fit import build, widest
from sparse_trainer.cut.layout import earlier_layout
from sparse_trainer.cut.self_check import check_same, outputs_of
from sparse_trainer.cut.traced import Traced, pieces, trace
from sparse_trainer.errors import CheckpointError

# Shape legend: K = units that are left, U = units of the whole group.


@torch.no_grad()
def padded(model: PreTrainedModel) -> PreTrainedModel:
    """Return a stock model with the outputs of `model`: channels padded to the widest layer, heads to the full number.

    Padded heads have zero value rows and zero output columns, so they add nothing whatever their attention weights are.

    Raises:
        CheckpointError: experts, hidden features or layers are gone, which zeros cannot stand for.
        SelfCheckError: the padded model does not compute what the uneven one does.
    """
    structure = discover(model)
    config = widest(model, structure)
    traced = build(model, config)
    trace(traced)
    whole = discover(traced)
    _check(model, structure, traced, whole)
    left = {group.name: group for group in structure.groups}
    keep = {g.name: _places(model, g, left.get(g.name)) for g in whole.of(WIDTH_KINDS)}
    cut(traced, whole, keep)
    # Its random start must not disturb the random numbers of whoever saves a model in the middle of a run.
    with torch.random.fork_rng(devices=[]):
        target: PreTrainedModel = stock_class_of(model)(config)
    target.load_state_dict(_padded_state(model, traced, target), assign=True)
    target.tie_weights()
    target.train(model.training)
    check_same(outputs_of(model), target, what="the outputs of the uneven and of the padded model")
    return target


def check_paddable(model: PreTrainedModel) -> None:
    """Raise `CheckpointError` where experts, hidden features or layers are gone, which zeros cannot stand for."""
    structure = discover(model)
    dense = build(model, widest(model, structure))
    _check(model, structure, dense, discover(dense))


def _check(model: PreTrainedModel, left: Structure, dense: PreTrainedModel, whole: Structure) -> None:
    pairs = [
        *zip(left.of([EXPERTS]), whole.of([EXPERTS]), strict=False),
        *zip(discover(model, [HIDDEN]).groups, discover(dense, [HIDDEN]).groups, strict=False),
    ]
    gone = [group.name for group, before in pairs if group.num_units != before.num_units]
    if gone or earlier_layout(model.config)["layers"]:
        raise CheckpointError(
            gone[0] if gone else "export",
            "'padded' fills with zeros, and a router could choose an expert of zeros, or a norm would count "
            "hidden features of zeros, or a layer of zeros is missing.",
            "Use 'self-contained'.",
        )


def _places(model: nn.Module, whole: Group, left: Group | None) -> Tensor:
    """Return which of all units the remaining ones stand for: what their table of outside arguments expects, [U]."""
    keep_U = torch.zeros(whole.num_units, dtype=torch.bool)
    if whole.kind == EXPERTS:
        return ~keep_U
    if left is None:
        return keep_U
    for select in left.selects:
        for hung in selections_of(model.get_submodule(select.path)):
            keep_U[torch.tensor(hung.index[:: select.width]) // select.width] = True
            return keep_U
    # With one KV group left, its query heads are the units.
    keep_U[: left.num_units * left.consumer_slice.width // whole.consumer_slice.width] = True
    return keep_U


def _padded_state(model: PreTrainedModel, traced: PreTrainedModel, target: nn.Module) -> dict[str, Tensor]:
    """Return the state of the target: what is left of each tensor at its place, zeros elsewhere."""
    own, reference = model.state_dict(), next(model.parameters())
    shared = [local(model, name) for name in earlier_layout(model.config)["shares"]]
    own |= {name: own[name].clone() for name in shared}
    state = {
        name: torch.zeros(tensor.shape, dtype=reference.dtype, device=reference.device)
        if tensor.is_floating_point()
        else tensor
        for name, tensor in target.state_dict().items()
    }
    for name, tensor in pieces(traced).items():
        if isinstance(tensor, Traced) and name in own:
            state[tensor.piece.origin] = _spread(own[name], tensor.piece.kept, state[tensor.piece.origin])
    return state


def _spread(values: Tensor, kept: Mapping[int, Tensor], whole: Tensor) -> Tensor:
    """Return `values` at their places along each dimension, among zeros."""
    for dim, index_K in kept.items():
        size = (*values.shape[:dim], whole.shape[dim], *values.shape[dim + 1 :])
        values = values.new_zeros(size).index_copy(dim, index_K.to(values.device), values)
    return values
