"""Classify sounds."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

import torch
from transformers import AutoModelForAudioClassification, PreTrainedModel

from sparse_trainer.data.sounds import as_stored, check_sounds, random_stretch, read_sound
from sparse_trainer.data.splits import DataOptions, label_names, load_splits
from sparse_trainer.errors import ArgumentError
from sparse_trainer.folders.load import load_model
from sparse_trainer.tasks.base import Prepared, Task
from sparse_trainer.tasks.heads import check_head, class_names
from sparse_trainer.tasks.labelled import example_path, labelled, only_column
from sparse_trainer.tasks.metrics import check_metrics, classification_metrics, metrics_of


@final
@dataclass(frozen=True, kw_only=True)
class AudioClassification(Task):
    """Audio classification of WAV files; `data.text_columns` names the one column of their paths, or of sounds."""

    labels: tuple[str, ...] | None = None
    """Names of the classes in the order of their numbers; default: those of the data."""
    metrics: tuple[str, ...] = ("accuracy",)
    """Metrics of the evaluate library; the first one is the headline."""
    max_seconds: float = 10.0
    """Of a longer sound, training hears a random part of this length, and evaluation the beginning."""

    processor = "audio"
    pipeline = "audio-classification"
    auto_class = "AutoModelForAudioClassification"

    def __post_init__(self) -> None:
        check_metrics(self.metrics, metrics_of("classes"))
        if not self.max_seconds > 0:
            raise ArgumentError("max_seconds", f"{self.max_seconds} is not positive.", "Give e.g. 10.")

    def prepare(self, data: DataOptions, processor: Any) -> Prepared:
        """Load and check the sounds; they are read when they are needed.

        Raises:
            DataError: Missing columns, an empty set, sounds that do not open, labels out of range.
            RecipeError: Not one column of sounds.
        """
        column, name = only_column(data, "audio"), processor.model_input_names[0]
        splits = load_splits(data, (column, data.label_column))
        labels = label_names(splits.train, data.label_column, self.labels)
        train, validation = (
            as_stored(labelled(rows, column, name, data.label_column, labels, where), name)
            for rows, where in ((splits.train, "train set"), (splits.validation, "validation set"))
        )
        check_sounds(splits.train, column, "train set")
        check_sounds(splits.validation, column, "validation set")
        rate = processor.sampling_rate
        longest = max(1, round(self.max_seconds * rate))
        return Prepared(
            train=train.with_transform(Waves(name=name, rate=rate, longest=longest, draws=True)),
            validation=validation.with_transform(Waves(name=name, rate=rate, longest=longest)),
            labels=labels,
            example=example_path(validation[0][name], "sound.wav"),
            collator=WaveCollator(processor=processor),
            compute_metrics=classification_metrics(self.metrics),
        )

    def load_model(self, source: str, revision: str, data: Prepared) -> PreTrainedModel:
        """Load the weights with a head for these classes; a fresh head where the checkpoint has none.

        Raises:
            CheckpointError: The model cannot be loaded, or is a checkpoint with gates.
            DataError: The checkpoint was fine-tuned for another number of classes.
        """
        for suffix in ("ForSequenceClassification", "ForAudioClassification"):
            check_head(source, revision, suffix, data.labels)
        return load_model(
            source, AutoModelForAudioClassification, revision=revision, **class_names(data.labels)
        )


@dataclass(frozen=True, kw_only=True)
class Waves:
    """Reads the sounds of rows."""

    name: str
    """Column of the sounds."""
    rate: int
    """Samples per second."""
    longest: int
    """Samples at most."""
    draws: bool = False
    """Whether a random part of a longer sound is taken, not its beginning."""

    def __call__(self, batch: Mapping[str, list[Any]]) -> dict[str, Any]:
        """Return the samples of each sound, beside its label."""
        waves = [read_sound(entry, self.rate) for entry in batch[self.name]]
        if self.draws:
            waves = [random_stretch(wave, self.longest) for wave in waves]
        return {**batch, self.name: [wave[: self.longest] for wave in waves]}


@dataclass(frozen=True, kw_only=True)
class WaveCollator:
    """Makes a batch of sounds by the feature extractor of the model; waves are padded to the longest one."""

    processor: Any

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """Return what the model reads, and `labels`."""
        name, rate = self.processor.model_input_names[0], self.processor.sampling_rate
        # Spectrograms have one length, which their extractors know.
        padding = {"padding": True} if name == "input_values" else {}
        waves = [row[name] for row in rows]
        inputs = self.processor(waves, sampling_rate=rate, return_tensors="pt", **padding)
        return {**inputs, "labels": torch.tensor([row["labels"] for row in rows])}
