"""Compare what a cut of BERT-base gains in eager mode, under torch.compile and in ONNX Runtime.

python benchmarks/runtimes.py --threads 1 --runtimes eager compile onnx --batches 1 4 --repeats 15 [--json]

Half of the encoder is cut at random, and `bench` times the folder beside the dense one. Target: no runtime gains less
than eager mode does. Wall time: a runtime may work in threads of its own. ONNX needs sparse-trainer[onnx].
"""

import tempfile
from pathlib import Path
from typing import Any

import torch
from common import base_parser, environment, prepare, show
from cut_and_load import patched_model
from transformers import BertConfig, BertForSequenceClassification

from sparse_trainer.cut.optimize import optimize_model
from sparse_trainer.run.bench import BenchOptions, run_bench


def gains(found: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Return the speed-up of each runtime and batch size, its quartiles, and its share of that in eager mode."""
    cut = {(row["batch"], row["runtime"]): row["speedup"] for row in found if row["speedup"] is not None}
    return {
        f"batch {batch}, {runtime}": {
            "speed_up": spread["median"],
            "low": spread["low"],
            "high": spread["high"],
            "over_eager": spread["median"] / cut[batch, "eager"]["median"],
        }
        for (batch, runtime), spread in cut.items()
    }


def main() -> None:
    """Print the gains."""
    parser = base_parser(__doc__ or "", repeats=15)
    parser.add_argument("--runtimes", nargs="+", default=["eager", "compile", "onnx"])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--density", type=float, default=0.5)
    options = parser.parse_args()
    prepare(options)
    with tempfile.TemporaryDirectory() as scratch:
        dense, compact = Path(scratch, "dense"), Path(scratch, "compact")
        BertForSequenceClassification(BertConfig(num_hidden_layers=options.layers)).save_pretrained(dense)
        patched = patched_model(options.density, options.layers)
        optimize_model(patched, inplace=True, check=False).save_pretrained(compact)
        asked = BenchOptions(
            model=str(compact),
            against=str(dense),
            batch_sizes=tuple(options.batches),
            lengths=(options.length,),
            rounds=options.repeats,
            threads=options.threads,
            device=torch.device(options.device),
            dtype=getattr(torch, options.dtype),
            runtimes=",".join(options.runtimes),
        )
        found = run_bench(asked).to_json()
    show({"environment": environment(options), "gains": gains(found["latencies"])}, options.json)


if __name__ == "__main__":
    main()
