"""Gates over a training: scores, selections under the budget, penalties."""

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Final, final

import torch
from torch import Tensor, nn

from patchers.patching.gates import Gate
from patchers.patching.patch import patch
from patchers.patching.scales import takes_scales
from patchers.patching.shards import whole_weights
from patchers.units import HIDDEN, Group, Structure
from sparse_trainer.budget.latency.selector import TimedSelector
from sparse_trainer.budget.latency.timing import Timing
from sparse_trainer.budget.options import Budget
from sparse_trainer.budget.selectors import AnySelector
from sparse_trainer.budget.standardize import STANDARDIZERS, fitting
from sparse_trainer.budget.ties import tied, warn_of_ties, warn_of_whole_groups
from sparse_trainer.criteria.calibration.base import Evidence
from sparse_trainer.criteria.scores import check_scores
from sparse_trainer.criteria.training.base import (
    Calibrates,
    FollowsSchedule,
    Observes,
    OwnOptimizer,
    Penalizes,
    Penalty,
    ReadsGradients,
    StartsAt,
)
from sparse_trainer.criteria.training.start import start_scores
from sparse_trainer.cut.decision import Request
from sparse_trainer.cut.record import remember_request
from sparse_trainer.cut.speed import Timed
from sparse_trainer.errors import ArgumentError, NonFiniteError
from sparse_trainer.one_shot.repairs.base import Repair
from sparse_trainer.statistics.collect import collect
from sparse_trainer.statistics.requests import Statistics
from sparse_trainer.training.course import Course
from sparse_trainer.training.one_cut import check_refittable, refit_closed, refitted_parameters
from sparse_trainer.training.options import GateOptions
from sparse_trainer.training.protect import check_affordable, protected_units, put_first
from sparse_trainer.training.timed import speedup_of, tried_on

_ON_THE_WAY: Final = 1e-9
"""Part of the way to a time that counts as not yet there."""


