"""Pipelines that transformers has no more: a file each, which travels in the folder of a model.

A new one is a file and a line of `PIPELINES`.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True, slots=True)
class TravellingPipeline:
    """A pipeline in a file beside the model."""

    class_name: str
    auto_class: str
    """The auto class of transformers whose models it runs."""

    def file(self, task: str) -> Path:
        """Return the file that travels."""
        return Path(__file__).with_name(f"{task.replace('-', '_')}.py")

    def entry(self, task: str) -> dict[str, Any]:
        """Return what config.json says of it under `custom_pipelines`, by the name of the task."""
        impl = f"{self.file(task).stem}.{self.class_name}"
        return {"impl": impl, "pt": [self.auto_class], "type": "text"}


PIPELINES = {
    "question-answering": TravellingPipeline(
        class_name="QuestionAnsweringPipeline", auto_class="AutoModelForQuestionAnswering"
    ),
}


def is_ours(task: object, entry: object, folder: Path) -> bool:
    """Tell whether an entry of `custom_pipelines` names our file, and the folder holds it as we wrote it."""
    ours = PIPELINES.get(task) if isinstance(task, str) else None
    if ours is None or entry != ours.entry(str(task)):
        return False
    source = ours.file(str(task))
    copy = folder / source.name
    return copy.is_file() and copy.read_bytes() == source.read_bytes()
