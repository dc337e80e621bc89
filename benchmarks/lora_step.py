"""Compare training steps of LoRA with gates with those of plain LoRA: time side by side, peak memory one by one.

python benchmarks/lora_step.py [--family llama] [--arms movement loraprune full] [--device cuda --dtype bfloat16]

A step is forward, backward, AdamW and, with gates, what the coordinator does (scores, selection). The base is frozen,
all its linears but the head have adapters. Targets: time and peak memory <= 1.1 x those of plain LoRA. Memory is the
peak above what the imports took, each model in a process of its own; `full` trains all weights, without gates.
"""

import argparse
import contextlib
import json
from collections.abc import Callable
from typing import Any

import torch
from common import (
    base_parser,
    best_ratio,
    environment,
    in_own_process,
    interleave,
    memory_bytes,
    prepare,
    ratio,
    show,
    summary,
)
from peft import LoraConfig, get_peft_model
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)

from sparse_trainer.training.arguments.arguments import SparseTrainingArguments
from sparse_trainer.training.coordinator import ModelPatchingCoordinator

PLAIN, FULL = "lora", "full"
SCORINGS = ("movement", "taylor", "loraprune", "l0")
TOTAL_STEPS, FIRST_STEP = 1000, 400
"""The gates are timed in mid-run: scores move, every step selects anew, part of them is closed."""


def make_model(options: argparse.Namespace) -> PreTrainedModel:
    """Return a model with random weights: BERT-base, or a Llama of its width with 4 KV groups; a few layers of it."""
    if options.family == "bert":
        return BertForSequenceClassification(BertConfig(num_hidden_layers=options.layers))
    sizes = {
        "hidden_size": 768,
        "intermediate_size": 2048,
        "num_attention_heads": 12,
        "num_key_value_heads": 4,
    }
    return LlamaForCausalLM(LlamaConfig(vocab_size=8192, num_hidden_layers=options.layers, **sizes))


def make_step(arm: str, options: argparse.Namespace) -> Callable[[], None]:
    """Return a function that runs one optimizer step of one arm."""
    torch.manual_seed(options.seed)
    model: Any = make_model(options).to(options.device).train()
    if arm != FULL:
        head = {"modules_to_save": ["classifier"]} if options.family == "bert" else {}
        model = get_peft_model(
            model,
            LoraConfig(r=options.rank, lora_dropout=options.dropout, target_modules="all-linear", **head),
        )
    coordinator = None
    groups: list[dict[str, Any]] = [{"params": [p for p in model.parameters() if p.requires_grad]}]
    if arm in SCORINGS:
        coordinator = ModelPatchingCoordinator(SparseTrainingArguments(scoring=arm))
        coordinator.patch_model(model)
        coordinator.begin(TOTAL_STEPS, FIRST_STEP)
        groups = coordinator.parameter_groups()
    optimizer = torch.optim.AdamW(groups, lr=1e-4, fused=True)
    ids = torch.randint(5, 8000, (options.batch, options.length), device=options.device)
    labels = (
        ids if options.family == "llama" else torch.randint(0, 2, (options.batch,), device=options.device)
    )
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}

    def step() -> None:
        with _autocast(options):
            outputs = model(**inputs)
            loss = outputs.loss
            if coordinator is not None:
                loss = coordinator.loss(loss, inputs, outputs)
        loss.backward()
        if coordinator is not None:
            coordinator.observe()
        optimizer.step()
        optimizer.zero_grad()
        if coordinator is not None:
            coordinator.step()

    return step


def _autocast(options: argparse.Namespace) -> contextlib.AbstractContextManager[object]:
    if options.dtype == "float32":
        return contextlib.nullcontext()
    return torch.autocast(torch.device(options.device).type, dtype=getattr(torch, options.dtype))


def peak_bytes(arm: str, options: argparse.Namespace) -> int:
    """Run three steps and return the peak memory above the baseline, in bytes."""
    on_cuda = torch.device(options.device).type == "cuda"
    baseline = 0 if on_cuda else memory_bytes("VmRSS")
    step = make_step(arm, options)
    for _ in range(3):
        step()
    if on_cuda:
        return torch.cuda.max_memory_allocated(options.device)
    return memory_bytes("VmHWM") - baseline


def main() -> None:
    """Print times, peaks and their ratios."""
    parser = base_parser(__doc__ or "", repeats=9)
    parser.add_argument("--family", choices=["bert", "llama"], default="bert")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--dropout", type=float, default=0.05)
    parser.add_argument(
        "--arms", nargs="+", choices=[*SCORINGS, FULL], default=["movement", "taylor", "loraprune"]
    )
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    options = parser.parse_args()
    prepare(options)
    if options.memory_of is not None:
        print(json.dumps(peak_bytes(options.memory_of, options)))
        return
    arms = (PLAIN, *options.arms)
    peaks = {arm: in_own_process("--memory-of", arm) for arm in arms}
    times = interleave({arm: make_step(arm, options) for arm in arms}, options)
    show(
        {
            "environment": environment(options),
            "step": {arm: summary(times[arm]) for arm in arms},
            "peak_mb": {arm: peak / 1e6 for arm, peak in peaks.items()},
            "ratio": {
                arm: {
                    "time": ratio(times[arm], times[PLAIN]),
                    "time_best": best_ratio(times[arm], times[PLAIN]),
                    "memory": peaks[arm] / peaks[PLAIN],
                }
                for arm in options.arms
            },
        },
        options.json,
    )


if __name__ == "__main__":
    main()
