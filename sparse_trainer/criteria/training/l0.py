"""L0: hard-concrete gates that meet a budget by a Lagrangian.

Louizos et al. (arXiv 1712.01312) for the gates; CoFi (Xia et al., arXiv 2204.00408) for the budget: with e the expected
share of the cost that stays and t the share asked for at this moment, the loss gains m1 (e - t) + m2 (e - t)^2. The
gates go down this slope, the multipliers m1 and m2 up. A unit inside others stays with the product of its probability
and theirs, and of what it has of hidden features the expected share of those stays. Where every kind and layer has a
budget of its own there is one such term for each, as in Sheared LLaMA (Xia et al., arXiv 2310.06694).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from torch import Tensor, nn

from patchers.patching.gates import Gate
from patchers.patching.hard_concrete import SHIFT, ConcreteGate, drawn, presence
from patchers.units import CHANNELS, EXPERTS, HEADS, KINDS, Group, Kind, Structure
from sparse_trainer.budget.nesting import Constraint
from sparse_trainer.budget.schedule import LinearSchedule, Schedule
from sparse_trainer.criteria.training.base import Gates
from sparse_trainer.fields import check_positive, check_share

# Shape legend: N = units of the model, C = constraints, U = units of a group.


@final
class ExpectedSize:
    """The expected cost of what stays, as a share, for each constraint; differentiable.

    Args:
        constraints: What each unit counts, and the density to reach.
        sizes: Units of each group.
    """

    def __init__(self, constraints: Sequence[Constraint], sizes: Mapping[str, int]) -> None:
        self.names = [name for c in constraints for name in c.costs]
        self.firsts = [next(iter(c.costs)) for c in constraints]
        self.final_C = torch.tensor([c.density for c in constraints])
        shares = [cost / c.total for c in constraints for cost in c.costs.values()]
        owners = [i for i, c in enumerate(constraints) for _ in c.costs]
        size_G = torch.tensor([sizes[name] for name in self.names])
        self.share_N = torch.tensor(shares, dtype=torch.float64).repeat_interleave(size_G).float()
        self.constraint_N = torch.tensor(owners).repeat_interleave(size_G)
        shared = [c.shared.get(name, 0.0) / c.total for c in constraints for name in c.costs]
        self.shared_N = torch.tensor(shared, dtype=torch.float64).repeat_interleave(size_G).float()
        self.hidden = next((c.hidden for c in constraints if c.shared), None)
        self.around_DN = self._around({k: v for c in constraints for k, v in c.around.items()}, sizes, size_G)
        bends = {name: shares for c in constraints for name, shares in c.bends.items()}
        self.bent = BentCosts(self.names, sizes, bends) if bends else None

    def _around(
        self, around: Mapping[str, tuple[str, ...]], sizes: Mapping[str, int], size_G: Tensor
    ) -> list[Tensor]:
        """Return, nearest first, the index of the unit that encloses each; one past the end where none does."""
        starts, total = {}, 0
        for name in self.names:
            starts[name], total = total, total + sizes[name]
        depth = max((len(around.get(name, ())) for name in self.names), default=0)
        rows = [
            [starts[outer] for outer in around.get(name, ())] + [total] * (depth - len(around.get(name, ())))
            for name in self.names
        ]
        return [torch.tensor(column).repeat_interleave(size_G) for column in zip(*rows, strict=True)]

    def __call__(self, alphas: Mapping[str, Tensor]) -> Tensor:
        """Return the expected shares, shape [C]."""
        present_N = presence(torch.cat([alphas[name] for name in self.names]))
        self._to(present_N.device)
        stays_N = present_N
        if self.around_DN:
            # One entry more, always present: what nothing encloses.
            enclosing_N = torch.cat([present_N, present_N.new_ones(1)])
            for index_N in self.around_DN:
                stays_N = stays_N * enclosing_N[index_N]
        cost_N = stays_N * self.share_N
        if self.bent is not None:
            cost_N = cost_N * self.bent(present_N)
        if self.hidden is not None:
            gone = 1.0 - presence(alphas[self.hidden]).mean()
            cost_N = cost_N - gone * stays_N * self.shared_N
        if len(self.firsts) == 1:
            return cost_N.sum().unsqueeze(0)
        return cost_N.new_zeros(len(self.firsts)).index_add(0, self.constraint_N, cost_N)

    def _to(self, device: torch.device) -> None:
        if self.share_N.device != device:
            for name, value in vars(self).items():
                if isinstance(value, Tensor):
                    setattr(self, name, value.to(device))
            self.around_DN = [index_N.to(device) for index_N in self.around_DN]


@final
class BentCosts:
    """What a group costs for what it would if all its units cost the same, at the expected number of them.

    Args:
        sizes: Units of each group.
        bends: As in `Constraint`.
    """

    def __init__(
        self, names: Sequence[str], sizes: Mapping[str, int], bends: Mapping[str, tuple[float, ...]]
    ) -> None:
        most = max(map(len, bends.values())) - 1
        straight = tuple(step / most for step in range(most + 1))
        self.share_GK = torch.tensor([bends.get(name, straight) for name in names])
        self.size_G = torch.tensor([float(sizes[name]) for name in names])
        self.group_N = torch.arange(len(names)).repeat_interleave(self.size_G.long())

    def __call__(self, present_N: Tensor) -> Tensor:
        """Return by what the cost of each unit is to be multiplied, shape [N]; differentiable."""
        if self.size_G.device != present_N.device:
            for name, value in list(vars(self).items()):
                setattr(self, name, value.to(present_N.device))
        part_G = present_N.new_zeros(len(self.size_G)).index_add(0, self.group_N, present_N) / self.size_G
        place_G = part_G * (self.share_GK.shape[1] - 1)
        low_G = place_G.detach().long().clamp(0, self.share_GK.shape[1] - 2)
        left_G, right_G = (self.share_GK.gather(1, (low_G + k).unsqueeze(1)).squeeze(1) for k in (0, 1))
        share_G = left_G + (place_G - low_G) * (right_G - left_G)
        return (share_G / part_G.clamp_min(1e-6))[self.group_N]


@final
class Lagrangian:
    """The penalty of the budget, and its multipliers, which climb up the violation of every optimizer step.

    Args:
        rate: Step of the multipliers.
    """

    def __init__(self, constraints: Sequence[Constraint], rate: float) -> None:
        self._constraints, self._rate = constraints, rate
        self._expected: ExpectedSize | None = None
        self._violation_C: Tensor | None = None

    def expected(self, gates: Gates) -> ExpectedSize:
        """Return the expected size of these gates under the constraints."""
        if self._expected is None:
            sizes = {name: gate.keep_U.numel() for name, gate in gates.items()}
            self._expected = ExpectedSize(self._constraints, sizes)
        return self._expected

    def __call__(self, gates: Gates, density: float, remaining: float) -> Tensor:
        """Return the Lagrangian; `remaining` is the part of the way to the budget still to go."""
        expected = self.expected(gates)
        share_C = expected({name: gate.score_U for name, gate in gates.items() if gate.score_U is not None})
        over_C = share_C - (expected.final_C + (1.0 - expected.final_C) * remaining)
        # In the dense start the gates are held open, and what their odds fall short of 1 violates nothing.
        self._violation_C = over_C.detach() if remaining < 1.0 else None
        multipliers_C2 = torch.stack([_concrete(gates[name]).multipliers_2 for name in expected.firsts])
        return (multipliers_C2 * torch.stack([over_C, over_C.square()], dim=1)).sum()

    @torch.no_grad()
    def observe(self, gates: Gates, loss_scale: Tensor | None = None) -> None:
        """Move the multipliers up the violation of this optimizer step."""
        if self._expected is None or self._violation_C is None:
            return
        over_C = self._violation_C
        step_C2 = torch.stack([over_C, over_C.square()], dim=1) * self._rate
        for name, step_2 in zip(self._expected.firsts, step_C2, strict=True):
            _concrete(gates[name]).multipliers_2.add_(step_2)
        self._violation_C = None


@final
@dataclass(frozen=True, kw_only=True)
class L0:
    """Learned random gates; the budget decides how many close, the loss which."""

    # A router chooses among experts that are there or not: it cannot read a soft gate.
    kinds: ClassVar[tuple[Kind, ...]] = tuple(kind for kind in KINDS if kind != EXPERTS)
    default_units: ClassVar[tuple[Kind, ...]] = (HEADS, CHANNELS)
    standardize: ClassVar[str] = "none"
    learns: ClassVar[bool] = True
    learning_rate: float = 0.1
    """Of the gates."""
    multiplier_rate: float = 0.3
    """Step of the Lagrange multipliers, up the violation of the budget."""
    warmup: float = 0.5
    """Part of the time between dense start and cool-down in which the budget falls, linearly, in [0, 1]."""
    seed: int = 42
    """Of the noise."""

    def __post_init__(self) -> None:
        check_positive("l0.learning_rate", self.learning_rate)
        check_positive("l0.multiplier_rate", self.multiplier_rate)
        check_share("l0.warmup", self.warmup, "[0, 1]", "Give a fraction, e.g. 0.5.")

    @property
    def optimizer_options(self) -> Mapping[str, Any]:
        """Return Adam's options for the gates.

        A short memory of squared gradients: what the multipliers ask for changes sign within a few hundred steps. A
        single channel of many has a tiny share of the cost, so that its gradient is near Adam's default epsilon.
        """
        return {"lr": self.learning_rate, "betas": (0.9, 0.99), "eps": 1e-12}

    def make_gate(self, group: Group) -> Gate:
        """Return a gate that is open until the dense start is over."""
        return ConcreteGate(group.num_units)

    def make_penalty(self, costs: Mapping[str, int], constraints: Sequence[Constraint]) -> Lagrangian:
        """Return the Lagrangian of what the budget demands."""
        return Lagrangian(constraints, self.multiplier_rate)

    def make_schedule(self, warmup: float, cooldown: float) -> LinearSchedule:
        """Return a budget that falls linearly, then waits until the multipliers have settled."""
        return LinearSchedule(warmup=warmup, cooldown=cooldown, ramp=self.warmup)

    def scores(self, model: nn.Module, structure: Structure, gates: Gates) -> dict[str, Tensor]:
        """Return the log-odds that a gate is not closed: below 0 it would rather be."""
        return {name: gate.score_U + SHIFT for name, gate in gates.items() if gate.score_U is not None}

    @torch.no_grad()
    def start(self, gates: Gates, odds: Mapping[str, Tensor]) -> None:
        """Set alpha so that a gate is not closed with these odds, within reach of its gradient."""
        for name, gate in gates.items():
            _concrete(gate).start(odds[name])

    @torch.no_grad()
    def advance(self, gates: Gates, progress: float, schedule: Schedule) -> None:
        """Draw the noise of the next step; keep gates open before, and as selected after, the time of learning."""
        concrete = [_concrete(gate) for gate in gates.values()]
        for gate in concrete:
            gate.clamp()
        if schedule.frozen(progress):
            for gate in concrete:
                gate.hold()
        elif progress >= schedule.warmup:
            sizes = [gate.noise_U.numel() for gate in concrete]
            noise_N = drawn(sum(sizes), f"{self.seed}/{progress}", concrete[0].noise_U.device)
            for gate, noise_U in zip(concrete, noise_N.split(sizes), strict=True):
                gate.noise_U.copy_(noise_U)


def _concrete(gate: Gate) -> ConcreteGate:
    assert isinstance(gate, ConcreteGate)
    return gate
