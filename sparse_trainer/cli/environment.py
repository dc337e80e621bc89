"""The command `env`: what a bug report has to say of the place where it happened: versions and hardware."""

import os
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from rich.table import Table

from sparse_trainer.cli.console import print_result
from sparse_trainer.cli.options import Json
from sparse_trainer.cli.tables import table

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
    import torch  # a second, which `env --help` does not need

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


def env_command(as_json: Json = False) -> None:
    """Print versions and hardware, for a bug report."""
    found = describe_environment()
    print_result(as_json, found, [environment_table(found)])


def environment_table(found: Mapping[str, Any]) -> Table:
    """Return versions and hardware as a table, to be pasted into a report."""
    rows = [[name, version or "not installed"] for name, version in found["packages"].items()]
    cpu = found["cpu"]
    rows += [
        ["python", found["python"]],
        ["system", found["system"]],
        ["cpu", f"{cpu['kind']}, {cpu['cores']} cores, {cpu['threads']} threads"],
        ["gpu", ", ".join(found["gpus"]) or ("mps" if found["mps"] else "none")],
        ["cuda", found["cuda"] or "none"],
    ]
    return table([["what", "found"], *rows], None, "left")
