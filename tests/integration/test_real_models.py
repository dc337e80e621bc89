"""Pretrained weights, a quarter of them cut away: what the gated model says, the cut one says, wherever it is read.

MiniLM-L6 (BERT), SmolLM2-135M (Llama, three KV groups a layer) and rxnmapper's ALBERT (one layer, used twelve times).
`tests.fixtures.real_weights` says where the weights come from.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    AlbertForMaskedLM,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    LlamaForCausalLM,
    PreTrainedModel,
)

from patchers.discovery.discover import discover
from patchers.units import Group, Structure
from sparse_trainer.folders.load import load_pruned
from sparse_trainer.folders.save import save_pruned
from tests.fixtures.real_weights import (
    WIDTHS,
    cut,
    folder_of,
    generated,
    inputs_for,
    load,
    logits,
    masked_place,
    of_tokens,
    prompts_for,
    reaction_ids,
    said,
    same,
    uneven_keep,
    uniform_keep,
)

# Shape legend: B = rows, T = tokens.

AUTO = {
    "minilm": AutoModelForSequenceClassification,
    "smollm2": AutoModelForCausalLM,
    "rxnmapper": AutoModelForMaskedLM,
}
NAMES = ["minilm", "rxnmapper", pytest.param("smollm2", marks=pytest.mark.slow)]

READER = """
import pathlib, sys

root, way, auto = pathlib.Path(sys.argv[1]), sys.argv[2], sys.argv[3]
if way == "trust_remote_code":
    sys.modules["sparse_trainer"] = sys.modules["patchers"] = None
import torch, transformers
from safetensors.torch import load_file, save_file

if way == "trust_remote_code":
    model = getattr(transformers, auto).from_pretrained(root / "folder", trust_remote_code=True)
else:
    from sparse_trainer import load_pruned

    model = load_pruned(root / "folder")
found = {}
with torch.no_grad():
    found["logits"] = model(**load_file(root / "inputs.safetensors")).logits
for name, ids in load_file(root / "prompts.safetensors").items():
    found[name] = model.generate(ids, max_new_tokens=20, min_new_tokens=20, do_sample=False, use_cache=True)
