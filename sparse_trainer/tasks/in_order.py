"""Evaluate in the order of the data, for metrics that put rows together."""

from typing import Any

from torch.utils.data import Dataset, Sampler, SequentialSampler
from transformers import Trainer


class InOrder(Trainer):
    """A Trainer that evaluates in the order of the data, also where it trains by length."""

    def _get_eval_sampler(self, eval_dataset: Dataset[Any]) -> Sampler[int] | None:
        return SequentialSampler(eval_dataset) if self.args.world_size <= 1 else None  # type: ignore[arg-type]
