"""A process of its own for a batch of model types: one that crashes or hangs ends this process, and not the whole run.

python -m tests.architectures.worker check ANSWERS FOLDER TYPE...
python -m tests.architectures.worker reload ANSWERS FOLDER TYPE...
"""

from __future__ import annotations

import faulthandler
import gc
import json
import logging
import sys
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
import transformers

from sparse_trainer.architectures.case import Report, check_alike
from sparse_trainer.architectures.check import check_model, check_reload
from sparse_trainer.inputs.make import forward_outputs, inputs_for
from tests.architectures.tiny import NotTestable, tiny_model

logger = logging.getLogger(__name__)
SECONDS = 180
"""After which a type counts as hung, and the process ends."""


def check_type(model_type: str, folder: Path | None = None) -> Report:
    """Return the verdict on a tiny model of a type."""
    try:
        model, used = tiny_model(model_type), tiny_model(model_type, dtype=torch.float32, exact=False)
    except NotTestable as error:
        return Report(model_type=model_type, is_built=False, reason=error.what)
    report = check_model(model, folder=None if folder is None else folder / model_type, used=used)
    report.model_type = model_type
    return report


def reload_type(model_type: str, folder: Path) -> str:
    """Return "" where the cut model of a type loads and answers as before, else what is wrong."""
    try:
        for saved in (folder / model_type).iterdir():
            check_reload(saved)
        return ""
    except Exception as error:
        logger.debug("%s: reload", model_type, exc_info=error)
        whose = (
            "" if _stock_reloads(model_type) else "transformers does not load the whole model again either. "
        )
        return f"{whose}{type(error).__name__}: {str(error).replace(f'{folder}/', '').strip()[:300]}"


def _stock_reloads(model_type: str) -> bool:
    """Tell whether a model that nobody cut survives saving and loading."""
    model = tiny_model(model_type, dtype=torch.float32, exact=False)
    inputs = inputs_for(model)
    with tempfile.TemporaryDirectory() as folder:
        try:
            model.save_pretrained(folder)
            again = type(model).from_pretrained(folder).eval()
            check_alike(forward_outputs(again, inputs), forward_outputs(model, inputs))
        except (AssertionError, RuntimeError, ValueError) as error:
            logger.debug("%s: stock", model_type, exc_info=error)
            return False
    return True


def main(job: str, answers: Path, folder: Path, types: Sequence[str]) -> None:
    """Append one JSON line per type to `answers`, as they come."""
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)
    for model_type in types:
        faulthandler.dump_traceback_later(SECONDS, exit=True)
        answer = (
            check_type(model_type, folder).to_json() if job == "check" else reload_type(model_type, folder)
        )
        with answers.open("a", encoding="utf-8") as file:
            file.write(json.dumps([model_type, answer]) + "\n")
        gc.collect()
    faulthandler.cancel_dump_traceback_later()


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4:])
