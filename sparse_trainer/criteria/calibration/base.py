"""What a one-shot width criterion has to offer, and what most of them share."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from patchers.layers import linear_at, weight_OI
from patchers.units import Features, Group, Kind, Structure
from sparse_trainer.criteria.scores import check_finite, check_scores
from sparse_trainer.statistics.requests import R, Statistic, Statistics

# Shape legend: O = outputs, I = input features of a consumer, U = units, W = features of a unit.


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What a criterion looks at."""

    model: nn.Module
    structure: Structure
    statistics: Statistics

    def of(self, request: Statistic[R]) -> dict[str, R]:
        """Return what was collected for a request, by group name."""
        return self.statistics.by_group(request, self.structure.groups)


@runtime_checkable
class WidthCriterion(Protocol):
    """Scores units from their weights and from what a calibration pass collected.

    Its options are its fields: a frozen dataclass, made by a name such as `obs(rounds=16)`.
    """

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """Kinds of unit whose score it knows, where what it requests can be collected."""

    @property
    def standardize(self) -> str:
        """Normaliser that suits its scores across layers when the user names none."""

    def requests(self) -> tuple[Statistic[Any], ...]:
        """Return what has to be collected; nothing, for a criterion that looks at weights only."""

    def scores(self, evidence: Evidence) -> dict[str, Tensor]:
        """Return the score of each unit, shape [U], higher = keep, by group name."""


@runtime_checkable
class ChoosesRun(Protocol):
    """Lets layers go that stand side by side: what a run is worth is not the sum of what its layers are worth."""

    def run(self, evidence: Evidence, stack: str, count: int) -> list[Group]:
        """Return the layers of a stack that go, `count` of them."""


@runtime_checkable
class Searches(Protocol):
    """Tries what the model is like without layers, in passes of its own, instead of scoring what one pass tells."""

    def search(self, structure: Structure, trials: "Trials", count: int) -> dict[str, Tensor]:
        """Return the score of each layer, shape [1], higher = keep: the lowest are the `count` best to remove."""


class Trials(Protocol):
    """Tries a model on the calibration set with less in it, and leaves it as it was."""

    def losses(self, gone: Sequence[Group], candidates: Sequence[Group]) -> Mapping[str, Tensor]:
        """Return the mean loss per label, scalar, without what is gone and one candidate more, by its name."""

    def learned_gates(self, options: "LearnsGates") -> Mapping[str, Tensor]:
        """Return the score, shape [U], that the gates of each group learned on frozen weights, by its name."""


class LearnsGates(Protocol):
    """How gates learn together, on frozen weights, which units a model can do without."""

    @property
    def steps(self) -> int:
        """Optimizer steps."""

    @property
    def batch_size(self) -> int:
        """Sequences per optimizer step."""

    @property
    def learning_rate(self) -> float:
        """Length of the first step, without momentum; falls linearly to 0."""

    @property
    def seed(self) -> int:
        """Of the order of the sequences and of all that is drawn."""

    def draw(self, score_U: Tensor, uniform_U: Tensor, cost_U: Tensor, kept: float) -> Tensor:
        """Return the values of all gates in one forward pass, differentiable in the scores, shape [U].

        Args:
            score_U: What is learned, zeros at first.
            uniform_U: Random numbers in (0, 1), other ones in every pass.
            cost_U: Cost of each unit, as a fraction of that of all.
            kept: What stays, as the same fraction.
        """


@runtime_checkable
class OwnDensity(Protocol):
    """Counts a density of layers in a way of its own."""

    def density(self, scores: Mapping[str, Tensor], asked: float) -> float:
        """Return the fraction of the layers that stays."""


def leaves_one(gone: Sequence[Group], structure: Structure) -> bool:
    """Tell whether a layer of every sort stays in each stack; stacks have sorts where layers mix tokens differently."""
    places = {(group.stack, group.layer) for group in gone}
    for path in {group.stack for group in gone}:
        stack = next(stack for stack in structure.stacks if stack.path == path)
        left = {sort for layer, sort in enumerate(stack.sorts) if (path, layer) not in places}
        if not {group.sort for group in gone if group.stack == path} <= left:
            return False
    return True


def scores_of(criterion: WidthCriterion, evidence: Evidence, name: str) -> dict[str, Tensor]:
    """Return the scores of a criterion, once they are known to be one finite number per unit.

    Args:
        name: What the user calls the criterion.

    Raises:
        CriterionError: they are not.
    """
    scores = criterion.scores(evidence)
    check_scores(scores, evidence.structure.groups, name)
    check_finite(scores, name)
    return scores


def consumer_weight(model: nn.Module, group: Group) -> Tensor:
    """Return the weight that reads a group's units, [O, I], in float32 or float64."""
    weight = weight_OI(linear_at(model, group.consumer)).detach()
    return weight if weight.dtype == torch.float64 else weight.float()


def per_unit(per_feature_I: Tensor, features: Features) -> Tensor:
    """Sum over the features of each unit, shape [U].

    >>> per_unit(torch.tensor([1.0, 2.0, 3.0, 4.0]), Features(units=2, width=2))
    tensor([3., 7.])
    """
    return per_feature_I[features.index_UW.to(per_feature_I.device)].sum(-1)
