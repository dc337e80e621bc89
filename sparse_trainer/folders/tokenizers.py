"""Load the tokenizer of a folder, or of a name on the hub, without running code of either."""

import os
from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from sparse_trainer.errors import CheckpointError, first_line
from sparse_trainer.files.foreign_code import drop_code_names_of
from sparse_trainer.folders.configs import resolve

_FILES = ("tokenizer*", "vocab*", "*.model", "spiece*", "merges.txt", "*.tiktoken")
"""Patterns of the files that make up a tokenizer."""


def find_tokenizer(name: str, revision: str = "main") -> PreTrainedTokenizerBase | None:
    """Return the tokenizer of a model, None where there is none: of a model of pictures, or one that came without.

    Raises:
        CheckpointError: A folder holds one that cannot be loaded.
    """
    folder = Path(resolve(name))
    if not os.path.isdir(folder):  # unlike Path.is_dir, no error for a name that no folder can have
        try:
            return load_tokenizer(name, revision)
        except CheckpointError:
            return None
    has_one = any(next(folder.glob(pattern), None) is not None for pattern in _FILES)
    return load_tokenizer(name, revision) if has_one else None


def load_tokenizer(name: str, revision: str = "main") -> PreTrainedTokenizerBase:
    """Return the tokenizer of a model.

    Raises:
        CheckpointError: There is none, a damaged one, or one that needs code of its own.
    """
    source = resolve(name)
    try:
        loaded: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            source, revision=revision, trust_remote_code=False
        )
    except Exception as error:
        raise CheckpointError(
            name,
            f"no tokenizer can be loaded ({first_line(error)}).",
            "Give the folder of a model, or restore its tokenizer.",
        ) from error
    drop_code_names_of(loaded)
    return loaded