found["parameters"] = torch.tensor(model.num_parameters())
save_file(found, root / f"{way}.safetensors")
"""


@dataclass(frozen=True, kw_only=True)
class Pruned:
    """A real model, a decision about it, what it says with closed gates, and its cut folder."""

    name: str
    dense: PreTrainedModel
    structure: Structure
    keep: Mapping[str, Tensor]
    inputs: Mapping[str, Tensor]
    prompts: Mapping[str, Tensor]
    expected: Mapping[str, Tensor]
    compact: PreTrainedModel
    root: Path

    @property
    def folder(self) -> Path:
        return self.root / "folder"


@pytest.fixture(scope="module", params=NAMES)
def pruned(request: pytest.FixtureRequest) -> Iterator[Pruned]:
    """Cut a quarter of the heads and of the channels, unevenly, and save the result."""
    name = request.param
    dense = load(name)
    structure = discover(dense)
    keep = uneven_keep(structure)
    inputs = inputs_for(name)
    prompts = prompts_for(name)
    expected = said(dense, structure, keep, inputs, prompts)
    compact = cut(dense, structure, keep)
    with tempfile.TemporaryDirectory() as scratch:  # half a gigabyte: not for the folders that pytest keeps
        root = Path(scratch)
        save_pruned(compact, root / "folder")
        save_file(inputs, root / "inputs.safetensors")
        save_file(dict(prompts), root / "prompts.safetensors")
        (root / "reader.py").write_text(READER, encoding="utf-8")
        yield Pruned(
            name=name, dense=dense, structure=structure, keep=keep, inputs=inputs, prompts=prompts, expected=expected,
            compact=compact, root=root,
        )  # fmt: skip


@pytest.fixture(scope="module")
def smollm2() -> tuple[PreTrainedModel, Structure]:
    model = load("smollm2")
    return model, discover(model)


def read_in_new_process(pruned: Pruned, way: str) -> dict[str, Tensor]:
    environment = {**os.environ, "HF_HOME": str(pruned.root / "hf"), "HF_HUB_OFFLINE": "1"}
    if way == "trust_remote_code":
        environment.pop("PYTHONPATH", None)
    else:
        environment["PYTHONPATH"] = str(Path(__file__).parents[2])
    done = subprocess.run(
        [sys.executable, str(pruned.root / "reader.py"), str(pruned.root), way, AUTO[pruned.name].__name__],
        capture_output=True, text=True, env=environment, cwd=pruned.root, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    return load_file(pruned.root / f"{way}.safetensors")


def consumer_width(group: Group) -> int:
    """Return the features that the units feed: with one KV group left, its query heads are the units."""
    return group.num_units * group.consumer_slice.width


def test_a_quarter_is_gone_unevenly_and_that_matters(pruned: Pruned) -> None:
    left = discover(pruned.compact)
    for kind in WIDTHS:
        before = [consumer_width(g) for g in pruned.structure.of([kind])]
        widths = [consumer_width(g) for g in left.of([kind])]
        unit = pruned.structure.of([kind])[0].consumer_slice.width
        assert sum(widths) == round(0.75 * sum(before) / unit) * unit
        assert len(set(widths)) > 1 or pruned.name == "rxnmapper"
    whole = logits(pruned.dense, pruned.inputs)
    assert float((whole - pruned.expected["logits"]).abs().max()) > 0.01 * float(whole.abs().max())


def test_the_cut_model_says_what_the_gated_one_says(pruned: Pruned) -> None:
    same(logits(pruned.compact, pruned.inputs), pruned.expected["logits"])
    for name, tokens in generated(pruned.compact, pruned.prompts).items():
        assert torch.equal(tokens, pruned.expected[name])


@pytest.mark.parametrize("way", ["load_pruned", "trust_remote_code"])
def test_a_new_process_reads_the_same_model(pruned: Pruned, way: str) -> None:
    found = read_in_new_process(pruned, way)
    same(of_tokens(found["logits"], pruned.inputs), pruned.expected["logits"])
    assert int(found["parameters"]) == pruned.compact.num_parameters() < pruned.dense.num_parameters()
    for name in pruned.prompts:
        assert torch.equal(found[name], pruned.expected[name])


def test_the_folder_holds_no_pickle(pruned: Pruned) -> None:
    assert {file.suffix for file in pruned.folder.iterdir()} == {".safetensors", ".json", ".py", ".md"}


def test_bfloat16_loads(pruned: Pruned) -> None:
    half = load_pruned(pruned.folder, dtype=torch.bfloat16)
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}
    expected = pruned.expected["logits"]
    error = logits(half, pruned.inputs).float() - expected
    assert float(error.norm()) < 0.1 * float(expected.norm())


def test_the_padded_export_is_a_stock_folder(pruned: Pruned) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        folder = save_pruned(pruned.compact, Path(scratch, "padded"), export="padded")
        assert not (folder / "modeling_pruned.py").exists()
        assert "pruning" not in json.loads((folder / "config.json").read_text(encoding="utf-8"))
        stock = AUTO[pruned.name].from_pretrained(folder)
        assert type(stock) is type(pruned.dense)
        same(logits(stock, pruned.inputs), pruned.expected["logits"])
        for name, tokens in generated(stock, pruned.prompts).items():
            assert torch.equal(tokens, pruned.expected[name])


def test_albert_reads_reactions_and_shares_what_is_cut() -> None:
    dense = load("rxnmapper")
    ids = reaction_ids(folder_of("rxnmapper"))
    place = masked_place(ids)
    guess = logits(dense, inputs_for("rxnmapper"))[0, place].argmax()
    assert int(guess) == ids[place], "not the weights that were meant"
    structure = discover(dense)
    assert [(g.kind, g.num_units) for g in structure.of(WIDTHS)] == [("heads", 8), ("channels", 512)]
    channels = {n: k for n, k in uneven_keep(structure).items() if structure[n].kind == "channels"}
    compact = cut(dense, structure, channels)
    assert type(compact) is AlbertForMaskedLM
    assert (compact.config.intermediate_size, compact.config.num_hidden_layers) == (384, 12)


@pytest.mark.slow
@pytest.mark.parametrize("decision", ["uniform", "layers"])
def test_llama_of_equal_layers_is_a_stock_folder(
    smollm2: tuple[PreTrainedModel, Structure], decision: str
) -> None:
    dense, structure = smollm2
    if decision == "uniform":
        keep = uniform_keep(structure)
    else:
        keep = {g.name: torch.tensor([g.layer not in (7, 13, 22)]) for g in structure.of(["layers"])}
    inputs, prompts = inputs_for("smollm2"), prompts_for("smollm2")
    expected = said(dense, structure, keep, inputs, prompts)
    compact = cut(dense, structure, keep)
    assert type(compact) is LlamaForCausalLM
    with tempfile.TemporaryDirectory() as scratch:
        folder = save_pruned(compact, Path(scratch, "native"), export="native")
        assert not (folder / "modeling_pruned.py").exists()
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        assert not {"pruning", "auto_map"} & set(config)
        stock = AutoModelForCausalLM.from_pretrained(folder)
        assert type(stock) is LlamaForCausalLM
        names = (
            "num_hidden_layers",
            "intermediate_size",
            "num_attention_heads",
            "num_key_value_heads",
            "head_dim",
        )
        sizes = [config[name] for name in names]
        assert sizes == ([30, 1152, 6, 2, 64] if decision == "uniform" else [27, 1536, 9, 3, 64])
        same(logits(stock, inputs), expected["logits"])
        for name, tokens in generated(stock, prompts).items():
            assert torch.equal(tokens, expected[name])


@pytest.mark.slow
def test_the_first_layer_without_attention_counts_the_tokens(
    smollm2: tuple[PreTrainedModel, Structure],
) -> None:
    dense, structure = smollm2
    heads = structure.of(["heads"])
    keep = {heads[place].name: torch.zeros(3, dtype=torch.bool) for place in (0, 1, 17)}
    prompts = prompts_for("smollm2")
    expected = said(dense, structure, keep, inputs_for("smollm2"), prompts)
    compact = cut(dense, structure, keep)
    same(logits(compact, inputs_for("smollm2")), expected["logits"])
    for name, tokens in generated(compact, prompts).items():
        assert torch.equal(tokens, expected[name])


# peft 0.21 asks transformers 5.23 for a name that it deprecates.
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
@pytest.mark.slow
def test_an_adapter_trains_on_the_cut_llama(smollm2: tuple[PreTrainedModel, Structure]) -> None:
    dense, structure = smollm2
    compact = cut(dense, structure, uneven_keep(structure))
    adapted = get_peft_model(
        compact, LoraConfig(target_modules=["q_proj", "v_proj", "down_proj"], r=4, task_type="CAUSAL_LM")
    )
    batch = inputs_for("smollm2")
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    trained = [p for p in adapted.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.1)
    before = adapted(**batch, labels=labels).loss
    before.backward()
    assert all(p.grad is not None for p in trained)
    optimizer.step()
    with torch.no_grad():
        assert float(adapted(**batch, labels=labels).loss) < float(before)
