"""Whether the processes of one training have taken the same decisions.

Every process chooses by itself, from scores that are the same everywhere; nothing is sent around. Should scores come
apart, then so do the models: DistributedDataParallel would even hide it, because it copies the masks of process 0 to
the others. So each process keeps a fingerprint of all that it has decided, and the fingerprints are compared where the
host waits for the device anyway: when something is logged or saved, and at the end.
"""

from collections.abc import Mapping
from typing import final

import torch
import torch.distributed as dist
from torch import Tensor

from sparse_trainer.errors import DisagreementError

# Shape legend: U = units, R x C = blocks, N = counts of all groups.

_FACTOR = 6364136223846793005
"""Odd, so that what was decided earlier is never forgotten (Knuth's multiplier of a generator modulo 2^64)."""


def several_processes() -> bool:
    """Tell whether this process trains together with others."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


@final
class Agreement:
    """A fingerprint of all decisions so far, on the device of the masks; of one process alone, nothing."""

    def __init__(self) -> None:
        self._fingerprint: Tensor | None = None
        self._weights_N: Tensor | None = None

    @torch.no_grad()
    def take_in(self, keep: Mapping[str, Tensor]) -> None:
        """Take in what stays now: a few sums on the device, without any communication.

        Args:
            keep: Masks of gates, [U], or of weights, [R, C], by name; 0 = closed.
        """
        if not several_processes():
            return
        counts_N = torch.cat([_counts(mask) for mask in keep.values()])
        if self._weights_N is None or len(self._weights_N) != len(counts_N):
            generator = torch.Generator().manual_seed(0)
            weights_N = torch.randint(2**62, counts_N.shape, generator=generator)
            self._weights_N = weights_N.to(counts_N.device)
        now = (counts_N * self._weights_N).sum()
        self._fingerprint = now if self._fingerprint is None else self._fingerprint * _FACTOR + now

    def check(self, keep: Mapping[str, Tensor], step: int) -> None:
        """Compare with all other processes, which have to call this at the same time. The host waits.

        Raises:
            DisagreementError: In every process, where one has decided otherwise than another at any time.
        """
        if self._fingerprint is None or _same(self._fingerprint.view(1)):
            return
        differ = [name for name, mask in keep.items() if not _same(_counts(mask))]
        where = f"in {', '.join(differ[:3])}" if differ else "at an earlier selection"
        raise DisagreementError(
            f"step {step}",
            f"the {dist.get_world_size()} processes chose different units {where}.",
            "Start all processes with the same arguments, seed, weights and libraries, and let no callback change "
            "gates or scores in one process alone; then go on from the last checkpoint.",
        )


def _counts(mask: Tensor) -> Tensor:
    """Return integers that tell a mask from others: of a matrix what its rows and columns keep.

    >>> _counts(torch.tensor([[1.0, 0.0], [1.0, 1.0]]))
    tensor([2, 1, 1, 2])
    """
    kept = mask != 0
    return kept.long() if kept.dim() == 1 else torch.cat([kept.sum(0), kept.sum(1)])


def _same(values_N: Tensor) -> bool:
    """Tell whether integers are the same in all processes: then the smallest is the largest, everywhere."""
    ends = torch.stack([values_N, ~values_N])
    dist.all_reduce(ends, op=dist.ReduceOp.MIN)
    return bool((ends[0] == ~ends[1]).all())
