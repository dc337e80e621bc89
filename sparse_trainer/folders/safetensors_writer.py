"""A safetensors file that is filled tensor by tensor, so that memory holds one tensor and not the file."""

import json
import os
import struct
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from sparse_trainer.folders.safetensors_files import DTYPES

_NAMES: Final = {dtype: name for name, dtype in DTYPES.items()}
_PIECE: Final = 256 * 1024
"""Bytes of one write: what fits into the cache; the system finds memory for larger ones in dearer blocks."""


class SafetensorsWriter:
    """A file whose tensors are known by shape beforehand and written when they are there.

    What is written goes on to the disk in a thread of its own while the next tensor is made, so that nobody has to wait
    for all of it at the end.

    Args:
        like: By name, in the order in which they will lie in the file; their values are not read.
    """

    def __init__(self, path: Path, like: Mapping[str, Tensor]) -> None:
        header: dict[str, object] = {"__metadata__": {"format": "pt"}}
        self._like = like
        self._places: dict[str, int] = {}
        end = 0
        # Wide numbers first, so that each begins where its type may.
        for name, tensor in sorted(like.items(), key=lambda each: -each[1].element_size()):
            start, end = end, end + size_of(tensor)
            header[name] = {
                "dtype": _NAMES[tensor.dtype],
                "shape": list(tensor.shape),
                "data_offsets": [start, end],
            }
            self._places[name] = start
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        self._file = path.open("wb", buffering=0)
        self._file.write(struct.pack("<Q", len(text)) + text)
        self._start = self._file.tell()
        self._disk = ThreadPoolExecutor(1)
        self._on_its_way: Future[None] | None = None

    def write(self, name: str, tensor: Tensor) -> bool:
        """Write one tensor; return whether the file is complete, and then closed.

        Raises:
            OSError: this tensor, or one before it, did not reach the disk.
        """
        assert (tensor.shape, tensor.dtype) == (self._like[name].shape, self._like[name].dtype), name
        self._file.seek(self._start + self._places.pop(name))
        content = tensor.contiguous().flatten().view(torch.uint8).numpy().data
        for start in range(0, len(content), _PIECE):
            self._write_all(content[start : start + _PIECE])
        if self._on_its_way is None or self._on_its_way.done():
            self._hear()
            self._on_its_way = self._disk.submit(os.fsync, self._file.fileno())
        if not self._places:
            self._hear()
            self.close()
        return self._file.closed

    def _hear(self) -> None:
        """Wait for what is on its way to the disk, and raise what went wrong."""
        if self._on_its_way is not None:
            self._on_its_way.result()

    def _write_all(self, content: memoryview) -> None:
        while content:
            content = content[self._file.write(content) :]

    def close(self) -> None:
        """Close a file that may not be complete."""
        self._disk.shutdown()
        self._file.close()


def size_of(tensor: Tensor) -> int:
    """Return the bytes of a tensor.

    >>> size_of(torch.zeros(2, 3, dtype=torch.bfloat16))
    12
    """
    return tensor.numel() * tensor.element_size()
