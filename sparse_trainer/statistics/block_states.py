"""How blocks change the hidden states that run through them: what criteria of depth compare.

ShortGPT's Block Influence is 1 - `cosine` (arXiv 2403.03853), the angular distance of Gromov et al. `angle`
(arXiv 2403.17887), AVSS the variance of `change_H` over features divided by `sparsity` (arXiv 2411.02117).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, final

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from patchers.units import BLOCK_KINDS, Group, Kind
from sparse_trainer.errors import UnsupportedModelError
from sparse_trainer.statistics.calibration_pass import CalibrationPass, first_tensor, precise, wide
from sparse_trainer.statistics.requests import Statistic

# Shape legend: B = sequences, T = tokens, H = hidden features. x = hidden states a block reads, y = those it returns.


@final
@dataclass(frozen=True, kw_only=True)
class BlockStates:
    """Input and output of the groups' blocks compared, token by token; by module path of the block."""

    kinds: ClassVar[tuple[Kind, ...]] = BLOCK_KINDS
    in_stacked_experts: ClassVar[bool] = True
    loss: ClassVar[None] = None
    small: float = 0.01
    """Of `sparsity`: what a feature of a token counts as small below, relative to the token's root mean square."""
    tiny: float = 1e-5
    """Of `output_sparsity`: what a feature counts as small below, as it is."""

    def key(self, group: Group) -> str:
        """Return the path of the group's block."""
        return group.block

    @classmethod
    def collector(cls, requests: Sequence["BlockStates"], run: CalibrationPass) -> "BlockStateCollector":
        """Return a collector for the blocks of all groups."""
        return BlockStateCollector(requests, run)


@dataclass(frozen=True, kw_only=True)
class BlockStateMeans:
    """Means over the real tokens that ran through a block; x is a token's hidden state before it, y behind it."""

    tokens: Tensor
    """Number of tokens, scalar; a block that a pass runs twice meets each token twice."""
    cosine: Tensor
    """Cosine similarity of x and y, scalar."""
    angle: Tensor
    """Angle between x and y as a share of half a turn, scalar in [0, 1]."""
    input_norm: Tensor
    """|x|, scalar."""
    output_norm: Tensor
    """|y|, scalar."""
    change_norm: Tensor
    """|y - x|, scalar."""
    relative_change: Tensor
    """|y - x| / |x|, scalar."""
    sparsity: Tensor
    """Share of the features in which y - x is small, scalar."""
    change_H: Tensor
    """y - x."""
    output_sparsity: Tensor
    """Share of the features in which y is small, scalar."""
    output_H: Tensor
    """y."""


@final
class BlockStateCollector:
    """Streams the comparison of what blocks read and return."""

    one_by_one: ClassVar[bool] = False

    def __init__(self, requests: Sequence[BlockStates], run: CalibrationPass) -> None:
        self.requests, self.run = requests, run
        self.paths = tuple(dict.fromkeys(group.block for group in run.structure.groups))
        self._inputs: dict[str, Tensor] = {}
        self._sums: dict[tuple[BlockStates, str], dict[str, Tensor]] = {}

    def attach(self) -> list[RemovableHandle]:
        """Register two hooks for each block; the second in front of a gate: what a closed block says counts."""
        handles = []
        for path in self.paths:
            block = self.run.model.get_submodule(path)
            handles.append(block.register_forward_pre_hook(partial(self._enter, path), with_kwargs=True))
            handles.append(block.register_forward_hook(partial(self._leave, path), prepend=True))
        return handles

    def _enter(self, path: str, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        # A copy: some blocks write into what they read.
        self._inputs[path] = state_read(args, kwargs).detach().clone()

    @torch.no_grad()
    def _leave(self, path: str, block: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        x, y = self._inputs.pop(path), state_in(output)
        if x.shape != y.shape:
            raise UnsupportedModelError(
                path, f"reads hidden states of shape {tuple(x.shape)} and returns {tuple(y.shape)}.",
                "Leave this block out.",
            )  # fmt: skip
        x_BTH, real_BT = self.run.sequences(precise(x), path)
        y_BTH, _ = self.run.sequences(precise(y), path)
        for request in self.requests:
            sums = _sums(x_BTH, y_BTH, real_BT, request)
            self.run.watch(path, sums["change_H"])
            before = self._sums.get((request, path), {})
            self._sums[request, path] = {name: value + before.get(name, 0.0) for name, value in sums.items()}

    def results(self) -> Mapping[Statistic[Any], Mapping[str, BlockStateMeans]]:
        """Return the means over all tokens."""
        found: dict[Statistic[Any], dict[str, BlockStateMeans]] = {request: {} for request in self.requests}
        for (request, path), sums in self._sums.items():
            tokens = sums["tokens"]
            means = {name: value / tokens for name, value in sums.items() if name != "tokens"}
            found[request][path] = BlockStateMeans(tokens=tokens, **means)
        return found


def state_read(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
    """Return the hidden state among what a block is given."""
    named = kwargs.get("hidden_states")
    return named if isinstance(named, Tensor) else first_tensor(args, kwargs)


def state_in(output: Any) -> Tensor:
    """Return the hidden state among what a block returns: the state itself, or the first tensor of several things."""
    if isinstance(output, Tensor):
        return output
    return first_tensor(tuple(output.values()) if isinstance(output, Mapping) else output, {})


def _sums(x_BTH: Tensor, y_BTH: Tensor, real_BT: Tensor | None, request: BlockStates) -> dict[str, Tensor]:
    """Return sums over the real tokens, by the names of the means."""
    change_BTH = y_BTH - x_BTH
    norms = {"input_norm": x_BTH, "output_norm": y_BTH, "change_norm": change_BTH}
    values = {name: torch.linalg.vector_norm(state, dim=-1) for name, state in norms.items()}
    tiny = torch.finfo(x_BTH.dtype).tiny
    x_norm_BT, y_norm_BT = (values[name].clamp_min(tiny) for name in ("input_norm", "output_norm"))
    x_unit_BTH, y_unit_BTH = x_BTH / x_norm_BT.unsqueeze(-1), y_BTH / y_norm_BT.unsqueeze(-1)
    # The arc cosine loses half of the digits where the angle is small.
    apart_BT = torch.linalg.vector_norm(x_unit_BTH - y_unit_BTH, dim=-1)
    along_BT = torch.linalg.vector_norm(x_unit_BTH + y_unit_BTH, dim=-1)
    limit_BT = request.small * values["change_norm"] / x_BTH.shape[-1] ** 0.5
    values |= {
        "tokens": torch.ones_like(apart_BT),
        "cosine": (x_unit_BTH * y_unit_BTH).sum(-1),
        "angle": 2.0 / torch.pi * torch.atan2(apart_BT, along_BT),
        "relative_change": values["change_norm"] / x_norm_BT,
        "sparsity": (change_BTH.abs() < limit_BT.unsqueeze(-1)).to(x_BTH.dtype).mean(-1),
        "change_H": change_BTH,
        "output_sparsity": (y_BTH.abs() < request.tiny).to(x_BTH.dtype).mean(-1),
        "output_H": y_BTH,
    }
    if real_BT is not None:
        not_real = {2: ~real_BT, 3: ~real_BT.unsqueeze(-1)}
        values = {name: value.masked_fill(not_real[value.dim()], 0.0) for name, value in values.items()}
    return {name: value.sum((0, 1), dtype=wide(value.device)) for name, value in values.items()}
