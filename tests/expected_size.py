"""The expected size of what random gates leave, by counting out every outcome: slow and plain."""

import itertools
from collections.abc import Mapping

import torch
from torch import Tensor

from patchers.patching.hard_concrete import presence
from sparse_trainer.budget.nesting import Nesting

# Shape legend: U = units of a group.


def drawn_alphas(nesting: Nesting) -> dict[str, Tensor]:
    """Return log-odds for every unit, shape [U], by group name."""
    generator = torch.Generator().manual_seed(2)
    return {g.name: torch.randn(g.num_units, generator=generator) for g in nesting.groups}


def counted_share(nesting: Nesting, alphas: Mapping[str, Tensor]) -> float:
    """Return the mean over all outcomes of the share of the cost that stays."""
    sizes = {name: alpha_U.numel() for name, alpha_U in alphas.items()}
    mean = 0.0
    for outcome in itertools.product([0, 1], repeat=sum(sizes.values())):
        keep = dict(zip(sizes, torch.tensor(outcome).bool().split(list(sizes.values())), strict=True))
        chance = 1.0
        for name, keep_U in keep.items():
            present_U = presence(alphas[name])
            chance *= torch.where(keep_U, present_U, 1 - present_U).prod().item()
        mean += chance * nesting.kept(keep) / nesting.total
    return mean
