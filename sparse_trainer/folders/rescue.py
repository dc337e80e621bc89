"""Save a pruned model elsewhere when measuring or saving it fails, so that no training is lost."""

import logging
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from transformers import PreTrainedModel

from sparse_trainer.errors import SparseTrainerError
from sparse_trainer.folders.save import Processor, save_pruned

logger = logging.getLogger(__name__)


def spare_folder(folder: Path) -> Path:
    """Return a temporary folder for a model that was pruned without training, and has no output folder yet."""
    return Path(tempfile.gettempdir(), f"{folder.name}-{uuid.uuid4().hex[:8]}")


@contextmanager
def rescuing(model: PreTrainedModel, processor: Processor | None, spare: Path) -> Iterator[None]:
    """Save a pruned model to `spare` when the block that measures and saves it fails, and say so in the error.

    The form is the one that fits, whatever was asked for: that may be what went wrong.
    """
    try:
        yield
    except BaseException as error:
        try:
            place = save_pruned(model, spare, processor=processor, overwrite=True)
        except SparseTrainerError as second:
            logger.error("The pruned model could not be saved to %s either: %s", spare, second)
            raise error from None
        if isinstance(error, SparseTrainerError):
            remedy = f"{error.remedy} The pruned model is in {place}."
            raise type(error)(error.where, error.what, remedy) from error
        logger.error("The pruned model is in %s.", place)
        raise
