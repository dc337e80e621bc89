"""Angles between hidden states at any two places between blocks: what the removal of a whole run would skip."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, final

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from patchers.units import LAYERS, Group, Kind
from sparse_trainer.statistics.block_states import state_in, state_read
from sparse_trainer.statistics.calibration_pass import CalibrationPass, precise, wide
from sparse_trainer.statistics.requests import Statistic

# Shape legend: L = layers of a stack, S = L + 1 places, N = tokens, H = hidden features.


@final
@dataclass(frozen=True, kw_only=True)
class BlockAngles:
    """Angles between what enters block i and what enters block j of a stack; place L is behind the last block."""

    kinds: ClassVar[tuple[Kind, ...]] = (LAYERS,)
    in_stacked_experts: ClassVar[bool] = True
    loss: ClassVar[None] = None
    last_token: bool = False
    """Look at the last real token of each sequence only, as Gromov et al. (arXiv 2403.17887) do."""

    def key(self, group: Group) -> str:
        """Return the path of the group's stack."""
        return group.stack

    @classmethod
    def collector(cls, requests: Sequence["BlockAngles"], run: CalibrationPass) -> "BlockAngleCollector":
        """Return a collector for the stacks of all groups."""
        return BlockAngleCollector(requests, run)


@final
class BlockAngleCollector:
    """Keeps the states of one batch, and streams the angles between them."""

    one_by_one: ClassVar[bool] = False

    def __init__(self, requests: Sequence[BlockAngles], run: CalibrationPass) -> None:
        self.requests, self.run = requests, run
        wanted = {group.stack for group in run.structure.groups}
        self.sizes = {stack.path: stack.size for stack in run.structure.stacks if stack.path in wanted}
        self.paths = tuple(f"{path}.{layer}" for path, size in self.sizes.items() for layer in range(size))
        self._states: dict[str, dict[int, Tensor]] = {path: {} for path in self.sizes}
        self._sums: dict[tuple[BlockAngles, str], tuple[Tensor, Tensor]] = {}

    def attach(self) -> list[RemovableHandle]:
        """Register a hook in front of each block, and one behind the last."""
        handles = []
        for stack, size in self.sizes.items():
            for layer in range(size):
                block = self.run.model.get_submodule(f"{stack}.{layer}")
                enter = partial(self._enter, stack, layer)
                handles.append(block.register_forward_pre_hook(enter, with_kwargs=True))
            leave = partial(self._leave, stack, size)
            handles.append(block.register_forward_hook(leave, prepend=True))
        return handles

    def _enter(
        self, stack: str, layer: int, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        # A copy: some blocks write into what they read.
        self._states[stack][layer] = state_read(args, kwargs).detach().clone()

    @torch.no_grad()
    def _leave(self, stack: str, size: int, block: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        states = {**self._states[stack], size: state_in(output)}
        self._states[stack] = {}
        path = f"{stack}.{size - 1}"
        unit: list[Tensor] = []
        for place in range(size + 1):
            state_BTH, real_BT = self.run.sequences(precise(states[place]), path)
            unit.append(nn.functional.normalize(state_BTH, dim=-1))
        self.run.watch(path, unit[-1])
        unit_SBTH = torch.stack(unit)
        for request in self.requests:
            counted_BT = _counted(unit_SBTH[0], real_BT, last_token=request.last_token)
            cosines_SS, tokens = _angles(unit_SBTH, counted_BT)
            before = self._sums.get((request, stack))
            if before is not None:
                cosines_SS, tokens = cosines_SS + before[0], tokens + before[1]
            self._sums[request, stack] = cosines_SS, tokens

    def results(self) -> Mapping[Statistic[Any], Mapping[str, Tensor]]:
        """Return mean angles as a share of half a turn, [S, S], by path of the stack."""
        found: dict[Statistic[Any], dict[str, Tensor]] = {request: {} for request in self.requests}
        for (request, stack), (angles_SS, tokens) in self._sums.items():
            found[request][stack] = angles_SS / tokens
        return found


def _counted(state_BTH: Tensor, real_BT: Tensor | None, *, last_token: bool) -> Tensor:
    """Return which tokens count, [B, T]."""
    if real_BT is None:
        real_BT = torch.ones(state_BTH.shape[:2], dtype=torch.bool, device=state_BTH.device)
    if not last_token:
        return real_BT
    place_T = torch.arange(real_BT.shape[1], device=real_BT.device)
    last_B = (place_T * real_BT).amax(1)
    return real_BT & (place_T == last_B.unsqueeze(1))


def _angles(unit_SBTH: Tensor, counted_BT: Tensor) -> tuple[Tensor, Tensor]:
    """Return the sum over tokens of the angles between any two places, [S, S], and the number of tokens."""
    total_SS = torch.zeros(
        len(unit_SBTH), len(unit_SBTH), dtype=wide(unit_SBTH.device), device=unit_SBTH.device
    )
    for row, counted_T in enumerate(counted_BT):  # a sequence at a time: S x S numbers per token
        unit_TSH = unit_SBTH[:, row].transpose(0, 1)
        cosines_TSS = (unit_TSH @ unit_TSH.mT).clamp(-1.0, 1.0).to(total_SS.dtype)
        angles_TSS = torch.acos(cosines_TSS) / torch.pi
        total_SS += angles_TSS.masked_fill(~counted_T[:, None, None], 0.0).sum(0)
    return total_SS, counted_BT.sum()
