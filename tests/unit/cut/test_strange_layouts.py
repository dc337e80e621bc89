"""Layouts from a stranger's folder: each entry is held against the model before it changes or allocates anything."""

import copy
from typing import Any

import pytest
import torch
from transformers import BertForSequenceClassification

from patchers.discovery.discover import discover
from patchers.discovery.tables import names
from patchers.modeling_pruned import _BUILD_COUNTS, UNITS, WIDTHS, LayoutError, pruned_class
from sparse_trainer.cut.optimize import optimize_model
from tests.fixtures.compact_models import patched, tiny, uneven_keep

DENSE = "encoder.layer.0.output.dense.weight"
ATTENTION = "encoder.layer.0.attention.self"
SELECT = {"argument": "attention_mask", "position": 1, "dim": 1, "index": [0, 1], "of": 4, "returned": None}

STRANGE: list[tuple[str, dict[str, Any]]] = [
    *(
        ("shapes", {DENSE: shape})
        for shape in (
            [10**12, 10**12], [32, 10**12], [-1, 48], [32.0, 48], [True, 48], [32], [32, 48, 1], "ab", None, {"a": 1},
            [33, 48], [[32], 48],
        )
    ),
    *(
        ("shapes", {name: [1]})
        for name in ("", "encoder", "__class__", "encoder.layer.0.forward", "encoder.layer.0.output.dense.__dict__")
    ),
    *(
        ("layers", {"encoder.layer": kept})
        for kept in ([], [3], [-1], [0, 0], [1, 0], [0.0], [True], "01", None, 2, [10**30], [[0]], {"0": 1})
    ),
    *(("layers", {path: [0]}) for path in ("", "encoder", "encoder.layer.0", "__class__", DENSE)),
    *(
        ("skips", {ATTENTION: value})
        for value in (
            [2, 10**12, True], [2, -1, True], [2, 32, 1], [10**9, 32, True], [2, 33, False], [2, 32], "abc", None,
            [2.0, 32, True], {"a": 1, "b": 2, "c": 3},
        )
    ),
    *(("skips", {path: [2, 0, False]}) for path in ("", "x.y", "encoder.layer.9", "encoder.layer.0.output.dropout")),
    ("norms", {"encoder.layer.0.output.LayerNorm": "other"}),
    ("norms", {"encoder.layer.0.output.LayerNorm": ["affine"]}),
    ("norms", {"encoder.layer.0.output.dense": "affine"}),
    ("norms", {"encoder": "affine"}),
    *(
        ("attributes", {ATTENTION: {name: value}})
        for name, value in (
            ("__class__", 1), ("__dict__", {}), ("forward", 1), ("query", 1), ("config", 1), ("_modules", {}),
            ("training", True), ("is_causal", True), ("dropout", 1), ("unknown", 1), ("num_attention_heads", 5),
            ("num_attention_heads", -1), ("num_attention_heads", 2.0), ("num_attention_heads", True),
            ("num_attention_heads", "2"), ("num_attention_heads", 10**30), ("layer_idx", 10**7), ("layer_idx", "0"),
            ("layer_idx", [0]), ("config.num_attention_heads", 5), ("config.vocab_size", 1), ("config.__class__", 1),
            ("config._name_or_path", "x"), ("config.num_attention_heads.x", 1), ("", 1), ("config.", 1),
        )
    ),
    ("attributes", {ATTENTION: 3}),
    ("attributes", {ATTENTION: ["num_attention_heads"]}),
    ("attributes", {"encoder.layer.9": {"num_attention_heads": 1}}),
    ("attributes", {"__class__": {"num_attention_heads": 1}}),
    *(
        ("selects", {ATTENTION: [{**SELECT, **changed}]})
        for changed in (
            {"index": [4]}, {"index": [-1]}, {"index": [1, 0]}, {"index": [0, 0]}, {"index": "01"}, {"index": None},
            {"of": 10**12}, {"of": 0}, {"of": -4}, {"of": "4"}, {"dim": -1}, {"dim": 10**6}, {"position": -1},
            {"position": "1"}, {"argument": 3}, {"argument": ["x"]}, {"returned": "0"},
            {"more": 1},
        )
    ),
    ("selects", {ATTENTION: SELECT}),
    ("selects", {ATTENTION: [3]}),
    ("selects", {ATTENTION: 3}),
    *(
        ("build", {name: value})
        for name, value in (
            ("num_hidden_layers", 10**9), ("num_hidden_layers", 2), ("num_hidden_layers", "3"),
            ("num_hidden_layers", None), ("num_hidden_layers", True), ("hidden_size", 10**9),
            ("vocab_size", 10**9), ("_name_or_path", "x"),
            ("nothing", 1), ("nothing.forward", 1), ("__class__", 1), ("__class__.x", 1), ("", 1), (".", 1),
            ("id2label", {}), ("architectures", [10**9] * 10_000),
        )
    ),
    *(("heads", {"BertForSequenceClassification": value}) for value in ("cannot", 3, None, [1], {"x": [[0, 1]]})),
    *(
        ("heads", {"BertForSequenceClassification": {"/classifier.weight": sizes}})
        for sizes in ([[0, 10**12]], [[9, 1]], [[-1, 1]], [["0", 1]], [[0]], [0], 3, [[0, -1]], [[True, 1]])
    ),
]  # fmt: skip


def damaged(part: str, entries: Any) -> Any:
    """Return the config of a pruned model with strange entries in its layout."""
    model = tiny()
    layout = {
        name: {} for name in ("layers", "build", "skips", "norms", "shapes", "heads", "attributes", "selects")
    }
    model.config.pruning = {"format": 1, "layout": {**layout, part: entries}}
    return model.config


@pytest.mark.parametrize(("part", "entries"), STRANGE, ids=lambda value: str(value)[:60])
def test_what_no_cut_does_is_refused(part: str, entries: Any) -> None:
    config = damaged(part, entries)
    with pytest.raises(LayoutError, match=f"layout.{part}") as caught, torch.device("meta"):
        pruned_class(BertForSequenceClassification)(config)
    assert len(str(caught.value)) < 2000


@pytest.mark.parametrize(
    "part", ["layers", "build", "skips", "norms", "shapes", "heads", "attributes", "selects"]
)
@pytest.mark.parametrize("value", [None, 3, [], "x", {3: 4}])
def test_parts_are_mappings_of_paths(part: str, value: Any) -> None:
    with pytest.raises(LayoutError, match=f"layout.{part}"):
        pruned_class(BertForSequenceClassification)(damaged(part, value))


def test_layouts_of_cuts_are_taken() -> None:
    model = tiny()
    compact = optimize_model(patched(model, uneven_keep(discover(model))))
    again = pruned_class(BertForSequenceClassification)(copy.deepcopy(compact.config))
    shapes = {name: tensor.shape for name, tensor in compact.state_dict().items()}
    assert {name: tensor.shape for name, tensor in again.state_dict().items()} == shapes


def test_units_and_widths_are_those_that_a_cut_counts() -> None:
    assert {*names.NUM_HEADS, *names.NUM_KV_HEADS, *names.NUM_EXPERTS} == UNITS
    assert {*names.HEADS_PER_GROUP, *names.HEADS_WIDTH, *names.KV_HEADS_WIDTH} == WIDTHS
    assert set(names.NUM_LAYERS) == _BUILD_COUNTS
