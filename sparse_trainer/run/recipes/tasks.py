"""Section `task` of a recipe."""

from collections.abc import Mapping
from dataclasses import fields

from sparse_trainer.errors import RecipeError, nearest, shown
from sparse_trainer.run.recipes.reading import Sections
from sparse_trainer.run.recipes.sections import parsed, section
from sparse_trainer.tasks.base import Task


def task_of(sections: Sections, origin: str, known_tasks: Mapping[str, type[Task]], default: str) -> Task:
    """Make the task that a section names; the other keys are its own options.

    Args:
        known_tasks: By name: those of the registry.
        default: Name of the task that is meant where none is named.
    """
    options, where = section(sections, "task", origin), f"{origin}: task"
    name = options.get("name", default)
    if not isinstance(name, str) or name not in known_tasks:
        raise RecipeError(f"{where}.name", f"unknown task {shown(name)}.", nearest(str(name), known_tasks))
    cls: type = known_tasks[name]
    known = ("name", *(field.name for field in fields(cls)))
    for key in options:
        if key not in known:
            raise RecipeError(f"{where}.{key}", "unknown key.", nearest(str(key), known))
    own = {key: value for key, value in options.items() if key != "name"}
    return parsed(known_tasks[name], {"task": own}, "task", origin)
