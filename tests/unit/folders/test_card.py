"""The model card."""

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import (
    AutoTokenizer,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    LlamaForCausalLM,
)

from patchers.discovery.discover import discover
from sparse_trainer.cut.auto_classes import auto_classes_of
from sparse_trainer.cut.decision import Request
from sparse_trainer.cut.optimize import optimize_model
from sparse_trainer.cut.record import plan_of, remember_request
from sparse_trainer.folders.card import model_card
from sparse_trainer.folders.card_facts import CardFacts, CardScore
from sparse_trainer.folders.exports import EXPORTS
from sparse_trainer.folders.save import save_pruned
from sparse_trainer.one_shot.prune import prune
from tests.architectures.tiny import tiny_model
from tests.fixtures.compact_models import patched, tiny, uneven_keep
from tests.fixtures.recipe_files import write_tiny_llama, write_tiny_model

CLASSES = (
    BertForSequenceClassification, BertForTokenClassification, BertForQuestionAnswering, LlamaForCausalLM,
)  # fmt: skip


def card(form: str, name: str = "", density: float | dict[str, float] | None = 0.25) -> str:
    """Return the card of a small model."""
    model = tiny()
    gated = patched(model, uneven_keep(discover(model)))
    remember_request(gated, Request(method="movement", density=density))
    compact = optimize_model(gated)
    compact.config.name_or_path = name
    plan = plan_of(compact)
    assert plan is not None
    metrics = {
        "accuracy": {"dense": 0.71234567, "pruned": 0.7},
        "file size": {"dense": "9 MB", "pruned": None},
    }
    return model_card(compact, plan, metrics, EXPORTS[form])


@pytest.mark.parametrize("form", ["native", "padded", "self-contained"])
def test_front_matter_and_tables_are_whole(form: str) -> None:
    text = card(form, "google-bert/bert-base-uncased")
    _, front, body = text.split("---\n", 2)
    assert yaml.safe_load(front) == {
        "library_name": "transformers",
        "pipeline_tag": "text-classification",
        "base_model": "google-bert/bert-base-uncased",
        "tags": ["pruning", "structured-sparsity", "sparse-trainer"],
    }
    assert "| accuracy | 0.7123 | 0.7 |\n| file size | 9 MB | – |\n" in body
    assert "| parameters | 28,243 | 12,766 |" in body
    assert "| heads | 3 | 12 |\n" in body
    assert "Chosen by `movement`, asked to keep 25% of the prunable params;" in body
    assert "{" not in body
    assert not re.search(r"\n\n\n", body)


def test_the_lines_that_load_are_those_of_the_form() -> None:
    lines = {form: card(form) for form in ("native", "padded", "self-contained")}
    plain = 'model = AutoModelForSequenceClassification.from_pretrained("this-folder")\n'
    assert plain in lines["native"]
    assert plain in lines["padded"]
    assert 'from_pretrained("this-folder", trust_remote_code=True)\n' in lines["self-contained"]
    assert "Zeros pad" in lines["padded"]
    assert "no special kernel" not in lines["padded"]


def test_paths_of_this_machine_stay_out() -> None:
    text = card("native", "/home/me/models/bert")
    assert "/home/me" not in text
    assert "base_model" not in text


def test_densities_of_several_kinds() -> None:
    assert "asked to keep 50% of the heads, 12.5% of the channels;" in card(
        "native", density={"heads": 0.5, "channels": 0.125}
    )
    assert "asked to" not in card("native", density=None)


def test_auto_classes_are_found_by_the_name_of_the_class() -> None:
    assert auto_classes_of("BertModel")[0] == "AutoModel"
    assert auto_classes_of("DistilBertForQuestionAnswering") == ("AutoModelForQuestionAnswering",)
    assert "AutoModelForMaskedLM" in auto_classes_of("RobertaForMaskedLM")
    assert auto_classes_of("NoSuchModel") == ()


def test_a_model_that_lost_nothing_is_not_said_to_have_lost_units() -> None:
    model = tiny()
    compact = optimize_model(patched(model, uneven_keep(discover(model))))
    plan = plan_of(compact)
    assert plan is not None
    size = plan.params["dense"]
    whole = dataclasses.replace(plan, params={"dense": size, "compact": size})
    text = model_card(compact, whole, {}, EXPORTS["native"])
    assert "nothing was cut" in text
    assert "What was removed" not in text
    assert "nothing was cut" not in card("native")
    assert "What was removed is gone" in card("native")
    assert "What was removed" not in card("padded")


