"""Sounds of a data set: WAV files, read as one channel at the rate that a model hears."""

import io
import math
import struct
import warnings
from typing import Any, Final

import numpy as np
import torch
from datasets import Audio, Dataset, Value
from numpy.typing import NDArray

from sparse_trainer.data.openable import check_open, path_of, said_by
from sparse_trainer.errors import DataError

# Shape legend: S = samples.

Wave = NDArray[np.float32]
_SCALES: Final = {"uint8": 2.0**7, "int16": 2.0**15, "int32": 2.0**31}
"""Type of stored samples -> what stands for 1; floats stand for themselves."""


def check_sounds(dataset: Dataset, column: str, where: str) -> None:
    """Open every sound once.

    Raises:
        DataError: The column holds no sounds, or some do not open: they are counted and named.
    """
    place, feature = f"data: {where}, column {column!r}", dataset.features[column]
    if not isinstance(feature, Audio) and feature != Value("string"):
        raise DataError(place, "holds no sounds.", "Name a column of WAV files in data.text_columns.")
    remedy = "Replace or delete them; convert what is no WAV (ffmpeg -i IN OUT.wav)."
    check_open(as_stored(dataset, column), column, _problem, place, "sounds", remedy)


def as_stored(dataset: Dataset, column: str) -> Dataset:
    """Return the data set with sounds as `read_sound` takes them: the datasets library decodes by torchcodec."""
    is_audio = isinstance(dataset.features[column], Audio)
    return dataset.cast_column(column, Audio(decode=False)) if is_audio else dataset


def read_sound(entry: Any, rate: int) -> Wave:
    """Return the samples of a WAV file, the mean of its channels, between -1 and 1 [S].

    Args:
        entry: A path, or a mapping with `path` and `bytes`.
        rate: Samples per second; a sound of another rate is resampled.

    Raises:
        OSError, ValueError, struct.error: it is no WAV file.
    """
    from scipy.signal import resample_poly  # slow, and for sounds alone

    found, wave_S = _read(entry)
    if found == rate:
        return wave_S
    shared = math.gcd(found, rate)
    resampled: Wave = resample_poly(wave_S, rate // shared, found // shared).astype(np.float32)
    return resampled


def random_stretch(wave_S: Wave, longest: int) -> Wave:
    """Return a random part of so many samples, as the random numbers of torch say; a shorter sound as it is."""
    if len(wave_S) <= longest:
        return wave_S
    start = int(torch.randint(len(wave_S) - longest + 1, ()))
    return wave_S[start : start + longest]


def _read(entry: Any) -> tuple[int, Wave]:
    """Return samples per second, and the samples."""
    from scipy.io import wavfile  # slow, and for sounds alone

    stored = entry.get("bytes") if isinstance(entry, dict) else None
    with warnings.catch_warnings(action="ignore"):  # about chunks that are no sound
        rate, samples = wavfile.read(io.BytesIO(stored) if stored is not None else path_of(entry))
    wave = samples.astype(np.float32)
    if samples.dtype.name in _SCALES:
        middle = _SCALES["uint8"] if samples.dtype == np.uint8 else 0.0
        wave = (wave - middle) / _SCALES[samples.dtype.name]
    return int(rate), wave if wave.ndim == 1 else wave.mean(axis=1)


def _problem(entry: Any) -> str | None:
    """Return why a sound does not open, None where it does."""
    if entry is None:
        return "there is none"
    try:
        _, wave_S = _read(entry)
    except (OSError, ValueError, struct.error) as error:
        return said_by(error)
    return None if len(wave_S) else "holds no samples"
