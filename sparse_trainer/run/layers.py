"""Layers side by side: what criteria of depth say of each, which they would take, and a study of importance."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor
from transformers import PreTrainedModel

from patchers.layers import linear_at, weight_OI
from patchers.units import LAYERS, Structure
from sparse_trainer.criteria.calibration.base import Evidence, Searches, scores_of
from sparse_trainer.criteria.calibration.mixture import CriterionLike, name_of
from sparse_trainer.criteria.calibration.registry import WIDTH_CRITERIA
from sparse_trainer.criteria.calibration.scorable import scored_kinds
from sparse_trainer.cut.decide import found_in
from sparse_trainer.cut.decision import Decision
from sparse_trainer.cut.record import plan_of
from sparse_trainer.errors import ArgumentError, BudgetError, DataError, UnsupportedModelError
from sparse_trainer.one_shot.checks import check_prunable
from sparse_trainer.one_shot.options import PruneOptions
from sparse_trainer.one_shot.progress import Progress, kept_in
from sparse_trainer.one_shot.protect import Protect
from sparse_trainer.one_shot.round import Source, run_round
from sparse_trainer.plan.document import called
from sparse_trainer.statistics.calibration import Batches
from sparse_trainer.statistics.collect import collect
from sparse_trainer.statistics.layer_study import FfnGradients, LayerActivations, ffn_linears
from sparse_trainer.statistics.requests import Statistic, Statistics

Numbers = tuple[float | None, ...]
"""One per layer; None where there is none."""
STUDY: Final[Mapping[str, str]] = {
    "activation_variance": "variance over features of the mean activation",
    "gradient_l1": "L1 norm of the gradients of feed-forward weights",
    "gradient_l2": "L2 norm of the gradients of feed-forward weights",
    "weight_frobenius": "Frobenius norm of the feed-forward weights",
    "activation_sparsity": "share of activations below 1e-5",
}
"""What a study looks at, as the one that comes with AVSS (arXiv 2411.02117) does: column -> what it is."""


@dataclass(frozen=True, kw_only=True)
class LayerComparison:
    """What was found of each layer."""

    stacks: tuple[str, ...]
    """Path of the list of blocks that each layer is in."""
    numbers: tuple[int, ...]
    """Place of each layer in its list."""
    scores: Mapping[str, Numbers]
    """By criterion; higher = keep."""
    taken: Mapping[str, tuple[bool, ...] | None]
    """By criterion: whether each layer would go; None where the criterion finds none that may go."""
    study: Mapping[str, Numbers]
    """By column of `STUDY`; without gradients where there is no loss. Empty where no study was asked for."""
    density: float
    """Fraction of the layers that would stay."""
    model: str = ""
    """What it is called."""

    def goes(self, criterion: str) -> str | None:
        """Return the layers that a criterion would take, e.g. `3, 4`; of several lists of blocks, list by list."""
        taken = self.taken[criterion]
        if taken is None:
            return None
        by_stack: dict[str, list[str]] = {stack: [] for stack in self.stacks}
        for stack, number, gone in zip(self.stacks, self.numbers, taken, strict=True):
            if gone:
                by_stack[stack].append(str(number))
        if len(by_stack) == 1:
            return ", ".join(*by_stack.values())
        return "; ".join(f"{stack}: {', '.join(layers)}" for stack, layers in by_stack.items() if layers)


def depth_criteria() -> tuple[str, ...]:
    """Return the names of the criteria that score layers by what one pass over a calibration set tells."""
    made = {name: cls() for name, cls in WIDTH_CRITERIA.items()}
    return tuple(
        name for name, each in made.items() if LAYERS in scored_kinds(each) and not isinstance(each, Searches)
    )


def layer_options(
    criteria: Sequence[CriterionLike] | None, density: float, protect: Sequence[Protect] = ()
) -> dict[str, PruneOptions]:
    """Return the options of `prune` that would take layers by each criterion, by its name.

    Args:
        criteria: None = `depth_criteria()`.

    Raises:
        ArgumentError: an unknown criterion, or one that scores no layers; a density that cannot be.
    """
    if criteria is not None and not criteria:
        raise ArgumentError("criteria", "there is none.", f"Take some of {', '.join(depth_criteria())}.")
    found = {}
    for asked in depth_criteria() if criteria is None else criteria:
        try:
            options = PruneOptions(criterion=asked, density={LAYERS: density}, protect=tuple(protect))
        except ArgumentError as error:
            if not error.where.startswith("criterion"):
                raise
            where = error.where.replace("criterion", "criteria", 1)
            raise ArgumentError(where, error.what, error.remedy) from error
        found[name_of(asked)] = options
    return found


def check_text(asked: Iterable[PruneOptions], *, study: bool, given: bool) -> None:
    """Raise `DataError` where a criterion, or the study, needs a calibration set and there is none."""
    needing = next((name_of(options.criterion) for options in asked if options.reads_data), None)
    if given or (needing is None and not study):
        return
    raise DataError(
        "calibration", f"{needing or 'a study'} needs one.",
        "Set `calibration`; or take criteria that look at weights only, such as magnitude, and set `study=False`.",
    )  # fmt: skip


def compare_layers(
    model: PreTrainedModel,
    calibration: Iterable[Mapping[str, Any]] | None = None,
    *,
    criteria: Sequence[CriterionLike] | None = None,
    density: float = 0.75,
    protect: Sequence[Protect] = (),
    study: bool = True,
) -> LayerComparison:
    """Return what criteria of depth say of each layer, and which they would take; the model stays as it is.

    All of them share one pass over the calibration set. Criteria and columns that need gradients are left out where
    there is no loss, unless they are asked for.

    Args:
        calibration: Batches, as `prune` takes them; with labels, for gradients of models that are no causal language
            models. None where criteria look at weights only, and there is no study.
        criteria: Names, with options in brackets, or instances; None = all that score layers in one pass.
        density: Fraction of the layers that would stay, in (0, 1].
        protect: Layers that stay, as in `prune`.
        study: Whether to look at activations, gradients and weights as well: `STUDY`.

    Raises:
        ArgumentError: An unknown criterion, or one that scores no layers.
        BudgetError: Not so many layers may go.
        DataError: No calibration set, or one that does not fit the model.
        UnsupportedModelError: The model cannot be pruned, or has no layers that could go.
    """
    asked = layer_options(criteria, density, protect)
    check_text(asked.values(), study=study, given=calibration is not None)
    _check_has_layers(model)
    (found, layers), *_ = [check_prunable(options, model) for options in asked.values()]
    # Whether so many layers may go is known without data.
    _decided(model, found, layer_options(["last"], density, protect)["last"], Statistics(), None)
    batches = None if calibration is None else Batches(model, calibration)
    with_loss = batches is not None and has_loss(batches)
    if criteria is None and not with_loss:
        asked = {name: options for name, options in asked.items() if not _needs_loss(options.requests)}
    requests = [request for options in asked.values() for request in options.requests]
    if study:
        requests += [LayerActivations(), *([FfnGradients()] if with_loss else [])]
    statistics = Statistics() if batches is None else collect(model, layers, batches, requests)
    verdicts = {
        name: _verdict(model, found, layers, options, statistics, batches) for name, options in asked.items()
    }
    return LayerComparison(
        stacks=tuple(group.stack for group in layers.groups),
        numbers=tuple(group.layer for group in layers.groups),
        scores={name: scores for name, (scores, _) in verdicts.items()},
        taken={name: taken for name, (_, taken) in verdicts.items()},
        study=_study(model, layers, statistics) if study else {},
        density=density,
        model=called(str(model.config.name_or_path or "")) or type(model).__name__,
    )


def _check_has_layers(model: PreTrainedModel) -> None:
    if not found_in(model).of([LAYERS]):
        raise UnsupportedModelError(
            type(model).__name__, "has no layers that could go.",
            "`sparse-trainer inspect` shows what of it can be pruned.",
        )  # fmt: skip


def has_loss(batches: Batches) -> bool:
    """Tell whether there are labels for the model's loss, or some can be made of the tokens."""
    with suppress(DataError):
        return any(batch.terms is not None for batch in batches.read(labelled=True))
    return False


