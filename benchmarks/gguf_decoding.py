"""How fast llama.cpp decodes a pruned model beside its dense one, in turns: tokens per second and their ratio.

sparse-trainer convert DENSE dense.gguf --to gguf
sparse-trainer convert PRUNED pruned.gguf --to gguf
python benchmarks/gguf_decoding.py dense.gguf pruned.gguf
"""

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import xllamacpp
from common import CLOCKS


def server(file: Path, threads: int) -> Any:
    """Return llama.cpp with one model loaded."""
    params = xllamacpp.CommonParams()
    params.model.path, params.n_ctx, params.n_parallel = str(file), 512, 1
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    return xllamacpp.Server(params)


def rate(model: Any, tokens: int, clock: str) -> float:
    """Return the tokens per second, after a prompt of one."""
    asked = {
        "prompt": [100],
        "n_predict": tokens,
        "ignore_eos": True,
        "cache_prompt": False,
        "temperature": 0.0,
    }
    start = CLOCKS[clock]()
    model.handle_completions(asked)
    return tokens / (CLOCKS[clock]() - start)


def weights(file: Path) -> int:
    """Return how many weights a token meets: all, the embeddings only where they are the head."""
    sizes = {tensor.name: int(np.prod(tensor.shape)) for tensor in gguf.GGUFReader(file).tensors}
    return sum(sizes.values()) - (sizes["token_embd.weight"] if "output.weight" in sizes else 0)


def main() -> None:
    """Print rates, the ratio of every round, and what share of the ratio of weights it is."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("dense", type=Path)
    parser.add_argument("pruned", type=Path)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clock", default="wall", choices=list(CLOCKS), help="cpu = for a busy machine")
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    args = parser.parse_args()
    models = [server(file, args.threads) for file in (args.dense, args.pruned)]
    for model in models:
        rate(model, 16, args.clock)
    # Each round begins with the other one.
    rounds = []
    for number in range(args.rounds):
        order = (0, 1) if number % 2 else (1, 0)
        found = {which: rate(models[which], args.tokens, args.clock) for which in order}
        rounds.append((found[0], found[1]))
    ratios = [pruned / dense for dense, pruned in rounds]
    low, middle, high = statistics.quantiles(ratios, n=4)
    fewer = weights(args.dense) / weights(args.pruned)
    if args.json:
        found = {"median": middle, "low": low, "high": high, "weights": fewer, "share": middle / fewer}
        print(json.dumps({"speed_up": found}))
        return
    for name, column in zip(("dense", "pruned"), zip(*rounds, strict=True), strict=True):
        print(f"{name}: {statistics.median(column):.1f} tokens/s, median of {args.rounds} rounds")
    print(
        f"ratio {middle:.3f}, quartiles {low:.3f} to {high:.3f}; weights {fewer:.3f}; share {middle / fewer:.3f}"
    )


if __name__ == "__main__":
    main()
