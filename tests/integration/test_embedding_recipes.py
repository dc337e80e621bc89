"""Sentence embeddings, from a recipe to a folder that sentence-transformers and plain transformers load."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from sparse_trainer.data.quickstart.generated import generate
from sparse_trainer.errors import CheckpointError, RecipeError, SparseTrainerError
from sparse_trainer.inputs.pooling import Pooling
from sparse_trainer.run.pipeline import run
from sparse_trainer.run.recipes.load import load_recipe
from sparse_trainer.run.recipes.recipe import Recipe
from sparse_trainer.tasks.embeddings.files import write_files
from tests.fixtures.recipe_files import write_rows, write_tiny_model

pytestmark = pytest.mark.filterwarnings("ignore")
COUNT = 24


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a tiny encoder as sentence-transformers has it, and pairs of texts with scores."""
    folder = tmp_path_factory.mktemp("embeddings")
    write_tiny_model(folder / "model")
    prompts = {"config_sentence_transformers.json": {"prompts": {"query": "is "}}}
    write_files(folder / "model", Pooling(mode="max", normalize=True), 16, prompts)
    rows = [
        {"question": f"{row['question']} {number}", "context": row["passage"], "label": number / COUNT}
        for number, row in enumerate(generate("train", COUNT))
    ]
    write_rows(folder / "pairs.jsonl", rows)
    (folder / "lines.txt").write_text("\n\n".join(str(row["context"]) for row in rows))
    return folder


def small(files: Path, out: Path, *overrides: str, data: str = "pairs.jsonl") -> Recipe:
    """Load the shipped recipe with a tiny model, local files and two steps."""
    return load_recipe(
        "embeddings-minilm",
        [
            f"model.name_or_path={files / 'model'}",
            f"data.train_file={files / data}",
            f"data.validation_file={files / data}",
            "data.max_length=48",
            f"training.output_dir={out}",
            "training.max_steps=2",
            "training.per_device_train_batch_size=8",
            "training.per_device_eval_batch_size=8",
            "training.use_cpu=true",
            "training.report_to=none",
            "training.learning_rate=1.0e-3",
            "export.latency_rounds=1",
            "export.latency_sequence_length=8",
            *overrides,
        ],
    )


def recall(model: Any, pairs: Path) -> float:
    """Return the share of questions whose passage is among the nearest five different ones, row by row."""
    rows = [json.loads(line) for line in pairs.read_text().splitlines()]
    passages = sorted({row["context"] for row in rows})
    near = torch.as_tensor(model.encode(passages)).T
    found = [(torch.as_tensor(model.encode(row["question"])) @ near).topk(5).indices.tolist() for row in rows]
    return sum(passages.index(row["context"]) in best for row, best in zip(rows, found, strict=True)) / len(
        rows
    )


def test_the_recipe_leaves_a_folder_that_embeds(files: Path, tmp_path: Path) -> None:
    metrics = "task.metrics=[cosine, recall@1, recall@5, recall@10, mrr@10, ndcg@10, spearman]"
    by_length = "training.train_sampling_strategy=group_by_length"
    result = run(small(files, tmp_path / "run", metrics, "task.similarity=0.5", by_length), lambda line: None)
    dense, pruned = (model.metrics for model in result.comparison.models.values())
    assert dense is not None
    assert pruned is not None
    assert dense["cosine"] == pytest.approx(1, abs=1e-5)
    assert 0 < pruned["cosine"] < 0.9999
    assert pruned["recall@1"] <= pruned["recall@5"] <= pruned["recall@10"] <= 1
    assert result.reloaded is not None
    assert result.reloaded.same_predictions == result.reloaded.samples > 0

    config = json.loads((result.folder / "config.json").read_text())
    assert not any(name.endswith(".json") for name in config)

    texts = ["is it blue", "the house is blue and tall"]
    tokens = AutoTokenizer.from_pretrained(result.folder)(texts, padding=True, return_tensors="pt")
    model = AutoModel.from_pretrained(result.folder, trust_remote_code=True).eval()
    assert model.num_parameters() == result.comparison.models["pruned"].parameters
    with torch.no_grad():
        embeddings = Pooling(mode="max", normalize=True)(
            model(**tokens).last_hidden_state, tokens["attention_mask"]
        )
    st = pytest.importorskip("sentence_transformers", reason="sentence-transformers is not installed")
    loaded = st.SentenceTransformer(str(result.folder), device="cpu", trust_remote_code=True)
    torch.testing.assert_close(torch.as_tensor(loaded.encode(texts)), embeddings, rtol=0, atol=1e-5)
    assert loaded.prompts["query"] == "is "
    scope: dict[str, Any] = {}
    exec("\n".join(result.load_lines), scope)
    assert scope["embedder"].encode("is it").shape == (16,)
    dense_model = st.SentenceTransformer(str(files / "model"), device="cpu")
    assert not torch.allclose(torch.as_tensor(dense_model.encode(texts)), embeddings, atol=1e-3)
    assert dense["recall@5"] == pytest.approx(recall(dense_model, files / "pairs.jsonl"))
    assert pruned["recall@5"] == pytest.approx(recall(loaded, files / "pairs.jsonl"))


