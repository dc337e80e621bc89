"""Public names of a package that are imported when somebody first asks for them (PEP 562).

Importing models and training takes seconds, which `--help`, a plugin or a script that wants one name need not wait for.
"""

import ast
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any


def lazy_names(package: str, file: str) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """Return `__getattr__`, `__dir__` and `__all__` of a package, from the imports in its stub `__init__.pyi`.

    The stub is what type checkers read, so that the names are written down once. Every import in it has the form
    `from module import name as name`.

    Args:
        package: `__name__` of the package.
        file: Its `__file__`.
    """
    stub = ast.parse(Path(file).with_suffix(".pyi").read_text(encoding="utf-8"))
    homes = {
        each.asname or each.name: (str(node.module), each.name)
        for node in stub.body
        if isinstance(node, ast.ImportFrom)
        for each in node.names
    }

    def load(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        module, real = homes[name]
        found = getattr(import_module(module), real)
        vars(sys.modules[package])[name] = found
        return found

    def listed() -> list[str]:
        return sorted({*vars(sys.modules[package]), *homes})

    return load, listed, sorted(homes)
