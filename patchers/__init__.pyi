"""Module trees: what can be pruned in a model, gates in it, and the cut. Knows nothing of training or files."""

from patchers.discovery.discover import discover as discover
from patchers.discovery.tables.forms import AttentionForm as AttentionForm
from patchers.discovery.tables.forms import FfnForm as FfnForm
from patchers.discovery.tables.registry import register_form as register_form
from patchers.errors import SparseTrainerError as SparseTrainerError
from patchers.errors import UnsupportedModelError as UnsupportedModelError
from patchers.patching.gates import Gate as Gate
from patchers.patching.gates import PolarGate as PolarGate
from patchers.patching.gates import SaliencyGate as SaliencyGate
from patchers.patching.masks import MaskFactor as MaskFactor
from patchers.patching.masks import WeightMask as WeightMask
from patchers.patching.patch import attach_mask as attach_mask
from patchers.patching.patch import attach_mask as hang_mask  # noqa: F401 - the earlier name
from patchers.patching.patch import gated as gated
from patchers.patching.patch import gates_by_group as gates_by_group
from patchers.patching.patch import gates_of as gates_of
from patchers.patching.patch import is_patched as is_patched
from patchers.patching.patch import masks_of as masks_of
from patchers.patching.patch import patch as patch
from patchers.patching.patch import unpatch as unpatch
from patchers.surgery import cut as cut
from patchers.units import KINDS as KINDS
from patchers.units import Group as Group
from patchers.units import Kind as Kind
from patchers.units import Slice as Slice
from patchers.units import Structure as Structure
from patchers.units import kind_named as kind_named
