"""Pruning mixed into the Trainers of sentence-transformers, whose models wrap another one and save that alone."""

from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    BertModel,
)

from patchers.patching.patch import gates_of
from sparse_trainer.architectures.perturb import perturb
from sparse_trainer.cut.optimize import optimize_model
from sparse_trainer.errors import ArgumentError, UnsupportedModelError
from sparse_trainer.folders.load import is_patched_checkpoint
from sparse_trainer.training.arguments.arguments import SparseTrainingArguments
from sparse_trainer.training.load import load_patched
from sparse_trainer.training.trainer import SparseTrainer
from sparse_trainer.training.wrapped_model import WHOLE_FILE
from tests.fixtures.character_tokenizer import character_tokenizer

sentence_transformers = pytest.importorskip(
    "sentence_transformers", reason="sentence-transformers is not installed"
)
pytestmark = pytest.mark.filterwarnings("ignore")

SIZES: dict[str, Any] = {
    "vocab_size": 100, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 64, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
}  # fmt: skip
TEXTS = [f"the number {i}" for i in range(16)]
SETTINGS: dict[str, Any] = {
    "max_steps": 8, "save_steps": 2, "eval_strategy": "steps", "eval_steps": 2, "per_device_train_batch_size": 4,
    "learning_rate": 1e-2, "report_to": [], "use_cpu": True, "disable_tqdm": True, "logging_steps": 1,
}  # fmt: skip


def rows(label: str) -> datasets.Dataset:
    scores = [float(i % 2) for i in range(16)]
    return datasets.Dataset.from_dict({"a": TEXTS, "b": [text[::-1] for text in TEXTS], label: scores})


def saved(cls: Any, folder: Path, **options: Any) -> str:
    """Write a tiny model with its tokenizer."""
    torch.manual_seed(0)
    model = cls(BertConfig(**SIZES, **options))
    perturb(model)
    model.save_pretrained(folder / "base")
    tokenizer = character_tokenizer()
    tokenizer.model_max_length = 64
    tokenizer.save_pretrained(folder / "base")
    return str(folder / "base")


def embedder(folder: Path, **options: Any) -> Any:
    """Return a training of a text embedding model with a layer of its own behind the pooling."""
    from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments
    from sentence_transformers.losses import CosineSimilarityLoss
    from sentence_transformers.models import Dense, Pooling, Transformer

    class Pruning(SparseTrainer, SentenceTransformerTrainer):  # type: ignore[misc]
        pass

    modules = [Transformer(saved(BertModel, folder)), Pooling(32), Dense(32, 16)]
    model = sentence_transformers.SentenceTransformer(modules=modules, device="cpu")
    return Pruning(
        model=model,
        args=SentenceTransformerTrainingArguments(str(folder / "out"), **{**SETTINGS, **options}),
        train_dataset=rows("score"),
        eval_dataset=rows("score"),
        loss=CosineSimilarityLoss(model),
        sparse_args=SparseTrainingArguments(density=0.5),
    )


def judge(folder: Path, **options: Any) -> Any:
    """Return a training of a cross-encoder."""
    from sentence_transformers.cross_encoder import (
        CrossEncoder,
        CrossEncoderTrainer,
        CrossEncoderTrainingArguments,
    )
    from sentence_transformers.cross_encoder.losses import BinaryCrossEntropyLoss

    class Pruning(SparseTrainer, CrossEncoderTrainer):  # type: ignore[misc]
        pass

    model = CrossEncoder(saved(BertForSequenceClassification, folder, num_labels=1), device="cpu")
    return Pruning(
        model=model,
        args=CrossEncoderTrainingArguments(str(folder / "out"), **{**SETTINGS, **options}),
        train_dataset=rows("label"),
        eval_dataset=rows("label"),
        loss=BinaryCrossEntropyLoss(model),
        sparse_args=SparseTrainingArguments(density=0.5),
    )


