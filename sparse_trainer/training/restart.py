"""A training loop that begins anew in one call of `train`: `auto_find_batch_size` after an out-of-memory error."""

from collections.abc import Iterable, Mapping
from typing import final

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sparse_trainer.training.gate_file import attached_state


@final
class Restart:
    """Brings gates, masks and scores back to where they were when the training began.

    Trainer begins anew with the weights that it has by then; steps, learning rates and the budget start over, and so
    must what is closed and what is learned about it; weights too, where they may have been refitted to do without
    what is closed. The copy lies in host memory.
    """

    def __init__(self) -> None:
        self._start: dict[str, Tensor] = {}

    def forget(self) -> None:
        """Make ready for another training."""
        self._start = {}

    @torch.no_grad()
    def begin(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        scores: Iterable[nn.Parameter],
        weights: Mapping[str, nn.Parameter],
    ) -> None:
        """Remember what is attached to the model; when the same training begins again, set it back.

        Args:
            scores: What is learned: the optimizer forgets its averages of them.
            weights: What else goes back to its start, by name; the optimizer forgets of these, too.
        """
        attached = {**weights, **dict(attached_state(model))}
        if not self._start:
            self._start = {name: tensor.detach().cpu().clone() for name, tensor in attached.items()}
            return
        for name, tensor in attached.items():
            tensor.copy_(self._start[name])
        for parameter in (*scores, *weights.values()):
            optimizer.state.pop(parameter, None)
