"""Which auto classes lead to a model is found without importing every model of transformers."""

import pytest
from transformers import BertConfig, BertForSequenceClassification
from transformers.models.auto.auto_factory import _LazyAutoMapping

from sparse_trainer.cut.auto_classes import auto_classes_of, auto_map_for, heads_of


def test_no_other_model_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(mapping: _LazyAutoMapping) -> None:
        raise AssertionError("imports the configs of all models")

    monkeypatch.setattr(_LazyAutoMapping, "keys", fail)
    config = BertConfig(
        vocab_size=8, hidden_size=8, intermediate_size=8, num_attention_heads=1, num_hidden_layers=1
    )
    auto_classes_of.cache_clear()
    heads_of.cache_clear()
    found = auto_map_for(BertForSequenceClassification(config))
    assert found["AutoModelForSequenceClassification"] == "modeling_pruned.BertForSequenceClassification"
    assert found["AutoModelForTokenClassification"] == "modeling_pruned.BertForTokenClassification"
