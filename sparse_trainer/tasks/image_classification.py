"""Classify images."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

import PIL.Image
from datasets import Image
from torch import Tensor
from transformers import AutoModelForImageClassification, PreTrainedModel, default_data_collator

from sparse_trainer.data.images import check_images, random_part, randomly_mirrored
from sparse_trainer.data.splits import DataOptions, label_names, load_splits
from sparse_trainer.errors import ArgumentError, RecipeError
from sparse_trainer.folders.load import load_model
from sparse_trainer.tasks.base import Prepared, Task
from sparse_trainer.tasks.heads import check_head, class_names
from sparse_trainer.tasks.labelled import example_path, labelled, only_column
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
        column = only_column(data, "image")
        _check_processor(processor)
        splits = load_splits(data, (column, data.label_column))
        labels = label_names(splits.train, data.label_column, self.labels)
        train, validation = (
            labelled(rows, column, _PIXELS, data.label_column, labels, where)
            for rows, where in ((splits.train, "train set"), (splits.validation, "validation set"))
        )
        check_images(splits.train, column, "train set")
        check_images(splits.validation, column, "validation set")
        return Prepared(
            train=train.with_transform(Pixels(processor=processor, crop=self.crop, flip=self.flip)),
            validation=validation.with_transform(Pixels(processor=processor)),
            labels=labels,
            example=example_path(
                validation.cast_column(_PIXELS, Image(decode=False))[0][_PIXELS], "image.png"
            ),
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
