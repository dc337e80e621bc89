"""Module trees: what can be pruned in a model, gates in it, and the cut. Knows nothing of training or files."""

from patchers.discover import discover
from patchers.errors import SparseTrainerError, UnsupportedModelError
from patchers.gates import Gate, PolarGate, SaliencyGate
from patchers.groups import Group, Kind, Slice, Structure
from patchers.masks import MaskFactor, WeightMask
from patchers.patch import gated, gates_by_group, gates_of, hang_mask, is_patched, masks_of, patch, unpatch
from patchers.surgery import cut

__all__ = [
    "Gate",
    "Group",
    "Kind",
    "MaskFactor",
    "PolarGate",
    "SaliencyGate",
    "Slice",
    "SparseTrainerError",
    "Structure",
    "UnsupportedModelError",
    "WeightMask",
    "cut",
    "discover",
    "gated",
    "gates_by_group",
    "gates_of",
    "hang_mask",
    "is_patched",
    "masks_of",
    "patch",
    "unpatch",
]
