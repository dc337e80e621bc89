"""Groups of layers that share one set of linears."""

import copy
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from torch import Tensor
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
    Trainer,
    TrainingArguments,
)

from patchers.modeling_pruned import LayoutError, pruned_class
from patchers.units import LAYERS
from sparse_trainer.architectures.perturb import perturb
from sparse_trainer.cut.optimize import optimize_model
from sparse_trainer.cut.record import plan_of
from sparse_trainer.cut.share import share_layers
from sparse_trainer.errors import ArgumentError, CheckpointError, SparseTrainerError, UnsupportedModelError
from sparse_trainer.folders.load import load_pruned
from sparse_trainer.folders.save import save_pruned
from sparse_trainer.one_shot.prune import prune
from sparse_trainer.training.arguments.arguments import SparseTrainingArguments
from sparse_trainer.training.coordinator import ModelPatchingCoordinator

ROOT = Path(__file__).parents[3]
SIZES = {"vocab_size": 64, "max_position_embeddings": 32}


def llama(**changes: Any) -> LlamaForCausalLM:
    values = {
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4,
        "num_key_value_heads": 2, "eos_token_id": None, "bos_token_id": 1, "pad_token_id": 0,
    }  # fmt: skip
    return made(LlamaForCausalLM, LlamaConfig(**{**SIZES, **values, **changes}))


def gpt2() -> GPT2LMHeadModel:
    config = GPT2Config(
        vocab_size=64, n_positions=32, n_embd=32, n_layer=4, n_head=4, bos_token_id=1, eos_token_id=1
    )
    return made(GPT2LMHeadModel, config)


def bert() -> BertForSequenceClassification:
    config = BertConfig(
        **SIZES, hidden_size=32, intermediate_size=48, num_hidden_layers=4, num_attention_heads=4
    )
    return made(BertForSequenceClassification, config)


def t5() -> T5ForConditionalGeneration:
    config = T5Config(
        vocab_size=64, d_model=32, d_kv=8, d_ff=48, num_layers=4, num_heads=4, decoder_start_token_id=0
    )
    return made(T5ForConditionalGeneration, config)


def made(cls: Any, config: Any) -> Any:
    torch.manual_seed(0)
    model = cls(config).eval()
    perturb(model)
    return model


