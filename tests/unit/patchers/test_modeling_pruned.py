"""The file that ships inside saved folders."""

import ast
import copy
import pickle
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    BertModel,
)

import patchers.modeling_pruned as shipped
from patchers.discovery.discover import discover
from patchers.modeling_pruned import (
    LayoutError,
    Skip,
    base_of,
    layout_in,
    pruned_class,
    stock_class_of,
    stock_config,
)
from sparse_trainer.cut.optimize import optimize_model
from tests.fixtures.compact_models import FAMILIES, logits, patched, tiny, uneven_keep
from tests.fixtures.same import assert_same


def compact_model(family: str = "bert") -> Any:
    """Return a small model with uneven layers."""
    model = tiny(family)
    return optimize_model(patched(model, uneven_keep(discover(model))))


def test_it_needs_torch_and_transformers_alone() -> None:
    tree = ast.parse(Path(shipped.__file__).read_text(encoding="utf-8"))
    imported = {
        alias.name if isinstance(node, ast.Import) else str(node.module)
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }
    others = {name.partition(".")[0] for name in imported} - sys.stdlib_module_names
    assert others == {"torch", "transformers"}


def test_classes_are_made_on_demand_once_and_under_the_stock_name() -> None:
    made = shipped.BertForSequenceClassification
    assert made is pruned_class(BertForSequenceClassification)
    assert made.__name__ == "BertForSequenceClassification"
    assert issubclass(made, BertForSequenceClassification)
    for name in ("NoSuchModel", "BertConfig", "_private"):
        with pytest.raises(AttributeError, match=name):
            getattr(shipped, name)


@pytest.mark.parametrize("family", FAMILIES)
def test_copies_and_pickles_are_the_same_model(family: str) -> None:
    model = compact_model(family)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):  # noqa: S301 - our own bytes
        assert type(other) is type(model)
        assert_same(other, model, logits)


def test_a_fresh_model_from_the_config_is_initialised() -> None:
    torch.manual_seed(0)
    config = compact_model().config
    fresh = pruned_class(BertForSequenceClassification)._from_config(config)
    weight = fresh.bert.encoder.layer[0].intermediate.dense.weight
    assert 0.5 * config.initializer_range < float(weight.detach().std()) < 2 * config.initializer_range
    assert all(bool(p.isfinite().all()) for p in fresh.parameters())
    assert not fresh.bert.encoder.layer[0].intermediate.dense.bias.any()
    again = AutoModelForSequenceClassification.from_config(stock_config(config))
    assert again.num_parameters() > fresh.num_parameters()


def test_stock_names_and_configs_come_back() -> None:
    model = compact_model()
    assert stock_class_of(model) is BertForSequenceClassification
    assert stock_class_of(base_of(model)) is BertModel
    clean = stock_config(model.config).to_dict()
    assert not {"pruning", "auto_map"} & clean.keys()
    assert "pruning" in model.config.to_dict()


@pytest.mark.parametrize("bias", [False, True])
def test_skip_gives_a_constant(bias: bool) -> None:
    skip = Skip(2, 3, bias)
    if skip.bias is not None:
        skip.bias.data = torch.tensor([1.0, 2.0, 3.0])
    first, second = skip(torch.randn(2, 5, 7), attention_mask=None)
    assert second is None
    assert torch.equal(first, torch.tensor([1.0, 2.0, 3.0] if bias else [0.0] * 3).expand(2, 5, 3))
    assert Skip(0, 3, bias)(torch.randn(1, 1, 7)).shape == (1, 1, 3)


@pytest.mark.parametrize("family", FAMILIES)
def test_it_reports_all_hidden_states_and_attentions(family: str) -> None:
    model = compact_model(family)
    if family != "deberta-v2":
        model.set_attn_implementation("eager")
    for one in (model, base_of(model), base_of(copy.deepcopy(model))):
        output = one(torch.tensor([[5, 6, 7]]), output_hidden_states=True, output_attentions=True)
        assert len(output.hidden_states) == 4
        # The second layer has no attention left; some models say None, others leave it out.
        assert [a.shape[1] for a in output.attentions if a is not None] == [2, 1]


def test_a_base_model_on_its_own_reports_hidden_states() -> None:
    model = tiny().bert
    compact = optimize_model(patched(model, uneven_keep(discover(model))))
    assert len(compact(torch.tensor([[5, 6, 7]]), output_hidden_states=True).hidden_states) == 4


@pytest.mark.parametrize(
    ("pruning", "message"),
    [
        (None, "no layout"),
        ({"format": 1}, "no layout"),
        ({"format": 2, "layout": {}}, "format 2"),
        ({"format": 1, "layout": {"layers": {}, "skips": {}}}, "layout.build is None"),
        ({"format": 1, "layout": {"layers": {}, "build": {}, "skips": {}}}, "layout.shapes is None"),
    ],
)
def test_a_damaged_config_is_named(pruning: object, message: str) -> None:
    with pytest.raises(LayoutError, match=message):
        layout_in(BertConfig(pruning=pruning))


@pytest.mark.parametrize(
    ("part", "entry", "message"),
    [
        ("shapes", {"encoder.layer.9.output.dense.weight": [1, 1]}, r"encoder\.layer\.9"),
        ("shapes", {"encoder.layer.0.output.dense.weight": [1]}, "does not fit BertFor"),
        ("shapes", {"encoder.layer.0.output.dense.weight": ["a", "b"]}, "does not fit BertFor"),
        ("shapes", {"encoder.layer.weight": [1, 1]}, "does not fit BertFor"),
        ("selects", {"encoder.layer.0": [{"arguments": 1}]}, "does not fit BertFor"),
        ("layers", {"encoder.blocks": [1]}, "does not fit BertFor"),
        (
            "build",
            {"text_config.num_hidden_layers": 3},
            r"text_config\.num_hidden_layers.* which the config lacks",
        ),
        ("build", {"number_of_layers": 3}, "which the config lacks"),
    ],
)
def test_a_layout_of_another_model_is_named(part: str, entry: dict[str, Any], message: str) -> None:
    config = tiny().config
    layout = {part: {} for part in ("layers", "build", "skips", "shapes", "attributes", "selects")} | {
        part: entry
    }
    config.pruning = {"format": 1, "layout": layout}
    with pytest.raises(LayoutError, match=message):
        pruned_class(BertForSequenceClassification)(config)
