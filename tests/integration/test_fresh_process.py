"""What a user of a saved folder sees: a new process, transformers alone, our packages out of reach."""

import copy
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from patchers.discovery.discover import discover
from patchers.units import KINDS
from sparse_trainer.cut.optimize import optimize_model
from sparse_trainer.folders.save import save_pruned
from tests.fixtures.compact_models import (
    DECISIONS,
    FAMILIES,
    batch,
    cheap,
    logits,
    patched,
    tiny,
    uneven_keep,
)
from tests.fixtures.hidden_models import some
from tests.fixtures.same import assert_same_answer

ROOT = Path(__file__).parents[2]

READER = """
import copy, json, pathlib, sys

sys.modules["sparse_trainer"] = sys.modules["patchers"] = None
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForSequenceClassification, pipeline

root = pathlib.Path(sys.argv[1])
inputs = load_file(root / "batch.safetensors")
said = {}


def nearly(one, other):
    # Equal models need not say the same in the last bits: kernels depend on how memory is aligned.
    return torch.allclose(one, other, rtol=1e-11, atol=1e-11)


def logits(model):
    with torch.no_grad():
        return model(**inputs).logits


for folder in sorted(path for path in root.iterdir() if path.is_dir()):
    own = (folder / "modeling_pruned.py").is_file()
    trust = {"trust_remote_code": True} if own else {}
    load = AutoModelForSequenceClassification.from_pretrained
    model = load(folder, **trust)
    found = {"logits": logits(model).tolist(), "class": type(model).__name__, "own": own}
    model.save_pretrained(root / "again" / folder.name)
    again = load(root / "again" / folder.name, **trust)
    found["again"] = nearly(logits(again), logits(model))
    files = ("config.json", "model.safetensors") + (("modeling_pruned.py",) if own else ())
    found["files"] = [
        name for name in files if (root / "again" / folder.name / name).read_bytes() != (folder / name).read_bytes()
    ]
    base = AutoModel.from_pretrained(folder, **trust)
    state = model.base_model.state_dict()
    found["base"] = all(torch.equal(value, state[name]) for name, value in base.state_dict().items() if name in state)
    found["copy"] = nearly(logits(copy.deepcopy(model)), logits(model))
    half = load(folder, dtype=torch.bfloat16, **trust)
    found["half"] = str(half.dtype), (logits(half).double() - logits(model).double()).abs().max().item()
    classify = pipeline("text-classification", model=str(folder), **trust)
    found["pipeline"] = classify(["a good question", "a question"])
    words = classify.tokenizer(["a good question"], return_tensors="pt")
    with torch.no_grad():
        found["score"] = classify.model(**words).logits.softmax(-1).max().item()

    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    labels = torch.tensor([1, 2])
    torch.manual_seed(0)
    before = model.eval()(**inputs, labels=labels).loss
    model.train()(**inputs, labels=labels).loss.backward()
    optimizer.step()
    found["loss"] = before.item(), model.eval()(**inputs, labels=labels).loss.item()
    body = [p for name, p in model.named_parameters() if "pooler" not in name and p.numel() > 0]
    found["gradients"] = all(p.grad is not None for p in body)
    if own:
        try:
            load(folder)
        except RuntimeError as error:
            found["stock"] = str(error)
    said[folder.name] = found
print(json.dumps(said))
"""


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Return a whole-word tokenizer."""
    words = ["[PAD]", "[UNK]", "a", "good", "question"]
    backend = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, "[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]")


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    return {}


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory, expected: dict[str, torch.Tensor]) -> dict[str, Any]:
    """Save every family in every form, read all folders in one new process, and return what it says."""
    root = tmp_path_factory.mktemp("folders")
    tokenizer = tiny_tokenizer()
    for family in FAMILIES:
        for name, decide in DECISIONS.items():
            model = tiny(family)
            compact = optimize_model(patched(model, decide(discover(model))))
            key = f"{family}-{name}"
            expected[key] = logits(compact)
            if name == "even":
                save_pruned(compact, root / key, processor=tokenizer)
            else:
                # The plain way: nothing of ours is called.
                compact.save_pretrained(root / key)
                tokenizer.save_pretrained(root / key)
        model = cheap(family)
        compact = optimize_model(patched(model, uneven_keep(discover(model))))
        expected[f"{family}-cheaper"] = logits(compact)
        compact.save_pretrained(root / f"{family}-cheaper")
        tokenizer.save_pretrained(root / f"{family}-cheaper")
    for family in WITHOUT_HIDDEN:
        model = tiny(family)
        compact = optimize_model(patched(model, some(discover(model, KINDS))))
        expected[f"{family}-hidden"] = logits(compact)
        compact.save_pretrained(root / f"{family}-hidden")
        tokenizer.save_pretrained(root / f"{family}-hidden")
    save_file(batch(tiny()), root / "batch.safetensors")
    (root / "reader.py").write_text(READER, encoding="utf-8")
    environment = {
        **os.environ,
        "HF_HOME": str(root.parent / "hf"),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }
    environment.pop("PYTHONPATH", None)
    done = subprocess.run(
        [sys.executable, str(root / "reader.py"), str(root)],
        capture_output=True, text=True, env=environment, cwd=root, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    return dict(json.loads(done.stdout.splitlines()[-1]))


WITHOUT_HIDDEN = ("bert", "electra", "distilbert", "mpnet")
"""Families of which a model lacks hidden features too; RoBERTa and what runs its code is BERT in this."""
NAMES = [f"{family}-{decision}" for family in FAMILIES for decision in (*DECISIONS, "cheaper")]
NAMES += [f"{family}-hidden" for family in WITHOUT_HIDDEN]


@pytest.mark.parametrize("name", NAMES)
def test_the_model_is_the_same(name: str, said: dict[str, Any], expected: dict[str, torch.Tensor]) -> None:
    found = said[name]
    assert_same_answer(torch.tensor(found["logits"], dtype=torch.float64), expected[name])
    assert found["class"] == FAMILIES[name.rpartition("-")[0]][0].__name__
    assert found["own"] == (not name.endswith("-even"))
    assert found["base"]
    assert found["copy"]


@pytest.mark.parametrize("name", NAMES)
def test_saving_again_gives_the_same_folder(name: str, said: dict[str, Any]) -> None:
    assert said[name]["again"]
    assert said[name]["files"] == []


@pytest.mark.parametrize("name", NAMES)
def test_half_precision_pipeline_and_training_work(name: str, said: dict[str, Any]) -> None:
    found = said[name]
    assert found["half"][0] == "torch.bfloat16"
    assert found["half"][1] < 0.1
    assert found["pipeline"][0]["score"] == pytest.approx(found["score"], abs=1e-6)
    assert len(found["pipeline"]) == 2
    before, after = found["loss"]
    assert after < before
    assert found["gradients"]


@pytest.mark.parametrize("name", [name for name in NAMES if not name.endswith("-even")])
def test_stock_loading_refuses_aloud(name: str, said: dict[str, Any]) -> None:
    assert "size" in said[name]["stock"]


def nowhere_empty(model: PreTrainedModel) -> dict[str, Tensor]:
    """Return a decision of uneven widths that leaves something everywhere: peft warns of layers without features."""
    keep = uneven_keep(discover(model))
    for keep_U in keep.values():
        keep_U[0] = True
    return keep


# peft 0.21 asks transformers 5.23 for a name that it deprecates.
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
@pytest.mark.parametrize("family", FAMILIES)
def test_adapters_train_on_the_compact_model(family: str, tmp_path: Path) -> None:
    model = tiny(family)
    compact = optimize_model(patched(model, nowhere_empty(model)))
    fresh = copy.deepcopy(compact)
    before = logits(compact)
    linears = sorted({s.path for group in discover(compact).of(["heads", "channels"]) for s in group.slices})
    adapted = get_peft_model(compact, LoraConfig(target_modules=linears, r=2, task_type="SEQ_CLS")).double()
    optimizer = torch.optim.SGD([p for p in adapted.parameters() if p.requires_grad], lr=0.5)
    for _ in range(3):
        optimizer.zero_grad()
        adapted(**batch(model), labels=torch.tensor([1, 2])).loss.backward()
        optimizer.step()
    adapted.eval()
    trained = logits(adapted)
    assert not torch.allclose(trained, before)
    adapted.save_pretrained(tmp_path)
    reloaded = PeftModel.from_pretrained(fresh, tmp_path).double().eval()
    torch.testing.assert_close(logits(reloaded), trained, rtol=0, atol=1e-6)
    torch.testing.assert_close(logits(adapted.merge_and_unload()), trained, rtol=0, atol=1e-8)