MODELS: dict[str, tuple[Callable[[], Any], dict[str, Any]]] = {
    "llama": (llama, {}),
    "untied llama": (lambda: llama(tie_word_embeddings=False, attention_bias=True), {}),
    "gpt2": (gpt2, {}),
    "bert": (bert, {}),
    "t5": (t5, {"stack": "decoder.block"}),
}
TOKENS = torch.randint(2, 64, (2, 9), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def logits(model: Any) -> Tensor:
    more = {"decoder_input_ids": TOKENS[:, :4]} if model.config.is_encoder_decoder else {}
    answer: Tensor = model(input_ids=TOKENS, **more).logits
    return answer


def ids_of(model: PreTrainedModel, *names: str) -> set[int]:
    return {id(model.get_parameter(name)) for name in names}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("own_biases", [True, False])
def test_a_shared_model_saves_and_loads_as_one_copy(name: str, own_biases: bool, tmp_path: Path) -> None:
    make, options = MODELS[name]
    dense = make()
    before = copy.deepcopy(dense.state_dict())
    shared = share_layers(dense, 2, own_biases=own_biases, **options)

    assert all(torch.equal(dense.state_dict()[n], value) for n, value in before.items()), (
        "the model itself changed"
    )
    folder = save_pruned(shared, tmp_path / "out")
    loaded = load_pruned(folder)
    assert loaded.num_parameters() == shared.num_parameters() < dense.num_parameters()
    assert torch.equal(logits(shared), logits(loaded))
    assert not torch.allclose(logits(shared), logits(dense), atol=1e-3)
    shares = shared.config.pruning["layout"]["shares"]
    assert shares
    assert len({id(p) for p in loaded.parameters()}) == len(dict(dense.named_parameters())) - len(shares)
    plan = plan_of(loaded)
    assert plan is not None
    assert plan.params == {"dense": dense.num_parameters(), "compact": shared.num_parameters()}
    again = load_pruned(save_pruned(loaded, tmp_path / "again"))
    assert torch.equal(logits(shared), logits(again))


@pytest.mark.parametrize("start", ["first", "mean"])
@pytest.mark.parametrize("name", MODELS)
def test_sharing_equal_layers_changes_nothing(name: str, start: Any) -> None:
    make, options = MODELS[name]
    model = make()
    stack = model.get_submodule(
        next(
            p
            for p, m in model.named_modules()
            if isinstance(m, torch.nn.ModuleList) and options.get("stack", p) == p
        )
    )
    for first, second in ((0, 1), (2, 3)):
        linears = {n for n, m in stack[first].named_modules() if hasattr(m, "weight") and m.weight.dim() == 2}
        for path in linears & {n for n, _ in stack[second].named_modules()}:
            stack[second].get_submodule(path).load_state_dict(stack[first].get_submodule(path).state_dict())
    assert torch.equal(logits(model), logits(share_layers(model, 2, start=start, **options)))


@pytest.mark.parametrize("name", ["llama", "gpt2", "bert"])
def test_padded_writes_a_stock_checkpoint_with_a_copy_for_each_layer(name: str, tmp_path: Path) -> None:
    dense = MODELS[name][0]()
    shared = share_layers(dense, 2)
    with pytest.raises(CheckpointError, match="uneven, or share weights"):
        save_pruned(shared, tmp_path / "native", export="native")
    loaded = type(dense).from_pretrained(save_pruned(shared, tmp_path / "padded", export="padded"))
    assert type(loaded) is type(dense)
    assert loaded.num_parameters() == dense.num_parameters()
    torch.testing.assert_close(logits(loaded), logits(shared))


def test_parameters_are_counted_once_and_each_layer_keeps_its_norms_and_its_place() -> None:
    model = llama()
    shared = share_layers(model, 2, layers=[1, 2])
    block = model.model.layers[0]
    linears = sum(m.weight.numel() for m in block.modules() if isinstance(m, torch.nn.Linear))
    assert shared.num_parameters() == model.num_parameters() - linears
    weight = "model.layers.{}.mlp.up_proj.weight"
    assert len(ids_of(shared, weight.format(1), weight.format(2))) == 1
    assert len(ids_of(shared, *(weight.format(i) for i in range(4)))) == 3
    assert len(ids_of(shared, *(f"model.layers.{i}.input_layernorm.weight" for i in range(4)))) == 4
    assert [layer.self_attn.layer_idx for layer in shared.model.layers] == [0, 1, 2, 3]


def test_the_start_is_the_first_layer_or_the_mean() -> None:
    model = llama()
    weights = [model.get_parameter(f"model.layers.{i}.mlp.up_proj.weight") for i in range(4)]
    first, mean = share_layers(model, 2), share_layers(model, 4, start="mean")
    assert torch.equal(first.get_parameter("model.layers.3.mlp.up_proj.weight"), weights[2])
    expected = torch.stack(weights).mean(0)
    assert torch.allclose(mean.get_parameter("model.layers.3.mlp.up_proj.weight"), expected)


@pytest.mark.parametrize("name", ["llama", "gpt2", "t5"])
@pytest.mark.parametrize("beams", [1, 3])
def test_generation_with_a_cache_is_generation_without(name: str, beams: int) -> None:
    make, options = MODELS[name]
    model = share_layers(make(), 2, **options)
    said = [
        model.generate(
            TOKENS, attention_mask=torch.ones_like(TOKENS), max_new_tokens=8, do_sample=False, num_beams=beams,
            use_cache=cached, eos_token_id=None, pad_token_id=0,
        )
        for cached in (True, False)
    ]  # fmt: skip
    assert torch.equal(*said)


ALONE = 'import sys; sys.modules["sparse_trainer"] = sys.modules["patchers"] = None'
AUTOLOAD = "import sparse_trainer.autoload"
READER = """
import sys
import torch
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForCausalLM
folder = sys.argv[1]
model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=TRUST, dtype=torch.bfloat16).float()
kept = load_file(folder + "/answers.safetensors")
with torch.no_grad():
    assert torch.allclose(model(kept["tokens"]).logits, kept["logits"], atol=1e-5)
    base = AutoModel.from_pretrained(folder, trust_remote_code=TRUST, dtype=torch.bfloat16)
    assert torch.allclose(model.lm_head(base.float()(kept["tokens"]).last_hidden_state), kept["logits"], atol=1e-5)
assert model.model.layers[0].mlp.up_proj.weight is model.model.layers[1].mlp.up_proj.weight
assert model.model.layers[0].mlp.up_proj.weight is not model.model.layers[2].mlp.up_proj.weight
print(sum(p.numel() for p in model.parameters()))
"""


@pytest.mark.parametrize("before", [ALONE, AUTOLOAD])
def test_a_new_process_loads_one_copy(before: str, tmp_path: Path) -> None:
    shared = share_layers(llama(), 2)
    folder = save_pruned(shared, tmp_path / "out")
    save_file(
        {"tokens": TOKENS, "logits": logits(load_pruned(folder, dtype=torch.bfloat16).float())},
        folder / "answers.safetensors",
    )
    environment = {**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules"), "PYTHONPATH": str(ROOT)}
    program = f"{before}\nTRUST = {before == ALONE}\n{READER}"
    done = subprocess.run(
        [sys.executable, "-c", program, str(folder)],
        env=environment, cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == shared.num_parameters()


def test_a_training_keeps_the_layers_tied_and_adds_their_gradients_up(tmp_path: Path) -> None:
    model = llama()
    shared = share_layers(model, 2, layers=[1, 2])
    loss = shared(TOKENS, labels=TOKENS).loss
    loss.backward()
    twin = copy.deepcopy(model)
    twin.load_state_dict(shared.state_dict())
    twin(TOKENS, labels=TOKENS).loss.backward()
    name = "model.layers.{}.self_attn.q_proj.weight"
    apart: list[Any] = [twin.get_parameter(name.format(i)).grad for i in (1, 2)]
    torch.testing.assert_close(shared.get_parameter(name.format(1)).grad, apart[0] + apart[1])

    rows = [{"input_ids": row, "labels": row} for row in TOKENS]
    options = TrainingArguments(
        output_dir=str(tmp_path), max_steps=2, report_to=[], use_cpu=True, learning_rate=1e-2, save_steps=2
    )
    Trainer(model=shared, args=options, train_dataset=rows).train()  # type: ignore[arg-type]
    assert len(ids_of(shared, name.format(1), name.format(2))) == 1
    loaded = pruned_class(LlamaForCausalLM).from_pretrained(tmp_path / "checkpoint-2")
    assert loaded.num_parameters() == shared.num_parameters()
    assert torch.equal(logits(shared.eval()), logits(loaded.eval()))


def test_layers_that_are_left_after_a_cut_can_be_shared(tmp_path: Path) -> None:
    model = llama(num_hidden_layers=6)
    pruned, _ = prune(model, criterion="last", density={LAYERS: 4 / 6})
    narrow, _ = prune(
        pruned, criterion="magnitude", density={"channels": 0.5}, units=["channels"], scope="layer"
    )
    shared = share_layers(narrow, 2)
    loaded = load_pruned(save_pruned(shared, tmp_path / "out"))
    assert torch.equal(logits(shared), logits(loaded))
    plan = plan_of(loaded)
    assert plan is not None
    assert plan.params["dense"] == model.num_parameters()
    assert plan.params["compact"] == loaded.num_parameters()
    assert "sharing in groups of 2" in plan.method


def test_a_shared_model_is_not_pruned() -> None:
    shared = share_layers(llama(), 2)
    with pytest.raises(UnsupportedModelError, match=r"layers share their weights.*Prune first"):
        prune(shared, criterion="magnitude", density=0.5)
    with pytest.raises(UnsupportedModelError, match="layers share their weights"):
        optimize_model(shared)
    with pytest.raises(UnsupportedModelError, match="layers share their weights"):
        ModelPatchingCoordinator(SparseTrainingArguments(density=0.5)).patch_model(shared)
    with pytest.raises(SparseTrainerError, match="shares weights with another layer"):
        share_layers(shared, 2)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"size": 3}, "layers: 4 layers .* not runs of 3"),
        ({"size": 1}, "size: groups of 1"),
        ({"layers": [0, 2]}, "layers: 2 layers .* not runs of 2"),
        ({"layers": [2, 1]}, "no layers in rising order"),
        ({"layers": []}, "no layers in rising order"),
        ({"layers": [4, 5]}, "has no layer 5"),
        ({"start": "last"}, "start"),
        ({"stack": "model.blocks"}, "stack"),
    ],
)
def test_groups_that_cannot_be_are_refused(options: dict[str, Any], error: str) -> None:
    with pytest.raises(ArgumentError, match=error):
        share_layers(llama(), **options)


