"""Time calibration passes against the plain passes that they contain.

python benchmarks/scoring_cost.py MODEL_FOLDER --threads 1 --clock cpu
"""

from collections.abc import Callable
from typing import Any

import torch
from common import base_parser, environment, interleave, prepare, ratio, show, summary
from torch import Tensor
from transformers import AutoModelForCausalLM

from sparse_trainer import discover
from sparse_trainer.oneshot.mixture import criterion_of
from sparse_trainer.statistics import collect


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
    """Return the calibration pass of a criterion."""
    structure, needs = discover(model, ("heads", "channels")), criterion_of(criterion).needs()
    return lambda: collect(model, structure, batches, needs)


def main() -> None:
    """Print the ratios."""
    parser = base_parser(__doc__.splitlines()[0], repeats=3)
    parser.add_argument("model")
    parser.add_argument("--tokens", type=int, default=512, help="per sequence")
    parser.add_argument("--batches", type=int, default=1)
    parser.add_argument("--criteria", nargs="+", default=["wanda", "obs", "fisher", "taylor"])
    options = parser.parse_args()
    prepare(options)
    dtype = getattr(torch, options.dtype)
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=dtype).to(options.device).eval()
    shape = (1, options.tokens)
    vocabulary = model.config.vocab_size
    batches = [
        {"input_ids": torch.randint(0, vocabulary, shape, device=options.device)}
        for _ in range(options.batches)
    ]
    arms: dict[str, Callable[[], object]] = {
        "forward": lambda: forward(model, batches),
        "forward and backward": lambda: backward(model, batches),
        **{name: score(model, batches, name) for name in options.criteria},
    }
    times = interleave(arms, options, warmup=1)
    result: dict[str, Any] = {**environment(options), "tokens": options.tokens * options.batches}
    for name in arms:
        result[name] = {
            **summary(times[name]),
            "of forward": ratio(times[name], times["forward"]),
            "of forward and backward": ratio(times[name], times["forward and backward"]),
        }
    show(result, options.json)


if __name__ == "__main__":
    main()
