"""Time the cut of BERT-base, and loading its folder next to loading the dense one.

python benchmarks/cut_and_load.py [--density 0.5] [--json]

Targets: cutting takes less than 1.5 s; the compact folder loads no slower than the dense one. Loading is timed until
every weight is read, with the stock `from_pretrained` (of the compact folder with `trust_remote_code=True`) and with
`load_pruned`: warm, from the page cache, and cold (wall time), after telling the system to forget the files.
"""

import argparse
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common import base_parser, environment, interleave, prepare, ratio, seconds, show, summary
from transformers import AutoModelForSequenceClassification, BertConfig, BertForSequenceClassification

from sparse_trainer.cut.optimize import optimize_model
from sparse_trainer.folders.load import load_pruned
from sparse_trainer.training.arguments.arguments import SparseTrainingArguments
from sparse_trainer.training.coordinator import ModelPatchingCoordinator


def patched_model(density: float, layers: int) -> BertForSequenceClassification:
    """Return a BERT-base whose gates are closed down to `density`, at random."""
    model = BertForSequenceClassification(BertConfig(num_hidden_layers=layers)).eval()
    coordinator = ModelPatchingCoordinator(
        SparseTrainingArguments(
            scoring="random", density=density, pruning_warmup_ratio=0.0, cooldown_ratio=0.0
        )
    )
    coordinator.patch_model(model)
    coordinator.begin(total_steps=1)
    coordinator.step()
    return model


def touch(model: torch.nn.Module) -> None:
    """Read one number of every memory page of every weight: safetensors are mapped, and read at their first use."""
    for parameter in model.parameters():
        parameter.detach().flatten()[::1024].sum()


def forget(folder: Path) -> None:
    """Write the files of a folder out and drop them from the page cache."""
    for file in folder.iterdir():
        descriptor = os.open(file, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def loads(dense: Path, compact: Path) -> dict[str, Callable[[], None]]:
    """Return the ways to load, by name."""
    stock = AutoModelForSequenceClassification.from_pretrained
    return {
        "dense": lambda: touch(stock(dense)),
        "compact": lambda: touch(stock(compact, trust_remote_code=True)),
        "load_pruned": lambda: touch(load_pruned(compact)),
    }


def cold(
    folders: dict[str, Path], arms: dict[str, Callable[[], None]], repeats: int
) -> dict[str, list[float]]:
    """Time the arms in turn, each after its files were forgotten, in seconds of wall time."""
    wall = argparse.Namespace(device="cpu", clock="wall")
    times: dict[str, list[float]] = {name: [] for name in arms}
    for _ in range(repeats):
        for name, action in arms.items():
            forget(folders[name])
            times[name].append(seconds(action, wall))
    return times


def rows(times: dict[str, list[float]]) -> dict[str, dict[str, float]]:
    """Return the summary of each arm, with its ratio to the dense one."""
    return {
        name: summary(values) | {"ratio": ratio(values, times["dense"])} for name, values in times.items()
    }


def main() -> None:
    """Print seconds of cutting and loading."""
    parser = base_parser(__doc__ or "", repeats=10)
    parser.add_argument("--density", type=float, default=0.5)
    parser.add_argument("--layers", type=int, default=12)
    options = parser.parse_args()
    prepare(options)
    patched = patched_model(options.density, options.layers)
    cuts: dict[str, Callable[[], Any]] = {
        "a copy, checked": lambda: optimize_model(patched),
        "a copy": lambda: optimize_model(patched, check=False),
    }
    cut_times = interleave(cuts, options, warmup=1)
    in_place = seconds(lambda: optimize_model(patched, inplace=True, check=False), options)
    with tempfile.TemporaryDirectory() as scratch:
        dense, compact = Path(scratch, "dense"), Path(scratch, "compact")
        BertForSequenceClassification(BertConfig(num_hidden_layers=options.layers)).save_pretrained(dense)
        patched.save_pretrained(compact)
        arms = loads(dense, compact)
        warm_times = interleave(arms, options, warmup=1)
        folders = {"dense": dense, "compact": compact, "load_pruned": compact}
        cold_times = cold(folders, arms, options.repeats)
        sizes = {f.name: sum(file.stat().st_size for file in f.iterdir()) / 1e6 for f in (dense, compact)}
    show(
        {
            "environment": environment(options),
            "cut": {name: summary(times) for name, times in cut_times.items()}
            | {"in place": {"median_ms": in_place * 1e3}},
            "load, warm": rows(warm_times),
            "load, cold": rows(cold_times),
            "folder_mb": sizes,
        },
        options.json,
    )


if __name__ == "__main__":
    main()
