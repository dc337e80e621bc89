"""Metrics: the evaluate library's where it can be had, the same of scikit-learn where not."""

import logging
from typing import Any, Literal

import evaluate
import numpy as np
import pytest
import requests
from transformers import EvalPrediction

from sparse_trainer.errors import ArgumentError
from sparse_trainer.tasks import metrics
from sparse_trainer.tasks.metrics import (
    check_metrics,
    classification_metrics,
    hub_reachable,
    load_metric,
    metrics_of,
    regression_metrics,
)

PREDICTED = np.array([1, 1, 0, 0, 1])
REFERENCES = np.array([1, 0, 0, 1, 1])


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "hub_reachable", lambda: False)


@pytest.mark.usefixtures("offline")
def test_offline_scikit_learn_computes_it_without_a_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.INFO):
        accuracy, f1 = load_metric("accuracy"), load_metric("f1")
    assert accuracy(PREDICTED, REFERENCES) == pytest.approx(3 / 5)
    assert f1(PREDICTED, REFERENCES) == pytest.approx(2 / 3)  # 2 true, 1 false positive, 1 false negative
    assert "accuracy: the hub is out of reach, scikit-learn" in caplog.text
    assert {record.levelname for record in caplog.records} == {"INFO"}


@pytest.mark.usefixtures("offline")
def test_with_more_than_two_classes_f1_is_the_mean_over_classes() -> None:
    f1 = load_metric("f1")
    assert f1(np.array([0, 1, 2, 2]), np.array([0, 1, 2, 1])) == pytest.approx((1 + 2 / 3 + 2 / 3) / 3)


class _Module:
    """Stands for a metric script of the hub."""

    def compute(self, **given: Any) -> dict[str, float]:
        assert set(given) <= {"predictions", "references", "average"}
        return {"f1": 0.25}


def test_online_the_evaluate_library_computes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "hub_reachable", lambda: True)
    monkeypatch.setattr(evaluate, "load", lambda name: _Module())
    assert load_metric("f1")(PREDICTED, REFERENCES) == 0.25


def test_a_script_that_cannot_be_had_falls_back(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def load(name: str) -> None:
        raise FileNotFoundError("no such script")

    monkeypatch.setattr(metrics, "hub_reachable", lambda: True)
    monkeypatch.setattr(evaluate, "load", load)
    assert load_metric("accuracy")(PREDICTED, REFERENCES) == pytest.approx(3 / 5)
    assert "no such script" in caplog.text


@pytest.mark.parametrize(
    ("names", "what", "message"),
    [
        (["acuracy"], "classes", r"'acuracy' is an unknown metric\. Did you mean 'accuracy'"),
        (["pearsonr"], "classes", r"'pearsonr' does not fit this task\. Known: accuracy, f1"),
        (["accuracy"], "numbers", r"'accuracy' does not fit this task\. Known: pearsonr, spearmanr"),
        ([], "numbers", r"names none\. Give e\.g\. \[pearsonr\]"),
    ],
)
def test_a_metric_that_does_not_fit_is_refused(
    names: list[str], what: Literal["classes", "numbers"], message: str
) -> None:
    with pytest.raises(ArgumentError, match=message):
        check_metrics(names, metrics_of(what))


def test_offline_by_configuration_asks_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    def head(*_: Any, **__: Any) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(requests, "head", head)
    monkeypatch.setattr(metrics.constants, "HF_HUB_OFFLINE", True)
    assert not hub_reachable()


def test_a_silent_hub_is_given_up_after_a_short_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    waits = []

    def head(url: str, timeout: float) -> None:
        waits.append(timeout)
        raise requests.ConnectTimeout("silence")

    monkeypatch.setattr(requests, "head", head)
    monkeypatch.setattr(metrics.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(metrics.datasets_config, "HF_HUB_OFFLINE", False)
    assert not hub_reachable()
    assert waits
    assert max(waits) <= 5


@pytest.mark.usefixtures("offline")
def test_logits_become_classes_also_when_the_model_returns_more() -> None:
    logits = np.array([[2.0, 1.0], [0.0, 1.0]])
    compute = classification_metrics(["accuracy", "f1"])
    for predictions in (logits, (logits, np.zeros((2, 3)))):
        result = compute(EvalPrediction(predictions=predictions, label_ids=np.array([0, 0])))
        assert result == {"accuracy": 0.5, "f1": 0.0}


@pytest.mark.usefixtures("offline")
def test_the_metrics_of_glue_are_those_of_their_definitions() -> None:
    matthews = load_metric("matthews_correlation")(PREDICTED, REFERENCES)
    assert matthews == pytest.approx((2 * 1 - 1 * 1) / np.sqrt(3 * 3 * 2 * 2))  # 2 tp, 1 tn, 1 fp, 1 fn
    compute = regression_metrics(["pearsonr", "spearmanr"])
    predictions, references = np.array([[0.1], [2.0], [1.0], [9.0]]), np.array([1.0, 2.0, 3.0, 4.0])
    found = compute(EvalPrediction(predictions=predictions, label_ids=references))
    assert found["pearsonr"] == pytest.approx(np.corrcoef(predictions[:, 0], references)[0, 1])
    assert found["spearmanr"] == pytest.approx(1 - 6 * 2 / (4 * (16 - 1)))  # two ranks lie one apart


@pytest.mark.usefixtures("offline")
def test_what_does_not_vary_correlates_with_nothing() -> None:
    compute = regression_metrics(["pearsonr", "spearmanr"])
    constant = EvalPrediction(predictions=np.ones((3, 1)), label_ids=np.array([1.0, 2.0, 3.0]))
    assert compute(constant) == {"pearsonr": 0.0, "spearmanr": 0.0}
