"""What a causal language model is worth: perplexity on running text, accuracy on questions, answers about images."""

from sparse_trainer.tasks.language.choices import Accuracy, multiple_choice
from sparse_trainer.tasks.language.image_text.answers import WrittenAnswers
from sparse_trainer.tasks.language.measure import (
    Change,
    EvaluationOptions,
    Result,
    check_tasks,
    compare,
    evaluate,
)
from sparse_trainer.tasks.language.text import Perplexity, perplexity

__all__ = [
    "Accuracy",
    "Change",
    "EvaluationOptions",
    "Perplexity",
    "Result",
    "WrittenAnswers",
    "check_tasks",
    "compare",
    "evaluate",
    "multiple_choice",
    "perplexity",
]
