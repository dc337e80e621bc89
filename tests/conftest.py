"""Settings that must stand before torch is imported."""

import os

# Tests run in several processes, and start some themselves: many threads in each would fight over the cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
