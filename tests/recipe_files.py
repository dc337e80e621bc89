"""Small files for recipes: a random BERT with a vocabulary for the generated questions, and BoolQ-format rows."""

import gzip
import json
from pathlib import Path

import torch
from transformers import BertConfig, BertModel, BertTokenizerFast

from sparse_trainer.generated import generate


def write_tiny_model(folder: Path) -> Path:
    """Write a random two-layer BERT, every parameter perturbed, with its tokenizer."""
    folder.mkdir(parents=True)
    rows = generate("train", 200)
    words = sorted({word for row in rows for word in _words(row["question"] + " " + row["passage"])})
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]))
    tokenizer = BertTokenizerFast(str(folder / "vocab.txt"), model_max_length=64)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    model = BertModel(
        BertConfig(
            vocab_size=len(tokenizer),
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=32,
            max_position_embeddings=64,
        )
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return folder


def write_rows(path: Path, rows: list[dict[str, object]]) -> Path:
    """Write JSON lines, compressed where the name says so."""
    text = "".join(json.dumps(row) + "\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def boolq_rows(count: int) -> list[dict[str, object]]:
    """Return rows in the format of BoolQ."""
    return [dict(row) for row in generate("train", count)]


def sst2_rows(count: int) -> list[dict[str, object]]:
    """Return rows in the format of SST-2."""
    return [{"sentence": row["passage"], "label": row["label"]} for row in generate("train", count)]


def _words(text: str) -> list[str]:
    return text.lower().replace(".", " ").replace(",", " ").split()
