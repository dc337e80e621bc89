"""What a new process loads is compared with what is in memory."""

from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification

from sparse_trainer.errors import CheckpointError
from sparse_trainer.run.verify import verify_reload
from sparse_trainer.tasks.base import Outputs

AUTO_CLASS = "AutoModelForSequenceClassification"
INPUTS = {"input_ids": torch.arange(1, 25).view(4, 6), "attention_mask": torch.ones(4, 6, dtype=torch.long)}


@pytest.fixture
def model() -> BertForSequenceClassification:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    return BertForSequenceClassification(config).eval()


def test_a_good_folder_predicts_the_same(model: BertForSequenceClassification, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    reloaded = verify_reload(tmp_path, AUTO_CLASS, model, INPUTS, Outputs())
    assert (reloaded.samples, reloaded.same_predictions, reloaded.largest_difference) == (4, 4, 0.0)
    assert reloaded.parameters == model.num_parameters()


def test_a_folder_with_other_weights_is_caught(model: BertForSequenceClassification, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    with torch.no_grad():
        model.classifier.weight.neg_()
        model.classifier.bias.add_(torch.tensor([0.0, 0.5]))
        model.classifier.weight.mul_(50)
    with pytest.raises(CheckpointError, match=r"predicts otherwise after loading: \d of 4 agree"):
        verify_reload(tmp_path, AUTO_CLASS, model, INPUTS, Outputs())


def test_a_folder_that_does_not_load_is_caught(model: BertForSequenceClassification, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(CheckpointError, match="does not load with transformers alone"):
        verify_reload(tmp_path, AUTO_CLASS, model, INPUTS, Outputs())
