"""A script of nn_pruning's time runs with other imports: the one in the documentation, on rows of BoolQ's form."""

import contextlib
import io
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification

from patchers.patching.patch import masks_of
from tests.unit.test_docs import ROOT, blocks, given

# The script says `float(loss)`.
pytestmark = pytest.mark.filterwarnings(
    "ignore:Converting a tensor with requires_grad=True to a scalar:UserWarning"
)
PAGE = ROOT / "docs" / "porting-from-nn_pruning.md"


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return the names that the script leaves behind, and what it printed."""
    torch.manual_seed(0)
    config = BertConfig(vocab_size=8, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
                        intermediate_size=64, max_position_embeddings=16)  # fmt: skip
    namespace = {**given(), "model": BertForSequenceClassification(config)}
    printed = io.StringIO()
    with contextlib.chdir(tmp_path_factory.mktemp("script")), contextlib.redirect_stdout(printed):
        for block in blocks(PAGE):
            if block.language == "python":
                exec(compile("\n" * (block.line - 1) + block.text, str(PAGE), "exec"), namespace)
    return {**namespace, "printed": printed.getvalue()}


def test_half_of_the_weights_are_zero(told: dict[str, Any]) -> None:
    parameters = dict(told["trainer"].model.named_parameters())
    for layer in range(2):
        path = f"bert.encoder.layer.{layer}"
        for name in ("attention.self.query", "attention.output.dense", "intermediate.dense", "output.dense"):
            kept = (parameters[f"{path}.{name}.weight"] != 0).float().mean()
            assert float(kept) == pytest.approx(0.5)
        channels = (parameters[f"{path}.intermediate.dense.weight"] != 0).all(dim=1)
        assert int(channels.sum()) == 32
        assert torch.equal((parameters[f"{path}.output.dense.weight"] != 0).all(dim=0), channels)
    assert "50% are not zero" in told["printed"]


def test_the_optimized_model_is_smaller_and_says_the_same(told: dict[str, Any]) -> None:
    masked, compact = told["trainer"].model.eval(), told["prunebert_model"].eval()
    ids = torch.randint(4, 8, (3, 9), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(compact(ids).logits, masked(ids).logits, rtol=0, atol=1e-5)
    assert masks_of(masked)
    assert not masks_of(compact)
    assert compact.bert.encoder.layer[0].intermediate.dense.out_features == 32
    assert compact.num_parameters() < 0.8 * sum(p.numel() for p in told["parameters"].values())


def test_its_own_loss_is_logged_and_its_data_learned(told: dict[str, Any]) -> None:
    logged = told["trainer"].state.log_history
    losses = [entry["ce_loss"] for entry in logged if "loss" in entry]
    assert losses[-1] < losses[0]
    assert all(entry["density"] <= 1 for entry in logged if "loss" in entry)
    assert [entry for entry in logged if "eval_accuracy" in entry][-1]["eval_accuracy"] == 1.0


def test_the_old_argument_of_save_pretrained_does_no_harm(tmp_path: Path) -> None:
    model = given()["model"]
    model.save_pretrained(tmp_path, safe_serialization=False)
    assert (tmp_path / "model.safetensors").is_file()