def test_models_whose_layers_cannot_share_are_refused() -> None:
    with pytest.raises(ArgumentError, match=r"stack: the model has several: encoder.block, decoder.block"):
        share_layers(t5())
    uneven, _ = prune(
        llama(), criterion="random", density={"channels": 0.5}, units=["channels"], scope="global"
    )
    with pytest.raises(UnsupportedModelError, match=r"they cannot share.*equal widths"):
        share_layers(uneven, 4)
    mixtral = MixtralConfig(
        **SIZES, hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, num_local_experts=2,
    )  # fmt: skip
    with pytest.raises(UnsupportedModelError, match="mixture of experts"):
        share_layers(MixtralForCausalLM(mixtral))
    adapted: Any = get_peft_model(llama(), LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM"))
    with pytest.raises(UnsupportedModelError, match="adapters"):
        share_layers(adapted)


def test_each_layer_can_get_an_adapter_of_its_own() -> None:
    shared = share_layers(llama(), 2)
    adapted: Any = get_peft_model(shared, LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM"))
    assert sum("lora_A" in name for name, _ in adapted.named_parameters()) == 4
    with pytest.raises(UnsupportedModelError, match="its weight is tied to"):
        optimize_model(adapted)


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("layers.1.mlp.up_proj.weight", "layers.0.self_attn.q_proj.weight"),
        ("layers.1.mlp.up_proj.weight", "layers.1.mlp.up_proj.weight"),
        ("layers.1.mlp.up_proj.weight", 3),
        ("layers.9.mlp.up_proj.weight", "layers.0.mlp.up_proj.weight"),
        ("layers.1.forward", "layers.0.forward"),
    ],
)
def test_a_damaged_share_map_is_told(name: str, source: Any, tmp_path: Path) -> None:
    share_layers(llama(), 2).save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    values = json.loads(file.read_text())
    values["pruning"]["layout"]["shares"][name] = source
    file.write_text(json.dumps(values))
    with pytest.raises(LayoutError, match=r"layout\.shares"):
        pruned_class(LlamaForCausalLM).from_pretrained(tmp_path)
