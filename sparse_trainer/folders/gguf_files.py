"""Models in one GGUF file, as llama.cpp reads them: unpacked once into a folder that transformers loads."""

import hashlib
import importlib.util
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub.constants import HF_HOME

from sparse_trainer.errors import CheckpointError, first_line
from sparse_trainer.folders.replace import new_folder


def is_gguf(name: str) -> bool:
    """Tell whether a name is that of a GGUF file on this machine."""
    return name.endswith(".gguf") and Path(name).is_file()


def unpacked(file: str) -> str:
    """Return a folder with the model of a GGUF file, its numbers in float32; it is kept beside the hub's cache.

    Raises:
        CheckpointError: The package gguf is missing, or transformers cannot read the file.
    """
    path = Path(file).resolve()
    state = path.stat()
    known = hashlib.sha256(f"{path} {state.st_size} {state.st_mtime_ns}".encode()).hexdigest()[:16]
    # Its last part is what titles call the model.
    folder = Path(HF_HOME, "sparse-trainer", known, path.stem)
    if not folder.is_dir():
        _unpack(path, folder)
    return str(folder)


def _unpack(path: Path, folder: Path) -> None:
    if importlib.util.find_spec("gguf") is None:
        raise CheckpointError(
            str(path), "is GGUF, and the package gguf is not installed.",
            'Run `pip install "sparse-trainer[gguf]"`.',
        )  # fmt: skip
    options: dict[str, Any] = {"gguf_file": path.name}
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(path.parent, **options)
        packed: Any = getattr(transformers, "GgufConfig", None)
        if packed is not None:  # releases without it always unpack
            options["quantization_config"] = packed(dequantize=True)
        model = transformers.AutoModelForCausalLM.from_pretrained(path.parent, dtype=torch.float32, **options)
    except (OSError, ValueError, KeyError, NotImplementedError) as error:
        # The rest of one that does not know a type is the list of all it knows.
        said = first_line(error).partition(". ")[0]
        raise CheckpointError(
            str(path),
            f"transformers cannot read it ({said}).",
            "Give the folder that it was made from.",
        ) from error
    with new_folder(folder, overwrite=False) as draft:
        model.save_pretrained(draft)
        tokenizer.save_pretrained(draft)
