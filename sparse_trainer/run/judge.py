"""What cuts of one model are judged by on sequences that no criterion looked at."""

from collections.abc import Iterable, Mapping
from typing import Any, Final, Literal, final

import torch
from transformers import PreTrainedModel

from sparse_trainer.errors import DataError
from sparse_trainer.inputs.evaluating import evaluating
from sparse_trainer.inputs.pooling import Pooling
from sparse_trainer.one_shot.search.divergence import DenseOutput
from sparse_trainer.statistics.calibration import Batches
from sparse_trainer.statistics.forward import ForwardPass

Measure = Literal["loss", "divergence"]
LOSS: Final = "loss"
DIVERGENCE: Final = "divergence"
Judged = tuple[tuple[float, int], ...]
"""Of each sequence: what it is judged by, summed over what counts in it, and how much that is."""


@final
class Judge:
    """Judges models on sequences, each by itself.

    By the model's own loss, where the sequences have labels or these can be made of the tokens; else by the divergence
    from what the dense model says, in nats, or as the squared distance of vectors over their squared length.

    Args:
        dense: The model before any cut.
        rows: Batches that no criterion looks at.
        pooling: How the vectors of texts are made of what a model without a head says of tokens.

    Raises:
        DataError: No label counts, only some sequences have labels, or the model cannot read the batches.
    """

    def __init__(
        self, dense: PreTrainedModel, rows: Iterable[Mapping[str, Any]], pooling: Pooling | None
    ) -> None:
        self._batches = Batches(dense, rows, pooling)
        self._said: list[DenseOutput] = []
        self.dense: Judged = self(dense)
        """What the dense model is judged by; of divergences zero."""
        self.measure: Measure = DIVERGENCE if self._said else LOSS

    @torch.no_grad()
    def __call__(self, model: PreTrainedModel) -> Judged:
        """Return what a model is judged by on each sequence."""
        forward = ForwardPass(model, (), labelled=True, differentiable=False)
        found, number = [], 0
        with torch.inference_mode(False), evaluating(model):
            for batch in self._batches.read(labelled=True, one_by_one=True, own_targets=True):
                if batch.is_own_target:
                    output = forward.output(batch)
                    if len(self._said) == number:
                        self._said.append(DenseOutput(output, batch))
                    dense = self._said[number]
                    found.append((float(dense.divergence(output)), dense.positions))
                    number += 1
                elif (loss := forward(batch)) is not None and batch.terms is not None:
                    found.append((float(loss), int(batch.terms)))
        if not found:
            raise DataError("held_out", "there is no loss.", "Give labels that count.")
        if number not in (0, len(found)):
            raise DataError("held_out", "only some sequences have labels.", "Give labels to all, or to none.")
        return tuple(found)
