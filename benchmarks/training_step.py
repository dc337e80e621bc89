"""Compare training steps of a patched BERT-base with the dense step: time side by side, peak memory one by one.

python benchmarks/training_step.py [--arms patched blocks elements] [--device cuda --dtype bfloat16] [--json]
python benchmarks/training_step.py --arms l0 hidden distilled

A step is forward, backward, AdamW and, for the patched model, what the coordinator does (mask gradients, selection).
`patched` has gates on heads and channels, `blocks` 32 x 32 masks on attention and gates on channels, `elements` a mask
of the size of every matrix, `l0` random gates, `hidden` random gates on hidden features as well, `distilled` a teacher
beside `patched`; then the teacher's forward pass alone is timed too. Targets: time <= 1.05 x, 1.12 x, 1.6 x and, for
`l0`, 1.06 x; peak memory of gates <= 1.08 x; a teacher costs no more than its forward pass. Memory is the peak above
what the imports took, each model in a process of its own.
"""

import argparse
import contextlib
import json
from collections.abc import Callable

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
from transformers import BertConfig, BertForSequenceClassification

from sparse_trainer.training.arguments.arguments import SparseTrainingArguments
from sparse_trainer.training.coordinator import ModelPatchingCoordinator

ASKED: dict[str, dict[str, object]] = {
    "patched": {},
    "blocks": {
        "dense_pruning_method": "topK:1d_alt",
        "attention_pruning_method": "topK",
        "attention_block_rows": 32,
        "attention_block_cols": 32,
        "attention_output_with_dense": False,
    },
    "elements": {"dense_pruning_method": "topK", "attention_pruning_method": "topK"},
    "l0": {"scoring": "l0"},
    "hidden": {"scoring": "l0", "units": ["heads", "channels", "hidden"]},
    "distilled": {"distil_teacher_name_or_path": "self"},
}
TEACHER = "teacher"
ARMS = ("dense", *ASKED, TEACHER)
TOTAL_STEPS, FIRST_STEP = 1000, 400
"""The patched model is timed in mid-run: scores move, every step selects anew, part of the gates is closed."""


def make_step(arm: str, options: argparse.Namespace) -> Callable[[], None]:
    """Return a function that runs one optimizer step of one arm."""
    torch.manual_seed(options.seed)
    config = BertConfig(num_hidden_layers=options.layers)
    model = BertForSequenceClassification(config).to(options.device).train()
    coordinator = None
    groups: list[dict[str, object]] = [{"params": list(model.parameters())}]
    if arm in ASKED:
        coordinator = ModelPatchingCoordinator(SparseTrainingArguments(**ASKED[arm]))
        coordinator.patch_model(model)
        coordinator.begin(TOTAL_STEPS, FIRST_STEP)
        groups = coordinator.parameter_groups()
    optimizer = torch.optim.AdamW(groups, lr=1e-5, fused=True)
    ids = torch.randint(5, config.vocab_size, (options.batch, options.length), device=options.device)
    labels = torch.randint(0, 2, (options.batch,), device=options.device)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}
    if arm == TEACHER:
        return _teacher(model, inputs, options)

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


def _teacher(
    model: BertForSequenceClassification, inputs: dict[str, torch.Tensor], options: argparse.Namespace
) -> Callable[[], None]:
    """Return a function that runs one forward pass without gradients."""
    model.eval()

    def forward() -> None:
        with torch.no_grad(), _autocast(options):
            model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"])

    return forward


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
    parser = base_parser(__doc__ or "", repeats=15)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--arms", nargs="+", choices=list(ASKED), default=["patched", "blocks", "elements"])
    parser.add_argument("--memory-of", choices=ARMS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    prepare(options)
    if options.memory_of is not None:
        print(json.dumps(peak_bytes(options.memory_of, options)))
        return
    arms = ("dense", *options.arms, *([TEACHER] if "distilled" in options.arms else []))
    peaks = {arm: in_own_process("--memory-of", arm) for arm in arms}
    times = interleave({arm: make_step(arm, options) for arm in arms}, options)
    show(
        {
            "environment": environment(options),
            "step": {arm: summary(times[arm]) for arm in arms},
            "peak_mb": {arm: peak / 1e6 for arm, peak in peaks.items()},
            "ratio": {
                arm: {
                    "time": ratio(times[arm], times["dense"]),
                    "time_best": best_ratio(times[arm], times["dense"]),
                    "memory": peaks[arm] / peaks["dense"],
                }
                for arm in arms[1:]
            },
        },
        options.json,
    )


if __name__ == "__main__":
    main()
