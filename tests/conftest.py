"""Settings that must stand before torch is imported."""

import os

import pytest

# Tests run in several processes, and start some themselves: many threads in each would fight over the cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the system write down later: no test pulls the plug."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)
