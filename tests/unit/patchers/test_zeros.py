"""Units that do nothing, and units that only add a constant."""

import pytest
import torch
from torch import Tensor, nn

from patchers.discovery.discover import discover
from patchers.zeros import fold_constants, removable
from tests.fixtures.compact_models import logits, masked_logits, tiny


def test_a_free_unit_has_zero_columns_and_a_constant_one_zero_rows() -> None:
    model = tiny()
    layer = model.bert.encoder.layer[0]
    with torch.no_grad():
        layer.output.dense.weight[:, 3] = 0
        layer.intermediate.dense.weight[7] = 0
        layer.attention.output.dense.weight[:, :8] = 0
        layer.attention.self.value.weight[8:16] = 0
        # A zero query makes attention uniform, not constant; half a head is no head.
        layer.attention.self.query.weight[16:24] = 0
        layer.attention.self.value.weight[24:28] = 0
    matters = removable(model, discover(model))
    assert matters["bert.encoder.layer.0.heads"].tolist() == [False, False, True, True]
    assert (~matters["bert.encoder.layer.0.channels"]).nonzero().flatten().tolist() == [3, 7]
    assert matters["bert.encoder.layer.1.channels"].all()


def test_a_consumer_without_bias_keeps_units_with_a_constant() -> None:
    model = tiny()
    layer = model.bert.encoder.layer[0]
    layer.output.dense.bias = None
    with torch.no_grad():
        layer.intermediate.dense.weight[3:5] = 0
        layer.intermediate.dense.bias[4] = 0
    gone = ~removable(model, discover(model))["bert.encoder.layer.0.channels"]
    assert gone.nonzero().flatten().tolist() == [4]


def test_folding_changes_nothing_but_lets_the_units_go() -> None:
    model = tiny()
    layer = model.bert.encoder.layer[1]
    with torch.no_grad():
        layer.intermediate.dense.weight[:10] = 0
        layer.attention.self.value.weight[:16] = 0
    structure = discover(model)
    keep = removable(model, structure)
    expected = logits(model)
    unfolded = masked_logits(model, keep)
    assert not torch.allclose(unfolded, expected, atol=1e-3)
    untouched = model.bert.encoder.layer[0].output.dense.bias
    fold_constants(model, structure, keep, lambda: logits(model))
    torch.testing.assert_close(masked_logits(model, keep), expected, rtol=0, atol=1e-10)
    assert model.bert.encoder.layer[0].output.dense.bias is untouched
    assert layer.output.dense.bias.requires_grad


def test_hooks_are_taken_off_also_when_the_model_fails() -> None:
    model = tiny()
    with torch.no_grad():
        model.bert.encoder.layer[0].intermediate.dense.weight[:10] = 0
    structure = discover(model)

    def fail() -> Tensor:
        raise RuntimeError("no input")

    with pytest.raises(RuntimeError, match="no input"):
        fold_constants(model, structure, removable(model, structure), fail)
    consumer: nn.Module = model.bert.encoder.layer[0].output.dense
    assert not consumer._forward_pre_hooks
