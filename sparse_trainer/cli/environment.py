"""What a bug report has to say of the place where it happened: versions and hardware."""

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

_PACKAGES = (
    "sparse-trainer",
    "torch",
    "transformers",
    "accelerate",
    "peft",
    "trl",
    "sentence-transformers",
    "safetensors",
    "tokenizers",
    "datasets",
    "evaluate",
    "huggingface-hub",
    "numpy",
    "torchao",
    "lm_eval",
)


def describe_environment() -> dict[str, Any]:
    """Return versions by package (None = not installed), Python, operating system, devices and threads."""
    return {
        "packages": {name: _version(name) for name in _PACKAGES},
        "python": platform.python_version(),
        "system": platform.platform(),
        "cpu": {
            "kind": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
        },
        "gpus": [torch.cuda.get_device_name(place) for place in range(torch.cuda.device_count())],
        "cuda": torch.version.cuda,
        "mps": torch.backends.mps.is_available(),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
