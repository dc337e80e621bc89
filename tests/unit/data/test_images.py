"""Images: all are opened before training, and training sees random parts of them."""

import io
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from datasets import Dataset, Features, Image

from sparse_trainer.data.images import check_images, random_part, randomly_mirrored
from sparse_trainer.data.splits import label_names
from sparse_trainer.errors import DataError


def picture(width: int, height: int) -> PIL.Image.Image:
    """Return a picture in which each column of pixels has its own shade."""
    return PIL.Image.fromarray(np.tile(np.arange(width, dtype=np.uint8), (height, 1)))


def test_a_random_part_lies_inside_and_keeps_about_the_area_asked_for() -> None:
    torch.manual_seed(0)
    image, areas = picture(90, 60), []
    for _ in range(200):
        part = random_part(image, 0.5)
        shades = np.asarray(part)[0].tolist()
        assert shades == list(range(shades[0], shades[0] + part.width))
        areas.append(part.width * part.height / (90 * 60))
    assert min(areas) > 0.45
    assert max(areas) <= 1
    assert len(set(areas)) > 50
    assert random_part(image, 1.0) is image
    assert random_part(picture(1, 1), 0.1).size == (1, 1)


def test_the_seed_of_torch_decides() -> None:
    def drawn() -> list[list[int]]:
        torch.manual_seed(3)
        return [
            np.asarray(randomly_mirrored(random_part(picture(40, 40), 0.3)))[0].tolist() for _ in range(8)
        ]

    assert drawn() == drawn()
    mirrored = {row[0] > row[-1] for row in drawn()}
    assert mirrored == {True, False}


def rows(*contents: bytes | None) -> Dataset:
    entries = [None if content is None else {"bytes": content, "path": None} for content in contents]
    return Dataset.from_dict({"image": entries}, features=Features({"image": Image()}))


def png() -> bytes:
    file = io.BytesIO()
    picture(8, 8).save(file, "PNG")
    return file.getvalue()


def test_images_in_the_data_set_itself_are_opened_too() -> None:
    check_images(rows(png(), png()), "image", "train set")
    with pytest.raises(
        DataError, match=r"3 of 4 images do not open: row 1 .*row 2 .*row 3 \(there is none\)"
    ):
        check_images(rows(png(), b"", png()[:40], None), "image", "train set")


def test_a_message_names_a_few_and_counts_the_rest() -> None:
    with pytest.raises(DataError, match=r"9 of 9 images do not open: .*, and 4 more\."):
        check_images(rows(*[b"x"] * 9), "image", "train set")


def test_images_are_no_names_of_classes() -> None:
    with pytest.raises(DataError, match=r"column 'image': .* is neither the number nor the name of a class"):
        label_names(rows(png()), "image", None)


def test_a_column_of_paths_is_no_column_of_images(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no images"):
        check_images(Dataset.from_dict({"image": [str(tmp_path)]}), "image", "train set")
