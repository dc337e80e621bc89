"""Time criteria of depth against the plain passes that they contain, and count what the greedy search runs.

python benchmarks/depth_cost.py [MODEL_FOLDER] --threads 1 --clock cpu

Without a folder: a Llama of 30 layers with random weights. A step of `layer_gate` reads one sequence. Targets: a
criterion that scores in one pass 1.1 x the forward pass; the greedy search 0.6 x the block evaluations of trying
every layer on the whole model.
"""

import argparse
from collections.abc import Callable
from typing import Any

import torch
from common import base_parser, best_ratio, environment, interleave, prepare, ratio, show, summary
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from patchers.discovery.discover import discover
from patchers.units import LAYERS, Structure
from sparse_trainer.criteria.calibration.mixture import criterion_of
from sparse_trainer.one_shot.tried import Tried
from sparse_trainer.statistics.calibration import Batches
from sparse_trainer.statistics.collect import collect

FORWARD, BOTH, GATES, ROUND = (
    "forward",
    "forward and backward",
    "a step of layer_gate",
    "a round of perplexity",
)
ONE_PASS = ("block_influence", "angular", "relative_norm", "avss")


def load(options: argparse.Namespace) -> Any:
    """Return the model."""
    if options.model is not None:
        model = AutoModelForCausalLM.from_pretrained(options.model)
    else:
        sizes = {
            "hidden_size": 576,
            "intermediate_size": 1536,
            "num_attention_heads": 9,
            "num_key_value_heads": 3,
        }
        model = LlamaForCausalLM(LlamaConfig(vocab_size=8192, num_hidden_layers=30, **sizes))
    return model.to(options.device, getattr(torch, options.dtype)).eval().requires_grad_(False)


def forward(model: Any, batches: list[dict[str, Tensor]]) -> None:
    """Run the model over the batches."""
    with torch.no_grad():
        for batch in batches:
            model(**batch, use_cache=False)


def backward(model: Any, batches: list[dict[str, Tensor]]) -> None:
    """Run the model forward and backward, without gradients of weights."""
    for batch in batches:
        states = model.get_input_embeddings()(batch["input_ids"]).requires_grad_()
        model(inputs_embeds=states, labels=batch["input_ids"], use_cache=False).loss.backward()


def one_pass(
    model: Any, layers: Structure, batches: list[dict[str, Tensor]], name: str
) -> Callable[[], object]:
    """Return the calibration pass of a criterion."""
    requests = criterion_of(name).requests()
    return lambda: collect(model, layers, batches, requests)


def trials_of(model: Any, layers: Structure, batches: list[dict[str, Tensor]]) -> Tried:
    """Return what criteria that search work with; nine of ten layers would stay."""
    return Tried(model, layers, Batches(model, batches), {group.name: 1 for group in layers.groups}, 0.9)


def evaluations(model: Any, layers: Structure, trials: Tried, rounds: int) -> dict[str, float]:
    """Return how many blocks run in so many rounds of greedy search, and in the naive way, for one batch."""
    runs = 0

    def count(*_: Any) -> None:
        nonlocal runs
        runs += 1

    handles = [model.get_submodule(group.block).mlp.register_forward_hook(count) for group in layers.groups]
    criterion_of("perplexity").search(layers, trials, rounds)
    for handle in handles:
        handle.remove()
    depth = len(layers.groups)
    naive = sum((depth - gone) * (depth - gone - 1) for gone in range(rounds))
    return {"search": runs, "naive": naive, "ratio": runs / naive}


def main() -> None:
    """Print the ratios."""
    parser = base_parser(__doc__.splitlines()[0], repeats=5)
    parser.add_argument("model", nargs="?")
    parser.add_argument("--tokens", type=int, default=512, help="per sequence")
    parser.add_argument("--batches", type=int, default=1)
    parser.add_argument("--steps", type=int, default=8, help="of layer_gate, whose time is divided by them")
    parser.add_argument(
        "--rounds", type=int, default=3, help="of the greedy search, where blocks are counted"
    )
    parser.add_argument("--arms", nargs="+", choices=[BOTH, *ONE_PASS, ROUND, GATES], help="default: all")
    options = parser.parse_args()
    prepare(options)
    model = load(options)
    layers = discover(model, (LAYERS,))
    ids = torch.randint(
        0, model.config.vocab_size, (options.batches, 1, options.tokens), device=options.device
    )
    batches = [{"input_ids": ids_BT} for ids_BT in ids]
    trials = trials_of(model, layers, batches)
    gates = criterion_of(f"layer_gate(steps={options.steps})")
    arms: dict[str, Callable[[], object]] = {
        FORWARD: lambda: forward(model, batches),
        BOTH: lambda: backward(model, batches),
        **{name: one_pass(model, layers, batches, name) for name in ONE_PASS},
        ROUND: lambda: trials.losses([], layers.groups),
        GATES: lambda: trials.learned_gates(gates),
    }
    asked = {FORWARD, *(options.arms or arms)}
    times = interleave({name: arm for name, arm in arms.items() if name in asked}, options, warmup=1)
    if GATES in times:
        times[GATES] = [time / options.steps for time in times[GATES]]
    result: dict[str, Any] = {**environment(options), "tokens": options.tokens * options.batches}
    result |= {
        name: {
            **summary(each),
            "of forward": ratio(each, times[FORWARD]),
            "best": best_ratio(each, times[FORWARD]),
        }
        for name, each in times.items()
    }
    short = [{"input_ids": batches[0]["input_ids"][:, :8]}]
    result["block evaluations"] = evaluations(model, layers, trials_of(model, layers, short), options.rounds)
    show(result, options.json)


if __name__ == "__main__":
    main()
