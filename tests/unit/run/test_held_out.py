"""What a model is measured on was not calibrated on."""

from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from sparse_trainer.run.held_out import held_out, perplexity_on
from sparse_trainer.run.options import CalibrationOptions
from tests.fixtures.character_tokenizer import character_tokenizer

RUN = 32


def text(folder: Path, paragraphs: int) -> Path:
    """Write paragraphs of random letters into a file."""
    generator = torch.Generator().manual_seed(0)
    letters = torch.randint(97, 123, (paragraphs, 64), generator=generator)
    file = folder / "text.txt"
    file.write_text("\n".join("".join(map(chr, row)) for row in letters.tolist()))
    return file


def test_no_stretch_of_it_was_calibrated_on(tmp_path: Path) -> None:
    tokenizer = character_tokenizer()
    options = CalibrationOptions(source=str(text(tmp_path, 200)), samples=64, length=64, batch_size=4)
    seen = options.batches(tokenizer)
    rows = held_out(options, seen, tokenizer)
    assert rows is not None
    known = ["".join(map(chr, row)) for batch in seen for row in batch["input_ids"].tolist()]
    for one in rows:
        (row,) = one["input_ids"].tolist()
        said = "".join(map(chr, row))
        assert not any(
            said[at : at + 2 * RUN - 1] in other for other in known for at in range(len(said) - RUN)
        )


def test_there_is_none_where_all_text_was_calibrated_on(tmp_path: Path) -> None:
    tokenizer = character_tokenizer()
    options = CalibrationOptions(source=str(text(tmp_path, 12)), samples=12, length=64, batch_size=4)
    assert held_out(options, options.batches(tokenizer), tokenizer) is None


def test_perplexity_is_that_of_all_labels_together() -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=40
    )
    model = LlamaForCausalLM(config)
    rows = [{"input_ids": torch.randint(40, (1, length))} for length in (9, 5)]
    with torch.no_grad():
        losses = [float(model(**row, labels=row["input_ids"]).loss) for row in rows]
    expected = float(torch.tensor((8 * losses[0] + 4 * losses[1]) / 12).exp())
    assert perplexity_on(model, rows) == pytest.approx(expected, rel=1e-5)
