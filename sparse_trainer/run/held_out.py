"""How a model does on text that was not calibrated on."""

import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Final

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sparse_trainer.errors import DataError
from sparse_trainer.run.judge import Judge
from sparse_trainer.run.options import CalibrationOptions

SEQUENCES: Final = 16
"""Sequences on which a model that is pruned in one shot is measured."""
_LEAST = 4
_RUN = 32
"""Tokens in a row that tell one text from another."""
_LARGEST = math.log(sys.float_info.max)
Rows = Sequence[Mapping[str, Tensor]]


def held_out(calibration: CalibrationOptions, seen: Rows, tokenizer: PreTrainedTokenizerBase) -> Rows | None:
    """Return other sequences of the same source, one by one, None where it has too few: no stretch was calibrated on.

    Args:
        seen: The batches that were calibrated on.
    """
    try:
        drawn = replace(calibration, samples=4 * SEQUENCES, seed=calibration.seed + 1, batch_size=1).batches(
            tokenizer
        )
    except DataError:
        return None
    known = {hash(run) for batch in seen for row in batch["input_ids"].tolist() for run in _runs(row, 1)}
    found = [
        one
        for one in drawn
        if not any(hash(run) in known for run in _runs(one["input_ids"][0].tolist(), _RUN))
    ]
    return found[:SEQUENCES] if len(found) >= _LEAST else None


def _runs(row: list[int], step: int) -> Iterator[tuple[int, ...]]:
    """Yield the stretches of a row that begin every `step` tokens; a short row is one.

    >>> [len(run) for run in _runs(list(range(34)), 1)], list(_runs([1, 2], 1))
    ([32, 32, 32], [(1, 2)])
    """
    for start in range(0, max(len(row) - _RUN, 0) + 1, step):
        yield tuple(row[start : start + _RUN])


def perplexity_on(model: PreTrainedModel, rows: Rows) -> float:
    """Return the perplexity of a causal language model on some sequences: NaN or infinity where its loss is."""
    losses = Judge(model, rows, None).dense
    mean = sum(loss for loss, _ in losses) / sum(count for _, count in losses)
    return math.inf if mean > _LARGEST else math.exp(mean)
