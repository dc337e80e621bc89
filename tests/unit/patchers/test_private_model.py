"""A private architecture: refused by name, declared in two lines, proved by the laws."""

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from patchers.discovery.discover import discover
from patchers.discovery.tables import registry
from patchers.discovery.tables.forms import AttentionForm, FfnForm
from patchers.discovery.tables.registry import register_form
from patchers.errors import UnsupportedModelError
from sparse_trainer.architectures.check import check_model
from sparse_trainer.architectures.perturb import perturb

# Shape legend: B = batch, T = tokens, D = features.

ATTENTION = AttentionForm(name="private", query="ask", key="match", value="tell", output="merge")
FFN = FfnForm(name="private-ffn", up=("widen",), down="narrow")


class Attend(nn.Module):
    """Attention under names of its own."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.ask, self.match, self.tell, self.merge = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Return the mixed values."""
        q, k, v = (
            linear(x_BTD).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for linear in (self.ask, self.match, self.tell)
        )
        return self.merge(nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Attention, and a feed-forward module that is the block itself."""

    def __init__(self, width: int, inner: int, num_heads: int) -> None:
        super().__init__()
        self.attend = Attend(width, num_heads)
        self.widen, self.narrow = nn.Linear(width, inner), nn.Linear(inner, width)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Return the next hidden states."""
        x_BTD = x_BTD + self.attend(x_BTD)
        return x_BTD + self.narrow(torch.relu(self.widen(x_BTD)))


class PrivateModel(PreTrainedModel):
    """Blocks behind an embedding."""

    config_class = PreTrainedConfig

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__(config)
        self.words = nn.Embedding(100, 32)
        self.blocks = nn.ModuleList(
            Block(32, config.intermediate_size, 4) for _ in range(config.num_hidden_layers)
        )
        self.post_init()

    def forward(self, input_ids: Tensor) -> tuple[Tensor]:
        """Return the last hidden states."""
        x_BTD = self.words(input_ids)
        for block in self.blocks:
            x_BTD = block(x_BTD)
        return (x_BTD,)


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> PrivateModel:
    monkeypatch.setattr(registry, "_REGISTERED", [])
    torch.manual_seed(0)
    made = PrivateModel(PreTrainedConfig(num_hidden_layers=3, intermediate_size=48)).eval().double()
    perturb(made)
    return made


def test_it_is_refused_with_its_linears_and_the_way_out(model: PrivateModel) -> None:
    with pytest.raises(UnsupportedModelError) as caught:
        discover(model)
    message = str(caught.value)
    for name in ("ask", "match", "tell", "merge"):
        assert f"blocks.*.attend.{name}" in message
    assert "blocks.*.widen" in message
    assert "PrivateModel: no attention or feed-forward module of a known form" in message
    assert "patchers.register_form (docs/architectures.md says how)" in message


def test_what_was_recognised_is_named(model: PrivateModel) -> None:
    register_form(ATTENTION)
    for block in model.blocks:
        del block.attend.num_heads
    with pytest.raises(UnsupportedModelError) as caught:
        discover(model)
    assert "Recognised, but left alone: blocks.*.attend: it does not say how many heads" in str(caught.value)


def test_half_of_it_declared_leaves_the_rest_named(model: PrivateModel) -> None:
    register_form(FFN)
    structure = discover(model)
    assert {group.kind for group in structure.groups} == {"channels", "ffn", "layers"}
    assert not structure.of(["heads"])
    excluded = discover(model, ["channels"]).untouched
    assert excluded["blocks.0.attend.ask"] == "not in the table of any form"


def test_declared_it_passes_every_law(model: PrivateModel) -> None:
    register_form(ATTENTION)
    register_form(FFN)
    register_form(FFN)
    assert discover(model).forms == ("private-ffn", "private")
    report = check_model(model, {"input_ids": torch.arange(12).view(2, 6)})
    assert report.ok, report.failed
    assert report.units == {"heads": 12, "attention": 3, "channels": 144, "ffn": 3, "layers": 3}
    laws = ["open", "widths", "kinds", "branches", "layers", "backward", "native"]
    assert report.passed == [*laws, "default", "half", "save"]


def test_a_wrong_declaration_fails_a_law(model: PrivateModel) -> None:
    register_form(
        AttentionForm(
            name="upside-down", query="merge", key="match", value="tell", output="ask", core_outputs=0
        )
    )
    report = check_model(model, {"input_ids": torch.arange(12).view(2, 6)})
    assert not report.ok
    assert "widths" in report.failed
