"""Section `early_stopping` of a recipe: end a training whose models no longer become better."""

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import EarlyStoppingCallback, TrainingArguments

from sparse_trainer.errors import ArgumentError, nearest
from sparse_trainer.fields import check_counts, check_not_negative
from sparse_trainer.run.report import NO_SHARES


@dataclass(frozen=True, kw_only=True, slots=True)
class EarlyStoppingOptions:
    """When a training ends before its last step: by `metric_for_best_model` of its options, at every evaluation.

    Of fine-pruning only evaluations of the final structure count.
    """

    patience: int = 3
    """Evaluations without a better model after which training ends."""
    threshold: float = 0.0
    """How much better a model has to be to count as better."""

    def __post_init__(self) -> None:
        check_counts(patience=self.patience)
        check_not_negative("threshold", self.threshold)

    def callback(self) -> EarlyStoppingCallback:
        """Return what a Trainer is given."""
        return EarlyStoppingCallback(self.patience, self.threshold)


def check_best_metric(training: TrainingArguments, metrics: Sequence[str]) -> None:
    """Raise `ArgumentError` where the metric that tells the best model is not measured.

    Args:
        metrics: Those of the task.
    """
    asked, known = training.metric_for_best_model, ("loss", *metrics)
    if asked is not None and asked.removeprefix("eval_") not in known:
        raise ArgumentError("metric_for_best_model", f"{asked!r} is not measured.", nearest(asked, known))


def is_lower_better(metric: str) -> bool:
    """Tell a metric that is better when it is lower. (Trainer itself knows losses only.)

    >>> is_lower_better("eval_perplexity"), is_lower_better("accuracy")
    (True, False)
    """
    return metric.endswith(NO_SHARES)
