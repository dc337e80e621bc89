"""How much memory a model needs to be loaded and run once, measured in a process of its own."""

import logging
import sys
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import torch
import transformers

from sparse_trainer.folders.load import load_model
from sparse_trainer.run.latency import cpu_threads, forward
from sparse_trainer.run.llama_cpp import LlamaCpp

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class MemoryRequest:
    """What is run."""

    name: str
    """Folder or hub id, or the path of a GGUF file."""
    tokens: int | None
    """How many a GGUF file knows; None of a folder."""
    device: str
    dtype: torch.dtype
    threads: int
    rows: int
    length: int


def peak_memory(asked: MemoryRequest) -> int | None:
    """Return the bytes that loading a model and one forward pass take beyond what the libraries hold at their peak.

    On a GPU what torch has allocated there. None where the system does not tell: on the CPU, all but Linux; and where
    it ended the process, as it does when memory is short.
    """
    if torch.device(asked.device).type != "cuda" and not sys.platform.startswith("linux"):
        return None
    # A fresh interpreter: this one has had a peak of its own.
    with ProcessPoolExecutor(max_workers=1, mp_context=get_context("spawn")) as pool:
        try:
            return pool.submit(_measure, asked).result()
        except BrokenProcessPool:
            logger.warning("%s: the process that measures its memory was ended from outside.", asked.name)
            return None


def _measure(asked: MemoryRequest) -> int:
    before = _resident("VmRSS")
    with cpu_threads(asked.threads):
        if asked.tokens is not None:
            sizes = {"rows": asked.rows, "length": asked.length, "threads": asked.threads}
            LlamaCpp(Path(asked.name), tokens=asked.tokens, **sizes).forward(asked.rows, asked.length)()
        else:
            _run_in_torch(asked)
    if torch.device(asked.device).type == "cuda":
        return torch.cuda.max_memory_allocated(asked.device)
    return _resident("VmHWM") - before


def _run_in_torch(asked: MemoryRequest) -> None:
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    model = load_model(asked.name, device=torch.device(asked.device), dtype=asked.dtype).eval()
    forward(model, model, asked.rows, asked.length)()


def _resident(key: str) -> int:
    """Return a figure of this process in bytes: VmRSS, what it holds, or VmHWM, the most it has held."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:"))
