"""Read from the source of a module what it returns."""

import ast
import inspect
import re
import textwrap
from collections.abc import Callable
from functools import lru_cache
from typing import Any


@lru_cache(maxsize=1024)
def returned_values(forward: Callable[..., Any]) -> int | None:
    """Return how many values a function returns, 0 for a bare tensor, None where its source does not tell.

    Read from the return statements, for annotations promise more, or less, than many models return.
    """
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(forward))))
    except (OSError, TypeError, SyntaxError):
        return None
    found = {_values(node.value) for node in ast.walk(tree) if isinstance(node, ast.Return)}
    return found.pop() if len(found) == 1 else None


def _values(returned: ast.expr | None) -> int | None:
    if isinstance(returned, ast.Tuple):
        return None if any(isinstance(part, ast.Starred) for part in returned.elts) else len(returned.elts)
    # A name or a call may stand for a tuple; the names that transformers gives to a bare tensor are few.
    bare = isinstance(returned, ast.Name) and returned.id in _BARE
    bare |= isinstance(returned, ast.Call) and _is_role(returned.func)
    return 0 if bare else None


_BARE = (
    "attn_output",
    "attention_output",
    "hidden_states",
    "hidden_state",
    "output",
    "out",
    "x",
    "context_layer",
)


def _is_role(function: ast.expr) -> bool:
    """Tell whether a call is of a projection of the module's own: `return self.o_proj(x)`."""
    return (
        isinstance(function, ast.Attribute)
        and isinstance(function.value, ast.Name)
        and function.value.id == "self"
    )


@lru_cache(maxsize=1024)
def config_fields(module_class: type) -> frozenset[str]:
    """Return the fields of `self.config` that the methods of a class read while they run."""
    try:
        source = inspect.getsource(module_class)
    except (OSError, TypeError):
        return frozenset()
    return frozenset(re.findall(r"self\.config\.(\w+)", source))
