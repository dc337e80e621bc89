"""Made-up text holds no placeholders; what fails inside the self-check is told with what to do."""

from typing import Any

import pytest
import torch

from sparse_trainer.cut.optimize import optimize_model
from sparse_trainer.errors import UnsupportedModelError
from sparse_trainer.inputs.make import inputs_for
from sparse_trainer.inputs.placeholders import special_ids
from sparse_trainer.inputs.sample import sample_batch
from tests.architectures.tiny import tiny_model


@pytest.mark.parametrize("model_type", ["llama", "bert", "qwen2", "gpt2"])
def test_the_probe_draws_no_special_ids(model_type: str) -> None:
    model = tiny_model(model_type)
    model.config.image_token_id, model.config.audio_token_index = 5, 7
    model.config.eos_token_id = [2, 9]
    batch = sample_batch(model)
    words = set(batch["input_ids"][batch["attention_mask"] == 1].tolist())
    assert words
    assert words.isdisjoint(special_ids(model.config))
    assert {2, 5, 7, 9} <= special_ids(model.config)


@pytest.mark.parametrize("model_type", ["llava", "qwen2_vl", "gemma3", "whisper", "t5"])
def test_made_up_words_are_no_placeholders(model_type: str) -> None:
    model: Any = tiny_model(model_type)
    model.config.video_token_id = 11
    before = inputs_for(model)
    ids = before.get("input_ids", before.get("decoder_input_ids"))
    assert ids is not None
    assert 11 not in ids


def test_a_vocabulary_of_nothing_but_special_ids_still_gives_text() -> None:
    model = tiny_model("llama")
    model.config.more_token_ids = list(range(99))
    assert sample_batch(model)["input_ids"].shape == (3, 16)


def test_what_the_library_raises_in_the_self_check_is_told_with_a_remedy() -> None:
    model: Any = tiny_model("llama", dtype=torch.float32)
    model.model.layers[1].mlp.down_proj.weight.data[:, :9] = 0

    def broken(*_: object, **__: object) -> None:
        raise StopIteration("no layer of this sort")

    model.model.layers[2].forward = broken
    with pytest.raises(UnsupportedModelError, match=r"self-check \(.*\).*pass check=False"):
        optimize_model(model)