def _needs_loss(requests: Iterable[Statistic[Any]]) -> bool:
    return any(request.loss is not None for request in requests)


def _decided(
    model: PreTrainedModel,
    found: Structure,
    options: PruneOptions,
    statistics: Statistics,
    batches: Batches | None,
) -> Decision | None:
    """Return what would be decided; nothing is cut. None where nothing can go any more.

    Raises:
        BudgetError: No such set of layers may go.
    """
    source = Source(batches=batches, statistics=statistics, device=None)
    return run_round(model, found, source, options, Progress(kept=kept_in(plan_of(model))), 1.0, None)


def _verdict(
    model: PreTrainedModel,
    found: Structure,
    layers: Structure,
    options: PruneOptions,
    statistics: Statistics,
    batches: Batches | None,
) -> tuple[Numbers, tuple[bool, ...] | None]:
    """Return the score of each layer, and whether it would go; None where no such set of layers may."""
    try:
        decision = _decided(model, found, options, statistics, batches)
    except BudgetError:
        decision = None
    if decision is not None:
        scores, keep = decision.scores, decision.keep
        taken = tuple(not bool(keep[group.name].all()) for group in layers.groups)
        return tuple(float(scores[group.name]) for group in layers.groups), taken
    evidence = Evidence(model=model, structure=layers, statistics=statistics)
    scores = scores_of(options.criteria[0], evidence, name_of(options.criterion))
    return tuple(float(scores[group.name]) for group in layers.groups), None


def _study(model: PreTrainedModel, layers: Structure, statistics: Statistics) -> dict[str, Numbers]:
    """Return the columns of `STUDY` that there are."""
    linears = ffn_linears(model)
    blocks = [group.block for group in layers.groups]
    activations = statistics.of(LayerActivations())
    weights = [[weight_OI(linear_at(model, path)) for path in linears.get(block, ())] for block in blocks]
    found: dict[str, list[Tensor | None]] = {
        "activation_variance": [activations[block].variance for block in blocks],
        "weight_frobenius": [_frobenius(of_layer) for of_layer in weights],
        "activation_sparsity": [activations[block].sparsity for block in blocks],
    }
    if FfnGradients() in statistics.found:
        norms = statistics.of(FfnGradients())
        found["gradient_l1"] = [norms[block].l1 if block in linears else None for block in blocks]
        found["gradient_l2"] = [norms[block].l2 if block in linears else None for block in blocks]
    return {
        column: tuple(None if value is None else float(value) for value in found[column])
        for column in STUDY
        if column in found
    }


@torch.no_grad()
def _frobenius(weights: Sequence[Tensor]) -> Tensor | None:
    """Return the sum of the norms of a layer's feed-forward weights; None where no linear holds any."""
    if not weights:
        return None
    return torch.stack([torch.linalg.vector_norm(weight.detach().float()) for weight in weights]).sum()
