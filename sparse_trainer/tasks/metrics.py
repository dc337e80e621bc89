"""Metrics of the evaluate library; where its scripts cannot be had, the same metric of scikit-learn."""

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from datasets import config as datasets_config
from huggingface_hub import constants
from numpy.typing import NDArray
from transformers import EvalPrediction

from sparse_trainer.errors import RecipeError, nearest

logger = logging.getLogger(__name__)

# Shape legend: N = examples, C = classes.
Labels = NDArray[np.int64]
Score = Callable[[Labels, Labels], float]
"""(predictions_N, references_N) -> value."""

PROBE_SECONDS = 3.0
"""How long an unreachable hub may hold up a run."""


def _accuracy(predictions_N: Labels, references_N: Labels) -> float:
    """Return scikit-learn's accuracy."""
    from sklearn.metrics import accuracy_score

    return float(accuracy_score(references_N, predictions_N))


def _f1(predictions_N: Labels, references_N: Labels) -> float:
    """Return scikit-learn's F1 of class 1; with more than two classes the mean over classes."""
    from sklearn.metrics import f1_score

    return float(
        f1_score(
            references_N, predictions_N, average=_average(references_N, predictions_N), zero_division=0.0
        )
    )


def _average(references_N: Labels, predictions_N: Labels) -> str:
    return "macro" if max(references_N.max(), predictions_N.max()) > 1 else "binary"


FALLBACKS: dict[str, Score] = {
    "accuracy": _accuracy,
    "f1": _f1,
}


def load_metric(name: str) -> Score:
    """Return a metric of the evaluate library, or scikit-learn's of the same name where the hub is out of reach.

    Raises:
        RecipeError: An unknown metric.
    """
    if name not in FALLBACKS:
        raise RecipeError(f"task.metrics: {name!r}", "unknown metric.", nearest(name, FALLBACKS))
    # evaluate would run a script of this name that lies beside the user rather than its own.
    if os.path.exists(name) or not hub_reachable():
        logger.warning(
            "metric %s: the hub is out of reach, scikit-learn computes it instead of evaluate", name
        )
        return FALLBACKS[name]
    import evaluate

    try:
        metric = evaluate.load(name)
    except (OSError, ImportError) as error:
        logger.warning(
            "metric %s: evaluate cannot load it (%s), scikit-learn computes it instead", name, error
        )
        return FALLBACKS[name]
    return partial(_evaluated, metric, name)


def _evaluated(metric: Any, name: str, predictions_N: Labels, references_N: Labels) -> float:
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
        logits_NC = (
            prediction.predictions[0] if isinstance(prediction.predictions, tuple) else prediction.predictions
        )
        predictions_N = np.asarray(logits_NC).argmax(axis=-1)
        references_N = np.asarray(prediction.label_ids)
        return {name: metric(predictions_N, references_N) for name, metric in metrics.items()}

    return compute