def test_lines_of_a_text_are_learned_by_a_model_that_says_nothing_of_pooling(
    files: Path, tmp_path: Path
) -> None:
    plain = write_tiny_model(tmp_path / "plain")
    only = (f"model.name_or_path={plain}", "data.text_columns=[text]", "task.metrics=[cosine]")
    teacher = "pruning.distil_teacher_name_or_path=self"
    states = (teacher, "pruning.distil_alpha_teacher=0", "pruning.distil_alpha_hidden=1")
    recipe = small(files, tmp_path / "run", *only, *states, "export.verify=false", data="lines.txt")
    result = run(recipe, lambda line: None)
    modules = json.loads((result.folder / "modules.json").read_text())
    assert [module["type"].rpartition(".")[2] for module in modules] == ["Transformer", "Pooling"]
    pooling: dict[str, Any] = json.loads((result.folder / "1_Pooling" / "config.json").read_text())
    assert [name for name, value in pooling.items() if value is True] == ["pooling_mode_mean_tokens"]
    assert not (result.folder / "2_Normalize").exists()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("pruning=null", "pruning: null leaves nothing to learn"),
        ("model.dense_training={}", "model.dense_training: has nothing to learn"),
    ],
)
def test_a_training_without_anything_to_learn_is_refused(
    override: str, message: str, files: Path, tmp_path: Path
) -> None:
    with pytest.raises(RecipeError, match=message):
        small(files, tmp_path / "run", override)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["task.metrics=[cosin]"], r"task\.metrics: unknown value 'cosin'\. Did you mean 'cosine'"),
        (["task.metrics=[]"], r"task\.metrics: names none"),
        (["task.distance=0"], r"task\.distance: .*not both 0"),
        (["task.pooling=average"], r"task\.pooling: 'average'"),
        (["task.pairs=[question]"], r"task\.pairs: 1 columns"),
        (["task.pairs=[question, passage]"], r"validation set: no column 'passage'"),
        (["data.text_columns=[question]"], r"task\.metrics: .*there is one text column"),
        (["data.text_columns=[question, context, question]"], r"data\.text_columns: 3 columns"),
        (["data.text_columns=[question, passage]"], r"no column 'passage'"),
        (["task.metrics=[spearman]", "data.label_column=score"], r"no column 'score'"),
        (["data.text_columns=[question, label]", "data.label_column=x"], r"column 'label': 24 of 24 entries"),
    ],
)
def test_bad_input_is_told_before_any_work(
    overrides: list[str], message: str, files: Path, tmp_path: Path
) -> None:
    with pytest.raises(SparseTrainerError, match=message):
        run(small(files, tmp_path / "run", *overrides), lambda line: None)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("modules.json", "{", "not JSON"),
        ("modules.json", "{}", "no list of modules"),
        (
            "modules.json",
            '[{"type": "a.Transformer"}, {"type": "a.Pooling"}, {"type": "a.Dense"}]',
            "Transformer, Pooling, Dense: an encoder and its pooling are expected",
        ),
        ("1_Pooling/config.json", '{"pooling_mode": ["cls", "mean"]}', r"pools by .*one of mean, cls"),
        ("1_Pooling/config.json", '{"pooling_mode_weightedmean_tokens": true}', r"pools by .*weightedmean"),
    ],
)
def test_a_model_that_pools_in_another_way_is_refused(
    file: str, content: str, message: str, tmp_path: Path, files: Path
) -> None:
    model = write_tiny_model(tmp_path / "model")
    write_files(model, Pooling(), 16, {})
    (model / file).write_text(content)
    with pytest.raises(CheckpointError, match=message):
        run(small(files, tmp_path / "run", f"model.name_or_path={model}"), lambda line: None)
