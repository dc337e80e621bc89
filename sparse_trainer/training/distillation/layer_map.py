"""Which layer of a student learns from which layer of its teacher: found anew for every batch, as CoFi does.

Xia et al. (arXiv 2204.00408): each taught layer t goes to the open student layer m(t) with the least mean squared error
between W h_m(t) and the teacher's h_t; W is learned and starts as the identity.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, final

import torch
from torch import Tensor, nn

from patchers.patching.gates import Gate

# Shape legend: B = batch, T = tokens, D = hidden features, L = layers of the student, K = taught layers.

_TAUGHT = 4
_PROJECTION = "projection"


def taught_layers(num_layers: int) -> list[int]:
    """Return the teacher's layers to learn from: four, evenly spread, the last among them.

    >>> taught_layers(12), taught_layers(3)
    ([2, 5, 8, 11], [0, 1, 2])
    """
    count = min(_TAUGHT, num_layers)
    return [num_layers * (i + 1) // count - 1 for i in range(count)]


@torch.no_grad()
def match(error_KL: Tensor, open_L: Tensor | None, *, in_order: bool) -> Tensor:
    """Return the student layer of least error for each taught layer, shape [K], without a host sync.

    Args:
        open_L: 1 for the layers that may be chosen; None = all.
        in_order: A later taught layer never goes to an earlier student layer; the sum of errors is the least possible.

    >>> error_KL = torch.tensor([[3.0, 2.0, 0.0], [2.0, 1.0, 9.0]])
    >>> match(error_KL, None, in_order=False), match(error_KL, None, in_order=True)
    (tensor([2, 1]), tensor([1, 1]))
    """
    if open_L is not None:
        error_KL = error_KL.masked_fill(open_L == 0, torch.inf)
    if not in_order:
        return error_KL.argmin(dim=1)
    total_L, came_from = error_KL[0], []
    for error_L in error_KL[1:]:
        best_L, from_L = total_L.cummin(dim=0)
        came_from.append(from_L)
        total_L = error_L + best_L
    chosen = [total_L.argmin().view(1)]
    for from_L in reversed(came_from):
        # An index that is a tensor without dimensions would be read by the host.
        chosen.append(from_L.gather(0, chosen[-1]))
    return torch.cat(chosen[::-1])


@final
class LayerMap:
    """Compares hidden states by the map that suits them best.

    Args:
        projection: W, a linear without bias.
        in_order: As in `match`.
    """

    def __init__(self, projection: nn.Linear, *, in_order: bool) -> None:
        self.projection, self.in_order = projection, in_order

    def loss(
        self,
        student: Sequence[Tensor],
        teacher: Sequence[Tensor],
        compare: Callable[[Tensor, Tensor], Tensor],
        open_L: Tensor | None,
    ) -> Tensor:
        """Return the mean of `compare` over the taught layers.

        Args:
            student: Outputs of its layers, [B, T, D] each.
            teacher: Outputs of the teacher's.
        """
        projected_LBTD = self.projection(torch.stack(tuple(student)))
        taught = [teacher[layer] for layer in taught_layers(len(teacher))]
        with torch.no_grad():
            rows = [torch.stack([compare(h_BTD, t_BTD) for h_BTD in projected_LBTD]) for t_BTD in taught]
        chosen_K = match(torch.stack(rows), open_L, in_order=self.in_order)
        pairs = zip(projected_LBTD.index_select(0, chosen_K), taught, strict=True)
        return torch.stack([compare(h_BTD, t_BTD) for h_BTD, t_BTD in pairs]).mean()


def attach_projection(model: Any, gates: Mapping[str, Gate]) -> nn.Linear:
    """Return a projection that starts as the identity, as a child of a gate: it is trained, stored and goes with it."""
    gate = next(iter(gates.values()))
    size = model.config.get_text_config().hidden_size
    weight = next(p for p in model.parameters() if p.is_floating_point() and p.dim() > 1)
    projection = nn.Linear(size, size, bias=False, device=gate.keep_U.device, dtype=weight.dtype)
    nn.init.eye_(projection.weight)
    gate.add_module(_PROJECTION, projection)
    gate.register_forward_hook(_touch)
    return projection


def _touch(gate: nn.Module, inputs: tuple[Any, ...], value_U: Tensor) -> Tensor:
    """Add nothing, by way of W: DistributedDataParallel takes what the forward pass does not meet for unused."""
    weight = gate.get_submodule(_PROJECTION).get_parameter("weight")
    return value_U + 0.0 * weight[0, 0].to(value_U.dtype)
