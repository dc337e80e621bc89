"""Scripts of the shapes that libraries publish prune once they are changed as the documentation says.

`docs/your-script-pruned.md` holds a diff for each kind of Trainer, applied as it stands, and calls of the results;
tests/fixtures/scripts holds scripts before the change.
"""

import json
import runpy
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
)

from patchers.patching.patch import is_patched
from sparse_trainer.architectures.perturb import perturb
from sparse_trainer.files.names import STATE_FILE
from sparse_trainer.folders.load import load_pruned
from sparse_trainer.plan.document import PLAN_FILE, Plan
from tests.fixtures.character_tokenizer import character_tokenizer
from tests.fixtures.same import assert_same_tensors
from tests.unit.test_docs import ROOT, Block, blocks

pytestmark = [
    pytest.mark.filterwarnings("ignore"),  # of other libraries, when they are imported or train
    pytest.mark.usefixtures("quiet"),
]

PAGE = ROOT / "docs" / "your-script-pruned.md"
SCRIPTS = ROOT / "tests" / "fixtures" / "scripts"
SIZES: dict[str, Any] = {
    "vocab_size": 100, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 48, "max_position_embeddings": 64,
}  # fmt: skip
SETTINGS: dict[str, Any] = {
    "do_train": True, "do_eval": True, "do_predict": True, "max_steps": 4, "save_steps": 2, "logging_steps": 1,
    "per_device_train_batch_size": 4, "learning_rate": 1e-3, "report_to": "none", "use_cpu": True,
    "disable_tqdm": True, "output_dir": "out",
}  # fmt: skip
NAMES = ("Ann", "Bob", "Eve")
KINDS = {"text": "run_glue.py", "tokens": "run_ner.py", "choice": "run_swag.py", "masked": "run_mlm.py",
         "causal": "run_clm.py", "image": "run_image_classification.py"}  # fmt: skip


def found_under(title: str) -> list[Block]:
    """Return the blocks of a part of the page."""
    text = PAGE.read_text()
    start = text.index(f"# {title}\n")
    end = text.find("\n#", start)
    first, last = (text.count("\n", 0, place) for place in (start, end if end > 0 else len(text)))
    return [block for block in blocks(PAGE) if first < block.line <= last + 1]


def changed(script: Path, title: str) -> str:
    """Return a script after the diff that the page shows under a title; each of its parts has one place there."""
    text = script.read_text()
    diff = next(block.text for block in found_under(title) if block.language == "diff")
    for part in diff.split("@@\n")[1:]:
        lines = part.splitlines(keepends=True)
        before, after = ("".join(line[1:] for line in lines if line[0] in f" {sign}") for sign in "-+")
        assert text.count(before) == 1, f"{script.name}: {before}"
        text = text.replace(before, after)
    return text


def run(name: str, title: str, words: list[str]) -> dict[str, Any]:
    """Run a changed script as the main program, in the folder at hand, and return its names."""
    script = Path(name)
    script.write_text(changed(SCRIPTS / name, title))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(sys, "argv", [name, *words])
        return runpy.run_path(str(script), run_name="__main__")


def options(**values: Any) -> list[str]:
    """Return the words of a command line."""
    said = {**SETTINGS, **values}
    return [word for name, value in said.items() for word in (f"--{name}", *map(str, np.atleast_1d(value)))]


def write_rows(*rows: dict[str, Any]) -> str:
    """Write rows that training and evaluation read, and return the file."""
    Path("rows.json").write_text("\n".join(json.dumps(row) for row in rows))
    return "rows.json"


def save(model: PreTrainedModel) -> str:
    """Write a tiny model with a tokenizer, and return the folder."""
    perturb(model)
    model.save_pretrained("model")
    tokenizer = character_tokenizer()
    tokenizer.model_max_length, tokenizer.mask_token = 64, "~"
    tokenizer.save_pretrained("model")
    return "model"


