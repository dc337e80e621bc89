"""What a model weighs before it runs: parameters, files, and the time to load it."""

import os
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from patchers.discovery.discover import discover
from patchers.units import KINDS
from sparse_trainer.budget.counting import mac_count, parameter_count
from sparse_trainer.folders.configs import resolve
from sparse_trainer.folders.load import load_model
from sparse_trainer.folders.safetensors_files import weight_files


@dataclass(frozen=True, kw_only=True, slots=True)
class Weight:
    """What a model weighs before it runs."""

    parameters: int
    macs: int | None
    """Multiply-accumulates per token; None of a GGUF file."""
    file_bytes: int | None
    """Of the weight files; None where the model is neither file nor folder."""
    load_cold: float
    """Seconds to load it when the system has its files not in memory, as far as it can be told so: on Linux."""
    load_warm: float
    """Seconds to load it again."""

    def to_json(self) -> dict[str, Any]:
        """Return plain types for JSON."""
        return asdict(self)


def load_weighed(
    name: str, *, device: torch.device, dtype: torch.dtype, sequence_length: int
) -> tuple[PreTrainedModel, Weight]:
    """Load a model twice, and return it with what it weighs.

    Raises:
        CheckpointError: As `load_pruned`.
    """
    folder = Path(resolve(name))
    files = weight_files(folder) if folder.is_dir() else []
    for file in files:
        forget(file)
    seconds = []
    for _ in range(2):
        start = time.perf_counter()
        model = load_model(name, device=device, dtype=dtype)
        seconds.append(time.perf_counter() - start)
    return model, Weight(
        parameters=parameter_count(model),
        macs=mac_count(model, discover(model, KINDS), sequence_length),
        file_bytes=sum(file.stat().st_size for file in files) or None,
        load_cold=seconds[0],
        load_warm=seconds[1],
    )


def forget(file: Path) -> None:
    """Ask the system to drop a file from its cache, where it can be asked."""
    if sys.platform == "linux":
        with file.open("rb") as opened:
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
