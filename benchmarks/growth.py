"""Fit how costs grow with layers, with parameters and with tokens: time ~ size ** exponent.

python benchmarks/growth.py --threads 1 --clock cpu [--sizes 4 8 16 32]

Targets: exponents of 1.0 at most, up to the noise of the fit. Each cost is measured at each size in turn, and the
fastest round counts. What does not grow, such as a call itself, makes exponents smaller: the largest sizes say most.
"""

import argparse
from collections.abc import Callable, Mapping

import numpy as np
import torch
from common import base_parser, environment, interleave, prepare, show
from transformers import LlamaConfig, LlamaForCausalLM

from patchers.discovery.discover import discover
from patchers.units import WIDTH_KINDS
from sparse_trainer.budget.cost import unit_cost
from sparse_trainer.budget.options import Budget
from sparse_trainer.budget.selection import Selector
from sparse_trainer.one_shot.prune import prune

WIDTH_OF_A_HEAD = 32


def llama(*, layers: int, hidden: int) -> LlamaForCausalLM:
    """Return a Llama with random weights and a small vocabulary."""
    config = LlamaConfig(
        vocab_size=512,
        hidden_size=hidden,
        intermediate_size=3 * hidden,
        num_attention_heads=hidden // WIDTH_OF_A_HEAD,
        num_hidden_layers=layers,
        max_position_embeddings=4096,
    )
    return LlamaForCausalLM(config).eval()


def discovery(layers: int) -> Callable[[], object]:
    """Return what finds the units of so many layers."""
    with torch.device("meta"):
        model = llama(layers=layers, hidden=128)
    return lambda: discover(model)


def selection(layers: int) -> Callable[[], object]:
    """Return what chooses half of the heads and channels of so many layers."""
    with torch.device("meta"):
        model = llama(layers=layers, hidden=512)
    groups = discover(model).of(WIDTH_KINDS)
    costs = {group.name: unit_cost(model, group, "params", 128) for group in groups}
    scores = {group.name: torch.rand(group.num_units) for group in groups}
    selector = Selector(groups, costs, Budget(density=0.5))
    return lambda: selector.select(scores)


def cut(layers: int, hidden: int) -> Callable[[], object]:
    """Return what scores by magnitude, chooses and cuts a copy."""
    model = llama(layers=layers, hidden=hidden)
    return lambda: prune(model, None, criterion="magnitude", density=0.5, check=False)


def scoring(tokens: int) -> Callable[[], object]:
    """Return what scores by Wanda on so many tokens, in sequences of 64, and cuts."""
    model = llama(layers=2, hidden=256)
    ids = torch.randint(5, 500, (tokens // 64, 64))
    batches = [{"input_ids": rows_BT} for rows_BT in ids.split(4)]
    return lambda: prune(model, batches, criterion="wanda", density=0.5, check=False)


def costs_of(sizes: list[int]) -> dict[str, Mapping[int, Callable[[], object]]]:
    """Return what is measured: name -> size -> what is timed."""
    return {
        "discover, by layers": {size: discovery(size) for size in sizes},
        "select, by layers": {size: selection(size) for size in sizes},
        "prune by magnitude, by layers": {size: cut(size, 256) for size in sizes},
        # Hidden features and channels both double from size to size, so parameters grow by 4.
        "prune by magnitude, by parameters of a layer": {
            size**2: cut(2, WIDTH_OF_A_HEAD * size) for size in sizes
        },
        "prune by Wanda, by tokens": {64 * size: scoring(64 * size) for size in sizes},
    }


def exponent(sizes: list[int], times: list[float]) -> float:
    """Return the slope of log(time) over log(size), by least squares."""
    return float(np.polyfit(np.log(sizes), np.log(times), 1)[0])


def growth(arms: Mapping[int, Callable[[], object]], options: argparse.Namespace) -> dict[str, float]:
    """Return the milliseconds at each size and the fitted exponent."""
    found = interleave({str(size): call for size, call in arms.items()}, options, warmup=1)
    fastest = [min(times) for times in found.values()]
    return {size: 1e3 * time for size, time in zip(found, fastest, strict=True)} | {
        "exponent": exponent(list(arms), fastest)
    }


def main() -> None:
    """Print times and exponents."""
    parser = base_parser(__doc__ or "", repeats=5)
    parser.add_argument("--sizes", type=int, nargs="+", default=[4, 8, 16, 32])
    options = parser.parse_args()
    prepare(options)
    result = {"environment": environment(options)}
    for name, arms in costs_of(options.sizes).items():
        result[name] = growth(arms, options)
    show(result, options.json)


if __name__ == "__main__":
    main()
