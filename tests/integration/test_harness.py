"""lm-evaluation-harness runs on our folders, and finds what `evaluate` finds."""

import ast
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from datasets import Dataset

from sparse_trainer.data.corpora.read import find
from sparse_trainer.folders.load import load_model
from sparse_trainer.folders.save import save_pruned
from sparse_trainer.one_shot.prune import prune
from sparse_trainer.tasks.language.choices import Accuracy, multiple_choice
from tests.architectures.tiny import tiny_model
from tests.fixtures.character_tokenizer import character_tokenizer

pytestmark = [
    pytest.mark.skipif(find_spec("lm_eval") is None, reason="lm_eval is not installed (extra `harness`)"),
    pytest.mark.filterwarnings("ignore"),
]

ROWS = [
    {"goal": "Open it", "sol1": "turn the lid", "sol2": "eat", "label": 0},
    {"goal": "Boil", "sol1": "a", "sol2": "heat the water", "label": 1},
    {"goal": "Cut paper", "sol1": "with scissors", "sol2": "with soup", "label": 0},
    {"goal": "Sing", "sol1": "la", "sol2": "by the book", "label": 0},
    {"goal": "Sit", "sol1": "there", "sol2": "on the old chair", "label": 1},
]
TASK = {
    "task": "local_questions",
    "dataset_path": "json",
    "test_split": "test",
    "output_type": "multiple_choice",
    "doc_to_text": "Question: {{goal}}\nAnswer:",
    "doc_to_choice": "{{[sol1, sol2]}}",
    "doc_to_target": "label",
    "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
}
HUB_ROWS: dict[str, dict[str, Any]] = {
    "boolq": {"question": "is it", "passage": "T -- It is.", "label": 1},
    "arc_easy": {"question": "Q?", "choices": {"text": ["x", "y"], "label": ["A", "B"]}, "answerKey": "B"},
    "piqa": {"goal": "Do it", "sol1": "so", "sol2": "thus", "label": 1},
    "mmlu": {"question": " Q? ", "subject": "high_school_biology", "choices": list("wxyz"), "answer": 3},
    "hellaswag": {
        "activity_label": "Make tea",
        "ctx_a": "[header] How to [title] Boil  water.",
        "ctx_b": "the Kettle",
        "endings": ["is [step] hot.", " sings."],
        "label": "1",
    },
    "winogrande": {"sentence": "Ann told Bea that _ won.", "option1": "Ann", "option2": "Bea", "answer": "2"},
}
TASK_FILES = {
    "boolq": ["super_glue/boolq/default.yaml"],
    "arc_easy": ["arc/arc_easy.yaml"],
    "piqa": ["piqa/piqa.yaml"],
    "mmlu": ["mmlu/default/_default_template_yaml", "mmlu/default/mmlu_high_school_biology.yaml"],
}


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return file


@pytest.fixture(scope="module")
def tasks(rows: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tasks")
    task = TASK | {"dataset_kwargs": {"data_files": {"test": str(rows)}}}
    (folder / "local_questions.yaml").write_text(yaml.safe_dump(task))
    return folder


@pytest.fixture(scope="module")
def uneven(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder that brings its code along."""
    model, _ = prune(
        tiny_model("llama", dtype=torch.float32), None, criterion="magnitude", density={"channels": 0.7}
    )
    folder = save_pruned(model, tmp_path_factory.mktemp("folder") / "uneven", processor=character_tokenizer())
    assert (folder / "modeling_pruned.py").is_file()
    return folder


def ours(folder: Path, rows: Path) -> Accuracy:
    return multiple_choice(load_model(str(folder)), character_tokenizer(), "piqa", file=rows)


def check(found: dict[str, Any], expected: Accuracy) -> None:
    assert found["acc,none"] == pytest.approx(expected.acc)
    assert found["acc_norm,none"] == pytest.approx(expected.acc_norm)
    assert found["acc_stderr,none"] == pytest.approx(expected.acc_stderr)
    assert expected.right != expected.right_norm  # or the comparison would not tell them apart


@pytest.mark.slow
def test_the_command_line_runs_on_a_folder_that_brings_its_code(
    uneven: Path, rows: Path, tasks: Path, tmp_path: Path
) -> None:
    command = ["run", "--model", "hf", "--model_args", f"pretrained={uneven}", "--trust_remote_code"]
    command += ["--include_path", str(tasks), "--tasks", "local_questions", "--device", "cpu"]
    subprocess.run(
        [sys.executable, "-m", "lm_eval", *command, "--output_path", str(tmp_path)],
        check=True,
        capture_output=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    (results,) = tmp_path.rglob("results_*.json")
    check(json.loads(results.read_text())["results"]["local_questions"], ours(uneven, rows))


@pytest.fixture
def autoload() -> Iterator[None]:
    from sparse_trainer import autoload

    autoload.enable()
    yield
    autoload.disable()


@pytest.mark.slow
@pytest.mark.usefixtures("autoload")
def test_with_autoload_no_code_of_the_folder_is_trusted(uneven: Path, rows: Path, tasks: Path) -> None:
    import lm_eval
    from lm_eval.tasks import TaskManager

    found = lm_eval.simple_evaluate(
        model="hf",
        model_args={"pretrained": str(uneven)},
        tasks=["local_questions"],
        task_manager=TaskManager(include_path=str(tasks), include_defaults=False),
        device="cpu",
    )
    check(found["results"]["local_questions"], ours(uneven, rows))


@pytest.mark.parametrize("name", ["boolq", "piqa", "arc_easy", "mmlu", "hellaswag", "winogrande"])
def test_our_prompts_are_those_of_the_harness(name: str) -> None:
    row, context, endings = harness_prompt(name)
    question = find(name).question_of(row)
    contexts = context if isinstance(context, tuple) else (context,) * len(endings)
    assert question.contexts == contexts
    assert question.endings == tuple(f" {ending}" for ending in endings)


def harness_prompt(name: str) -> tuple[dict[str, Any], str | tuple[str, ...], list[str]]:
    """Return a row of the hub, and its contexts and endings by the functions and templates of the harness."""
    import lm_eval
    from lm_eval.tasks.hellaswag.utils import process_docs
    from lm_eval.tasks.winogrande import preprocess_winogrande
    from lm_eval.utils import apply_template

    row = HUB_ROWS[name]
    if name == "hellaswag":
        done = process_docs(Dataset.from_list([row]))[0]
        return row, done["query"], done["choices"]
    if name == "winogrande":
        ending = preprocess_winogrande.doc_to_target(row)
        return row, tuple(preprocess_winogrande.doc_to_choice(row)), [ending] * 2
    folder = Path(lm_eval.__file__).parent / "tasks"
    task: dict[str, Any] = {}
    for file in TASK_FILES[name]:
        task |= yaml.safe_load((folder / file).read_text(encoding="utf-8"))
    choices = task["doc_to_choice"]
    if isinstance(choices, str):
        choices = ast.literal_eval(apply_template(choices, row))
    return row, task.get("description", "") + apply_template(task["doc_to_text"], row), choices
