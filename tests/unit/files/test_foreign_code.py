"""No command runs, hands on or recommends code that a folder of data names."""

import importlib
import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM, PreTrainedModel
from typer.testing import CliRunner

from patchers import modeling_pruned
from sparse_trainer.cli.app import make_app
from sparse_trainer.cli.commands import COMMANDS
from sparse_trainer.cut.optimize import optimize_model
from sparse_trainer.errors import CheckpointError, DataError
from sparse_trainer.files.foreign_code import CODE_FILE, clean_folder, needs_our_code
from sparse_trainer.folders.load import load_pruned
from sparse_trainer.folders.save import save_pruned
from sparse_trainer.one_shot.prune import prune
from sparse_trainer.run.verify import verify_reload
from sparse_trainer.tasks import metrics
from sparse_trainer.tasks.base import Outputs
from tests.architectures.tiny import tiny_model
from tests.fixtures.character_tokenizer import character_tokenizer

MARK = "ran"
AUTO = ("AutoConfig", "AutoModel", "AutoModelForCausalLM")


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder whose every file names code that leaves a mark: here, in the folder, and elsewhere."""
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "source"
    tiny_model("llama", dtype=torch.float32).save_pretrained(folder)
    character_tokenizer(chat=True).save_pretrained(folder)
    code = f"open({str(tmp_path / MARK)!r}, 'w').write('x')\nfrom transformers import *\nMarked = LlamaForCausalLM\n"
    for place in (folder, tmp_path / "elsewhere", folder / "custom_generate", tmp_path):
        place.mkdir(exist_ok=True)
        for name in ("marked.py", "generate.py", CODE_FILE):
            (place / name).write_text(code)
    named = dict.fromkeys(AUTO, f"{tmp_path}/elsewhere--marked.Marked") | {"AutoModelForX": "marked.Marked"}
    names = {
        "auto_map": named | {"AutoTokenizer": ["marked.Marked", None]},
        "custom_pipelines": {"text-generation": {"impl": "marked.Marked", "pt": ["LlamaForCausalLM"]}},
    }
    for name in ("config.json", "tokenizer_config.json", "generation_config.json"):
        values = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({**values, **names}))
    for name in ("processor_config.json", "preprocessor_config.json"):
        (folder / name).write_text(json.dumps({"image_processor": names, **names}))
    (tmp_path / "text.txt").write_text("The cat sat on the mat, and the dog did not.\n" * 3)
    return folder


@pytest.fixture
def plan(source: Path) -> Path:
    """Return the file of a plan that makes the layers uneven."""
    model = tiny_model("llama", dtype=torch.float32)
    _, made = prune(model, None, criterion="magnitude", density={"channels": 0.5}, scope="global")
    made.save(source.parent / "plan.json")
    return source.parent / "plan.json"


def uneven(folder: Path) -> LlamaForCausalLM:
    model: Any = load_pruned(folder)
    return prune(model, None, criterion="magnitude", density={"channels": 0.5}, scope="global")[0]  # type: ignore[no-any-return]


def invoke(*arguments: object) -> Any:
    done = CliRunner().invoke(make_app(COMMANDS), [str(argument) for argument in arguments])
    assert done.exit_code == 0, done.exception
    return done


def assert_clean(folder: Path, tmp_path: Path) -> None:
    assert not (tmp_path / MARK).exists()
    for file in folder.rglob("*"):
        if file.is_file():
            assert b"marked" not in file.read_bytes(), file
    for file in folder.rglob("*.py"):
        assert file.read_bytes() == Path(modeling_pruned.__file__).read_bytes()


@pytest.mark.parametrize("scope", ["uniform", "global"])
def test_recipes(source: Path, tmp_path: Path, scope: str) -> None:
    (tmp_path / "mine.yaml").write_text(
        f"model: {{name_or_path: {source}}}\n"
        f"prune: {{criterion: magnitude, density: {{channels: 0.5}}, scope: {scope}, sequence_length: 8}}\n"
        "export: {output_dir: out, verify_samples: 2, latency_batch_sizes: [1], latency_rounds: 1, "
        "latency_sequence_length: 4}\n"
    )
    done = invoke("run", "mine.yaml")
    assert_clean(tmp_path / "out", tmp_path)
    assert ("trust_remote_code" in done.stdout) == (scope == "global")


def test_pruning_on_the_command_line(source: Path, tmp_path: Path) -> None:
    text = ("--calibration", tmp_path / "text.txt", "--samples", 1, "--length", 16, "--chat-template")
    invoke("prune", source, tmp_path / "out", *text, "--no-pictures", "--device", "cpu")
    assert_clean(tmp_path / "out", tmp_path)


def test_cutting_on_disk(source: Path, plan: Path, tmp_path: Path) -> None:
    invoke("optimize", source, tmp_path / "out", "--plan", plan)
    assert_clean(tmp_path / "out", tmp_path)
    assert (tmp_path / "out" / CODE_FILE).is_file()
    assert {"tokenizer.json", "processor_config.json"} <= {file.name for file in (tmp_path / "out").iterdir()}
    # What needs trust_remote_code can be trusted.
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out", trust_remote_code=True)
    AutoTokenizer.from_pretrained(tmp_path / "out", trust_remote_code=True)
    assert loaded(torch.tensor([[1, 2]])).logits.isfinite().all()
    assert not (tmp_path / MARK).exists()


@pytest.mark.parametrize("export", ["padded", "self-contained"])
def test_cutting_in_memory(source: Path, plan: Path, tmp_path: Path, export: str) -> None:
    model = load_pruned(source)
    save_pruned(optimize_model(model, plan=plan), tmp_path / "out", export=export)
    assert_clean(tmp_path / "out", tmp_path)


def test_measuring_and_showing(source: Path, tmp_path: Path) -> None:
    data = f"wikitext2={tmp_path / 'text.txt'}"
    invoke("evaluate", source, "--data", data, "--length", 16, "--device", "cpu")
    invoke("bench", source, "--batch-size", 1, "--rounds", 1, "--sequence-length", 4)
    invoke("inspect", source)
    assert not (tmp_path / MARK).exists()


@pytest.mark.parametrize("loads", [load_pruned, LlamaForCausalLM.from_pretrained])
def test_plain_saves_of_a_result(source: Path, tmp_path: Path, loads: Any) -> None:
    model: PreTrainedModel = optimize_model(loads(source))
    model.save_pretrained(tmp_path / "out")
    prune(loads(source), None, criterion="magnitude", density=0.5)[0].save_pretrained(tmp_path / "other")
    for name in ("out", "other"):
        assert "marked" not in (tmp_path / name / "config.json").read_text()
    assert not (tmp_path / MARK).exists()


def test_the_check_in_a_new_process_has_no_other_code_to_run(source: Path, tmp_path: Path) -> None:
    model = uneven(source)
    folder = save_pruned(model, tmp_path / "out")
    (folder / "custom_generate").mkdir()
    (folder / "custom_generate" / "generate.py").write_text((source / "marked.py").read_text())
    inputs = {"input_ids": torch.tensor([[1, 2, 3]])}
    assert verify_reload(folder, "AutoModelForCausalLM", model, inputs, Outputs()).largest_difference == 0
    assert not (tmp_path / MARK).exists()
    (folder / CODE_FILE).write_text((source / "marked.py").read_text())
    with pytest.raises(CheckpointError, match="is not the file that this version writes"):
        verify_reload(folder, "AutoModelForCausalLM", model, inputs, Outputs())
    assert not (tmp_path / MARK).exists()


def test_what_a_user_trusts_stays(tmp_path: Path) -> None:
    names = {
        "auto_map": {
            "AutoModel": "mine.Mine",
            "AutoConfig": "other.Other",
            "AutoTokenizer": ["mine.Mine", None],
        }
    }
    (tmp_path / "config.json").write_text(json.dumps({**names, "nested": [names]}))
    (tmp_path / "mine.py").touch()
    clean_folder(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    assert set(values["auto_map"]) == set(values["nested"][0]["auto_map"]) == {"AutoModel", "AutoTokenizer"}
    assert not needs_our_code(tmp_path, values)


def test_a_tokenizer_with_code_of_its_own_is_refused(source: Path, tmp_path: Path) -> None:
    (source / "tokenizer.json").write_text("{")
    done = CliRunner().invoke(make_app(COMMANDS), ["prune", str(source), "out", "--criterion", "magnitude"])
    assert isinstance(done.exception, CheckpointError)
    assert not (tmp_path / MARK).exists()


@pytest.mark.parametrize(
    "template", ["{{ undefined.a.b }}", "{% if %}", "{{ ''.__class__.__mro__ }}", "{{ 1 / 0 }}"]
)
def test_a_broken_chat_template_is_named(source: Path, tmp_path: Path, template: str) -> None:
    (source / "chat_template.jinja").write_text(template)
    text = ["--calibration", str(tmp_path / "text.txt"), "--chat-template", "--samples", "2", "--length", "8"]
    done = CliRunner().invoke(make_app(COMMANDS), ["prune", str(source), "out", *text])
    assert isinstance(done.exception, DataError), done.exception
    assert "chat_template" in str(done.exception)


def test_an_adapter_that_names_a_module_is_refused(source: Path, tmp_path: Path) -> None:
    values = {
        "peft_type": "LORA",
        "megatron_config": {"a": 1},
        "megatron_core": "marked",
        "target_modules": ["q_proj"],
    }
    (source / "adapter_config.json").write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match="megatron_core: 'marked' names code"):
        load_pruned(source)
    assert not (tmp_path / MARK).exists()


def test_a_metric_is_no_script_beside_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(metrics, "hub_reachable", lambda: True)
    (tmp_path / "accuracy").mkdir()
    (tmp_path / "accuracy" / "accuracy.py").write_text("open('ran', 'w')\n")
    assert metrics.load_metric("accuracy") is metrics.METRICS["accuracy"].computed
    assert not (tmp_path / MARK).exists()


def test_files_that_are_cleaned_can_be_read_by_others(source: Path) -> None:
    os.chmod(source / "config.json", 0o644)
    clean_folder(source)
    assert stat.S_IMODE((source / "config.json").stat().st_mode) == 0o644


def test_a_class_that_a_user_registered_travels_with_its_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "modeling_mine.py").write_text(
        "from transformers import LlamaForCausalLM\nclass Mine(LlamaForCausalLM):\n    pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    mine = importlib.import_module("modeling_mine").Mine
    mine.register_for_auto_class("AutoModelForCausalLM")
    torch.manual_seed(0)
    model = mine(tiny_model("llama", dtype=torch.float32).config)
    pruned, _ = prune(model, None, criterion="magnitude", density={"channels": 0.5}, scope="uniform")
    save_pruned(pruned, tmp_path / "out")
    values = json.loads((tmp_path / "out" / "config.json").read_text())
    assert values["auto_map"] == {"AutoModelForCausalLM": "modeling_mine.Mine"}
    assert (tmp_path / "out" / "modeling_mine.py").is_file()
