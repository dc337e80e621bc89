"""What differs between a cut model and the stock one."""

import pytest
import torch
from torch import nn
from transformers import BertConfig

from patchers import discover
from patchers.modeling_pruned import base_of
from sparse_trainer.errors import UnsupportedModelError
from sparse_trainer.layout import channel_widths, check_builds, fit_config, is_native, layout_of, stock_of
from sparse_trainer.optimize import optimize_model
from tests.compact_models import FAMILIES, patched, tiny, uneven_keep


@pytest.mark.parametrize("family", FAMILIES)
def test_a_stock_model_differs_in_nothing(family: str) -> None:
    assert is_native(layout_of(tiny(family), stock_of(tiny(family))))


def test_differences_are_written_relative_to_the_base_model() -> None:
    model = tiny()
    compact = optimize_model(patched(model, uneven_keep(discover(model))))
    layout = layout_of(compact, stock_of(compact))
    assert layout["linears"]["encoder.layer.0.attention.self.query"] == [16, 32]
    assert layout["linears"]["encoder.layer.2.output.dense"] == [32, 0]
    assert layout["skips"] == {"encoder.layer.1.attention.self": [2, 0, False]}
    assert layout["attributes"]["encoder.layer.0.attention.self"] == {
        "num_attention_heads": 2,
        "all_head_size": 16,
    }
    assert layout["selects"] == {}
    assert not any("embeddings" in path or "classifier" in path for path in layout["linears"])


def test_tables_from_outside_the_block_are_selected() -> None:
    model = tiny("mpnet")
    compact = optimize_model(patched(model, uneven_keep(discover(model))))
    assert layout_of(compact, stock_of(compact))["selects"]["encoder.layer.0.attention.attn"] == {
        "argument": "position_bias",
        "position": 2,
        "dim": 1,
        "index": [1, 3],
    }


def test_a_change_that_no_layout_can_say_is_refused() -> None:
    model = tiny()
    model.classifier = nn.Linear(32, 5, dtype=torch.float64)
    with pytest.raises(UnsupportedModelError, match=r"classifier\.bias: has shape \(5,\)"):
        check_builds(model)


def test_config_follows_the_cut() -> None:
    model = tiny(num_hidden_layers=4, intermediate_size=40)
    config = BertConfig(
        num_hidden_layers=5,
        layer_types=["conv", "full_attention", "hybrid", "moe", "conv"],
        pruning={},
        auto_map={"AutoModel": "modeling_pruned.X"},
    )
    fit_config(config, discover(model), {"bert.encoder.layer": {1}})
    assert config.layer_types == ["conv", "hybrid", "moe", "conv"]
    assert (config.num_hidden_layers, config.intermediate_size) == (4, 40)
    assert not {"pruning", "auto_map"} & config.to_dict().keys()


def test_the_users_own_auto_map_stays() -> None:
    config = BertConfig(auto_map={"AutoModel": "modeling_mine.Mine"})
    fit_config(config, discover(tiny()), {})
    assert config.auto_map == {"AutoModel": "modeling_mine.Mine"}


def test_widths_of_layers_without_channels_are_zero() -> None:
    model = tiny()
    compact = optimize_model(patched(model, uneven_keep(discover(model))))
    widths = channel_widths(discover(base_of(compact)), "encoder.layer")
    assert widths[2] == 0
    assert widths[0] > 0
