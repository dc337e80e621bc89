"""What uneven folders say of single layers in the words of transformers (`per_layer_config`): true, and harmless."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from transformers import (
    LlamaConfig,
    MistralConfig,
    Phi3Config,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)

from patchers.discovery.discover import discover
from sparse_trainer.cut.optimize import optimize_model
from sparse_trainer.folders.load import load_pruned
from sparse_trainer.folders.save import save_pruned
from tests.fixtures.compact_models import patched, perturbed, tiny

# Shape legend: B = rows, T = tokens, V = vocabulary.

ROOT = Path(__file__).parents[2]
_SIZES: dict[str, Any] = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 8,
    "num_key_value_heads": 4, "head_dim": 8, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 63,
}  # fmt: skip
DECODERS: dict[str, PreTrainedConfig] = {
    "LlamaForCausalLM": LlamaConfig(**_SIZES),
    "MistralForCausalLM": MistralConfig(**{**_SIZES, "sliding_window": 4}),
    "Phi3ForCausalLM": Phi3Config(**{**_SIZES, "hidden_size": 64}),
    "Qwen2ForCausalLM": Qwen2Config(**_SIZES),
    "Qwen3ForCausalLM": Qwen3Config(**_SIZES),
}
KEPT = {"heads": (2, 1, 4, 3), "channels": (17, 48, 0, 30)}
"""Units that the layers keep; a single KV head has its query heads as units, of which the first stay."""
SAID = {  # nothing of the feed-forward branch of layer 2, which is gone
    "0": {"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 17},
    "1": {"num_attention_heads": 2, "num_key_value_heads": 1},
    "3": {"num_attention_heads": 6, "num_key_value_heads": 3, "intermediate_size": 30},
}
IDS_BT = torch.randint(3, 60, (2, 9), generator=torch.Generator().manual_seed(1))
READER = """
import json, sys

sys.modules["sparse_trainer"] = sys.modules["patchers"] = None
import torch
from transformers import AutoModelForCausalLM

folder, again, ids = sys.argv[1], sys.argv[2], torch.tensor(json.loads(sys.argv[3]))
found = []
for _ in range(2):
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).eval()
    with torch.no_grad():
        logits = model(ids).logits.tolist()
    said = {
        cache: model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=False, cache_implementation=cache
        ).tolist()
        for cache in ("dynamic", "static")
    }
    found.append({"logits": logits, "sizes": model.config.to_dict()["per_layer_config"], **said})
    model.save_pretrained(again)
    folder = again
print(json.dumps(found))
"""


def uneven(name: str) -> PreTrainedModel:
    """Return a decoder with other heads and channels in every layer."""
    torch.manual_seed(0)
    model: PreTrainedModel = perturbed(getattr(transformers, name)(DECODERS[name])).eval()
    keep = {
        group.name: torch.arange(group.num_units) < KEPT[group.kind][group.layer]
        for group in discover(model, ("heads", "channels")).groups
    }
    cut: PreTrainedModel = optimize_model(patched(model, keep))
    return cut


@torch.no_grad()
def answers(model: PreTrainedModel) -> dict[str, Tensor]:
    """Return logits, and what is generated with either cache."""
    said: dict[str, Tensor] = {"logits": model(IDS_BT).logits}
    for cache in ("dynamic", "static"):
        said[cache] = model.generate(
            IDS_BT, attention_mask=torch.ones_like(IDS_BT), max_new_tokens=8, do_sample=False,
            cache_implementation=cache,
        )  # type: ignore[operator]  # fmt: skip
    return said


@pytest.mark.parametrize("name", DECODERS)
def test_a_folder_says_the_sizes_of_its_layers_and_stays_the_same_model(name: str, tmp_path: Path) -> None:
    model = uneven(name)
    want = answers(model)
    assert torch.equal(want["dynamic"], want["static"])
    folder = save_pruned(model, tmp_path / "one")
    said = json.loads((folder / "config.json").read_text())
    assert said["per_layer_config"] == SAID
    assert said["allow_global_per_layer_attribute_access"] is True
    assert "vllm serve this-folder --model-impl transformers" in (folder / "README.md").read_text()
    for number in range(2):
        model = load_pruned(folder)
        found = answers(model)
        assert all(torch.equal(found[what], want[what]) for what in want)
        folder = tmp_path / f"again{number}"
        model.save_pretrained(folder)
        again = json.loads((folder / "config.json").read_text())
        assert again["per_layer_config"] == SAID


def test_a_new_process_without_us_reads_the_same(tmp_path: Path) -> None:
    model = uneven("LlamaForCausalLM")
    want, folder = answers(model), save_pruned(model, tmp_path / "one")
    arguments = [str(folder), str(tmp_path / "again"), json.dumps(IDS_BT.tolist())]
    done = subprocess.run(
        [sys.executable, "-c", READER, *arguments], capture_output=True, text=True, cwd=tmp_path,
        env={**os.environ, "HF_HOME": str(tmp_path / "home")}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for found in json.loads(done.stdout):
        assert found["sizes"] == SAID
        torch.testing.assert_close(torch.tensor(found["logits"]), want["logits"], rtol=1e-5, atol=1e-5)
        assert found["dynamic"] == found["static"] == want["dynamic"].tolist()


def test_a_second_cut_counts_anew() -> None:
    model = uneven("LlamaForCausalLM")
    groups = discover(model, ("channels", "layers")).groups
    keep = {g.name: torch.arange(g.num_units) < 10 for g in groups if g.kind == "channels"}
    gone = next(g.name for g in groups if g.kind == "layers" and g.layer == 0)
    again = optimize_model(patched(model, {**keep, gone: torch.tensor([False])}))
    assert again.config.intermediate_size == 10
    assert again.config.to_dict()["per_layer_config"] == {
        "0": {"num_attention_heads": 2, "num_key_value_heads": 1},
        "2": {"num_attention_heads": 6, "num_key_value_heads": 3},
    }


def test_equal_widths_need_no_words_for_layers() -> None:
    model = tiny("bert")
    keep = {g.name: torch.arange(g.num_units) < 20 for g in discover(model, ["channels"]).groups}
    cut = optimize_model(patched(model, keep))
    assert "per_layer_config" not in cut.config.to_dict()
    assert cut.config.intermediate_size == 20
