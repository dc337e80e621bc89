"""What a user can ask of one-shot pruning, checked once, before any work is done."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

from patchers.units import CHANNELS, HEADS, HIDDEN, LAYERS, WIDTH_KINDS, Kind
from sparse_trainer.budget.options import Budget
from sparse_trainer.budget.standardize import STANDARDIZERS
from sparse_trainer.budget.time_target import EAGER, LATENCY, PREFILL, TimeTarget
from sparse_trainer.criteria.calibration.base import OwnDensity, Searches, WidthCriterion
from sparse_trainer.criteria.calibration.mixture import (
    MIXED_AFTER,
    CriterionLike,
    Mixture,
    criterion_of,
    name_of,
)
from sparse_trainer.criteria.calibration.scorable import scored_kinds
from sparse_trainer.errors import ArgumentError, SparseTrainerError, one_of
from sparse_trainer.fields import changed_fields
from sparse_trainer.inputs.pooling import MODES, Mode, Pooling
from sparse_trainer.one_shot.elements.options import (
    ElementOptions,
    asks_for_weights,
    density_of_weights,
    written_of_weights,
)
from sparse_trainer.one_shot.option_checks import (
    check_criterion,
    check_floors,
    check_of_weights,
    check_search,
    check_time,
)
from sparse_trainer.one_shot.protect import Protect
from sparse_trainer.one_shot.repairs.base import DAMPING, Repair
from sparse_trainer.one_shot.repairs.options import RepairOptions
from sparse_trainer.one_shot.search.options import LEVELS, SEARCH_TOKENS, SearchOptions
from sparse_trainer.statistics.requests import Statistic

MOST_STEPS = 1000
"""Rounds of scoring and cutting that somebody may wait for."""


@dataclass(frozen=True, kw_only=True)
class PruneOptions:
    """The options of `prune`; those of budgets mean what they do in training.

    Raises:
        ArgumentError: an option cannot be meant.
    """

    criterion: CriterionLike = "wifv"
    """What scores the units: a name, with options in brackets (`obs(rounds=16)`); an instance; or names with weights,
    mixed after `normalize` (`wanda + 0.5 fisher`)."""
    target: str = "params"
    """What a density counts: params, macs (per token) or units."""
    density: float | Mapping[str, float] = 0.8
    """Fraction of the prunable cost to keep, in (0, 1]; or one fraction per kind, counted in units of that kind."""
    scope: str = "global"
    """global (over the whole model), layer (each layer meets the budget) or uniform (equal widths)."""
    standardize: str | None = None
    """Makes scores comparable across layers; None = what suits the criterion."""
    reconstruct: str | None = None
    """Repair of the consumers: `bias`, `scale`, `least_squares`, or None."""
    reconstruct_bias: bool | None = None
    """Whether least squares may move biases; None = where there is one."""
    allocation: CriterionLike | None = None
    """A second criterion: it shares the widths out over the layers, and `criterion` chooses inside them."""
    normalize: str = MIXED_AFTER
    """Normaliser of the parts of a mixture."""
    search: str | None = None
    """Shares the widths out by measured loss: dp (dynamic programming over levels of each group) or evolve (then
    switches between groups, judged by the whole model). None = scores do."""
    levels: int = LEVELS
    """Of a search: widths below the whole one that are tried in each group."""
    search_tokens: int = SEARCH_TOKENS
    """Of a search: calibration tokens that losses are measured on, in whole batches."""
    time_limit: float | None = None
    """Of a search: seconds after which the best that is found is taken; None = no limit."""
    search_bfloat16: bool = False
    """Of a search: measure losses under autocast to bfloat16: faster, and about a thousandth of a nat less exact."""
    units: tuple[str, ...] | None = None
    """Kinds to prune; None = the kinds in `density`, else heads and channels."""
    protect: tuple[Protect, ...] = ()
    """Layers that stay whole and do not count: first, last, 3, 3-5, or patterns of group names."""
    include: tuple[str, ...] = ()
    """Patterns of the only groups to prune, such as vision_tower; none = all, of an image-text model those of its
    language model."""
    multiple_of: int | str | Mapping[str, int] | None = None
    """Kept channels are multiples of this, or a number per kind; None, or "auto" = 8 in experts, whose kernels need
    it, else 1; under a time, what its table shows to be no slower than a larger width."""
    min_keep: int | Mapping[str, int] = 1
    """Units that every group keeps, or one number per kind."""
    max_prune: float = 1.0
    """Share of its units that any layer may lose."""
    steps: int = 1
    """Rounds of scoring and cutting on the way to the budget."""
    damping: float = DAMPING
    """Of the repair, relative to the mean of the moments' diagonal."""
    sequential: bool = False
    """Repair layer by layer against inputs from the already pruned layers before."""
    refit_behind: bool = False
    """Refit what stays of every layer from the first one that lost something on, each to the states that the whole
    model has there: what they make up for is all that went wrong so far."""
    by_block: bool = False
    """Run block after block, hidden states in between on the CPU: the statistics of one block at a time are in memory.
    For criteria that need no gradients."""
    pooling: str | None = None
    """Of encoders without a head: how the vectors of texts are made of those of tokens: mean, cls, max or lasttoken.
    Losses without labels then compare the vectors of texts; None = those of all tokens."""
    sequence_length: int = 128
    """Tokens per sequence, for the target macs."""
    pattern: str | None = None
    """Of single weights (`units=["weights"]`): N:M, of every M consecutive inputs of a row N stay, e.g. 2:4."""
    compare: str | None = None
    """Of single weights: among which the best stay: row, tensor or global; None = as the criterion was published."""
    speedup: float | None = None
    """How many times faster the model has to be, instead of a density; or `milliseconds`."""
    milliseconds: float | None = None
    """What one forward pass may take."""
    latency_batch: int = 1
    """Of a budget in time: sequences per forward pass, of `sequence_length` tokens each."""
    latency_phase: str = PREFILL
    """prefill (all tokens at once) or decode (one more token, with `sequence_length` of them in the cache)."""
    latency_runtime: str = EAGER
    """eager or compile."""
    latency_table: str | None = None
    """File of times: a table of ours, or a CSV file of another device; None = measured on this one, and kept."""

    def __post_init__(self) -> None:
        changed = changed_fields(self)
        if self.elements is not None:
            check_of_weights(self.elements, changed)
            return
        if self.compare is not None:
            raise ArgumentError(
                "compare", "is for single weights.", "Add weights to `units`, or use `scope`."
            )
        if self.search is None:
            self.budget.check_disjoint()
        if HIDDEN in self.budget.kinds:
            raise ArgumentError(
                "units",
                "hidden features go while a model trains.",
                "Give other units, or fine-prune: SparseTrainingArguments(units=['hidden']).",
            )
        if self.allocation is not None and self.scope == "uniform":
            raise ArgumentError(
                "allocation", "uniform widths leave nothing to share out.", "Use `scope='global'`."
            )
        if not 1 <= self.steps <= MOST_STEPS:
            raise ArgumentError(
                "steps", f"{self.steps} is not positive, or endless.", f"Give 1 to {MOST_STEPS} rounds."
            )
        if self.steps > 1 and LAYERS in self.budget.kinds:
            raise ArgumentError(
                "steps",
                "layers change places when one goes.",
                "Leave it at 1, or prune other units in steps.",
            )
        if not 0 < self.max_prune <= 1:
            raise ArgumentError(
                "max_prune", f"{self.max_prune} is not in (0, 1].", "Give the share a layer may lose."
            )
        check_floors(self.budget, self.max_prune)
        check_search(self.widths, self.budget, changed)
        check_time(self.time, self.target, self.density, changed)
        self.repairing.check_kinds(self.budget.kinds)
        one_of("normalize", self.normalize, STANDARDIZERS)
        if self.pooling is not None:
            one_of("pooling", self.pooling, MODES)
        scored = tuple(kind for kind in self.budget.kinds if self.search is None or kind.is_width)
        for where, asked in self.asked.items():
            check_criterion(where, asked, self.normalize, scored, by_block=self.by_block)
        if self.time is not None and isinstance(self.criteria[-1], OwnDensity):
            raise ArgumentError(
                "criterion", f"{self.name} says itself how many layers go.", "Take block_influence or angular."
            )  # fmt: skip

    @property
    def _default_units(self) -> tuple[Kind, ...]:
        """Heads and channels, or what else the criterion scores."""
        asked, scored = self.criterion, WIDTH_KINDS
        if isinstance(asked, str | Mapping | WidthCriterion):
            # What is wrong with it is told elsewhere.
            with suppress(TypeError, SparseTrainerError):
                scored = scored_kinds(self.criteria[0])
        return tuple(kind for kind in (HEADS, CHANNELS) if kind in scored) or scored

    @cached_property
    def time(self) -> TimeTarget | None:
        """How fast the model has to be, where that is asked."""
        if self.speedup is None and self.milliseconds is None and self.target != LATENCY:
            return None
        return TimeTarget(
            speedup=self.speedup,
            milliseconds=self.milliseconds,
            batch=self.latency_batch,
            sequence_length=self.sequence_length,
            phase=self.latency_phase,
            runtime=self.latency_runtime,
            table=self.latency_table,
        )

    @property
    def pooled(self) -> Pooling | None:
        """How vectors of texts are made of those of tokens."""
        return None if self.pooling is None else Pooling(mode=cast(Mode, self.pooling))

    @cached_property
    def budget(self) -> Budget:
        """What must remain."""
        return Budget(
            density=self.density,
            default_units=self._default_units,
            target=self.target if self.time is None else LATENCY,
            time=self.time,
            scope=self.scope,
            units=self.units,
            multiple_of=self.multiple_of,
            min_keep=self.min_keep,
            standardize=self.standardize,
            sequence_length=self.sequence_length,
        )

    @cached_property
    def repairing(self) -> RepairOptions:
        """How consumers are refitted."""
        return RepairOptions(
            method=self.reconstruct,
            damping=self.damping,
            moves_bias=self.reconstruct_bias,
            sequential=self.sequential,
            refit_behind=self.refit_behind,
        )

    @property
    def repair(self) -> Repair | None:
        """What refits the consumers of units that go, if anything does."""
        return self.repairing.repair

    @cached_property
    def elements(self) -> ElementOptions | None:
        """What is asked of single weights; None where whole units are pruned."""
        if not asks_for_weights(self.units, self.density, self.pattern):
            return None
        return ElementOptions(
            criterion=self.criterion,
            density=density_of_weights(self.density),
            pattern=self.pattern,
            compare=self.compare,
            by_block=self.by_block,
        )

    @cached_property
    def widths(self) -> SearchOptions | None:
        """How widths are searched for; None where scores share them out."""
        if self.search is None:
            return None
        return SearchOptions(
            method=self.search,
            levels=self.levels,
            tokens=self.search_tokens,
            time_limit=self.time_limit,
            bfloat16=self.search_bfloat16,
        )

    @property
    def searches(self) -> bool:
        """Whether the criterion tries the model without layers, in passes of its own."""
        return isinstance(self.criteria[0], Searches)

    @property
    def reads_data(self) -> bool:
        """Whether criterion or repair look at a calibration set."""
        searches = self.elements is None and (self.searches or self.search is not None)
        return bool(self.requests) or searches

    @property
    def repairs_runs(self) -> bool:
        """Whether linears are refitted to states of the whole model."""
        if self.repair is None:
            return False
        return self.refit_behind or any(kind.is_whole for kind in self.budget.kinds)

    @property
    def asked(self) -> dict[str, CriterionLike]:
        """The criteria, by the option that names them: that of the widths last."""
        allocation = {} if self.allocation is None else {"allocation": self.allocation}
        return {"criterion": self.criterion, **allocation}

    @cached_property
    def criteria(self) -> tuple[WidthCriterion, ...]:
        """The criteria: what scores the units; what shares the widths out, where that is another."""
        return tuple(criterion_of(asked, self.normalize) for asked in self.asked.values())

    @property
    def criteria_requests(self) -> tuple[Statistic[Any], ...]:
        """What the criteria need to know."""
        return tuple(request for criterion in self.criteria for request in criterion.requests())

    @property
    def requests(self) -> tuple[Statistic[Any], ...]:
        """What criteria and repair need to know; nothing where they look at weights only."""
        if self.elements is not None:
            return self.elements.requests
        return self.criteria_requests + (() if self.repair is None else (self.repair.request,))

    @property
    def name(self) -> str:
        """What messages call the criterion: text that means the same."""
        return name_of(self.criterion) if self.elements is None else written_of_weights(self.elements.read)

    @property
    def method(self) -> str:
        """What plans and cards call this way of pruning."""
        if self.elements is not None:
            return f"{self.name} of weights"
        parts = [name_of(self.criterion)]
        if isinstance(self.criteria[0], Mixture) and self.normalize != MIXED_AFTER:
            parts.append(f"mixed after {self.normalize}")
        if self.allocation is not None:
            parts.append(f"widths by {name_of(self.allocation)}")
        if self.search is not None:
            parts.append(f"widths by search {self.search}")
        if self.standardize is not None:
            parts.append(f"standardized by {self.standardize}")
        if self.reconstruct is not None:
            parts.append(f"repaired by {self.reconstruct}{self.repairing.changes}")
        if self.steps > 1:
            parts.append(f"in {self.steps} steps")
        return ", ".join(parts)
