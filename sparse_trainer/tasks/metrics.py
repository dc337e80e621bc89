"""Metrics of the evaluate library; where its scripts cannot be had, the same metric of scikit-learn or scipy."""

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
from datasets import config as datasets_config
from huggingface_hub import constants
from numpy.typing import NDArray
from transformers import EvalPrediction

from sparse_trainer.errors import ArgumentError, nearest, shown

logger = logging.getLogger(__name__)

# Shape legend: N = examples, C = classes.
Values = NDArray[Any]
"""Numbers of classes, or for correlations numbers, of all examples."""
Score = Callable[[Values, Values], float]
"""(predictions_N, references_N) -> value."""

PROBE_SECONDS = 3.0
"""How long an unreachable hub may hold up a run."""


@dataclass(frozen=True, kw_only=True)
class Measure:
    """What compares predictions with references."""

    of: Literal["classes", "numbers"]
    """What it compares."""
    computed: Score
    """By scikit-learn or scipy: it gives what the metric of the same name in evaluate gives, and needs no download."""


def _accuracy(predictions_N: Values, references_N: Values) -> float:
    """Return the share of right classes."""
    from sklearn.metrics import accuracy_score

    return float(accuracy_score(references_N, predictions_N))


def _f1(predictions_N: Values, references_N: Values) -> float:
    """Return F1 of class 1; with more than two classes the mean over classes."""
    from sklearn.metrics import f1_score

    average = _average(references_N, predictions_N)
    return float(f1_score(references_N, predictions_N, average=average, zero_division=0.0))


def _average(references_N: Values, predictions_N: Values) -> str:
    return "macro" if max(references_N.max(), predictions_N.max()) > 1 else "binary"


def _matthews(predictions_N: Values, references_N: Values) -> float:
    """Return the Matthews correlation, in [-1, 1]: 0 = no better than chance, however unequal the classes are."""
    from sklearn.metrics import matthews_corrcoef

    return float(matthews_corrcoef(references_N, predictions_N))


def _pearson(predictions_N: Values, references_N: Values) -> float:
    """Return Pearson's correlation, in [-1, 1]."""
    from scipy.stats import pearsonr

    return float(pearsonr(references_N, predictions_N)[0])


def _spearman(predictions_N: Values, references_N: Values) -> float:
    """Return Spearman's correlation of ranks, in [-1, 1]."""
    from scipy.stats import spearmanr

    return float(spearmanr(references_N, predictions_N)[0])


METRICS: dict[str, Measure] = {
    "accuracy": Measure(of="classes", computed=_accuracy),
    "f1": Measure(of="classes", computed=_f1),
    "matthews_correlation": Measure(of="classes", computed=_matthews),
    "pearsonr": Measure(of="numbers", computed=_pearson),
    "spearmanr": Measure(of="numbers", computed=_spearman),
}
"""Name in the evaluate library -> the metric."""


def metrics_of(what: Literal["classes", "numbers"]) -> tuple[str, ...]:
    """Return the names of the metrics that compare classes, or numbers."""
    return tuple(name for name, metric in METRICS.items() if metric.of == what)


def check_metrics(names: Sequence[str], fitting: Sequence[str]) -> None:
    """Raise `ArgumentError` where no metric is named, or one that a task does not have.

    Args:
        fitting: All metrics of the task.
    """
    if not names:
        raise ArgumentError("metrics", "names none.", f"Give e.g. [{fitting[0]}].")
    for name in names:
        if name not in fitting:
            problem = "does not fit this task." if name in METRICS else "is an unknown metric."
            raise ArgumentError("metrics", f"{shown(name)} {problem}", nearest(name, fitting))


def load_metric(name: str) -> Score:
    """Return a metric of the evaluate library; where the hub is out of reach, the same of scikit-learn or scipy."""
    # evaluate would run a script of this name that lies beside the user rather than its own.
    if os.path.exists(name) or not hub_reachable():
        # No warning: evaluate's own scripts call the same functions.
        logger.info("metric %s: the hub is out of reach, scikit-learn computes it instead of evaluate", name)
        return METRICS[name].computed
    import evaluate

    try:
        metric = evaluate.load(name)
    except (OSError, ImportError) as error:
        logger.warning(
            "metric %s: evaluate cannot load it (%s), scikit-learn computes it instead", name, error
        )
        return METRICS[name].computed
    return partial(_evaluated, metric, name)


def _evaluated(metric: Any, name: str, predictions_N: Values, references_N: Values) -> float:
    options = {"average": _average(references_N, predictions_N)} if name == "f1" else {}
    return float(metric.compute(predictions=predictions_N, references=references_N, **options)[name])


def hub_reachable() -> bool:
    """Tell whether the hub answers: no by configuration, or by a request that may take PROBE_SECONDS."""
    if constants.HF_HUB_OFFLINE or datasets_config.HF_HUB_OFFLINE:
        return False
    import requests  # slow, and for this one question

    try:
        requests.head(constants.ENDPOINT, timeout=PROBE_SECONDS)
    except requests.RequestException:
        return False
    return True


def classification_metrics(names: Sequence[str]) -> Callable[[EvalPrediction], dict[str, float]]:
    """Return the `compute_metrics` of a Trainer: each named metric on the classes with the highest logits."""
    metrics: Mapping[str, Score] = {name: load_metric(name) for name in names}

    def compute(prediction: EvalPrediction) -> dict[str, float]:
        predictions_N = _first(prediction.predictions).argmax(axis=-1)
        references_N = np.asarray(prediction.label_ids)
        return {name: metric(predictions_N, references_N) for name, metric in metrics.items()}

    return compute


def regression_metrics(names: Sequence[str]) -> Callable[[EvalPrediction], dict[str, float]]:
    """Return the `compute_metrics` of a Trainer: each named correlation of the one number that the model gives.

    Where all predictions, or all references, are one number, a correlation is 0 here; scipy calls it undefined.
    """
    metrics: Mapping[str, Score] = {name: load_metric(name) for name in names}

    def compute(prediction: EvalPrediction) -> dict[str, float]:
        predictions_N = _first(prediction.predictions).reshape(-1)
        references_N = np.asarray(prediction.label_ids).reshape(-1)
        if min(np.ptp(predictions_N), np.ptp(references_N)) == 0:
            return dict.fromkeys(metrics, 0.0)
        return {name: metric(predictions_N, references_N) for name, metric in metrics.items()}

    return compute


def _first(predictions: Any) -> Values:
    """Return the logits, where a model returns more beside them."""
    return np.asarray(predictions[0] if isinstance(predictions, tuple) else predictions)
