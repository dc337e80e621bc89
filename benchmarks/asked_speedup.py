"""Ask for speed-ups and see what comes out: models with random weights in the shapes of BERT-base and SmolLM2-135M.

python benchmarks/asked_speedup.py --model bert --batches 1 16 --tries 10 [--threads 1 --clock cpu] [--layers 6]

Every try asks for another speed-up between 1.2 and 3 (what is beyond reach counts as no try), prunes heads and channels
by random scores that favour no layer, and times the dense and the finished model in turn, anew. Met = within 5 % of
what was asked for. `trial` is what `prune` measured by itself before the cut, `table` what the table said.

On a machine that others use take `--threads 1 --clock cpu`: then only the CPU time of the model's own thread counts,
here and in `prune`. The table of times is kept in `--cache`; its seconds are told once for each batch size.
"""

import argparse
import os
import random
import tempfile
import time
from typing import Any

import torch
from common import base_parser, environment, interleave, prepare, ratio, show
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)

from patchers.discovery.discover import discover
from sparse_trainer.budget.latency.store import CACHE_VARIABLE, table_for
from sparse_trainer.budget.time_target import TimeTarget
from sparse_trainer.criteria.calibration.random import Random
from sparse_trainer.errors import BudgetError
from sparse_trainer.inputs.timed import timed_inputs
from sparse_trainer.one_shot.prune import prune

LENGTH = 128


def made(options: argparse.Namespace) -> PreTrainedModel:
    """Return a model with random weights, in evaluation mode."""
    torch.manual_seed(options.seed)
    if options.model == "bert":
        config = BertConfig(num_hidden_layers=options.layers or 12)
        return BertForSequenceClassification(config).to(options.device, getattr(torch, options.dtype)).eval()
    llama = LlamaConfig(
        hidden_size=576, intermediate_size=1536, num_hidden_layers=options.layers or 30, num_attention_heads=9,
        num_key_value_heads=3, vocab_size=49152, tie_word_embeddings=True,
    )  # fmt: skip
    return LlamaForCausalLM(llama).to(options.device, getattr(torch, options.dtype)).eval()


@torch.inference_mode()
def run(model: PreTrainedModel, inputs: dict[str, torch.Tensor]) -> None:
    """Do what is timed."""
    model(**inputs)


def tried(
    model: PreTrainedModel, asked: float, batch: int, seed: int, options: argparse.Namespace
) -> dict[str, Any]:
    """Prune to a speed-up, and time what comes out."""
    start = time.perf_counter()
    compact, plan = prune(
        model,
        criterion=Random(seed=seed),
        speedup=asked,
        latency_batch=batch,
        sequence_length=LENGTH,
        check=False,
    )
    taken = time.perf_counter() - start
    assert plan.speed is not None
    inputs = timed_inputs(model, batch, LENGTH)
    times = interleave({"dense": lambda: run(model, inputs), "pruned": lambda: run(compact, inputs)}, options)
    found = ratio(times["dense"], times["pruned"])
    return {
        "asked": asked,
        "measured": found,
        "off": found / asked - 1,
        "trial": plan.speed["speedup_measured"],
        "table": plan.speed["speedup_expected"],
        "prune_seconds": taken,
    }


def tries(batch: int, options: argparse.Namespace) -> dict[str, Any]:
    """Try one batch size; return what was met, the table's seconds, and each try."""
    model = made(options)
    start = time.perf_counter()
    table = table_for(model, discover(model), TimeTarget(speedup=2.0, batch=batch, sequence_length=LENGTH))
    result: dict[str, Any] = {"table_seconds": time.perf_counter() - start, "table_noise": table.noise}
    draw, found = random.Random(options.seed + batch), []
    while len(found) < options.tries:
        asked = round(draw.uniform(1.2, options.most), 2)
        try:
            found.append(tried(model, asked, batch, len(found), options))
        except BudgetError as error:
            result[f"{asked} refused"] = error.what
    met = sum(abs(each["off"]) <= 0.05 for each in found)
    return result | {"met": f"{met} of {len(found)}"} | {f"try {n}": each for n, each in enumerate(found)}


def main() -> None:
    """Parse options, try, print."""
    parser = base_parser(__doc__ or "", repeats=9)
    parser.add_argument("--model", default="bert", choices=["bert", "smollm2"])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--tries", type=int, default=10)
    parser.add_argument("--most", type=float, default=3.0, help="largest speed-up that is asked for")
    parser.add_argument("--layers", type=int, default=0, help="fewer layers than the model has, to save time")
    parser.add_argument("--cache", help="folder for tables of times; default: one that is thrown away")
    options = parser.parse_args()
    prepare(options)
    with tempfile.TemporaryDirectory() as scratch:
        os.environ[CACHE_VARIABLE] = options.cache or scratch
        for batch in options.batches:
            result = {
                "environment": environment(options),
                f"{options.model}, batch {batch}": tries(batch, options),
            }
            show(result, options.json)


if __name__ == "__main__":
    main()
