"""What can be trained: one file per task, and the dict that names them."""

from sparse_trainer.errors import RecipeError, nearest
from sparse_trainer.tasks.base import Prepared, Task, TaskOptions
from sparse_trainer.tasks.text_classification import TextClassification

TASKS: dict[str, Task] = {
    "text-classification": TextClassification(),
}


def find_task(name: str) -> Task:
    """Return the task of this name.

    Raises:
        RecipeError: No such task.
    """
    if name not in TASKS:
        raise RecipeError(f"task.name: {name!r}", "unknown task.", nearest(name, TASKS))
    return TASKS[name]


__all__ = ["TASKS", "Prepared", "Task", "TaskOptions", "TextClassification", "find_task"]
