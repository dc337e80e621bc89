"""The order of rows that a training which is resumed has to find again."""

from collections.abc import Iterator
from typing import final

import torch
from torch.utils.data import Sampler
from transformers.trainer_pt_utils import LengthGroupedSampler


@final
class GroupedByEpoch(Sampler[int]):
    """Rows of like length in batches, in an order that follows from seed and epoch.

    Transformers draws it from the generator of the process, which a resumed training finds elsewhere.
    """

    def __init__(self, grouped: LengthGroupedSampler, seed: int) -> None:
        self.grouped, self.seed, self.epoch = grouped, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Take the order of an epoch, counted from 0. Called by Trainer."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.grouped)

    def __iter__(self) -> Iterator[int]:
        self.grouped.generator = torch.Generator().manual_seed(self.seed + self.epoch)
        return iter(self.grouped)