def told(origin: str, facts: CardFacts) -> tuple[dict[str, Any], str]:
    """Return the metadata and the body of the card of a small model."""
    gated = patched(tiny(), uneven_keep(discover(tiny())))
    compact = optimize_model(gated)
    compact.config.name_or_path = origin
    plan = plan_of(compact)
    assert plan is not None
    _, front, body = model_card(compact, plan, {}, EXPORTS["self-contained"], facts).split("---\n", 2)
    return yaml.safe_load(front), body


def test_results_settings_and_an_example_are_told() -> None:
    facts = CardFacts(
        scored=(CardScore(metric="accuracy", value=0.9, data="nyu-mll/glue", split="validation"),),
        conditions="latency on a CPU",
        settings={"epochs": 2},
        example="a text",
    )
    front, body = told("google-bert/bert-base-uncased", facts)
    (index,) = front["model-index"]
    (result,) = index["results"]
    assert result["dataset"] == {"name": "nyu-mll/glue", "type": "nyu-mll/glue", "split": "validation"}
    assert result["metrics"] == [{"type": "accuracy", "value": 0.9}]
    assert front["datasets"] == ["nyu-mll/glue"]
    assert "Conditions: latency on a CPU.\n" in body
    assert "| epochs | 2 |" in body
    assert "model=\"this-folder\", trust_remote_code=True)\nprint(answer('a text'))" in body
    assert not re.search(r"\n\n\n", body)


def test_licence_and_language_come_from_the_card_of_the_model_before(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(
        "---\nlicense: apache-2.0\nlanguage: en\nbase_model: google-bert/bert-base-uncased\n---\n\n# Mine\n"
    )
    front, _ = told(str(tmp_path), CardFacts())
    assert (front["license"], front["language"]) == ("apache-2.0", "en")
    assert front["base_model"] == "google-bert/bert-base-uncased"


@pytest.mark.parametrize("text", ["no metadata at all", "---\nlicense: [\n---\n", "---\n- a list\n---\n"])
def test_a_card_that_cannot_be_read_carries_nothing_over(text: str, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(text)
    front, _ = told(str(tmp_path), CardFacts())
    assert not {"license", "language", "base_model"} & front.keys()


def test_a_result_that_is_no_number_stays_out_of_the_metadata() -> None:
    score = CardScore(metric="perplexity", value=float("inf"), data="wikitext2", part="16 sequences")
    front, _ = told("", CardFacts(scored=(score,)))
    assert "model-index" not in front
    finite = dataclasses.replace(score, value=9.0)
    (index,) = told("", CardFacts(scored=(finite,)))[0]["model-index"]
    assert index["results"][0]["dataset"] == {"name": "16 sequences of wikitext2", "type": "wikitext2"}


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_the_python_of_a_card_runs_as_it_stands(
    cls: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write = write_tiny_llama if cls is LlamaForCausalLM else write_tiny_model
    source = write(tmp_path / "model")
    model, tokenizer = cls.from_pretrained(source), AutoTokenizer.from_pretrained(source)
    pruned, _ = prune(model, criterion="magnitude", density={"channels": 0.6})
    save_pruned(pruned, tmp_path / "this-folder", processor=tokenizer)
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(
        r"```python\n(.*?)```", (tmp_path / "this-folder" / "README.md").read_text(), re.DOTALL
    )
    assert "print(answer(" in blocks[-1]
    for block in blocks:
        exec(block, {})
    assert capsys.readouterr().out.strip()


def test_without_a_tokenizer_no_text_is_asked_about(tmp_path: Path) -> None:
    pruned, _ = prune(tiny_model("llama"), criterion="magnitude", density={"channels": 0.6})
    save_pruned(pruned, tmp_path / "out")
    assert "pipeline(" not in (tmp_path / "out" / "README.md").read_text()


def test_where_no_pipeline_is_the_model_is_asked_by_python() -> None:
    _, body = told("", CardFacts(call=("inputs = 1", "print(model, inputs)")))
    assert (
        "It answers like this:\n\n```python\nfrom transformers import AutoModelForSequenceClassification\n\n"
        'model = AutoModelForSequenceClassification.from_pretrained("this-folder", trust_remote_code=True)\n'
        "inputs = 1\nprint(model, inputs)\n```\n"
    ) in body
    assert not re.search(r"\n\n\n", body)
