"""Settings that must stand before torch is imported."""

import os
from collections.abc import Iterator
from typing import Any

import pytest

# Tests run in several processes, and start some themselves: many threads in each would fight over the cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the system write down later: no test pulls the plug."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)


@pytest.fixture(autouse=True)
def _nothing_stays_registered() -> Iterator[None]:
    """Take out again what a test, or an example in the docs, registers: the next test counts what there is."""
    from sparse_trainer.criteria.calibration.registry import WIDTH_CRITERIA
    from sparse_trainer.criteria.training.registry import TRAINING_CRITERIA
    from sparse_trainer.folders.exports import EXPORTS
    from sparse_trainer.tasks.registry import TASKS

    registries: tuple[dict[str, Any], ...] = (WIDTH_CRITERIA, TRAINING_CRITERIA, EXPORTS, TASKS)
    known = [dict(registry) for registry in registries]
    yield
    for registry, before in zip(registries, known, strict=True):
        registry.clear()
        registry.update(before)
