"""KV heads that become fewer: what is alike is merged without a loss, caches shrink, folders and runtimes follow."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BertForMaskedLM,
    DynamicCache,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from patchers.units import HEADS
from sparse_trainer.architectures.perturb import perturb
from sparse_trainer.convert.folder import convert_folder
from sparse_trainer.cut.record import plan_of
from sparse_trainer.cut.share import share_layers
from sparse_trainer.errors import ArgumentError, UnsupportedModelError
from sparse_trainer.folders.load import load_pruned
from sparse_trainer.folders.save import save_pruned
from sparse_trainer.one_shot.kv_merge import merge_kv_heads
from sparse_trainer.one_shot.prune import prune
from tests.fixtures.character_tokenizer import character_tokenizer
from tests.unit.cli.test_cli import answer

FAMILIES: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "llama": (LlamaForCausalLM, LlamaConfig, {}),
    "llama with biases": (LlamaForCausalLM, LlamaConfig, {"attention_bias": True}),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config, {}),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config, {}),
}
IDS_BT = torch.randint(2, 64, (4, 24), generator=torch.Generator().manual_seed(1))
CALIBRATION = [
    {"input_ids": torch.randint(2, 64, (4, 24), generator=torch.Generator().manual_seed(n))} for n in (2, 3)
]


def model_of(name: str = "llama", **changes: Any) -> Any:
    """Return a model with 8 query and 4 KV heads; only Qwen3 norms its queries and keys."""
    cls, config, more = FAMILIES[name]
    sizes = {
        "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "head_dim": 8,
        "num_attention_heads": 8, "num_key_value_heads": 4, "max_position_embeddings": 64, "eos_token_id": None,
        "bos_token_id": 1, "pad_token_id": 0,
    }  # fmt: skip
    torch.manual_seed(0)
    model = cls(config(**{**sizes, **more, **changes})).eval()
    perturb(model)
    return model


@torch.no_grad()
def logits(model: Any) -> Tensor:
    answer: Tensor = model(IDS_BT).logits
    return answer


def off(model: Any, dense: Any) -> float:
    """Return how far the logits of a model are from those of another, relative to these."""
    return float((logits(model) - logits(dense)).norm() / logits(dense).norm())


def make_alike(model: Any) -> None:
    """Give neighbouring KV heads the same keys and values."""
    for layer in model.model.layers:
        for linear in (layer.self_attn.k_proj, layer.self_attn.v_proj):
            for parameter in linear.parameters():
                pairs = parameter.data.unflatten(0, (2, 2, 8))
                parameter.data = pairs[:, :1].expand_as(pairs).flatten(0, 2).clone()


@pytest.mark.parametrize("calibration", [None, CALIBRATION], ids=["weights", "text"])
@pytest.mark.parametrize("name", FAMILIES)
def test_heads_that_are_alike_are_merged_without_a_loss(name: str, calibration: Any) -> None:
    model = model_of(name).double()
    make_alike(model)
    before = copy.deepcopy(model.state_dict())
    merged = merge_kv_heads(model, calibration, kv_heads=2)
    assert off(merged, model) < 1e-6
    assert all(torch.equal(model.state_dict()[n], value) for n, value in before.items()), "the model changed"
    assert off(merge_kv_heads(model, calibration, kv_heads=1), model) > 1e-3


@pytest.mark.parametrize("name", ["llama with biases", "qwen3"])
def test_turned_keys_and_text_lose_less_than_the_mean(name: str) -> None:
    dense = model_of(name)
    mean = copy.deepcopy(dense)
    for layer in mean.model.layers:
        for linear in (layer.self_attn.k_proj, layer.self_attn.v_proj):
            for parameter in linear.parameters():
                pairs = parameter.data.unflatten(0, (2, 2, 8))
                parameter.data = pairs.mean(1, keepdim=True).expand_as(pairs).flatten(0, 2).clone()
    by_weights, by_text = (off(merge_kv_heads(dense, c, kv_heads=2), dense) for c in (None, CALIBRATION))
    assert by_text < by_weights < off(mean, dense)


@pytest.mark.parametrize(("kv_heads", "layers"), [(2, None), (1, None), (2, (1,)), (1, (0, 2))])
def test_a_merged_model_saves_loads_generates_and_its_cache_is_smaller(
    kv_heads: int, layers: tuple[int, ...] | None, tmp_path: Path
) -> None:
    dense = model_of()
    merged = merge_kv_heads(dense, CALIBRATION, kv_heads=kv_heads, layers=layers)
    save_pruned(merged, tmp_path / "out")
    native = layers is None
    assert (tmp_path / "out" / "modeling_pruned.py").exists() is not native
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out", trust_remote_code=not native)
    assert torch.equal(logits(loaded), logits(merged))
    changed = 3 if native else len(layers or ())
    cache = next(value for value in loaded(IDS_BT).values() if isinstance(value, DynamicCache))
    have = [layer.keys.shape[1] for layer in cache.layers]
    assert sorted(have) == sorted([4] * (3 - changed) + [kv_heads] * changed)
    assert [layer.values.shape[1] for layer in cache.layers] == have
    asked = {"max_new_tokens": 6, "do_sample": False, "attention_mask": torch.ones_like(IDS_BT)}
    said = [loaded.generate(IDS_BT, **asked, **more) for more in ({}, {"use_cache": False})]
    assert torch.equal(*said)
    if native:
        assert loaded.config.num_key_value_heads == kv_heads
        static = loaded.generate(IDS_BT, **asked, cache_implementation="static")
        assert torch.equal(static, said[0])
    plan = plan_of(load_pruned(tmp_path / "out"))
    assert plan is not None
    assert f"KV heads merged into {kv_heads}" in plan.method
    less = changed * (4 - kv_heads) * 2 * 8 * 32
    assert plan.params["dense"] - plan.params["compact"] == less


def test_many_heads_of_their_own_become_one_shared_one() -> None:
    dense = model_of(num_key_value_heads=8)
    merged = merge_kv_heads(dense, CALIBRATION, kv_heads=1)
    assert merged.config.num_key_value_heads == 1
    assert "pruning" not in vars(merged.config)


def test_pruning_goes_before_and_after(tmp_path: Path) -> None:
    pruned, _ = prune(model_of(), None, criterion="magnitude", density={"channels": 0.5})
    merged = merge_kv_heads(pruned, CALIBRATION, kv_heads=2)
    again, plan = prune(merged, None, criterion="magnitude", density={HEADS: 0.5}, scope="uniform")
    save_pruned(again, tmp_path / "out")
    assert torch.equal(logits(load_pruned(tmp_path / "out")), logits(again))
    assert plan.params["compact"] == again.num_parameters()


def test_bfloat16_keeps_its_type() -> None:
    dense = model_of().bfloat16()
    merged = merge_kv_heads(dense, CALIBRATION, kv_heads=2)
    assert {p.dtype for p in merged.parameters()} == {torch.bfloat16}
    assert off(merged, dense) < 0.6


def test_native_folders_become_gguf_and_decilm(tmp_path: Path) -> None:
    sizes = {"vocab_size": 99, "intermediate_size": 256, "hidden_size": 64, "max_position_embeddings": 128}
    merged = merge_kv_heads(model_of(**sizes), None, kv_heads=2)
    folder = save_pruned(merged, tmp_path / "out", processor=character_tokenizer())
    convert_folder(str(folder), tmp_path / "decilm", "decilm")
    pytest.importorskip("gguf")
    facts = convert_folder(str(folder), tmp_path / "model.gguf", "gguf", quantize="f32")[1]
    assert facts["architecture"] == "llama"
    pytest.importorskip("xllamacpp")
    from tests.fixtures.llama_cpp import difference

    assert difference(merged, tmp_path / "model.gguf", exact=True)[0] < 1e-3


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"kv_heads": 3}, "3 does not divide the 4 KV heads of layer 0"),
        ({"kv_heads": 0}, "leaves no keys"),
        ({"kv_heads": 4, "layers": [1]}, "4 is what all of these layers have already"),
        ({"kv_heads": 2, "layers": [7]}, "7 has no such attention"),
        ({"kv_heads": 2, "layers": []}, "is empty"),
    ],
)
def test_numbers_that_cannot_be_are_refused(options: dict[str, Any], error: str) -> None:
    with pytest.raises(ArgumentError, match=error):
        merge_kv_heads(model_of(), None, **options)


def test_models_of_another_form_are_refused() -> None:
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    with pytest.raises(UnsupportedModelError, match="of the form of Llama"):
        merge_kv_heads(BertForMaskedLM(BertConfig(vocab_size=64, **sizes)), None, kv_heads=2)
    with pytest.raises(UnsupportedModelError, match="share their weights"):
        merge_kv_heads(share_layers(model_of(), 3), None, kv_heads=2)


def test_the_command_writes_what_python_makes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    model, out = tmp_path / "model", tmp_path / "out"
    model_of().save_pretrained(model)
    said = answer(monkeypatch, capsys, "merge-kv-heads", str(model), str(out), "--kv-heads", "2")
    assert said["method"] == "KV heads merged into 2 (all layers)"
    assert torch.equal(logits(load_pruned(out)), logits(merge_kv_heads(model_of(), None, kv_heads=2)))
