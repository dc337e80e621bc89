"""Compare the latency of a model as it is, with ReLU, and with ReLU and NoNorm, side by side in one run.

python benchmarks/cheaper_layers.py [--hidden 384 --layers 6] [--device cuda --dtype bfloat16] [--json]

The shapes are MiniLM-L6's; weights are random, which latency does not see.
"""

import copy
from collections.abc import Callable

import torch
from common import base_parser, environment, interleave, prepare, ratio, show, summary
from transformers import BertConfig, BertForSequenceClassification

from sparse_trainer.training.blending import cheapen, finish, set_mix

ARMS: dict[str, tuple[str, ...]] = {"dense": (), "relu": ("relu",), "relu + no_norm": ("relu", "no_norm")}


def main() -> None:
    """Print latencies and their ratios to the model as it is."""
    parser = base_parser(__doc__ or "", repeats=15)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--hidden", type=int, default=384)
    options = parser.parse_args()
    prepare(options)
    config = BertConfig(
        hidden_size=options.hidden,
        num_hidden_layers=options.layers,
        num_attention_heads=options.hidden // 32,
        intermediate_size=4 * options.hidden,
    )
    dense = BertForSequenceClassification(config).to(options.device, getattr(torch, options.dtype)).eval()
    ids = torch.randint(5, config.vocab_size, (options.batch, options.length), device=options.device)

    def arm(layers: tuple[str, ...]) -> Callable[[], object]:
        model = copy.deepcopy(dense)
        if layers:
            cheapen(model, layers)
            set_mix(model, 0.0)
            finish(model)
        return lambda: model(input_ids=ids, attention_mask=torch.ones_like(ids))

    with torch.inference_mode():
        times = interleave({name: arm(layers) for name, layers in ARMS.items()}, options)
    show(
        {
            "environment": environment(options),
            "latency": {name: summary(values) for name, values in times.items()},
            "ratio": {name: ratio(values, times["dense"]) for name, values in times.items()},
        },
        options.json,
    )


if __name__ == "__main__":
    main()
