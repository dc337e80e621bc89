"""Pooling agrees with sentence-transformers, whatever side the padding is on, and is written as it is read."""

from pathlib import Path
from typing import get_args

import pytest
import torch

from sparse_trainer.inputs.pooling import Mode, Pooling
from sparse_trainer.tasks.embeddings.files import read_pooling, read_settings, write_files


def states() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    return torch.randn(3, 5, 4), torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 0, 0, 0, 0]])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("mode", get_args(Mode))
def test_it_pools_as_sentence_transformers_does(mode: Mode) -> None:
    modules = pytest.importorskip(
        "sentence_transformers.models", reason="sentence-transformers is not installed"
    )
    states_BTD, mask_BT = states()
    theirs = modules.Pooling(4, pooling_mode=mode)(
        {"token_embeddings": states_BTD, "attention_mask": mask_BT}
    )
    torch.testing.assert_close(Pooling(mode=mode)(states_BTD, mask_BT), theirs["sentence_embedding"])


@pytest.mark.parametrize("mode", ["mean", "max", "lasttoken"])
def test_padding_does_not_count_on_either_side(mode: Mode) -> None:
    states_BTD, mask_BT = states()
    right = Pooling(mode=mode)(states_BTD, mask_BT)
    torch.testing.assert_close(Pooling(mode=mode)(states_BTD[1:2, :3], mask_BT[1:2, :3]), right[1:2])
    left = Pooling(mode=mode)(states_BTD[1:2].roll(2, 1), mask_BT[1:2].roll(2, 1))
    torch.testing.assert_close(left, right[1:2])


def test_embeddings_get_length_one_in_float32() -> None:
    states_BTD, mask_BT = states()
    embeddings_BD = Pooling(normalize=True)(states_BTD.bfloat16(), mask_BT)
    assert embeddings_BD.dtype == torch.float32
    torch.testing.assert_close(embeddings_BD.norm(dim=-1), torch.ones(3))


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("mode", get_args(Mode))
def test_what_is_written_is_read(mode: Mode, normalize: bool, tmp_path: Path) -> None:
    settings = {"config_sentence_transformers.json": {"prompts": {"query": "q: "}}}
    pooling = Pooling(mode=mode, normalize=normalize)
    write_files(tmp_path, pooling, 4, settings)
    assert read_pooling(str(tmp_path), "main") == pooling
    assert read_settings(str(tmp_path), "main") == settings


def test_the_newer_form_is_read_and_names_of_code_do_not_travel(tmp_path: Path) -> None:
    write_files(tmp_path, Pooling(), 4, {})
    (tmp_path / "1_Pooling" / "config.json").write_text('{"embedding_dimension": 4, "pooling_mode": "cls"}')
    (tmp_path / "sentence_bert_config.json").write_text(
        '{"max_seq_length": 64, "model_args": {"trust_remote_code": true}}'
    )
    assert read_pooling(str(tmp_path), "main") == Pooling(mode="cls")
    assert read_settings(str(tmp_path), "main") == {"sentence_bert_config.json": {"max_seq_length": 64}}


def test_a_folder_without_modules_says_nothing(tmp_path: Path) -> None:
    assert read_pooling(str(tmp_path), "main") is None
    assert read_settings(str(tmp_path), "main") == {}
