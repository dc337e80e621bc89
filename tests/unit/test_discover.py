"""Discovery finds every unit of every family, and refuses what it does not know by name."""

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertModel, DebertaV2Config, DebertaV2Model, ResNetConfig, ResNetModel

from patchers import UnsupportedModelError, discover
from tests.compact_models import FAMILIES, tiny


@pytest.mark.parametrize("family", FAMILIES)
def test_finds_every_unit(family: str) -> None:
    structure = discover(tiny(family))
    assert [g.num_units for g in structure.of(["heads"])] == [4] * 3
    assert [g.num_units for g in structure.of(["channels"])] == [48] * 3
    for kind in ("attention", "ffn", "layers"):
        assert [g.num_units for g in structure.of([kind])] == [1] * 3
    assert len({g.name for g in structure.groups}) == len(structure.groups)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_linear_is_in_a_group_or_named_with_a_reason(family: str) -> None:
    model = tiny(family)
    structure = discover(model)
    grouped = {s.path for g in structure.groups for s in g.slices}
    linears = {path for path, m in model.named_modules() if isinstance(m, nn.Linear)}
    assert grouped | set(structure.untouched) == linears
    assert not grouped & set(structure.untouched)
    assert all(reason == "outside the blocks" for reason in structure.untouched.values())


def test_works_on_meta() -> None:
    with torch.device("meta"):
        model = BertModel(BertConfig(num_hidden_layers=2))
    assert [g.num_units for g in discover(model, ["channels"]).groups] == [3072] * 2


def test_excluded_groups_stay_out_and_are_named() -> None:
    structure = discover(tiny("bert"), ["heads", "channels"], ["layer.0", "*.heads"])
    assert [g.name for g in structure.groups] == [f"bert.encoder.layer.{i}.channels" for i in (1, 2)]
    assert "excluded" in structure.untouched["bert.encoder.layer.0.output.dense"]
    with pytest.raises(UnsupportedModelError, match=r"'layer\.9' matches no group"):
        discover(tiny("bert"), exclude=["layer.9"])


def test_unknown_model_is_refused_with_its_linears() -> None:
    with pytest.raises(
        UnsupportedModelError, match=r"ResNetModel.*no attention or feed-forward module of a known form"
    ):
        discover(ResNetModel(ResNetConfig(embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1])))
    with pytest.raises(UnsupportedModelError, match=r"linears: 0, 1"):
        discover(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)))


def test_contradicting_shapes_are_refused_with_both_numbers() -> None:
    model = tiny("bert")
    model.bert.encoder.layer[1].attention.self.num_attention_heads = 5
    with pytest.raises(UnsupportedModelError, match=r"layer\.1.*32 features do not divide by 5 heads"):
        discover(model)


def test_a_convolution_pins_the_first_layer() -> None:
    config = DebertaV2Config(
        hidden_size=32, num_attention_heads=4, intermediate_size=48, num_hidden_layers=3, conv_kernel_size=3
    )
    structure = discover(DebertaV2Model(config), ["layers"])
    assert [g.layer for g in structure.groups] == [1, 2]