def made(kind: str) -> str:
    """Return the folder of a tiny model of a kind."""
    torch.manual_seed(0)
    if kind == "causal":
        return save(
            LlamaForCausalLM(LlamaConfig(**SIZES, num_key_value_heads=2, pad_token_id=1, eos_token_id=1))
        )
    if kind == "seq2seq":
        config = T5Config(vocab_size=100, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4,
                          pad_token_id=1, eos_token_id=1, decoder_start_token_id=1)  # fmt: skip
        return save(T5ForConditionalGeneration(config))
    if kind == "image":
        sizes = {
            name: size
            for name, size in SIZES.items()
            if name not in ("vocab_size", "max_position_embeddings")
        }
        folder = save(ViTForImageClassification(ViTConfig(**sizes, image_size=16, patch_size=8)))
        for file in Path(folder).glob("token*"):
            file.unlink()
        ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(folder)
        return folder
    return save((BertModel if kind == "wrapped" else BertForMaskedLM)(BertConfig(**SIZES)))


def data(kind: str) -> dict[str, Any]:
    """Write rows for a kind of `run_trainer.py`, and return its options for them."""
    if kind == "image":
        from PIL import Image

        for index in range(8):
            place = Path("images", ("dark", "light")[index % 2], f"{index}.png")
            place.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (20, 20), (200 * (index % 2) + index,) * 3).save(place)
        return {"train_file": "images", "validation_file": "images", "remove_unused_columns": False}
    rows = [
        {
            "text": f"{name} has {i}",
            "label": i % 2,
            **({"one": "odd", "two": "even"} if kind == "choice" else {}),
        }
        for i, name in enumerate(NAMES * 4)
    ]
    file = write_rows(*rows)
    return {"train_file": file, "validation_file": file}


def answers(title: str) -> dict[str, Any]:
    """Run the calls of a result that the page shows under a title, and return the names they leave."""
    names: dict[str, Any] = {}
    imports = next(block for block in found_under("run_glue.py") if block.language == "python").text
    exec(imports.partition("\n")[0], names)
    for block in found_under(title):
        if block.language == "python":
            exec(compile("\n" * (block.line - 1) + block.text, str(PAGE), "exec"), names)
    return names


def assert_finished(trainer: Any, metrics: tuple[str, ...] = ("train", "eval", "predict")) -> None:
    """Expect the small model in the folder of the training, alone, with what was measured."""
    assert trainer.coordinator.density_reached() == pytest.approx(0.5, abs=0.07)
    assert not is_patched(trainer.model)
    assert not Path("out", STATE_FILE).exists()
    assert Plan.load("out").params["compact"] < Plan.load("out").params["dense"]
    for name in metrics:
        assert Path("out", f"{name}_results.json").is_file()


@pytest.fixture
def quiet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work in an empty folder, where also data sets are kept."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.mark.parametrize("kind", KINDS)
def test_a_script_with_the_trainer_of_transformers(kind: str) -> None:
    words = options(kind=kind, model_name_or_path=made(kind), cache_dir="cache", density=0.5, **data(kind))
    trainer = run("run_trainer.py", "Trainer", words)["trainer"]
    assert_finished(trainer)
    assert_same_tensors(load_pruned("out"), trainer.model)
    answers(KINDS[kind])


def test_options_from_a_file_and_a_training_that_is_resumed() -> None:
    """The second run finds the checkpoints of the first, as the scripts do with `get_last_checkpoint`."""
    values = {
        **SETTINGS,
        "kind": "text",
        "model_name_or_path": made("text"),
        "cache_dir": "cache",
        **data("text"),
    }
    values |= {"density": {"heads": 0.5, "channels": 0.5}, "pruning_seed": 7, "load_best_model_at_end": True,
               "eval_strategy": "steps", "eval_steps": 2}  # fmt: skip
    Path("arguments.json").write_text(json.dumps(values))
    first = run("run_trainer.py", "Trainer", ["arguments.json"])["trainer"]
    again = run("run_trainer.py", "Trainer", ["arguments.json"])["trainer"]
    assert_finished(first)
    assert_same_tensors(again.model, first.model)
    words = options(
        **{**values, "density": json.dumps(values["density"]), "resume_from_checkpoint": "out/checkpoint-2"}
    )
    third = run("run_trainer.py", "Trainer", words)["trainer"]
    assert_same_tensors(third.model, first.model)


