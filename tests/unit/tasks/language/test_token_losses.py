"""Perplexity inside a Trainer: per token, whatever the batches, and equal to what `perplexity` measures."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import EvalPrediction, Trainer, TrainingArguments

from sparse_trainer.data.splits import DataOptions
from sparse_trainer.tasks.causal_lm import CausalLM
from sparse_trainer.tasks.language.text import perplexity
from sparse_trainer.tasks.language.token_losses import TokenBatch, perplexity_of, summed_losses
from tests.fixtures.character_tokenizer import character_tokenizer
from tests.fixtures.language_models import language_model

TEXT = "".join(
    f"The number {n} is {'even' if n % 2 == 0 else 'odd'}, says line {n * n}.\n" for n in range(40)
)


def evaluated(kind: str, data: Any, size: int, out: Path, **more: Any) -> float:
    arguments = TrainingArguments(
        output_dir=str(out), per_device_eval_batch_size=size, report_to="none", use_cpu=True, disable_tqdm=True,
        dataloader_pin_memory=False, **more,
    )  # fmt: skip
    trainer = Trainer(
        language_model(kind), arguments, data_collator=data.collator, eval_dataset=data.validation,
        compute_metrics=data.compute_metrics, preprocess_logits_for_metrics=data.reduce_logits,
    )  # fmt: skip
    return float(trainer.evaluate()["eval_perplexity"])


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("bos", [False, True])
def test_it_equals_the_measurement_of_the_command_and_does_not_depend_on_batches(
    kind: str, bos: bool, tmp_path: Path
) -> None:
    (tmp_path / "text.raw").write_text(TEXT)
    tokenizer, file = character_tokenizer(bos=bos), str(tmp_path / "text.raw")
    data = CausalLM().prepare(DataOptions(train_file=file, validation_file=file, max_length=60), tokenizer)
    # The last block is shorter: an average over batches, or over rows, would weigh its tokens more.
    lengths = {len(ids) for ids in data.validation["input_ids"]}
    assert len(lengths) == 2
    found = [evaluated(kind, data, size, tmp_path) for size in (1, 3, 8)]
    measured = perplexity(language_model(kind), tokenizer, file, length=60)
    assert found == pytest.approx([measured.perplexity] * 3, rel=1e-5)
    counts = sum(len(ids) - 1 for ids in data.validation["input_ids"])
    assert counts == measured.num_tokens


def test_half_precision_is_summed_in_single() -> None:
    torch.manual_seed(0)
    logits = torch.randn(2, 9, 500).bfloat16()
    labels = torch.randint(500, (2, 9))
    labels[0, 5:] = -100
    sums = summed_losses((logits, "cache"), labels)
    assert sums.dtype == torch.float32
    losses = -logits.float().log_softmax(-1)[:, :-1].gather(2, labels[:, 1:, None].clamp_min(0))[..., 0]
    counts = labels[:, 1:] != -100
    torch.testing.assert_close(sums[:, 0], (losses * counts).sum(1))
    assert sums[:, 1].tolist() == [4, 8]


def test_tokens_weigh_alike_not_rows() -> None:
    predictions = np.array([[8.0, 2.0], [0.0, 6.0]])
    found = perplexity_of(EvalPrediction(predictions=predictions, label_ids=np.zeros((2, 9))))
    assert found["perplexity"] == pytest.approx(np.e)


def test_rows_are_padded_on_the_right_and_padding_does_not_count() -> None:
    batch = TokenBatch(padding=7)([{"input_ids": [1, 2, 3]}, {"input_ids": [4], "labels": [-100]}])
    assert batch["input_ids"].tolist() == [[1, 2, 3], [4, 7, 7]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["labels"].tolist() == [[1, 2, 3], [-100, -100, -100]]