KINDS = {"embedder": embedder, "judge": judge}
STOCK = {"embedder": AutoModel, "judge": AutoModelForSequenceClassification}


def said(kind: str, model: Any) -> torch.Tensor:
    """Return what a model says of some texts."""
    if kind == "judge":
        return torch.as_tensor(model.predict([TEXTS[:2], TEXTS[2:4]]))
    return torch.as_tensor(model.encode(TEXTS[:3]))


def assert_same(one: Any, other: Any) -> None:
    mine, theirs = one.state_dict(), other.state_dict()
    assert mine.keys() == theirs.keys()
    assert [name for name in mine if not torch.equal(mine[name], theirs[name])] == []


@pytest.mark.parametrize("kind", KINDS)
def test_it_trains_resumes_keeps_the_best_and_is_cut(kind: str, tmp_path: Path) -> None:
    run = KINDS[kind](tmp_path)
    run.train()
    assert run.coordinator.density_reached() == pytest.approx(0.5, abs=0.05)
    checkpoint = tmp_path / "out" / "checkpoint-4"

    # The inner model stands in the folder: no stock loader takes it for a dense one, ours knows it.
    assert is_patched_checkpoint(checkpoint)
    with pytest.raises(RuntimeError, match="mismatch"):
        STOCK[kind].from_pretrained(checkpoint)
    with pytest.raises(RuntimeError, match="mismatch"):
        type(run.model)(str(checkpoint), device="cpu")
    assert len(gates_of(load_patched(checkpoint))) == len(gates_of(run.model))

    resumed = KINDS[kind](tmp_path)
    resumed.train(resume_from_checkpoint=str(checkpoint))
    assert_same(resumed.model, run.model)

    # What is cut is the model inside, in its place.
    expected = said(kind, run.model.eval())
    with pytest.raises(UnsupportedModelError, match=r"part\.model = optimize_model\(part\.model\)"):
        optimize_model(run.model)
    run.model[0].model = optimize_model(run.model[0].model)
    torch.testing.assert_close(said(kind, run.model), expected, rtol=0, atol=1e-5)
    run.model.save_pretrained(str(tmp_path / "cut"))
    loaded = type(run.model)(str(tmp_path / "cut"), device="cpu", trust_remote_code=True)
    torch.testing.assert_close(said(kind, loaded), said(kind, run.model), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("kind", "highest"), [("embedder", True), ("judge", False)])
def test_the_best_weights_come_back_at_the_end(kind: str, highest: bool, tmp_path: Path) -> None:
    options = {"metric_for_best_model": "eval_loss", "greater_is_better": highest}
    run = KINDS[kind](tmp_path, load_best_model_at_end=True, **options)
    run.train()
    best = Path(run.state.best_model_checkpoint)
    assert best.name == "checkpoint-6", "the last checkpoint proves nothing"
    other = KINDS[kind](tmp_path / "other")
    other._load_from_checkpoint(str(best))
    assert_same(other.model, run.model)


def test_a_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    run = judge(tmp_path, max_steps=2)
    run.train()
    checkpoint = tmp_path / "out" / "checkpoint-2"
    (checkpoint / WHOLE_FILE).write_bytes(b"damaged")
    with pytest.raises(ValueError, match=WHOLE_FILE):
        judge(tmp_path, max_steps=4).train(resume_from_checkpoint=str(checkpoint))


def test_a_teacher_is_refused_for_its_losses_return_no_outputs(tmp_path: Path) -> None:
    run = judge(tmp_path, max_steps=2)
    taught = type(run)(
        model=sentence_transformers.CrossEncoder(str(tmp_path / "base"), device="cpu"),
        args=run.args,
        train_dataset=rows("label"),
        eval_dataset=rows("label"),
        sparse_args=SparseTrainingArguments(density=0.5, distil_teacher_name_or_path="self"),
    )
    with pytest.raises(ArgumentError, match="returned a loss without the outputs"):
        taught.train()
