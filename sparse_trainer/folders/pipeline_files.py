"""Bring a pipeline that transformers has no more: a file beside the model, which its config names."""

import json
import shutil
from pathlib import Path

from sparse_trainer.cut.auto_classes import auto_classes_of
from sparse_trainer.files.pipelines import PIPELINES
from sparse_trainer.files.writing import write_text
from sparse_trainer.folders.configs import CONFIG_FILE


def pipeline_for(architecture: str) -> str | None:
    """Return the name of the pipeline that is brought for a model class, if there is one.

    >>> pipeline_for("BertForQuestionAnswering"), pipeline_for("BertForMaskedLM")
    ('question-answering', None)
    """
    autos = auto_classes_of(architecture)
    return next((task for task, pipeline in PIPELINES.items() if pipeline.auto_class in autos), None)


def bring_pipeline(folder: Path) -> None:
    """Copy the pipeline for a model beside it, and name it in its config; nothing for a model that needs none.

    `pipeline("question-answering", model=FOLDER, trust_remote_code=True)` then works with transformers alone.

    Args:
        folder: A folder that is being written, with the config of the model.
    """
    config = folder / CONFIG_FILE
    values = json.loads(config.read_text(encoding="utf-8")) if config.is_file() else {}
    task = pipeline_for(str((values.get("architectures") or [""])[0]))
    if task is None:
        return
    file = PIPELINES[task].file(task)
    shutil.copyfile(file, folder / file.name)
    values["custom_pipelines"] = {task: PIPELINES[task].entry(task)}
    write_text(config, json.dumps(values, indent=2, sort_keys=True) + "\n")
