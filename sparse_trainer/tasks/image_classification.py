"""Classify images."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

import PIL.Image
from datasets import Dataset, Image
from torch import Tensor
from transformers import AutoModelForImageClassification, PreTrainedModel, default_data_collator

from sparse_trainer.data.images import check_images, random_part, randomly_mirrored
from sparse_trainer.data.splits import DataOptions, label_ids, label_names, load_splits
from sparse_trainer.errors import ArgumentError, RecipeError
from sparse_trainer.folders.load import load_model
from sparse_trainer.tasks.base import Prepared, Task
from sparse_trainer.tasks.heads import check_head, class_names
from sparse_trainer.tasks.metrics import check_metrics, classification_metrics, metrics_of

_PIXELS = "pixel_values"


@final
@dataclass(frozen=True, kw_only=True)
class ImageClassification(Task):
    """Image classification; `data.text_columns` names the one column of images.

    Training sees a random part of each image, mirrored in half of the cases; the image processor of the model brings it
    to the model's size.
    """

    labels: tuple[str, ...] | None = None
    """Names of the classes in the order of their numbers; default: those of the data."""
    metrics: tuple[str, ...] = ("accuracy",)
    """Metrics of the evaluate library; the first one is the headline."""
    crop: float = 0.5
    """Smallest share of the area of a training image that is seen; 1 = always all of it."""
    flip: bool = True
    """Whether training images are mirrored; not for images whose sides mean something, such as digits."""

    processor = "image"
    pipeline = "image-classification"
    auto_class = "AutoModelForImageClassification"

    def __post_init__(self) -> None:
        check_metrics(self.metrics, metrics_of("classes"))
        if not 0 < self.crop <= 1:
            raise ArgumentError("crop", f"{self.crop} is not in (0, 1].", "Give e.g. 0.5, or 1.")

    def prepare(self, data: DataOptions, processor: Any) -> Prepared:
        """Load and check the images; they are decoded when they are needed.

        Raises:
            DataError: Missing columns, an empty set, images that do not open, labels out of range.
            RecipeError: Not one column of images; a processor that leaves images of different sizes.
        """
        if len(data.text_columns) != 1:
            raise RecipeError("data.text_columns", f"{len(data.text_columns)} columns.", "Give e.g. [image].")
        _check_processor(processor)
        (column,) = data.text_columns
        splits = load_splits(data, (column, data.label_column))
        labels = label_names(splits.train, data.label_column, self.labels)
        train, validation = (
            _labelled(rows, column, data.label_column, labels, where)
            for rows, where in ((splits.train, "train set"), (splits.validation, "validation set"))
        )
        return Prepared(
            train=train.with_transform(Pixels(processor=processor, crop=self.crop, flip=self.flip)),
            validation=validation.with_transform(Pixels(processor=processor)),
            labels=labels,
            example=_example(splits.validation, column),
            collator=default_data_collator,
            compute_metrics=classification_metrics(self.metrics),
        )

    def load_model(self, source: str, revision: str, data: Prepared) -> PreTrainedModel:
        """Load the weights with a head for these classes; a fresh head where the checkpoint has none.

        Raises:
            CheckpointError: The model cannot be loaded, or is a checkpoint with gates.
            DataError: The checkpoint was fine-tuned for another number of classes.
        """
        check_head(source, revision, "ForImageClassification", data.labels)
        return load_model(
            source, AutoModelForImageClassification, revision=revision, **class_names(data.labels)
        )


@dataclass(frozen=True, kw_only=True)
class Pixels:
    """Turns images of a data set into what the model reads."""

    processor: Any
    """The image processor of the model."""
    crop: float = 1.0
    flip: bool = False

    def __call__(self, batch: Mapping[str, list[Any]]) -> dict[str, Any]:
        """Return pixel values [channels, height, width] of each image, beside its label."""
        images = [random_part(image.convert("RGB"), self.crop) for image in batch[_PIXELS]]
        if self.flip:
            images = [randomly_mirrored(image) for image in images]
        pixels: Tensor = self.processor(images, return_tensors="pt")[_PIXELS]
        return {**batch, _PIXELS: list(pixels)}


def _check_processor(processor: Any) -> None:
    """Raise `RecipeError` unless a wide and a high image become pixels of one size, and nothing else."""
    made = [processor(PIL.Image.new("RGB", size), return_tensors="pt") for size in ((64, 32), (32, 64))]
    if len({made_of[_PIXELS].shape for made_of in made}) > 1 or set(made[0]) != {_PIXELS}:
        raise RecipeError(
            "model.name_or_path",
            "its image processor makes no pixels of one size for all images.",
            "Take a model whose processor resizes to a height and a width, or resizes and crops.",
        )


def _labelled(rows: Dataset, column: str, label_column: str, labels: tuple[str, ...], where: str) -> Dataset:
    """Return images under the name that the model gives its input, and `labels`."""
    numbers = label_ids(rows[label_column], labels, f"data: {where}, column {label_column!r}")
    check_images(rows, column, where)
    images = rows.select_columns([column])
    images = images if column == _PIXELS else images.rename_column(column, _PIXELS)
    return images.add_column("labels", numbers)


def _example(rows: Dataset, column: str) -> str:
    """Return the path of an image, as the pipeline takes it; a stand-in for one that lies in no file."""
    path = rows.cast_column(column, Image(decode=False))[0][column]["path"]
    return path if path is not None and os.path.isfile(path) else "image.png"
