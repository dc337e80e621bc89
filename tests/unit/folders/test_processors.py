"""What is saved beside a model: a tokenizer, or an image processor, without names of code."""

import json
import logging
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerBase

from sparse_trainer.errors import CheckpointError
from sparse_trainer.folders.processors import PREPROCESSOR_CONFIG_NAME, find_processor, load_processor
from tests.fixtures.pictures import SIDE, write_tiny_vit
from tests.fixtures.recipe_files import write_tiny_model

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def vit(tmp_path: Path) -> Path:
    write_tiny_vit(tmp_path / "vit")
    try:
        load_processor("image", str(tmp_path / "vit"))
    except CheckpointError as error:
        pytest.skip(str(error))
    return tmp_path / "vit"


def test_a_tokenizer_or_an_image_processor_is_found(vit: Path, tmp_path: Path) -> None:
    write_tiny_model(tmp_path / "bert")
    assert isinstance(find_processor(str(tmp_path / "bert")), PreTrainedTokenizerBase)
    assert find_processor(str(vit)).size == {"height": SIDE, "width": SIDE}
    (vit / PREPROCESSOR_CONFIG_NAME).unlink()
    assert find_processor(str(vit)) is None


def test_names_of_code_do_not_travel(vit: Path, tmp_path: Path) -> None:
    file = vit / PREPROCESSOR_CONFIG_NAME
    named = {"auto_map": {"AutoImageProcessor": "a--b.C"}, "custom_pipelines": {"a": {"impl": "b.C"}}}
    file.write_text(json.dumps({**json.loads(file.read_text()), **named}))
    find_processor(str(vit)).save_pretrained(tmp_path / "saved")
    written = json.loads((tmp_path / "saved" / PREPROCESSOR_CONFIG_NAME).read_text())
    assert not {"auto_map", "custom_pipelines"} & set(written)


def test_a_damaged_one_is_told_and_left_behind(vit: Path, caplog: pytest.LogCaptureFixture) -> None:
    (vit / PREPROCESSOR_CONFIG_NAME).write_text("{")
    with caplog.at_level(logging.WARNING):
        assert find_processor(str(vit)) is None
    assert "is not saved with the result" in caplog.text
    with pytest.raises(CheckpointError, match="no image processor can be loaded"):
        load_processor("image", str(vit))
