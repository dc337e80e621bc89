"""What turns raw inputs into a model's, loaded from beside it: a tokenizer, an image processor, a feature extractor."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from transformers import (
    AutoFeatureExtractor,
    AutoImageProcessor,
    AutoProcessor,
    PreTrainedTokenizerBase,
    ProcessorMixin,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
from transformers.utils.hub import cached_file

from sparse_trainer.errors import CheckpointError, UnsupportedModelError, first_line
from sparse_trainer.files.foreign_code import drop_code_names_of
from sparse_trainer.files.json_text import read_object
from sparse_trainer.folders.configs import read_config, resolve
from sparse_trainer.folders.tokenizers import find_tokenizer, load_tokenizer

ProcessorKind = Literal["tokenizer", "image", "audio", "image_text"]
PREPROCESSOR_CONFIG_NAME = "preprocessor_config.json"
logger = logging.getLogger(__name__)


def load_processor(kind: ProcessorKind, name: str, revision: str = "main") -> Any:
    """Return what a model's inputs are made with.

    Args:
        name: A folder, a name on the hub, or `package:NAME/FOLDER`.

    Raises:
        CheckpointError: There is none, or one that needs code of its own.
    """
    return _LOADERS[kind](name, revision)


def find_processor(name: str, revision: str = "main") -> Any:
    """Return what is saved beside a model: its tokenizer, else what makes its pictures or sounds, else None.

    Of an image-text model its processor, which holds the tokenizer.

    Raises:
        CheckpointError: The folder holds a tokenizer that cannot be loaded.
    """
    if is_image_text(name, revision):
        try:
            return load_processor("image_text", name, revision)
        except CheckpointError as error:
            logger.warning("the processor of images is not saved with the result: %s", error)
    tokenizer = find_tokenizer(name, revision)
    if tokenizer is not None:
        return tokenizer
    try:
        file = cached_file(
            resolve(name),
            PREPROCESSOR_CONFIG_NAME,
            revision=revision,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )
    except (OSError, ValueError):  # no folder, and no name on the hub: who loads the model says so
        return None
    if file is None:
        return None
    try:
        values = read_object(Path(file), "Restore it.", constants=True)
        return load_processor("audio" if "sampling_rate" in values else "image", name, revision)
    except CheckpointError as error:
        logger.warning("%s is not saved with the result: %s", PREPROCESSOR_CONFIG_NAME, error)
        return None


def load_image_processor(name: str, revision: str = "main") -> Any:
    """Return the processor of an image-text model.

    Raises:
        CheckpointError: There is none.
        UnsupportedModelError: The model reads no images with text.
    """
    if not is_image_text(name, revision):
        raise UnsupportedModelError(
            name, "reads no images with text.", "Give an image-text model, or files without images."
        )
    return load_processor("image_text", name, revision)


def tokenizer_in(processor: Any) -> PreTrainedTokenizerBase | None:
    """Return the tokenizer that a processor is or has; None where it has none."""
    reader = processor.tokenizer if isinstance(processor, ProcessorMixin) else processor
    return reader if isinstance(reader, PreTrainedTokenizerBase) else None


def is_image_text(name: str, revision: str = "main") -> bool:
    """Tell whether a model reads images with text, as its config says; False where there is none to read."""
    try:
        model_type = read_config(name, revision).model_type
    except CheckpointError:  # who loads the model says so
        return False
    return model_type in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES


def _from_auto(auto_class: Any, said: str, packages: str) -> Callable[[str, str], Any]:
    def load(name: str, revision: str) -> Any:
        try:
            loaded = auto_class.from_pretrained(resolve(name), revision=revision, trust_remote_code=False)
        except ImportError as error:
            what = f"no {said} can be loaded ({first_line(error)})."
            raise CheckpointError(name, what, f"pip install {packages}") from error
        except Exception as error:
            raise CheckpointError(
                name,
                f"no {said} can be loaded ({first_line(error)}).",
                f"Give the folder of a model that has its {said}, or restore it.",
            ) from error
        drop_code_names_of(loaded)
        return loaded

    return load


_LOADERS: dict[ProcessorKind, Callable[[str, str], Any]] = {
    "tokenizer": load_tokenizer,
    "image": _from_auto(AutoImageProcessor, "image processor", "pillow torchvision"),
    "audio": _from_auto(AutoFeatureExtractor, "feature extractor", "torchaudio"),
    "image_text": _from_auto(AutoProcessor, "processor of images and text", "pillow torchvision"),
}