@final
class GateDriver:
    """Drives the gates of one model; all state that a restart needs lives in the model.

    Raises:
        BudgetError: the budget cannot be met.
        CriterionError: the criterion gives no score, or more than one, for a unit.
    """

    def __init__(self, model: nn.Module, structure: Structure, options: GateOptions) -> None:
        self.model, self.structure, self.options = model, structure, options
        self.criterion, self.schedule = options.criterion, options.schedule
        self.course = Course(model, structure, options.budget, options.stages, options.schedule)
        self.costs, self.nesting = self.course.costs, self.course.nesting
        self.progress = 0.0
        self.protected = protected_units(options.protection, model, structure)
        last = self.course.legs[-1].selector
        check_affordable(self.protected, structure, lambda scores: last.select(scores).keep)
        self.gates: dict[str, Gate] = patch(model, structure, self._make_gate)
        remember_request(model, self._request())
        self.budget_penalty: Penalty | None = None
        if isinstance(self.criterion, Penalizes):
            self.budget_penalty = self.criterion.make_penalty(self.costs, last.constraints)
        parts: tuple[object, ...] = (self.criterion, self.budget_penalty)
        self._observers = [part for part in parts if isinstance(part, Observes)]
        kinds = {g.kind for g in structure.groups}
        self._normalizer = self.budget.standardize or fitting(self.criterion.standardize, kinds)
        self._follow()
        self._scores()
        reads = isinstance(self.criterion, Calibrates) and bool(self.criterion.requests())
        self._unscored = reads or options.start is not None
        self._budgets_cut = 0
        if options.repair is not None:
            check_refittable(model, structure, options.repair)
        self._forget()

    @property
    def wants_calibration(self) -> bool:
        """Whether a calibration set is to be looked at now; with a repair, each time that a budget has to fall."""
        if self.options.repair is None:
            return self._unscored
        held = self.course.held(self.progress)
        return held is not None and held >= self._budgets_cut

    @property
    def budget(self) -> Budget:
        """What must remain: of several budgets, the one that counts now."""
        return self.course.leg(self.progress).budget

    @property
    def selector(self) -> AnySelector | TimedSelector:
        """What chooses under it."""
        return self.course.leg(self.progress).selector

    @property
    def timing(self) -> Timing | None:
        """What the model takes, where a time is asked for."""
        return self.course.leg(self.progress).timing

    def _make_gate(self, group: Group) -> Gate:
        gate = self.criterion.make_gate(group)
        if self.options.scale_learning_rate is not None and takes_scales(group.kind):
            gate.learn_scale()
        return gate

    def _follow(self) -> None:
        if isinstance(self.criterion, FollowsSchedule):
            self.criterion.advance(self.gates, self.progress, self.schedule)

    def _scores(self) -> dict[str, Tensor]:
        """Return the scores as they are now, before any normaliser."""
        scores = self.criterion.scores(self.model, self.structure, self.gates)
        check_scores(scores, self.structure.groups, self.options.scoring)
        return scores

    def _forget(self) -> None:
        self._finite: Tensor | None = None
        self._tied_G: Tensor | None = None
        self._warned = False
        self._threshold: Tensor | None = None

    def _request(self) -> Request:
        """Return what plans and cards quote of the arguments."""
        return Request(
            method=self.options.method,
            target=self.budget.target,
            scope=self.budget.scope,
            density=None if self.timing is not None else self.budget.density_asked,
            sequence_length=self.budget.sequence_length,
            timing=None if self.timing is None else Timed(self.timing),
        )

    def score_parameters(self) -> list[nn.Parameter]:
        """Return the parameters of the gates: scores, learned or merely read, and scales."""
        return [*self._scores_of_gates(), *self._scales_of_gates()]

    def _scores_of_gates(self) -> list[nn.Parameter]:
        return [gate.score_U for gate in self.gates.values() if gate.score_U is not None]

    def _scales_of_gates(self) -> list[nn.Parameter]:
        return [gate.scale_U for gate in self.gates.values() if gate.scale_U is not None]

    def score_groups(self) -> list[dict[str, Any]]:
        """Return the optimizer groups of the scores, if the criterion learns any, and of the scales."""
        groups: list[dict[str, Any]] = []
        if self.criterion.learns:
            own = self.criterion.optimizer_options if isinstance(self.criterion, OwnOptimizer) else {}
            rate = self.options.score_learning_rate
            groups.append({"params": self._scores_of_gates(), "lr": rate, "weight_decay": 0.0, **own})
        if self.options.scale_learning_rate is not None:
            rate = self.options.scale_learning_rate
            groups.append({"params": self._scales_of_gates(), "lr": rate, "weight_decay": 0.0})
        return groups

    def calibrate(self, batches: Iterable[Mapping[str, Any]]) -> None:
        """Take the scores of a criterion of one-shot pruning, or those that others start at, from a calibration set."""
        start = self.options.start
        if start is not None and isinstance(self.criterion, StartsAt):
            statistics = collect(self.model, self.structure, batches, start.requests())
            evidence = Evidence(model=self.model, structure=self.structure, statistics=statistics)
            constraints = self.selector.constraints
            start_scores(
                self.criterion, start, evidence, self.gates, costs=self.costs, constraints=constraints
            )
        elif isinstance(self.criterion, Calibrates):
            repair = self.options.repair
            requests = [*self.criterion.requests(), *([] if repair is None else [repair.request])]
            statistics = collect(self.model, self.structure, batches, requests)
            if self.criterion.requests():
                self.criterion.calibrate(self.model, self.structure, statistics, self.gates)
            if repair is not None:
                self._cut(repair, statistics)
        self._unscored = False

    def _cut(self, repair: Repair, statistics: Statistics) -> None:
        """Close what the budget of this moment leaves no room for, and refit what reads it."""
        held = self.course.held(self.progress)
        if held is None:
            raise ArgumentError(
                "calibrate",
                "the dense start is not over: units are scored and closed when it ends.",
                "Call it after the step after which `wants_calibration` is True.",
            )
        self._settle()
        refit_closed(self.model, self.structure, self.decided(), repair, statistics)
        self._budgets_cut = held + 1

    def refitted_parameters(self) -> list[nn.Parameter]:
        """Return the weights and biases that `calibrate` may change."""
        return [] if self.options.repair is None else refitted_parameters(self.model, self.structure)

    def begin(self, total_steps: int, step: int, warmup_steps: int) -> None:
        """Start, or go on at `step`: then the gates are those that came with the model.

        Raises:
            ArgumentError: scores are to be taken on a calibration set, and were not.
        """
        if self.options.repair is None and self._unscored and step == 0:
            raise ArgumentError(
                "scoring",
                f"{self.options.scoring} scores on a calibration set, and has seen none.",
                "Call calibrate(batches) before begin.",
            )
        self._unscored = self._unscored and step == 0
        self.course.check_steps(total_steps)
        self.progress = step / total_steps
        held = self.course.held(self.progress) if step else None
        self._budgets_cut = 0 if held is None else held + 1
        remember_request(self.model, self._request())
        self._forget()

    @property
    def _reads_weights(self) -> bool:
        """Whether scores may be those of the weights as they are now, rather than what gates have gathered."""
        return not (self.criterion.learns or isinstance(self.criterion, Observes))

    @property
    def finished(self) -> bool:
        """Whether the structure is final."""
        return self.schedule.frozen(self.progress)

    def observe(self, loss_scale: Tensor | None = None) -> None:
        """Read the mask gradients of one optimizer step; `loss_scale` as in `Observes.observe`."""
        for observer in self._observers:
            observer.observe(self.gates, loss_scale)
        if isinstance(self.criterion, ReadsGradients):
            self.criterion.read_gradients(self.model, self.structure, self.gates, loss_scale)

    def step(self, progress: float, *, due: bool) -> None:
        """Move to the state after an optimizer step, and select anew where that is due."""
        if self.options.repair is not None and self.wants_calibration:
            raise ArgumentError(
                "scoring",
                f"{self.options.scoring} was to close units on a calibration set, and has seen none.",
                "Call calibrate(batches) after each step after which `wants_calibration` is True.",
            )
        before, was_held = self.course.leg(self.progress), self.course.held(self.progress)
        self.progress = progress
        held = self.course.held(progress)
        if self.course.leg(progress) is not before:
            remember_request(self.model, self._request())
        cuts = self.options.repair is not None and held is not None
        if held is None and due:
            self.select()
        elif held is not None and held != was_held and not cuts:
            self._settle()
        self._follow()

    def _settle(self) -> None:
        """Select what stays for good under the budget of this moment; a time is tried, and selected for once more."""
        self.select()
        selector, timing = self.selector, self.timing
        if isinstance(selector, TimedSelector) and timing is not None:
            moved = tried_on(self.model, self.decided(), selector, timing)
            if moved is not selector:
                self.course.aim(self.progress, moved)
                self.select()

    @torch.no_grad()
    def select(self) -> None:
        """Open and close the gates by their scores as they are now, under the budget of this moment."""
        if self._reads_weights:
            with whole_weights(self.model):
                raw = self._scores()
        else:
            raw = self._scores()
        scores = STANDARDIZERS[self._normalizer](raw, self.costs, self.structure.kinds)
        scores = put_first(scores, self.protected) if self.protected else scores
        finite = torch.stack([score_U.isfinite().all() for score_U in scores.values()]).all()
        self._finite = finite if self._finite is None else self._finite & finite
        remaining = self.course.remaining(self.progress)
        self._tied_G = tied(raw, self.structure.kinds) if remaining < 1.0 and not self._warned else None
        if isinstance(self.selector, TimedSelector) and self.course.held(self.progress) is None:
            # L0 waits at its budget before it ends: the time itself is looked up once, when the structure is final.
            remaining = max(remaining, _ON_THE_WAY)
        selection = self.selector.select(scores, remaining)
        self._threshold = selection.threshold
        for name, gate in self.gates.items():
            gate.set_keep(selection.keep[name])

    def decided(self) -> dict[str, Tensor]:
        """Return the masks of the gates by group name."""
        return {name: gate.keep_U for name, gate in self.gates.items()}

    def penalty(self) -> Tensor | None:
        """Return what the criterion adds to the loss at this moment."""
        if self.finished or self.budget_penalty is None:
            return None
        remaining = self.course.remaining(self.progress)
        return self.budget_penalty(self.gates, self.density_target, remaining)

    @property
    def density_target(self) -> float:
        """Fraction of the prunable cost that the schedule allows now; of several, by cost."""
        budget, remaining = self.budget, self.course.remaining(self.progress)
        if isinstance(self.selector, TimedSelector):
            return self.selector.share + (1.0 - self.selector.share) * remaining
        # A single density is of the product already.
        gone = 1.0 - budget.density_of(HIDDEN) if budget.is_per_kind else 0.0
        own, shared = self.nesting.own, self.nesting.shared
        cost = sum(
            budget.density_of(g.kind) * g.num_units * (own[g.name] - gone * shared.get(g.name, 0))
            for g in self.structure.groups
        )
        final = cost / self.nesting.total
        return float(final + (1.0 - final) * remaining)

    def density(self) -> float:
        """Return the fraction of the prunable cost behind open gates now."""
        return self.nesting.kept(self.decided()) / self.nesting.total

    def log(self) -> dict[str, float]:
        """Return what to log beside the density."""
        logged = {"density_target": self.density_target, **self._speedup()}
        return logged if self._threshold is None else logged | {"threshold": float(self._threshold)}

    def _speedup(self) -> dict[str, float]:
        """Return how many times faster the model would be now, by the table, where a time is asked for."""
        if self.timing is None or not isinstance(self.selector, TimedSelector):
            return {}
        return {"speedup": speedup_of(self.timing, self.selector, self.decided())}

    def check_finite(self, step: int) -> None:
        """Raise `NonFiniteError` if a score was NaN or infinite at any selection so far; warn of ties."""
        if self._finite is not None and not bool(self._finite):
            scores = self._scores()
            bad = [name for name, score_U in scores.items() if not bool(score_U.isfinite().all())]
            raise NonFiniteError(
                f"step {step}",
                f"scores are NaN or infinite in {', '.join(bad[:3]) or 'a group'}.",
                "Training stopped before saving over the last checkpoint. Lower the learning rates or check the data.",
            )
        scales = self._scales_of_gates()
        if scales and not bool(torch.stack([scale_U.isfinite().all() for scale_U in scales]).all()):
            raise NonFiniteError(
                f"step {step}",
                "scales are NaN or infinite.",
                "Training stopped before saving over the last checkpoint. Lower scale_learning_rate or check the data.",
            )
        if self._tied_G is not None and not self._warned:
            self._warned = warn_of_ties(self.gates, self._tied_G, f"scoring={self.options.scoring!r}")

    def final(self) -> AbstractContextManager[None]:
        """Leave the gates as they are: evaluation sees what training multiplies by."""
        return nullcontext()

    def end(self) -> None:
        """Say which groups escaped the budget; gates stay until `optimize_model`."""
        if self.budget.scope == "global":
            warn_of_whole_groups(self.decided(), self.structure.kinds, self._normalizer)

    def report(self) -> dict[str, Any]:
        """Return what was asked and reached."""
        return {
            "scoring": self.options.scoring,
            "target": self.budget.target,
            "scope": self.budget.scope,
            "density_asked": None if self.timing is not None else self.budget.density_asked,
            "density_reached": self.density(),
            **self._speedup(),
            "kept": {name: int(gate.keep_U.sum()) for name, gate in self.gates.items()},
        }
