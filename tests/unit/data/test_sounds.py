"""Sounds: all are opened before training, and read as one channel at the model's rate."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Audio, Dataset, Features
from scipy.io import wavfile

from sparse_trainer.data.sounds import as_stored, check_sounds, random_stretch, read_sound
from sparse_trainer.errors import DataError

WAVE = 0.5 * np.sin(2 * np.pi * 5 * np.arange(1000) / 1000)
STORED = {
    "float32": WAVE.astype(np.float32),
    "int16": (WAVE * 2**15).astype(np.int16),
    "int32": (WAVE * 2**31).astype(np.int32),
    "uint8": (WAVE * 2**7 + 2**7).astype(np.uint8),
}


def written(samples: np.ndarray, rate: int = 1000) -> dict[str, object]:
    file = io.BytesIO()
    wavfile.write(file, rate, samples)
    return {"path": None, "bytes": file.getvalue()}


@pytest.mark.parametrize("kind", STORED)
def test_every_type_of_samples_means_the_same(kind: str) -> None:
    wave = read_sound(written(STORED[kind]), 1000)
    assert wave.dtype == np.float32
    np.testing.assert_allclose(wave, WAVE, atol=0.02 if kind == "uint8" else 1e-4)


def test_channels_are_averaged_and_rates_changed(tmp_path: Path) -> None:
    both = np.stack([STORED["float32"], np.zeros(1000, np.float32)], 1)
    np.testing.assert_allclose(read_sound(written(both), 1000), WAVE / 2, atol=1e-6)
    wavfile.write(tmp_path / "fast.wav", 4000, np.repeat(STORED["float32"], 4))
    slowed = read_sound(str(tmp_path / "fast.wav"), 1000)
    assert len(slowed) == 1000
    np.testing.assert_allclose(slowed[20:-20], WAVE[20:-20], atol=0.05)


def test_a_random_stretch_is_a_part_of_the_sound() -> None:
    torch.manual_seed(0)
    wave = np.arange(100, dtype=np.float32)
    starts = {float(random_stretch(wave, 90)[0]) for _ in range(200)}
    assert starts == set(map(float, range(11)))
    assert random_stretch(wave, 100) is wave
    assert random_stretch(wave, 200) is wave


def test_sounds_inside_a_data_set_are_read_without_its_decoder() -> None:
    features = Features({"audio": Audio()})
    # Written as a data set of the hub holds them; to build one, the library wants torchcodec.
    inside = Dataset.from_dict({"audio": [written(STORED["int16"])]}).cast(
        Features({"audio": Audio(decode=False)})
    )
    inside.info.features = features
    check_sounds(inside, "audio", "train set")
    entry = as_stored(inside, "audio")[0]["audio"]
    np.testing.assert_allclose(read_sound(entry, 1000), WAVE, atol=1e-4)


def test_sounds_that_do_not_open_are_counted_and_named(tmp_path: Path) -> None:
    wavfile.write(tmp_path / "good.wav", 1000, STORED["int16"])
    wavfile.write(tmp_path / "empty.wav", 1000, STORED["int16"][:0])
    (tmp_path / "song.mp3").write_bytes(b"ID3 no wave")
    names = ["good.wav", "missing.wav", "song.mp3", "empty.wav"]
    rows = Dataset.from_dict({"audio": [*(str(tmp_path / name) for name in names), None]})
    with pytest.raises(DataError) as told:
        check_sounds(rows, "audio", "train set")
    assert "4 of 5 sounds do not open" in told.value.what
    for name in ("missing.wav", "song.mp3", "empty.wav", "row 4 (there is none)"):
        assert name in told.value.what
    assert "ffmpeg" in told.value.remedy
    with pytest.raises(DataError, match="holds no sounds"):
        check_sounds(Dataset.from_dict({"audio": [1, 2]}), "audio", "train set")
