"""What a causal language model is worth: perplexity on running text, accuracy on questions."""

from sparse_trainer.evaluation.choices import Accuracy, multiple_choice
from sparse_trainer.evaluation.measure import (
    Comparison,
    EvaluationOptions,
    Result,
    check_tasks,
    compare,
    evaluate,
)
from sparse_trainer.evaluation.text import Perplexity, perplexity

__all__ = [
    "Accuracy",
    "Comparison",
    "EvaluationOptions",
    "Perplexity",
    "Result",
    "check_tasks",
    "compare",
    "evaluate",
    "multiple_choice",
    "perplexity",
]
