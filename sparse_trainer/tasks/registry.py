"""What can be trained: one file per task, the dict that names them, and the way to add one of your own."""

import dataclasses
from typing import Any, Final, cast

from sparse_trainer.errors import ArgumentError, shown
from sparse_trainer.registration import check_entry
from sparse_trainer.tasks.audio_classification import AudioClassification
from sparse_trainer.tasks.base import Task
from sparse_trainer.tasks.causal_lm import CausalLM
from sparse_trainer.tasks.image_classification import ImageClassification
from sparse_trainer.tasks.instruction_tuning import InstructionTuning
from sparse_trainer.tasks.masked_lm import MaskedLM
from sparse_trainer.tasks.multiple_choice import MultipleChoice
from sparse_trainer.tasks.question_answering.task import QuestionAnswering
from sparse_trainer.tasks.sentence_embeddings import SentenceEmbeddings
from sparse_trainer.tasks.text_classification import TextClassification
from sparse_trainer.tasks.text_to_text import TextToText
from sparse_trainer.tasks.token_classification import TokenClassification

TASKS: dict[str, type[Task]] = {
    "audio-classification": AudioClassification,
    "causal-lm": CausalLM,
    "image-classification": ImageClassification,
    "instruction-tuning": InstructionTuning,
    "masked-lm": MaskedLM,
    "multiple-choice": MultipleChoice,
    "sentence-embeddings": SentenceEmbeddings,
    "question-answering": QuestionAnswering,
    "text-classification": TextClassification,
    "text-to-text": TextToText,
    "token-classification": TokenClassification,
}
DEFAULT_TASK: Final = "text-classification"
_MEMBERS: Final = (
    "metrics",
    "pipeline",
    "auto_class",
    "outputs",
    "prepare",
    "load_model",
    "arguments",
    "trainer",
    "processor",
    "ready",
    "learns_itself",
    "complete",
    "beside",
)


def register_task(name: str, task: type[Any]) -> None:
    """Make a task known by a name, to recipes: `task: {name: NAME, ...}`, with its fields as the other keys.

    Args:
        name: Letters, digits, hyphens and underscores.
        task: A frozen dataclass with `sparse_trainer.tasks.base.Task` as its base, or with all its members.

    Raises:
        ArgumentError: no name, one that another class has, or a class that is no dataclass or lacks a member.
    """
    where = f"task {shown(name)}"
    if not str(name).replace("-", "_").isidentifier():
        raise ArgumentError(where, "is no name.", "Use letters, digits, hyphens and underscores.")
    if not isinstance(task, type) or not dataclasses.is_dataclass(task):
        raise ArgumentError(
            where,
            f"{shown(task)} is no dataclass.",
            "Decorate the class: @dataclass(frozen=True, kw_only=True).",
        )
    members = {*dir(task), *(field.name for field in dataclasses.fields(task))}
    check_entry(where, task, members, _MEMBERS, "sparse_trainer.tasks.base.Task", TASKS.get(name))
    TASKS[name] = cast(type[Task], task)
