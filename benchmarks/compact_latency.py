"""Compare how much faster a cut BERT-base is with how much less it multiplies (the ideal).

python benchmarks/compact_latency.py [--scope uniform] [--multiple-of 32] [--device cuda --dtype bfloat16] [--json]

The ideal is the ratio of the encoder's multiply-accumulates, attention products included. Targets for the reached share
of it: 50 % of the encoder's linears removed: 0.95 at 16 x 128 and 0.90 at 1 x 128; 75 % removed: 0.90 and 0.75.
"""

import argparse
from collections.abc import Callable

import torch
from common import base_parser, best_ratio, environment, interleave, prepare, ratio, show, summary
from transformers import BertConfig, BertForSequenceClassification

from patchers.discovery.discover import discover
from sparse_trainer.budget.counting import mac_count
from sparse_trainer.cut.optimize import optimize_model
from sparse_trainer.training.arguments.arguments import SparseTrainingArguments
from sparse_trainer.training.coordinator import ModelPatchingCoordinator

DENSITIES = (0.5, 0.25)


def dense_model(options: argparse.Namespace) -> BertForSequenceClassification:
    """Return a BERT-base with random weights, in evaluation mode."""
    torch.manual_seed(options.seed)
    model = BertForSequenceClassification(BertConfig(num_hidden_layers=options.layers))
    return model.to(device=options.device, dtype=getattr(torch, options.dtype)).eval()


def compact_model(density: float, options: argparse.Namespace) -> BertForSequenceClassification:
    """Return the same model with this part of its heads and channels left, by cost; which ones is random."""
    model = dense_model(options)
    coordinator = ModelPatchingCoordinator(
        SparseTrainingArguments(
            scoring="random",
            density=density,
            scope=options.scope,
            multiple_of=options.multiple_of,
            pruning_warmup_ratio=0.0,
            cooldown_ratio=0.0,
        )
    )
    coordinator.patch_model(model)
    coordinator.begin(total_steps=1)
    coordinator.step()
    return optimize_model(model, inplace=True, check=False)


def encoder_macs(model: BertForSequenceClassification, length: int) -> int:
    """Return the multiply-accumulates of the encoder, per token."""
    return mac_count(model.bert.encoder, discover(model), length)


def forward(
    model: BertForSequenceClassification, batch: int, options: argparse.Namespace
) -> Callable[[], None]:
    """Return a function that runs one forward pass without padding."""
    ids = torch.randint(5, model.config.vocab_size, (batch, options.length), device=options.device)
    mask = torch.ones_like(ids)

    @torch.inference_mode()
    def run() -> None:
        model(input_ids=ids, attention_mask=mask)

    return run


def main() -> None:
    """Print latencies, speed-ups and the share of the ideal that is reached."""
    parser = base_parser(__doc__ or "", repeats=15)
    parser.add_argument("--batches", type=int, nargs="+", default=[16, 1])
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument(
        "--scope", default="global", choices=["global", "uniform"], help="uneven or equal layers"
    )
    parser.add_argument("--multiple-of", type=int, default=1, help="channel counts are multiples of this")
    options = parser.parse_args()
    prepare(options)
    models = {"dense": dense_model(options)} | {f"{d:g}": compact_model(d, options) for d in DENSITIES}
    macs = {name: encoder_macs(model, options.length) for name, model in models.items()}
    result: dict[str, object] = {
        "environment": environment(options),
        "ideal_speed_up": {name: macs["dense"] / macs[name] for name in models if name != "dense"},
    }
    for batch in options.batches:
        times = interleave(
            {name: forward(model, batch, options) for name, model in models.items()},
            options,
            options.repeats if batch > 1 else 4 * options.repeats,
        )
        rows: dict[str, dict[str, float]] = {name: summary(times[name]) for name in models}
        for name in rows.keys() - {"dense"}:
            speed_up = ratio(times["dense"], times[name])
            rows[name]["speed_up"] = speed_up
            rows[name]["share_of_ideal"] = speed_up * macs[name] / macs["dense"]
            best = best_ratio(times["dense"], times[name])
            rows[name]["share_of_ideal_best"] = best * macs[name] / macs["dense"]
        result[f"{batch} x {options.length}"] = rows
    show(result, options.json)


if __name__ == "__main__":
    main()
