"""Moments of what linears read, merged batch by batch (Chan et al. 1983): exact also where means are large."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Final, final

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from patchers.layers import is_linear
from patchers.units import Group, Kind, Structure
from sparse_trainer.errors import UnsupportedModelError
from sparse_trainer.statistics.calibration_pass import CalibrationPass, precise, wide
from sparse_trainer.statistics.requests import READ_BY_A_LINEAR, Statistic

# Shape legend: N = tokens, B = sequences, T = tokens of a sequence, I = input features of a linear.

_SQUARE: Final = 256
"""Features of which no product is left out, although half of them come twice."""


@final
@dataclass(frozen=True, kw_only=True)
class Moments:
    """Mean and second moment of the input of the groups' consumers, by module path of the consumer."""

    kinds: ClassVar[tuple[Kind, ...]] = READ_BY_A_LINEAR
    in_stacked_experts: ClassVar[bool] = False
    loss: ClassVar[None] = None
    covariance: bool = False
    """All products of two features as well: I x I numbers per linear."""
    every_linear: bool = False
    """Of every linear in the blocks, whatever the groups are; linears that no batch reaches are absent."""

    def key(self, group: Group) -> str:
        """Return the path of the group's consumer."""
        return group.consumer

    @classmethod
    def collector(cls, requests: Sequence["Moments"], run: CalibrationPass) -> "MomentCollector":
        """Return a collector of all that is asked for."""
        return MomentCollector(requests, run)


@dataclass(frozen=True, kw_only=True)
class MomentSums:
    """Moments of the input of one linear, per real token."""

    tokens: Tensor
    """Number of tokens, scalar."""
    mean_I: Tensor
    variance_I: Tensor
    """Mean squared distance from the mean (division by the number of tokens)."""
    centred_II: Tensor | None = None
    """Covariance."""

    @property
    def second_I(self) -> Tensor:
        """Return E[x^2]."""
        return self.variance_I + self.mean_I.square()

    @property
    def second_II(self) -> Tensor:
        """Return E[x x^T]."""
        assert self.centred_II is not None
        return torch.addr(self.centred_II.double(), self.mean_I.double(), self.mean_I.double())


@final
class MomentCollector:
    """Streams the moments of what linears read; once for those that read the same: q, k and v, or gate and up."""

    one_by_one: ClassVar[bool] = False

    def __init__(self, requests: Sequence[Moments], run: CalibrationPass) -> None:
        self.run = run
        linears = linears_in(run.model, run.structure) if any(r.every_linear for r in requests) else ()
        self.wanted = {request: linears if request.every_linear else run.consumers for request in requests}
        self.paths = tuple(dict.fromkeys(path for paths in self.wanted.values() for path in paths))
        self._products = {
            path for request, paths in self.wanted.items() if request.covariance for path in paths
        }
        self._running: dict[str, RunningMoments] = {}
        self._owner: dict[str, str] = {}
        """The linear whose moments those of a path are; most often the path itself."""
        self._seen: Counter[str] = Counter()
        self._last: tuple[str, Tensor, int] | None = None
        """Which linear read last in this batch, what, and how often that had been written into."""
        run.after_batch.append(self._forget)

    def attach(self) -> list[RemovableHandle]:
        """Register the hooks."""
        return self.run.show_inputs(self.paths, self._see)

    def _see(self, path: str, x: Tensor) -> None:
        owner = self._owner_of(path, x)
        self._last = path, x, x._version
        self._seen[path] += 1
        if owner != path:
            return
        x_BTI, real_BT = self.run.sequences(x, path)
        x_NI = precise(x_BTI).flatten(0, 1)
        real_N = None if real_BT is None else real_BT.flatten()
        if path not in self._running:
            self._running[path] = RunningMoments(x_NI, covariance=path in self._products)
        self.run.watch(path, self._running[path].add(x_NI, real_N))

    def _owner_of(self, path: str, x: Tensor) -> str:
        """Return the linear whose moments those of a path are: one that has read the same since the first batch."""
        reader = path
        if self._last is not None:
            other, before, version = self._last
            if x.is_set_to(before) and x._version == version:
                reader = self._owner[other]
        if path not in self._owner:
            shares = self._seen[reader] == 1 and (path in self._products) == (reader in self._products)
            self._owner[path] = reader if shares else path
        owner = self._owner[path]
        if owner not in (path, reader):
            self._refuse(path, owner)
        return owner

    def _refuse(self, path: str, owner: str) -> None:
        raise UnsupportedModelError(
            path, f"reads what {owner} reads in some calibration batches, and not in others.",
            "Calibrate with batches of one sort.",
        )  # fmt: skip

    def _forget(self) -> None:
        self._last = None

    def results(self) -> Mapping[Statistic[Any], Mapping[str, MomentSums]]:
        """Return the moments of all batches; a wider request covers a narrower one."""
        for path, owner in self._owner.items():
            if self._seen[path] != self._seen[owner]:
                self._refuse(path, owner)
        of_owners = {path: running.sums() for path, running in self._running.items()}
        sums = {path: of_owners[owner] for path, owner in self._owner.items()}
        found: dict[Statistic[Any], Mapping[str, MomentSums]] = {}
        for request, paths in sorted(self.wanted.items(), key=lambda item: item[0].covariance):
            found[request] = {path: sums[path] for path in paths if path in sums}
            for narrower in (
                replace(request, covariance=False),
                replace(request, every_linear=False),
                Moments(),
            ):
                found.setdefault(narrower, found[request])
        return found


