"""Compare training steps of recovery with those of peft's LoRA in a plain Trainer: the same model, rows and options.

python benchmarks/recovery_step.py [--layers 4] [--steps 20] [--threads 1]

Both train adapters of rank 8 on every linear but the head of a random Llama. What recovery adds is a clock, a look at
loss and gradients every ten steps, and a learning rate by the share of the training that is over. Target: time of a
step <= 1.1 x that of plain LoRA.
"""

import tempfile
from collections.abc import Callable
from typing import Any

import torch
from common import base_parser, best_ratio, environment, interleave, prepare, ratio, show, summary
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM, PrinterCallback, Trainer

from sparse_trainer.run.recovery import Training, recovery_trainer, trainer_arguments
from sparse_trainer.run.recovery_options import RecoveryOptions
from sparse_trainer.tasks.language.token_losses import TokenBatch
from sparse_trainer.training.guards import Clock, KeepZeros, StopWhenNonFinite

OURS, PLAIN = "recovery", "lora"


def make_training(arm: str, options: Any, place: str) -> Callable[[], None]:
    """Return a function that trains so many steps."""
    asked = RecoveryOptions(steps=options.steps, batch_size=options.batch, length=options.length)
    sizes = {
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
    }
    base = LlamaForCausalLM(LlamaConfig(vocab_size=8192, num_hidden_layers=options.layers, **sizes))
    model = get_peft_model(base, LoraConfig(r=8, lora_alpha=16, target_modules="all-linear"))
    ids = torch.randint(5, 8000, (options.steps * options.batch, options.length)).tolist()
    arguments = trainer_arguments(asked, place, base, steps=options.steps, saves=Training())

    def train() -> None:
        clock = Clock(options.steps, None)
        ours = arm == OURS
        trainer = (recovery_trainer(None, asked, clock) if ours else Trainer)(
            model=model,
            args=arguments,
            train_dataset=Dataset.from_dict({"input_ids": ids}),
            data_collator=TokenBatch(padding=0),
            callbacks=[clock, KeepZeros([]), StopWhenNonFinite(lambda line: None)] if ours else [],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()

    return train


def main() -> None:
    """Print times and their ratio."""
    parser = base_parser(__doc__ or "", repeats=5)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--length", type=int, default=128)
    options = parser.parse_args()
    prepare(options)
    with tempfile.TemporaryDirectory() as place:
        times = interleave({arm: make_training(arm, options, place) for arm in (PLAIN, OURS)}, options)
    show(
        {
            "environment": environment(options),
            "training": {arm: summary(found) for arm, found in times.items()},
            "ratio": {
                "time": ratio(times[OURS], times[PLAIN]),
                "time_best": best_ratio(times[OURS], times[PLAIN]),
            },
        },
        options.json,
    )


if __name__ == "__main__":
    main()
