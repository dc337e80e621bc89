"""What turns raw inputs into a model's, loaded from beside it: a tokenizer, an image processor, a feature extractor."""

from collections.abc import Callable
from typing import Any, Literal

from transformers import AutoFeatureExtractor, AutoImageProcessor

from sparse_trainer.errors import CheckpointError
from sparse_trainer.folders.configs import first_line, resolve
from sparse_trainer.folders.tokenizers import load_tokenizer

ProcessorKind = Literal["tokenizer", "image", "audio"]


def load_processor(kind: ProcessorKind, name: str, revision: str = "main") -> Any:
    """Return what a model's inputs are made with.

    Args:
        name: A folder, a name on the hub, or `package:NAME/FOLDER`.

    Raises:
        CheckpointError: There is none, or one that needs code of its own.
    """
    return _LOADERS[kind](name, revision)


def _from_auto(auto_class: Any, said: str, packages: str) -> Callable[[str, str], Any]:
    def load(name: str, revision: str) -> Any:
        try:
            return auto_class.from_pretrained(resolve(name), revision=revision, trust_remote_code=False)
        except ImportError as error:
            what = f"no {said} can be loaded ({first_line(error)})."
            raise CheckpointError(name, what, f"pip install {packages}") from error
        except Exception as error:
            raise CheckpointError(
                name,
                f"no {said} can be loaded ({first_line(error)}).",
                f"Give the folder of a model that has its {said}, or restore it.",
            ) from error

    return load


_LOADERS: dict[ProcessorKind, Callable[[str, str], Any]] = {
    "tokenizer": load_tokenizer,
    "image": _from_auto(AutoImageProcessor, "image processor", "pillow torchvision"),
    "audio": _from_auto(AutoFeatureExtractor, "feature extractor", "torchaudio"),
}
