"""Images of a data set: whether they open, and random parts of them to train on."""

import io
import warnings
from collections.abc import Mapping
from typing import Any, Final

import PIL.Image
import torch
from datasets import Dataset, Image

from sparse_trainer.data.openable import check_open, said_by
from sparse_trainer.errors import DataError

_MOST_STRETCH: Final = 4 / 3
"""How much wider or higher than the image a random part of it may be."""


def check_images(dataset: Dataset, column: str, where: str) -> None:
    """Open every image once.

    Raises:
        DataError: The column holds no images, or some do not open: they are counted and named.
    """
    place = f"data: {where}, column {column!r}"
    if not isinstance(dataset.features[column], Image):
        raise DataError(
            place,
            "holds no images.",
            "Name the column of images in data.text_columns, or give a folder of CLASS/IMAGE.",
        )
    files = dataset.cast_column(column, Image(decode=False))
    check_open(files, column, _problem, place, "images", "Replace or delete them.")


def _problem(entry: Mapping[str, Any] | None) -> str | None:
    """Return why an image does not open, None where it does."""
    if entry is None:
        return "there is none"
    try:
        source = io.BytesIO(entry["bytes"]) if entry["bytes"] is not None else entry["path"]
        with warnings.catch_warnings(action="ignore"), PIL.Image.open(source) as image:
            image.load()
    except (OSError, SyntaxError, ValueError, PIL.Image.DecompressionBombError) as error:
        return said_by(error)
    return None


def random_part(image: PIL.Image.Image, least: float) -> PIL.Image.Image:
    """Return a random rectangle of an image, about of its proportions, as the random numbers of torch say.

    Args:
        least: Smallest share of the area that is kept; 1 = the whole image.
    """
    if least >= 1:
        return image
    area, stretch, left, top = torch.rand(4).tolist()
    side = (least + area * (1 - least)) ** 0.5
    ratio = _MOST_STRETCH ** (stretch - 0.5)
    width = max(1, min(image.width, round(image.width * side * ratio)))
    height = max(1, min(image.height, round(image.height * side / ratio)))
    x, y = int(left * (image.width - width + 1)), int(top * (image.height - height + 1))
    return image.crop((x, y, x + width, y + height))


def randomly_mirrored(image: PIL.Image.Image) -> PIL.Image.Image:
    """Return an image, or in half of the cases its mirror image."""
    return image.transpose(PIL.Image.Transpose.FLIP_LEFT_RIGHT) if torch.rand(()) < 0.5 else image
