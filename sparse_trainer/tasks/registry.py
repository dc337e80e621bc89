"""What can be trained: one file per task, the dict that names them, and the way to add one of your own."""

import dataclasses
from typing import Any, Final, cast

from sparse_trainer.errors import ArgumentError, shown
from sparse_trainer.tasks.base import Task
from sparse_trainer.tasks.text_classification import TextClassification

TASKS: dict[str, type[Task]] = {
    "text-classification": TextClassification,
}
DEFAULT_TASK: Final = "text-classification"
_MEMBERS: Final = ("metrics", "pipeline", "auto_class", "outputs", "prepare", "load_model")


def register_task(name: str, task: type[Any]) -> None:
    """Make a task known by a name, to recipes: `task: {name: NAME, ...}`, with its fields as the other keys.

    Args:
        name: Letters, digits, hyphens and underscores.
        task: A frozen dataclass with the members of `sparse_trainer.tasks.base.Task`.

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
    lacking = [member for member in _MEMBERS if member not in members]
    if lacking:
        raise ArgumentError(
            where,
            f"{task.__name__} has no {', '.join(lacking)}.",
            "Add what sparse_trainer.tasks.base.Task lists.",
        )
    taken = TASKS.get(name, task)
    if (taken.__module__, taken.__qualname__) != (task.__module__, task.__qualname__):
        raise ArgumentError(where, f"is taken by {taken.__module__}.{taken.__name__}.", "Take another name.")
    TASKS[name] = cast(type[Task], task)
