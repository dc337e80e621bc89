"""`trim-vocabulary` from folder to folder: what it says, what it writes, what it refuses."""

import json
from pathlib import Path

import pytest
import torch
from sentence_transformers import SentenceTransformer
from transformers import AutoModel, AutoTokenizer, BertConfig, BertModel, pipeline

from sparse_trainer.inputs.pooling import Pooling
from sparse_trainer.plan.document import Plan
from sparse_trainer.tasks.embeddings.files import write_files
from tests.fixtures.tokenizers import USED, word_pieces
from tests.unit.cli.test_cli import answer, call


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of sentence-transformers."""
    folder = tmp_path_factory.mktemp("vocabulary") / "model"
    tokenizer = word_pieces()
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, max_position_embeddings=64, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    BertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    settings = {"sentence_bert_config.json": {"max_seq_length": 32, "do_lower_case": False}}
    write_files(folder, Pooling(mode="mean", normalize=True), 32, settings)
    return folder


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return a text, and a table with text in two columns."""
    folder = tmp_path_factory.mktemp("corpus")
    (folder / "a.txt").write_text(USED[0])
    rows = ({"text": USED[1], "more": [{"content": USED[2]}], "label": 1} for _ in range(2))
    (folder / "b.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "a.txt", folder / "b.jsonl"


def test_a_folder_keeps_what_it_says_of_the_corpus(monkeypatch, capsys, model, corpus, tmp_path) -> None:
    out, files = tmp_path / "out", [part for path in corpus for part in ("--corpus", str(path))]
    said = answer(monkeypatch, capsys, "trim-vocabulary", str(model), str(out), *files)
    plan = Plan.load(out)
    assert plan.vocabulary is not None
    assert said["tokens"]["kept"] == len(plan.vocabulary["keep"]) < said["tokens"]["before"]
    assert said["parameters"] == plan.params
    assert list(said["corpus"]["files"]) == ["a.txt", "b.jsonl"] == list(plan.vocabulary["corpora"])
    assert said["corpus"]["texts_cut_otherwise"] == 0
    card = (out / "README.md").read_text()
    assert said["corpus"]["files"]["a.txt"] in card
    assert f"{said['tokens']['kept']} of {said['tokens']['before']} tokens stayed" in card

    names = [AutoTokenizer.from_pretrained(folder) for folder in (model, out)]
    states = [
        AutoModel.from_pretrained(folder)(**each(USED[2], return_tensors="pt")).last_hidden_state
        for folder, each in zip((model, out), names, strict=True)
    ]
    torch.testing.assert_close(*states)
    assert pipeline("feature-extraction", model=str(out))(USED[0])
    vectors = [SentenceTransformer(str(folder), device="cpu").encode(list(USED)) for folder in (model, out)]
    assert abs(vectors[0] - vectors[1]).max() < 1e-6


def test_rare_tokens_are_told(monkeypatch, capsys, model, corpus, tmp_path) -> None:
    files = [part for path in corpus for part in ("--corpus", str(path))]
    arguments = (str(model), str(tmp_path / "out"), *files, "--keep-minimum-count", "2")
    assert call(monkeypatch, "trim-vocabulary", *arguments) == 0
    assert "texts and lines that are cut into other pieces since: " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (["--corpus", "nowhere.txt"], "no such file"),
        (["--corpus", "{model}/model.safetensors"], "unknown kind of file"),
        (["--corpus", "{corpus}", "--keep-minimum-count", "0"], "keep-minimum-count"),
        (["--corpus", "{corpus}", "--export", "zip"], "zip"),
        ([], "--corpus"),
    ],
)
def test_mistakes_are_one_line(monkeypatch, capsys, model, corpus, tmp_path, wrong, said) -> None:
    given = [part.format(model=model, corpus=corpus[0]) for part in wrong]
    assert call(monkeypatch, "trim-vocabulary", str(model), str(tmp_path / "out"), *given) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_result_that_exists_stays(monkeypatch, capsys, model, corpus, tmp_path) -> None:
    arguments = ("trim-vocabulary", str(model), str(tmp_path / "out"), "--corpus", str(corpus[0]))
    assert call(monkeypatch, *arguments) == 0
    assert call(monkeypatch, *arguments) == 2
    assert "exists" in capsys.readouterr().err
    assert call(monkeypatch, *arguments, "--overwrite") == 0
