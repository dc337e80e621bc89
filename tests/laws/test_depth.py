"""Models without some of their layers: caches, and all that a config says per layer, follow what stays.

Default kernels, float32 and bfloat16, every way a user decodes; families whose layers differ in attention.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import (
    Cohere2Config,
    Gemma2Config,
    Gemma3TextConfig,
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
    SmolLM3Config,
)

from patchers.discovery.discover import discover
from patchers.patching.gates import Gate
from patchers.patching.patch import patch
from sparse_trainer.cut.optimize import optimize_model
from sparse_trainer.folders.load import load_pruned
from sparse_trainer.folders.save import save_pruned
from sparse_trainer.one_shot.prune import prune
from tests.fixtures.compact_models import perturbed

_SIZES: dict[str, Any] = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 63,
    "max_position_embeddings": 64,
}  # fmt: skip
_TYPES = ["sliding_attention", "full_attention", "sliding_attention", "full_attention"]
_MIXED = {**_SIZES, "sliding_window": 4, "layer_types": _TYPES}

DECODERS: dict[str, tuple[str, PreTrainedConfig]] = {
    "llama": ("LlamaForCausalLM", LlamaConfig(**_SIZES)),
    "mistral": ("MistralForCausalLM", MistralConfig(**_SIZES, sliding_window=4)),
    "qwen2": ("Qwen2ForCausalLM", Qwen2Config(**_MIXED, use_sliding_window=True)),
    "qwen3": ("Qwen3ForCausalLM", Qwen3Config(**_MIXED, use_sliding_window=True)),
    "gemma2": ("Gemma2ForCausalLM", Gemma2Config(**_MIXED)),
    "gemma3": ("Gemma3ForCausalLM", Gemma3TextConfig(**_MIXED)),
    "cohere2": ("Cohere2ForCausalLM", Cohere2Config(**_MIXED)),
    "smollm3": ("SmolLM3ForCausalLM", SmolLM3Config(**_SIZES, no_rope_layers=[1, 0, 1, 0])),
}
PER_LAYER = ("layer_types", "no_rope_layers")
"""Lists in configs with one entry per layer."""
GONE = [(1,), (2, 3), (0, 2)]
"""The last leaves no layer that looks at few tokens."""


def built(family: str) -> PreTrainedModel:
    torch.manual_seed(0)
    name, config = DECODERS[family]
    return perturbed(getattr(transformers, name)(config)).eval()


def without(model: PreTrainedModel, gone: tuple[int, ...]) -> tuple[PreTrainedModel, PreTrainedModel]:
    """Return the model with the gates of some layers closed, and the one that is cut there."""
    structure = discover(model, ("layers",))
    for group in structure.groups:
        assert group.layer is not None
    gates = patch(model, structure, lambda group: Gate(group.num_units, scored=False))
    for group in structure.groups:
        gates[group.name].set_keep(torch.tensor([group.layer not in gone]))
    return model, optimize_model(model)


def prompt() -> dict[str, torch.Tensor]:
    """Two rows, the second padded on the left."""
    torch.manual_seed(1)
    ids_BT = torch.randint(2, 60, (2, 7))
    mask_BT = torch.ones_like(ids_BT)
    mask_BT[1, :3] = ids_BT[1, :3] = 0
    return {"input_ids": ids_BT, "attention_mask": mask_BT}


def written(model: PreTrainedModel, **how: Any) -> Any:
    return model.generate(
        **prompt(), max_new_tokens=8, min_new_tokens=8, do_sample=False, return_dict_in_generate=True,
        output_logits=True, **how,
    )  # fmt: skip


@pytest.mark.parametrize("gone", GONE, ids=str)
@pytest.mark.parametrize("family", DECODERS)
def test_what_is_cut_decodes_as_what_is_closed(family: str, gone: tuple[int, ...], tmp_path: Path) -> None:
    """With a growing cache, a fixed one, and beams, past the window of layers that look at few tokens."""
    closed, cut = without(built(family), gone)
    assert cut.config.num_hidden_layers == 4 - len(gone)
    for name in PER_LAYER:
        if getattr(closed.config, name, None) is not None:
            kept = [entry for n, entry in enumerate(getattr(closed.config, name)) if n not in gone]
            assert list(getattr(cut.config, name)) == kept
    expected = written(closed, use_cache=False)
    save_pruned(cut, tmp_path / "cut")
    for model in (cut, load_pruned(tmp_path / "cut")):
        for how in ({"use_cache": True}, {"cache_implementation": "static"}):
            found = written(model, **how)
            assert found.sequences.tolist() == expected.sequences.tolist()
            for ours, theirs in zip(found.logits, expected.logits, strict=True):
                torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
    beams = [
        written(model, num_beams=3, use_cache=use).sequences.tolist()
        for model, use in ((cut, True), (closed, False))
    ]
    assert beams[0] == beams[1]


CRITERIA = ["block_influence", "angular", "relative_norm", "avss", "perplexity", "last"]


@pytest.mark.parametrize(
    ("criterion", "dtype"),
    [*((name, torch.float32) for name in CRITERIA), ("block_influence", torch.bfloat16)],
)
@pytest.mark.parametrize("family", DECODERS)
def test_every_criterion_takes_whole_layers(family: str, criterion: str, dtype: torch.dtype) -> None:
    """The same numbers are kept whether rows lie in one batch or in two, and the result decodes with its cache."""
    model = built(family).to(dtype)
    rows = prompt() | {"labels": prompt()["input_ids"].masked_fill(prompt()["attention_mask"] == 0, -100)}
    apart = [{name: value[row : row + 1] for name, value in rows.items()} for row in range(2)]
    pruned, plan = prune(model, [rows], criterion=criterion, density={"layers": 0.5})
    _, same = prune(model, apart, criterion=criterion, density={"layers": 0.5})
    assert plan.groups == same.groups
    assert pruned.config.num_hidden_layers == 2
    assert written(pruned, use_cache=True).sequences.shape == (2, 15)
    if dtype == torch.float32:
        ours, theirs = written(pruned, use_cache=True), written(pruned, use_cache=False)
        assert ours.sequences.tolist() == theirs.sequences.tolist()
