"""Small files for recipes: random models with a vocabulary for the generated questions, rows and text."""

import gzip
import json
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertModel,
    BertTokenizerFast,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from sparse_trainer.data.quickstart.generated import generate
from sparse_trainer.run.recipes.load import load_recipe
from sparse_trainer.run.recipes.recipe import Recipe


def write_tiny_model(folder: Path) -> Path:
    """Write a random two-layer BERT, every parameter perturbed, with its tokenizer."""
    folder.mkdir(parents=True)
    words = _vocabulary()
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
    return _save_perturbed(model, folder)


def write_tiny_llama(folder: Path) -> Path:
    """Write a random three-layer Llama with KV groups, every parameter perturbed, with its tokenizer."""
    words = ["<unk>", "<s>", "<pad>", *_vocabulary()]
    backend = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, "<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing("<s> $A", None, [("<s>", 1)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", bos_token="<s>", pad_token="<pad>", model_max_length=64
    )
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(words),
            hidden_size=16,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            intermediate_size=40,
            max_position_embeddings=64,
            bos_token_id=1,
            eos_token_id=None,
            pad_token_id=2,
        )
    )
    return _save_perturbed(model, folder)


def write_text(path: Path, sentences: int) -> Path:
    """Write running text, a passage a line."""
    path.write_text("".join(row["passage"] + "\n" for row in generate("train", sentences)))
    return path


def _save_perturbed(model: PreTrainedModel, folder: Path) -> Path:
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


def _vocabulary() -> list[str]:
    rows = generate("train", 200)
    return sorted({word for row in rows for word in _words(row["question"] + " " + row["passage"])})


def _words(text: str) -> list[str]:
    return text.lower().replace(".", " ").replace(",", " ").split()


STEPS = 4
"""Dense, pruning and frozen phase: the fewest steps in which the schedule can do all of its work."""


def write_small_files(folder: Path) -> Path:
    """Write a tiny model and rows for every recipe that trains."""
    write_tiny_model(folder / "model")
    write_rows(folder / "boolq.jsonl.gz", boolq_rows(24))
    write_rows(folder / "sst2.jsonl", sst2_rows(24))
    return folder


def small(name: str, files: Path, out: Path, *overrides: str) -> Recipe:
    """Load a recipe with a tiny model, local files and a few steps."""
    data = files / ("sst2.jsonl" if name == "sst2-local" else "boolq.jsonl.gz")
    return load_recipe(
        name,
        [
            f"model.name_or_path={files / 'model'}",
            f"data.train_file={data}",
            f"data.validation_file={data}",
            "data.label_column=label",
            "data.max_length=48",
            f"training.output_dir={out}",
            f"training.max_steps={STEPS}",
            f"model.dense_training.max_steps={STEPS}",
            "training.per_device_train_batch_size=4",
            "training.use_cpu=true",
            "export.latency_rounds=1",
            "export.latency_sequence_length=8",
            *overrides,
        ],
    )
