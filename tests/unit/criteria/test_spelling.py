"""Criteria as text."""

from typing import Any

import pytest
import torch

from sparse_trainer.criteria.calibration.afr import Afr
from sparse_trainer.criteria.calibration.expressions import read_criterion, read_sum
from sparse_trainer.criteria.calibration.mixture import criterion_of, name_of
from sparse_trainer.criteria.calibration.obs import Obs
from sparse_trainer.criteria.calibration.registry import WIDTH_CRITERIA
from sparse_trainer.criteria.calibration.taylor import Taylor
from sparse_trainer.errors import ArgumentError
from sparse_trainer.one_shot.prune import prune
from sparse_trainer.training.arguments.arguments import SparseTrainingArguments
from tests.architectures.tiny import tiny_model


@pytest.mark.parametrize("name", sorted(WIDTH_CRITERIA))
def test_every_criterion_is_read_by_its_name(name: str) -> None:
    assert read_criterion(name) == WIDTH_CRITERIA[name]()
    assert read_criterion(name.replace("_", "-")) == WIDTH_CRITERIA[name]()


@pytest.mark.parametrize(
    ("text", "criterion"),
    [
        ("obs(rounds=16)", Obs(rounds=16)),
        ("obs( rounds = 16 , damping=1e-3, centred=true )", Obs(rounds=16, damping=1e-3, centred=True)),
        ("taylor(form=vector)", Taylor(form="vector")),
        ("taylor()", Taylor()),
    ],
)
def test_options_are_read_into_the_fields_of_the_criterion(text: str, criterion: object) -> None:
    assert criterion_of(text) == criterion


@pytest.mark.parametrize("mixed", [{"wanda": 1.0, "fisher": 0.5}, {"obs(rounds=2)": 0.25, "wanda": 1.0}])
def test_a_sum_is_read_as_plans_write_it(mixed: dict[str, float]) -> None:
    assert read_sum(name_of(mixed)) == mixed
    assert criterion_of(name_of(mixed)) == criterion_of(mixed)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("wnda", "criterion: unknown value 'wnda'.*Did you mean 'wanda'"),
        ("wanda + wnda", "criterion: unknown value 'wnda'"),
        ("obs(round=2)", r"criterion obs\.round: unknown key.*'rounds'"),
        ("obs(rounds=many)", r"criterion obs\.rounds: 'many' is text"),
        ("obs(rounds=2", "criterion: unknown value"),
        ("wanda + ", "is no sum"),
        ("wanda(size=1)", r"criterion wanda\.size: unknown key"),
        ("", "criterion: unknown value ''"),
    ],
)
def test_what_cannot_be_read_is_named(text: str, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        criterion_of(text)


def test_a_criterion_as_text_prunes_as_its_instance_does() -> None:
    batches = [{"input_ids": torch.randint(3, 99, (2, 16), generator=torch.Generator().manual_seed(1))}]
    model = tiny_model("llama")
    _, text = prune(model, batches, criterion="taylor(form=vector)", density=0.7)
    _, instance = prune(model, batches, criterion=Taylor(form="vector"), density=0.7)
    assert text.groups == instance.groups
    assert text.method == "taylor(form=vector)"


@pytest.mark.parametrize(
    "criterion",
    [
        Taylor(form="vector", aggregation="max"),
        Obs(rounds=3, damping=1e-3, centred=True),
        Afr(power=1.5, within="zscore_layer"),
        {"obs(rounds=2)": 0.1, "taylor(form=vector)": 2},
        "wanda + 0.001 fisher",
    ],
    ids=str,
)
def test_the_method_of_a_plan_is_the_criterion_with_its_options(criterion: Any) -> None:
    assert criterion_of(name_of(criterion)) == criterion_of(criterion)


def test_plans_record_what_the_criterion_and_the_repair_were_told() -> None:
    model = tiny_model("llama")
    torch.manual_seed(0)
    batches = [{"input_ids": torch.randint(3, 90, (4, 16))}]
    _, plan = prune(
        model,
        batches,
        criterion=Obs(rounds=2),
        density=0.7,
        reconstruct="least_squares",
        damping=0.2,
        sequential=True,
    )
    assert plan.method == "obs(rounds=2), repaired by least_squares (damping=0.2, sequential=True)"


def test_plans_of_trainings_record_the_options_of_the_criterion() -> None:
    assert SparseTrainingArguments(scoring="taylor").driver_options.method == "taylor"
    assert (
        SparseTrainingArguments(scoring="taylor", taylor_order=2).driver_options.method
        == "taylor(taylor_order=2)"
    )
    assert (
        SparseTrainingArguments(scoring="random", pruning_seed=7).driver_options.method
        == "random(pruning_seed=7)"
    )
    assert SparseTrainingArguments(scoring="movement", taylor_order=2).driver_options.method == "movement"