def test_a_result_is_evaluated_without_training() -> None:
    words = options(
        kind="text", model_name_or_path=made("text"), cache_dir="cache", density=0.5, **data("text")
    )
    loss = run("run_trainer.py", "Trainer", words)["trainer"].evaluate()["eval_loss"]
    only = {"do_train": False, "output_dir": "other", "model_name_or_path": "out", "trust_remote_code": True}
    words = options(kind="text", cache_dir="cache", **data("text"), **only)
    assert run("run_trainer.py", "Trainer", words)["trainer"].evaluate()["eval_loss"] == pytest.approx(loss)
    assert not Path("other", PLAN_FILE).exists()


def test_a_script_that_generates() -> None:
    file = write_rows(*({"text": f"{name} wrote it", "summary": name} for name in NAMES * 4))
    words = options(
        model_name_or_path=made("seq2seq"), train_file=file, validation_file=file, cache_dir="cache", density=0.5,
        predict_with_generate=True, generation_num_beams=2, distil_teacher_name_or_path="self",
    )  # fmt: skip
    trainer = run("run_seq2seq.py", "Seq2SeqTrainer", words)["trainer"]
    assert_finished(trainer)
    assert_same_tensors(load_pruned("out"), trainer.model)
    assert "eval_exact" in json.loads(Path("out", "eval_results.json").read_text())
    assert isinstance(answers("run_summarization.py")["summary"], str)


def test_a_script_that_judges_answers() -> None:
    rows = [
        {"question": "who ?", "context": f"{name} wrote it", "answers": {"text": [name], "answer_start": [0]}}
        for name in NAMES * 4
    ]
    file = write_rows(*rows)
    words = options(
        model_name_or_path=made("text"), train_file=file, validation_file=file, cache_dir="cache", density=0.5,
        eval_strategy="steps", eval_steps=2, load_best_model_at_end=True, metric_for_best_model="eval_exact_match",
    )  # fmt: skip
    trainer = run("run_qa.py", "QuestionAnsweringTrainer", words)["trainer"]
    assert_finished(trainer)
    assert "predict_exact_match" in json.loads(Path("out", "predict_results.json").read_text())
    said = answers("run_qa.py")["answer"](question="who ?", context="Ann wrote it")
    assert said["answer"] in "Ann wrote it"


@pytest.mark.parametrize("adapters", [False, True])
def test_a_script_of_trl(adapters: bool) -> None:
    pytest.importorskip("trl", reason="trl is not installed")
    file = write_rows(*({"text": f"{name} has {i}"} for i, name in enumerate(NAMES * 4)))
    lora = {"use_peft": True, "lora_target_modules": ["q_proj", "down_proj"]} if adapters else {}
    values = {**SETTINGS, "dataset_name": file, "model_name_or_path": made("causal"), "bf16": False, **lora}
    Path("sft.yaml").write_text(yaml.safe_dump({**values, "density": {"heads": 0.5, "channels": 0.5}}))
    trainer = run("train_sft.py", "SFTTrainer", ["--config", "sft.yaml"])["trainer"]
    assert_finished(trainer, ("eval",))
    assert_same_tensors(load_pruned("out"), trainer.model)
    answers("run_clm.py")


@pytest.mark.parametrize(
    ("script", "title"),
    [("train_embedder.py", "SentenceTransformerTrainer"), ("train_reranker.py", "CrossEncoderTrainer")],
)
def test_a_script_of_sentence_transformers(script: str, title: str) -> None:
    pytest.importorskip("sentence_transformers", reason="sentence-transformers is not installed")
    names = run(script, title, [made("wrapped")])
    assert_finished(names["trainer"], ())
    answers(script)
    loaded = type(names["model"])("out", trust_remote_code=True, device="cpu")
    assert_same_tensors(loaded, names["model"])
