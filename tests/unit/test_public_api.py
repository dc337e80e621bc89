"""The names users import, and the version they see."""

import subprocess
import sys
from importlib.metadata import metadata, version

import pytest

import patchers
import sparse_trainer

PUBLIC_NAMES = [
    "ModelPatchingCoordinator",
    "PruningTrainer",
    "SparseTrainer",
    "SparseTrainerError",
    "SparseTrainingArguments",
    "discover",
    "load_pruned",
    "merge_kv_heads",
    "optimize_model",
    "prune",
    "register_criterion",
    "register_export",
    "register_task",
    "save_pruned",
    "share_layers",
    "trim_vocabulary",
]


def test_all_lists_exactly_the_public_names() -> None:
    assert sorted(sparse_trainer.__all__) == PUBLIC_NAMES
    assert all(hasattr(sparse_trainer, name) for name in PUBLIC_NAMES)


def test_patchers_keeps_the_earlier_name_of_attach_mask() -> None:
    assert all(hasattr(patchers, name) for name in patchers.__all__)
    assert patchers.hang_mask is patchers.attach_mask


def test_distribution_has_name_version_and_licence() -> None:
    assert version("sparse-trainer") == sparse_trainer.__version__ == "0.4.0"
    assert metadata("sparse-trainer")["License-Expression"] == "Apache-2.0"


def test_import_is_light_and_silent() -> None:
    """Importing draws in no plotting or metric library and prints nothing."""
    code = (
        "import sys, sparse_trainer\n"
        "heavy = {'matplotlib', 'evaluate', 'sklearn', 'sparse_trainer.autoload', 'sparse_trainer.cli'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert done.stderr == ""


def test_importing_the_packages_imports_no_torch_until_a_name_is_asked_for() -> None:
    code = (
        "import sys, patchers, sparse_trainer\n"
        "from sparse_trainer import SparseTrainerError\n"
        "before = sorted({'torch', 'transformers', 'datasets'} & set(sys.modules))\n"
        "assert 'prune' in dir(sparse_trainer) and callable(sparse_trainer.prune)\n"
        "print(before, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[] True"


def test_a_name_that_is_not_there_is_told_as_python_does() -> None:
    with pytest.raises(AttributeError, match="module 'sparse_trainer' has no attribute 'prunes'"):
        sparse_trainer.__getattr__("prunes")
    with pytest.raises(ImportError, match="cannot import name 'prunes'"):
        exec("from sparse_trainer import prunes")
