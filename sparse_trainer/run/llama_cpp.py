"""llama.cpp, through the package xllamacpp: a GGUF file that is timed."""

import functools
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from sparse_trainer.run.weights import Weight, forget

PACKAGES: Final[Mapping[str, str]] = {"gguf": "0.19.0", "xllamacpp": "2026.10.11549"}
"""What must be installed -> the release this was tested with; the extra is `llamacpp`."""
SUFFIX: Final = ".gguf"
_ERRORS_ONLY = 1
_SPARE = 8
"""Places of the cache that are kept free in each row."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FileFacts:
    """What a file says of itself."""

    parameters: int
    tokens: int
    """How many it knows."""
    context: int | None
    """The longest sequence that it is made for, where it tells."""


class LlamaCpp:
    """A file that unmodified llama.cpp has loaded, on the CPU.

    Args:
        tokens: How many the file knows. To read that takes longer, and more memory, than to load a small model.
        rows: The most that are read at once.
        length: The most tokens of a row, new ones included.
    """

    reads_length = True

    def __init__(self, file: Path, *, tokens: int, rows: int, length: int, threads: int) -> None:
        import xllamacpp  # an extra

        params = xllamacpp.CommonParams()
        params.model.path, params.verbosity = str(file), _ERRORS_ONLY
        # The cache is shared out evenly among the rows.
        params.n_parallel, params.n_ctx = rows, rows * (length + _SPARE)
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
        self._server = xllamacpp.Server(params)
        self._first, self._known = min(5, tokens - 1), tokens
        # What was mapped is read by then, and the server's thread has begun: dropped before, it would never end.
        self._complete(1, 1, 1)

    def forward(self, rows: int, length: int) -> Callable[[], object]:
        """Return a pass over prompts. Logits of the last token are all that llama.cpp computes."""
        return lambda: self._complete(rows, length, 1)

    def generate(self, rows: int, length: int, new_tokens: int) -> Callable[[], tuple[float, float]]:
        """Return what generates greedily, and tells the seconds of the prompt and per token of all rows after it."""

        def run() -> tuple[float, float]:
            # The first new token comes with the prompt.
            times = self._complete(rows, length, new_tokens + 1)["timings"]
            return times["prompt_ms"] / 1e3, times["predicted_ms"] / 1e3 / new_tokens

        return run

    def _complete(self, rows: int, length: int, new_tokens: int) -> Mapping[str, Any]:
        ids = [self._first + place % (self._known - self._first) for place in range(length)]
        asked = {
            "prompt": [ids] * rows if rows > 1 else ids,
            "n_predict": new_tokens,
            "ignore_eos": True,
            "cache_prompt": False,
            "temperature": 0.0,
        }
        answer: Mapping[str, Any] = self._server.handle_completions(asked)
        return answer


def weigh_file(file: Path, threads: int) -> Weight:
    """Return what a file weighs before it runs; loading ends with one token, which reads every weight."""
    facts = facts_of(file)
    forget(file)
    seconds = []
    for _ in range(2):
        start = time.perf_counter()
        LlamaCpp(file, tokens=facts.tokens, rows=1, length=1, threads=threads)
        seconds.append(time.perf_counter() - start)
    return Weight(
        parameters=facts.parameters,
        macs=None,
        file_bytes=file.stat().st_size,
        load_cold=seconds[0],
        load_warm=seconds[1],
    )


def facts_of(file: Path) -> FileFacts:
    """Return what a file says of itself; it is read once, as long as it stays the same."""
    return _facts(file, file.stat().st_mtime_ns)


@functools.lru_cache
def _facts(file: Path, changed: int) -> FileFacts:
    from gguf import GGUFReader  # an extra

    reader = GGUFReader(file)
    context = [field.contents() for name, field in reader.fields.items() if name.endswith(".context_length")]
    return FileFacts(
        parameters=sum(int(tensor.n_elements) for tensor in reader.tensors),
        tokens=next(int(each.shape[1]) for each in reader.tensors if each.name == "token_embd.weight"),
        context=int(context[0]) if context else None,
    )
