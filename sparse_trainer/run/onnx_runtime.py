"""ONNX Runtime: the graph of a model that is timed, with its cache where it is a decoder."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from sparse_trainer.convert.onnx.graph import (
    GRAPH,
    NEXT,
    PAST,
    export_graph,
    open_session,
    step_inputs,
)
from sparse_trainer.inputs.sample import tokens_for
from sparse_trainer.inputs.timed import has_length
from sparse_trainer.run.latency import forward

# Shape legend: B = rows, T = tokens.


@dataclass(frozen=True)
class OnnxRuntime:
    """The graph of a model, open in ONNX Runtime on the CPU."""

    model: PreTrainedModel
    """What the graph was made of: it says which inputs there are."""
    session: Any

    @classmethod
    def of(cls, model: PreTrainedModel, folder: Path, *, threads: int) -> "OnnxRuntime":
        """Return it for a model, whose graph is written into a new folder.

        Raises:
            ConversionError: It cannot be exported.
        """
        folder.mkdir()
        export_graph(model, folder, type(model).__name__)
        return cls(model, open_session(folder / GRAPH, threads=threads))

    @property
    def reads_length(self) -> bool:
        """Whether the number of tokens can be chosen."""
        return has_length(self.model)

    @property
    def reads_cache(self) -> bool:
        """Whether the graph is that of a decoder with a cache."""
        return any(each.name.startswith(PAST) for each in self.session.get_inputs())

    def forward(self, rows: int, length: int) -> Callable[[], object]:
        """Return a pass; of a decoder over a prompt, without a cache."""
        known = {each.name for each in self.session.get_inputs()}

        def call(**inputs: Any) -> Any:
            arrays = {name: tensor.numpy() for name, tensor in inputs.items() if name in known}
            return self._step(arrays["input_ids"], {}) if self.reads_cache else self.session.run(None, arrays)

        return forward(self.model, call, rows, length)

    def generate(self, rows: int, length: int, new_tokens: int) -> Callable[[], tuple[float, float]] | None:
        """Return what generates greedily, and tells the seconds of the prompt and per token of all rows after it."""
        if not self.reads_cache:
            return None
        ids_BT = tokens_for(self.model, rows=rows, length=length)["input_ids"].numpy()

        def run() -> tuple[float, float]:
            start = time.perf_counter()
            said = self._step(ids_BT, {})
            read = time.perf_counter()
            for _ in range(new_tokens):
                said = self._step(said["logits"][:, -1:].argmax(-1), said)
            return read - start, (time.perf_counter() - read) / new_tokens

        return run

    def _step(self, ids_BT: Any, before: Mapping[str, Any]) -> dict[str, Any]:
        """Return the outputs for new tokens by name, after those of the step before; {} = none."""
        past = {name.replace(NEXT, PAST): value for name, value in before.items() if name.startswith(NEXT)}
        names = [each.name for each in self.session.get_outputs()]
        values = self.session.run(names, step_inputs(self.session, ids_BT, past))
        return dict(zip(names, values, strict=True))
