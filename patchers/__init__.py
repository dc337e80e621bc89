"""Module trees: what can be pruned in a model, gates in it, and the cut. Knows nothing of training or files."""

from patchers.discovery.discover import discover
from patchers.discovery.tables.forms import AttentionForm, FfnForm
from patchers.discovery.tables.registry import register_form
from patchers.errors import SparseTrainerError, UnsupportedModelError
from patchers.patching.gates import Gate, PolarGate, SaliencyGate
from patchers.patching.masks import MaskFactor, WeightMask
from patchers.patching.patch import (
    attach_mask,
    gated,
    gates_by_group,
    gates_of,
    is_patched,
    masks_of,
    patch,
    unpatch,
)
from patchers.surgery import cut
from patchers.units import KINDS, Group, Kind, Slice, Structure, kind_named

hang_mask = attach_mask
"""The earlier name."""

__all__ = [
    "KINDS",
    "AttentionForm",
    "FfnForm",
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
    "attach_mask",
    "cut",
    "discover",
    "gated",
    "gates_by_group",
    "gates_of",
    "hang_mask",
    "is_patched",
    "kind_named",
    "masks_of",
    "patch",
    "register_form",
    "unpatch",
]
