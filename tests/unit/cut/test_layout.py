"""What differs between a cut model and the stock one."""

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertForSequenceClassification

from patchers.discovery.discover import discover
from patchers.modeling_pruned import LayoutError, layout_in, pruned_class
from sparse_trainer.cut.config_changes import Cut
from sparse_trainer.cut.config_fit import Fit, build, fit_config
from sparse_trainer.cut.layout import check_builds, empty_layout, is_native, layout_of
from sparse_trainer.cut.optimize import optimize_model
from sparse_trainer.errors import UnsupportedModelError
from sparse_trainer.training.blending import cheapen, finish
from tests.fixtures.compact_models import FAMILIES, patched, tiny, uneven_keep


@pytest.mark.parametrize("family", FAMILIES)
def test_a_stock_model_differs_in_nothing(family: str) -> None:
    model = tiny(family)
    same = Cut(before=discover(model), after=discover(model), gone={})
    assert is_native(layout_of(model, Fit(built=build(model, model.config), build={}), same, empty_layout()))


def test_differences_are_written_relative_to_the_base_model() -> None:
    model = tiny()
    compact = optimize_model(patched(model, uneven_keep(discover(model))))
    layout = layout_in(compact.config)
    assert layout["shapes"]["encoder.layer.0.attention.self.query.weight"] == [16, 32]
    assert layout["shapes"]["encoder.layer.2.output.dense.weight"] == [32, 0]
    assert layout["skips"] == {"encoder.layer.1.attention.self": [2, 0, False]}
    assert layout["attributes"]["encoder.layer.0.attention.self"] == {
        "num_attention_heads": 2,
        "all_head_size": 16,
    }
    assert layout["selects"] == layout["layers"] == {}
    assert not any("embeddings" in path or "classifier" in path for path in layout["shapes"])


def test_where_a_model_was_loaded_from_is_no_difference() -> None:
    """As of a model that a run keeps, and goes on with under the name that it started from."""
    model = tiny()
    for module in (model, model.bert):
        module.name_or_path = "runs/dense"
    model.config.name_or_path = "bert-base-uncased"
    compact = optimize_model(patched(model, uneven_keep(discover(model))))
    assert not any("name_or_path" in found for found in layout_in(compact.config)["attributes"].values())


def test_tables_from_outside_the_block_are_selected() -> None:
    model = tiny("mpnet")
    compact = optimize_model(patched(model, uneven_keep(discover(model))))
    assert layout_in(compact.config)["selects"]["encoder.layer.0.attention.attn"] == [
        {"argument": "position_bias", "position": 2, "dim": 1, "index": [1, 3], "of": 4, "returned": None}
    ]


def test_norms_without_statistics_are_listed_and_folders_without_the_part_still_read() -> None:
    model = tiny()
    cheapen(model, ("no_norm",))
    finish(model)
    layout = layout_in(model.config)
    assert layout["norms"]["encoder.layer.0.attention.output.LayerNorm"] == "affine"
    assert len(layout["norms"]) == 6
    assert not any(layout[part] for part in layout if part != "norms")
    old = optimize_model(patched(tiny(), uneven_keep(discover(tiny())))).config
    del old.pruning["layout"]["norms"]
    assert layout_in(old)["norms"] == {}
    model.config.pruning["layout"]["norms"]["encoder.layer.0.attention.output.LayerNorm"] = "rms"
    with pytest.raises(LayoutError, match=r"layout\.norms.*unknown kind of norm 'rms'"):
        pruned_class(BertForSequenceClassification)(model.config)


def test_a_change_that_no_layout_can_say_is_refused() -> None:
    model = tiny()
    model.classifier = nn.Linear(32, 5, dtype=torch.float64)
    with pytest.raises(UnsupportedModelError, match=r"classifier\.bias: has shape \(5,\)"):
        check_builds(model)


def test_config_follows_the_cut() -> None:
    whole, model = tiny(num_hidden_layers=5), tiny(num_hidden_layers=4, intermediate_size=40)
    model.config = BertConfig(
        vocab_size=99, hidden_size=32, num_attention_heads=4, intermediate_size=48, num_hidden_layers=5,
        max_position_embeddings=40, num_labels=3,
        layer_types=["conv", "full_attention", "hybrid", "moe", "conv"],
        pruning={}, auto_map={"AutoModel": "modeling_pruned.X"},
    )  # fmt: skip
    fit_config(model, Cut(before=discover(whole), after=discover(model), gone={"bert.encoder.layer": {1}}))
    assert model.config.layer_types == ["conv", "hybrid", "moe", "conv"]
    assert (model.config.num_hidden_layers, model.config.intermediate_size) == (4, 40)
    assert not {"pruning", "auto_map"} & model.config.to_dict().keys()


def test_names_of_code_go_from_configs_of_transformers_and_stay_in_those_of_users() -> None:
    class MineConfig(BertConfig):
        pass

    for config_class, stays in ((BertConfig, False), (MineConfig, True)):
        model = tiny()
        model.config = config_class.from_dict(model.config.to_dict())
        model.config.auto_map = {"AutoModel": "modeling_mine.Mine"}
        fit_config(model, Cut(before=discover(model), after=discover(model), gone={}))
        assert ("auto_map" in vars(model.config)) == stays
