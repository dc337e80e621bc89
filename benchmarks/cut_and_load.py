"""Time the cut of BERT-base, and loading its folder next to loading the dense one.

python benchmarks/cut_and_load.py [--density 0.5] [--json]

Targets: cutting takes less than 1.5 s; the compact folder loads no slower than the dense one. Loading is timed with the
stock `from_pretrained` (with `trust_remote_code=True` for the compact folder) and with `load_pruned`.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from common import base_parser, environment, interleave, prepare, ratio, seconds, show, summary
from transformers import AutoModelForSequenceClassification, BertConfig, BertForSequenceClassification

from sparse_trainer import ModelPatchingCoordinator, SparseTrainingArguments, load_pruned, optimize_model


def patched_model(density: float, layers: int) -> BertForSequenceClassification:
    """Return a BERT-base whose gates are closed down to `density`, at random."""
    model = BertForSequenceClassification(BertConfig(num_hidden_layers=layers)).eval()
    coordinator = ModelPatchingCoordinator(
        SparseTrainingArguments(scoring="random", density=density, warmup_ratio=0.0, cooldown_ratio=0.0)
    )
    coordinator.patch_model(model)
    coordinator.begin(total_steps=1)
    coordinator.step()
    return model


def cutting(model: BertForSequenceClassification, *, check: bool) -> Callable[[], object]:
    """Return a function that cuts a copy of the model (the time of the copy is counted)."""
    return lambda: optimize_model(model, check=check)


def main() -> None:
    """Print seconds of cutting and loading."""
    parser = base_parser(__doc__ or "", repeats=10)
    parser.add_argument("--density", type=float, default=0.5)
    parser.add_argument("--layers", type=int, default=12)
    options = parser.parse_args()
    prepare(options)
    patched = patched_model(options.density, options.layers)
    cuts = {f"check={check}": cutting(patched, check=check) for check in (True, False)}
    cut_times = interleave(cuts, options, warmup=1)
    in_place = seconds(lambda: optimize_model(patched, inplace=True, check=False), options)
    with tempfile.TemporaryDirectory() as scratch:
        dense, compact = Path(scratch, "dense"), Path(scratch, "compact")
        torch.manual_seed(options.seed)
        BertForSequenceClassification(BertConfig(num_hidden_layers=options.layers)).save_pretrained(dense)
        patched.save_pretrained(compact)
        stock = AutoModelForSequenceClassification.from_pretrained
        loads: dict[str, Callable[[], object]] = {
            "dense": lambda: stock(dense),
            "compact": lambda: stock(compact, trust_remote_code=True),
            "load_pruned": lambda: load_pruned(compact),
        }
        load_times = interleave(loads, options, warmup=1)
        sizes = {
            folder.name: sum(f.stat().st_size for f in folder.iterdir()) / 1e6 for folder in (dense, compact)
        }
    show(
        {
            "environment": environment(options),
            "cut": {name: summary(times) for name, times in cut_times.items()}
            | {"inplace, check=False": {"median_ms": in_place * 1e3}},
            "load": {name: summary(times) for name, times in load_times.items()},
            "load_ratio": {
                name: ratio(load_times[name], load_times["dense"]) for name in ("compact", "load_pruned")
            },
            "folder_mb": sizes,
        },
        options.json,
    )


if __name__ == "__main__":
    main()
