"""Mode `heads` takes heads out and leaves all other zeros where they are."""

import pytest
import torch
from transformers import PreTrainedModel

from patchers.discovery.discover import discover
from patchers.patching.gates import Gate
from patchers.patching.patch import gates_of, masks_of, patch
from sparse_trainer.cut.optimize import optimize_model
from sparse_trainer.errors import ArgumentError
from sparse_trainer.training.arguments.arguments import SparseTrainingArguments
from sparse_trainer.training.coordinator import ModelPatchingCoordinator
from tests.fixtures.compact_models import logits, patched, tiny, uneven_keep


def struct_masks() -> PreTrainedModel:
    """Return a model with masks over whole heads and channels, about half of them closed."""
    model = tiny()
    args = SparseTrainingArguments(
        dense_pruning_method="topK:1d_alt", attention_pruning_method="topK", attention_output_with_dense=False,
        attention_block_rows=0, attention_block_cols=0,
    )  # fmt: skip
    coordinator = ModelPatchingCoordinator(args)
    coordinator.patch_model(model)
    coordinator.begin(4)
    coordinator.step(4)
    return model


def gates() -> PreTrainedModel:
    model = tiny()
    return patched(model, uneven_keep(discover(model, ["heads", "channels"])))


@pytest.mark.parametrize("make", [struct_masks, gates])
def test_heads_go_and_channels_stay_as_zeros(make: type) -> None:
    model = make()
    expected = logits(model)
    fewer, dense = optimize_model(model, "heads"), optimize_model(model, "dense")
    torch.testing.assert_close(logits(fewer), expected, rtol=0, atol=1e-10)
    torch.testing.assert_close(logits(dense), expected, rtol=0, atol=1e-10)
    assert not masks_of(fewer)
    assert not gates_of(fewer)
    layers = list(zip(fewer.bert.encoder.layer, dense.bert.encoder.layer, strict=True))
    assert any((a.intermediate.dense.weight == 0).all(dim=1).any() for a, _ in layers)
    for a, b in layers:
        assert a.intermediate.dense.out_features == 48
        assert b.intermediate.dense.out_features < 48
        assert a.attention.output.dense.in_features == b.attention.output.dense.in_features
    assert any(a.attention.output.dense.in_features < 32 for a, _ in layers)
    kinds = {g["kind"] for g in fewer.pruning_plan.groups.values() if len(g["keep"]) < g["size"]}
    assert kinds == {"heads"}


def test_modes_that_cannot_be_are_refused() -> None:
    with pytest.raises(ArgumentError, match=r"mode: unknown value 'head'.*Did you mean 'heads'"):
        optimize_model(tiny(), "head")
    model = tiny()
    structure = discover(model, ["layers"])
    hung = patch(model, structure, lambda group: Gate(1, scored=False))
    hung[structure.groups[0].name].set_keep(torch.tensor([False]))
    with pytest.raises(ArgumentError, match="'heads' cannot leave"):
        optimize_model(model, "heads")
