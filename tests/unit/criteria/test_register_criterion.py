"""Criteria of users: classes outside of the package, known by name wherever ours are."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from patchers.patching.gates import Gate, SaliencyGate
from patchers.units import CHANNELS, EXPERTS, HEADS, Group, Kind, Structure
from sparse_trainer import PruningTrainer, SparseTrainingArguments, optimize_model, prune, register_criterion
from sparse_trainer.criteria.calibration.base import Evidence, per_unit
from sparse_trainer.criteria.calibration.registry import WIDTH_CRITERIA
from sparse_trainer.criteria.training.registry import TRAINING_CRITERIA
from sparse_trainer.errors import ArgumentError, CriterionError, NonFiniteError, UnsupportedModelError
from sparse_trainer.statistics.moments import Moments
from sparse_trainer.statistics.requests import Statistic
from sparse_trainer.training.coordinator import ModelPatchingCoordinator
from tests.architectures.tiny import tiny_model
from tests.fixtures.compact_models import tiny
from tests.fixtures.oneshot_models import calibration, model_of
from tests.fixtures.training import trainer


@dataclass(frozen=True, kw_only=True)
class Loudness:
    """Power mean of what a unit feeds its consumer."""

    kinds: ClassVar[tuple[Kind, ...]] = (HEADS, CHANNELS)
    standardize: ClassVar[str] = "zscore_layer"
    power: float = 1.0
    fault: str = ""

    def requests(self) -> tuple[Statistic[Any], ...]:
        return (Moments(),)

    def scores(self, evidence: Evidence) -> dict[str, Tensor]:
        moments = evidence.of(Moments())
        found = {
            g.name: per_unit(moments[g.name].second_I.pow(self.power), g.consumer_slice)
            for g in evidence.structure.groups
        }
        return spoilt(found, self.fault)


@dataclass(frozen=True, kw_only=True)
class Position:
    """Needs no data: keeps the first units, or the last."""

    kinds: ClassVar[tuple[Kind, ...]] = (HEADS, CHANNELS)
    standardize: ClassVar[str] = "none"
    last: bool = False

    def requests(self) -> tuple[Statistic[Any], ...]:
        return ()

    def scores(self, evidence: Evidence) -> dict[str, Tensor]:
        sign = 1.0 if self.last else -1.0
        return {g.name: sign * torch.linspace(0, 1, g.num_units) for g in evidence.structure.groups}


@dataclass(frozen=True, kw_only=True)
class GradientSign:
    """Counts, while a model trains, how often the loss asks for more of a unit."""

    kinds: ClassVar[tuple[Kind, ...]] = (HEADS, CHANNELS)
    default_units: ClassVar[tuple[Kind, ...]] = (CHANNELS,)
    standardize: ClassVar[str] = "none"
    learns: ClassVar[bool] = False
    memory: float = 0.5
    fault: str = ""

    def make_gate(self, group: Group) -> Gate:
        return SaliencyGate(group.num_units)

    def observe(self, gates: Any, loss_scale: Tensor | None = None) -> None:
        for gate in gates.values():
            if gate.score_U.grad is not None:
                gate.saliency_U.lerp_(gate.score_U.grad.sign(), 1.0 - self.memory)
                gate.score_U.grad = None

    def scores(self, model: nn.Module, structure: Structure, gates: Any) -> dict[str, Tensor]:
        return spoilt({name: gate.saliency_U.clone() for name, gate in gates.items()}, self.fault)


def spoilt(scores: dict[str, Any], fault: str) -> dict[str, Any]:
    first = next(iter(scores))
    if fault == "short":
        scores[first] = scores[first][1:]
    elif fault == "nan":
        scores[first] = scores[first] * torch.nan
    elif fault == "list":
        scores[first] = scores[first].tolist()
    elif fault == "missing":
        del scores[first]
    elif fault == "unknown":
        scores["nowhere"] = torch.zeros(2)
    return scores if fault != "no mapping" else list(scores)  # type: ignore[return-value]


FAULTS = {
    "short": r"layer.*: criterion .* gave scores of shape \(\d+,\) for \d+ units. Return one score per unit",
    "nan": "layer.*NaN or infinite",
    "list": "layer.*gave a list, not a tensor",
    "missing": "layer.*gave no scores of this group",
    "unknown": "nowhere: criterion .* gave scores of a group that was not asked for",
    "no mapping": "gave a list. Return a mapping",
}


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    before = dict(WIDTH_CRITERIA), dict(TRAINING_CRITERIA)
    register_criterion("loudness", Loudness)
    register_criterion("position", Position)
    register_criterion("gradient_sign", GradientSign)
    yield
    for known, was in zip((WIDTH_CRITERIA, TRAINING_CRITERIA), before, strict=True):
        for name in set(known) - set(was):
            del known[name]


def kept(plan: Any) -> dict[str, list[int]]:
    return {name: group["keep"] for name, group in plan.groups.items()}


def test_prune_knows_it_by_name_with_options_and_in_mixtures() -> None:
    model = model_of("llama")
    batches = calibration(model)
    pruned, plan = prune(model, batches, criterion="loudness(power=2)", density=0.6)
    assert pruned.num_parameters() < model.num_parameters()
    assert plan.method == "loudness(power=2)"
    assert kept(plan) == kept(prune(model, batches, criterion=Loudness(power=2.0), density=0.6)[1])
    assert kept(plan) != kept(prune(model, batches, criterion="position", density=0.6)[1])
    _, mixed = prune(model, batches, criterion="loudness(power=2) + 0.5 fisher", density=0.6)
    assert mixed.method == "loudness(power=2) + 0.5 fisher"
    _, first = prune(model, criterion="position", density={"channels": 0.5})
    assert all(units == list(range(len(units))) for units in kept(first).values())


@pytest.mark.parametrize(
    "scoring",
    ["loudness(power=2)", "position(last=true)", "gradient_sign(memory=0.9)", "loudness + 0.5 fisher"],
)
def test_fine_pruning_scores_by_it(scoring: str, tmp_path: Path) -> None:
    args = SparseTrainingArguments(scoring=scoring, density=0.5, calibration_samples=8)
    run = trainer(tmp_path, args)
    assert isinstance(run, PruningTrainer)
    run.train()
    plan = optimize_model(run.model, check=False).pruning_plan
    assert plan.density_reached == pytest.approx(0.5, abs=0.05)
    assert plan.method.startswith(scoring.partition("(")[0])
    if scoring.startswith("position"):
        assert all(0 not in units for units in kept(plan).values() if len(units) < 4)


def test_kinds_of_unit_follow_the_criterion() -> None:
    assert SparseTrainingArguments(scoring="gradient_sign").kinds == (CHANNELS,)
    assert SparseTrainingArguments(scoring="loudness").kinds == (HEADS, CHANNELS)
    for scoring in ("gradient_sign", "loudness", "position"):
        with pytest.raises(ArgumentError, match=f"{scoring} does not score layers.*score by"):
            SparseTrainingArguments(scoring=scoring, units=["layers"])
    with pytest.raises(ArgumentError, match="position does not score experts"):
        prune(model_of("llama"), criterion="position", units=[str(EXPERTS)])


@pytest.mark.parametrize(
    "scoring", ["gradient_sign(memry=1)", "loudness(memry=1)", "gradient_sign(memory=x)"]
)
def test_options_are_checked_by_name_and_type(scoring: str) -> None:
    with pytest.raises(ArgumentError, match=r"(unknown key\. .*Known: |is text\. Give a number)"):
        SparseTrainingArguments(scoring=scoring)


def test_an_option_of_ours_is_said_once() -> None:
    assert SparseTrainingArguments(scoring="taylor(order=2)").criterion.order == 2
    assert SparseTrainingArguments(scoring="taylor(order=2)").driver_options.method == "taylor(order=2)"
    with pytest.raises(ArgumentError, match=r"scoring, taylor_order: say the same thing\. Drop one"):
        SparseTrainingArguments(scoring="taylor(order=2)", taylor_order=2)


@pytest.mark.parametrize("fault", FAULTS)
def test_faulty_scores_are_named_in_prune(fault: str) -> None:
    model = model_of("llama")
    with pytest.raises(CriterionError, match=FAULTS[fault]):
        prune(model, calibration(model), criterion=f"loudness(fault={fault})", density=0.6)
    with pytest.raises(CriterionError, match="loudness"):
        prune(model, calibration(model), criterion=f"0.5 loudness(fault={fault}) + wanda", density=0.6)


@pytest.mark.parametrize("fault", [fault for fault in FAULTS if fault != "nan"])
def test_faulty_scores_are_named_before_training(fault: str) -> None:
    coordinator = ModelPatchingCoordinator(SparseTrainingArguments(scoring=f"gradient_sign(fault={fault})"))
    with pytest.raises(CriterionError, match=FAULTS[fault]):
        coordinator.patch_model(tiny())


def test_scores_that_are_no_numbers_stop_training() -> None:
    coordinator = ModelPatchingCoordinator(SparseTrainingArguments(scoring="gradient_sign(fault=nan)"))
    coordinator.patch_model(tiny())
    coordinator.begin(4)
    coordinator.step(3)
    with pytest.raises(NonFiniteError, match="layer"):
        coordinator.metrics()


def test_stacked_experts_are_refused_where_nothing_can_be_collected() -> None:
    with pytest.raises(UnsupportedModelError, match="loudness cannot score it"):
        ModelPatchingCoordinator(SparseTrainingArguments(scoring="loudness")).patch_model(
            tiny_model("mixtral")
        )


def without(cls: type, *members: str) -> type:
    body = {name: value for name, value in vars(cls).items() if name not in members and name[:2] != "__"}
    fields = {name: kind for name, kind in cls.__annotations__.items() if name not in members}
    return dataclass(frozen=True, kw_only=True)(type("Lacking", (), {**body, "__annotations__": fields}))


@dataclass(frozen=True, kw_only=True)
class Open:
    kinds: ClassVar[tuple[Kind, ...]] = (HEADS,)
    need: float


@dataclass(frozen=True, kw_only=True)
class Misspelt:
    kinds: ClassVar[tuple[str, ...]] = ("head",)
    standardize: ClassVar[str] = "none"

    def requests(self) -> tuple[Statistic[Any], ...]:
        return ()

    def scores(self, evidence: Evidence) -> dict[str, Tensor]:
        return {}


@dataclass
class Loose:
    kinds: ClassVar[tuple[Kind, ...]] = (HEADS,)


@pytest.mark.parametrize(
    ("name", "criterion", "message"),
    [
        ("mine", without(Loudness, "requests"), "Lacking has no requests. Add what WidthCriterion lists"),
        ("mine", without(Loudness, "kinds", "scores"), "Lacking has no kinds, scores"),
        ("mine", without(GradientSign, "learns"), "Lacking has no learns. Add what TrainingCriterion lists"),
        ("mine", Misspelt, "criterion mine: kinds: unknown value 'head'. Did you mean 'heads'"),
        ("mine", Open, "Open.need has no default"),
        ("mine", Loose, "Loose can be changed. Make the dataclass frozen"),
        ("mine", Loudness(), "is no dataclass. Decorate"),
        ("mine", int, "is no dataclass. Decorate"),
        ("my mine", Loudness, "is no name. Use letters"),
        ("wanda", Loudness, "criterion wanda: is taken"),
        ("movement", GradientSign, "criterion movement: is taken"),
        ("loudness", GradientSign, "criterion loudness: is taken"),
    ],
)
def test_what_cannot_serve_is_refused_at_once(name: str, criterion: Any, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        register_criterion(name, criterion)


def test_the_same_class_may_be_registered_again() -> None:
    register_criterion("loudness", Loudness)
    register_criterion("gradient_sign", GradientSign)