class RunningMoments:
    """Sums over the tokens that came by one linear."""

    def __init__(self, x_NI: Tensor, *, covariance: bool) -> None:
        size, dtype = x_NI.shape[-1], wide(x_NI.device)
        self.count = torch.zeros((), dtype=dtype, device=x_NI.device)
        self.mean_I = torch.zeros(size, dtype=dtype, device=x_NI.device)
        self.scatter_I = torch.zeros_like(self.mean_I)
        self.scatter_II = (
            torch.zeros(size, size, dtype=x_NI.dtype, device=x_NI.device) if covariance else None
        )

    def add(self, x_NI: Tensor, weight_N: Tensor | None) -> Tensor:
        """Take in some tokens; return their squared distance from their mean.

        Args:
            weight_N: How much each token counts, or which of them do; None = all alike.
        """
        weighted_N = None if weight_N is None else weight_N.to(x_NI.dtype)
        if weighted_N is not None:
            x_NI = x_NI.masked_fill((weighted_N == 0).unsqueeze(-1), 0.0)
        if weighted_N is None:
            count, sum_I = self.count.new_tensor(len(x_NI)), x_NI.sum(0)
        else:
            count, sum_I = weighted_N.sum(dtype=self.count.dtype), weighted_N @ x_NI
        mean_I = sum_I / _divisor(count).to(x_NI.dtype)
        # The last row is what the means differ by: one product brings both.
        rows_NI = x_NI.new_empty(len(x_NI) + 1, x_NI.shape[1])
        centred_NI = torch.sub(x_NI, mean_I, out=rows_NI[:-1])
        if weighted_N is not None:
            centred_NI.mul_(weighted_N.sqrt().unsqueeze(-1))
        total = _divisor(self.count + count)
        step_I = mean_I.to(self.mean_I.dtype) - self.mean_I
        weight = self.count * count / total
        if self.scatter_II is not None:
            rows_NI[-1] = step_I * weight.sqrt()
            _add_products(self.scatter_II, rows_NI)
        scatter_I = centred_NI.square_().sum(0)
        self.scatter_I += scatter_I + step_I.square() * weight
        self.mean_I += step_I * (count / total)
        self.count = self.count + count
        return scatter_I

    def sums(self) -> MomentSums:
        """Return the moments; the products are given away, not copied."""
        count = _divisor(self.count)
        centred_II = None
        if self.scatter_II is not None:
            centred_II = self.scatter_II.div_(count.to(self.scatter_II.dtype))
            _mirror(centred_II)
            self.scatter_II = None
        return MomentSums(
            tokens=self.count,
            mean_I=self.mean_I,
            variance_I=self.scatter_I / count,
            centred_II=centred_II,
        )


def _divisor(count: Tensor) -> Tensor:
    """Return a count, or sum of weights, that can be divided by."""
    return torch.where(count > 0, count, torch.ones_like(count))


def _add_products(sum_II: Tensor, x_NI: Tensor) -> None:
    """Add x^T x to the upper triangle: the square at the upper right, and in the same way the triangles beside it."""
    size = len(sum_II)
    if size <= _SQUARE:
        sum_II.addmm_(x_NI.T, x_NI)
        return
    half = size // 2
    first_NI, second_NI = x_NI[:, :half], x_NI[:, half:]
    sum_II[:half, half:].addmm_(first_NI.T, second_NI)
    _add_products(sum_II[:half, :half], first_NI)
    _add_products(sum_II[half:, half:], second_NI)


def _mirror(upper_II: Tensor) -> None:
    """Make a symmetric matrix of its upper triangle, in place, by the squares in which that was added."""
    size = len(upper_II)
    if size <= _SQUARE:
        upper_II.copy_(upper_II.triu() + upper_II.triu(1).T)
        return
    half = size // 2
    upper_II[half:, :half] = upper_II[:half, half:].T
    _mirror(upper_II[:half, :half])
    _mirror(upper_II[half:, half:])


def linears_in(model: nn.Module, structure: Structure) -> tuple[str, ...]:
    """Return the paths of all linears that lie in the structure's lists of blocks, in model order."""
    stacks = tuple(f"{stack.path}." if stack.path else "" for stack in structure.stacks)
    found: list[str] = []
    for path, module in model.named_modules():
        # An adapter around a linear reads what the linear reads.
        inside_another = bool(found) and path.startswith(f"{found[-1]}.")
        if path.startswith(stacks) and is_linear(module) and not inside_another:
            found.append(path)
    return tuple(found)
