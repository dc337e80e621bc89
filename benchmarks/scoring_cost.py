"""Time calibration passes against the plain passes that they contain, and measure the memory they add to the model.

python benchmarks/scoring_cost.py MODEL_FOLDER --threads 1 --clock cpu

Memory is the peak of a process above what imports took, over that of the weights, each pass in a process of its own.
`obs by block` holds the statistics of one block at a time; `obs scores` is what follows its pass, once however long the
text is. Targets: forward-only criteria 1.15 x the forward pass (those with covariances 1.3 x) and 25 % over the model's
memory; gradient criteria 1.15 x forward and backward.
"""

import argparse
import gc
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common import (
    base_parser,
    environment,
    in_own_process,
    interleave,
    memory_bytes,
    prepare,
    ratio,
    show,
    summary,
)
from torch import Tensor
from transformers import AutoModelForCausalLM

from patchers.discovery.discover import discover
from sparse_trainer.criteria.calibration.base import Evidence
from sparse_trainer.criteria.calibration.mixture import criterion_of
from sparse_trainer.statistics.blockwise import Blockwise
from sparse_trainer.statistics.collect import collect

FORWARD, BACKWARD = "forward", "forward and backward"
BY_BLOCK, SCORES = " by block", " scores"


def forward(model: Any, batches: list[dict[str, Tensor]]) -> None:
    """Run the model over the batches."""
    with torch.no_grad():
        for batch in batches:
            model(**batch, use_cache=False)


def backward(model: Any, batches: list[dict[str, Tensor]]) -> None:
    """Run the model forward and backward, with a gradient of every weight."""
    for batch in batches:
        model(**batch, labels=batch["input_ids"], use_cache=False).loss.backward()
        model.zero_grad(set_to_none=True)


def score(model: Any, batches: list[dict[str, Tensor]], criterion: str) -> Callable[[], object]:
    """Return the calibration pass of a criterion, or what follows it: the scores."""
    name = criterion.removesuffix(BY_BLOCK).removesuffix(SCORES)
    structure, requests = discover(model, ("heads", "channels")), criterion_of(name).requests()
    if criterion.endswith(SCORES):
        statistics = collect(model, structure, batches, requests)
        evidence = Evidence(model=model, structure=structure, statistics=statistics)
        return lambda: criterion_of(name).scores(evidence)
    if name == criterion:
        return lambda: collect(model, structure, batches, requests)

    def by_block() -> None:
        walk = Blockwise(model, structure, batches, changing=False)
        for groups in walk:
            walk.collect(groups, requests)

    return by_block


def arms_of(model: Any, options: argparse.Namespace) -> dict[str, Callable[[], object]]:
    """Return the passes by name."""
    shape = (1, options.tokens)
    batches = [
        {"input_ids": torch.randint(0, model.config.vocab_size, shape, device=options.device)}
        for _ in range(options.batches)
    ]
    return {
        FORWARD: lambda: forward(model, batches),
        BACKWARD: lambda: backward(model, batches),
        **{name: score(model, batches, name) for name in options.criteria},
    }


def load(options: argparse.Namespace) -> Any:
    """Return the model, every weight in memory of its own."""
    dtype = getattr(torch, options.dtype)
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=dtype).to(options.device).eval()
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()
    return model


def peak_over_weights(arm: str, options: argparse.Namespace) -> float:
    """Return the peak memory of one pass over the size of the weights."""
    on_cuda = torch.device(options.device).type == "cuda"
    baseline = 0 if on_cuda else memory_bytes("VmRSS")
    model = load(options)
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    if not on_cuda:
        # Reading the file costs more than the weights: start from what is left of it.
        gc.collect()
        Path("/proc/self/clear_refs").write_text("5")
    arms_of(model, options)[arm]()
    peak = torch.cuda.max_memory_allocated(options.device) if on_cuda else memory_bytes("VmHWM") - baseline
    return peak / weights


def main() -> None:
    """Print the ratios."""
    parser = base_parser(__doc__.splitlines()[0], repeats=3)
    parser.add_argument("model")
    parser.add_argument("--tokens", type=int, default=512, help="per sequence")
    parser.add_argument("--batches", type=int, default=1)
    parser.add_argument(
        "--criteria",
        nargs="+",
        default=["wanda", "obs", f"obs{BY_BLOCK}", f"obs{SCORES}", "fisher", "taylor"],
    )
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    options = parser.parse_args()
    prepare(options)
    if options.memory_of is not None:
        print(json.dumps(peak_over_weights(options.memory_of, options)))
        return
    names = (FORWARD, BACKWARD, *options.criteria)
    peaks = {name: in_own_process("--memory-of", name) for name in names}
    times = interleave(arms_of(load(options), options), options, warmup=1)
    result: dict[str, Any] = {**environment(options), "tokens": options.tokens * options.batches}
    for name in names:
        result[name] = {
            **summary(times[name]),
            "of forward": ratio(times[name], times[FORWARD]),
            "of forward and backward": ratio(times[name], times[BACKWARD]),
            "memory over weights": peaks[name],
        }
    show(result, options.json)


if __name__ == "__main__":
    main()
