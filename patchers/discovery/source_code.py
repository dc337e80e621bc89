"""Read the source of functions: what they return, call and read. Without source, each answer is "not known"."""

import ast
import inspect
import re
import textwrap
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any


def _tree(forward: Callable[..., Any]) -> ast.Module:
    """Return the parsed source of a function, an empty module where it cannot be had."""
    try:
        return ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(forward))))
    except (OSError, TypeError, SyntaxError):
        return ast.Module(body=[], type_ignores=[])


@lru_cache(maxsize=1024)
def returned_values(forward: Callable[..., Any]) -> int | None:
    """Return how many values a function returns, 0 for a bare tensor, None where its source does not tell.

    Read from the return statements, for annotations promise more, or less, than many models return.
    """
    found = {_values(node.value) for node in ast.walk(_tree(forward)) if isinstance(node, ast.Return)}
    return found.pop() if len(found) == 1 else None


def _values(returned: ast.expr | None) -> int | None:
    if isinstance(returned, ast.Tuple):
        return None if any(isinstance(part, ast.Starred) for part in returned.elts) else len(returned.elts)
    # A name or a call may stand for a tuple; the names that transformers gives to a bare tensor are few.
    bare = isinstance(returned, ast.Name) and returned.id in _BARE
    bare |= isinstance(returned, ast.Call) and _is_role(returned.func)
    return 0 if bare else None


_BARE = (
    "attn_output", "attention_output", "hidden_states", "hidden_state", "output", "out", "x", "context_layer",
)  # fmt: skip


def _is_role(function: ast.expr) -> bool:
    """Tell whether a call is of a projection of the module's own: `return self.o_proj(x)`."""
    return (
        isinstance(function, ast.Attribute)
        and isinstance(function.value, ast.Name)
        and function.value.id == "self"
    )


def calls_super(function: Callable[..., Any]) -> bool:
    """Tell whether a method calls `super()`, as its source says."""
    calls = (node.func for node in ast.walk(_tree(function)) if isinstance(node, ast.Call))
    return any(isinstance(called, ast.Name) and called.id == "super" for called in calls)


def raises_if(function: Callable[..., Any], argument: str) -> bool:
    """Tell whether a function does nothing but raise when an argument is true, as its source says."""
    return any(
        isinstance(node, ast.If)
        and isinstance(node.test, ast.Name)
        and node.test.id == argument
        and isinstance(node.body[0], ast.Raise)
        for node in ast.walk(_tree(function))
    )


@lru_cache(maxsize=1024)
def shifts_labels_itself(forward: Callable[..., Any]) -> bool | None:
    """Tell whether a function that computes a cross-entropy itself compares each position with the label of the next.

    It then cuts off the first label: `labels[..., 1:]`. None where it leaves the loss to another function.
    """
    nodes = list(ast.walk(_tree(forward)))
    if any(isinstance(node, ast.Subscript) and _cuts_first_label(node) for node in nodes):
        return True
    called = {_name(node.func) for node in nodes if isinstance(node, ast.Call)}
    return False if called & {"CrossEntropyLoss", "cross_entropy"} else None


def _cuts_first_label(node: ast.Subscript) -> bool:
    last = node.slice.elts[-1] if isinstance(node.slice, ast.Tuple) and node.slice.elts else node.slice
    if not isinstance(last, ast.Slice) or last.upper is not None:
        return False
    return isinstance(last.lower, ast.Constant) and last.lower.value == 1 and "label" in _name(node.value)


def _name(node: ast.expr) -> str:
    """Return the last part of a dotted name, empty for anything else."""
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def called_around(forward: Callable[..., Any], first: str, last: str) -> frozenset[str] | None:
    """Return the children that a function calls, but for those between two of them; None = not known."""
    calls = _children_called(forward)
    if calls.count(first) != 1 or calls.count(last) != 1:
        return None
    start, end = calls.index(first), calls.index(last)
    between = calls[start + 1 : end]
    return frozenset(calls).difference(between) if start < end else None


def is_called_before(forward: Callable[..., Any], first: str, last: str) -> bool:
    """Tell whether the source of a function shows that it calls one child before another."""
    calls = _children_called(forward)
    return calls.count(first) == calls.count(last) == 1 and calls.index(first) < calls.index(last)


@lru_cache(maxsize=1024)
def _children_called(forward: Callable[..., Any]) -> tuple[str, ...]:
    """Return the names X of `self.X(…)` in the order in which they run, what is in the brackets first."""
    return tuple(_calls_in(_tree(forward)))


def _calls_in(tree: ast.AST) -> Iterator[str]:
    for child in ast.iter_child_nodes(tree):
        yield from _calls_in(child)
    if isinstance(tree, ast.Call) and _is_role(tree.func):
        assert isinstance(tree.func, ast.Attribute)
        yield tree.func.attr


@lru_cache(maxsize=1024)
def config_fields(module_class: type) -> frozenset[str]:
    """Return the fields of `self.config` that the methods of a class read while they run."""
    try:
        source = inspect.getsource(module_class)
    except (OSError, TypeError):
        return frozenset()
    return frozenset(re.findall(r"self\.config\.(\w+)", source))


@lru_cache(maxsize=1024)
def reshapes_to_input(forward: Callable[..., Any]) -> bool:
    """Tell whether a function gives what it computed the width of what it got: heads cannot go there.

    `batch, length, width = hidden_states.size()` … `output.reshape(batch, length, width)`.
    """
    tree = _tree(forward)
    widths = {_last_size(node) for node in ast.walk(tree) if isinstance(node, ast.Assign)} - {None}
    return any(
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in ("reshape", "view")
        and _is_output(node.func.value)
        and isinstance(_last_argument(node), ast.Name)
        and getattr(_last_argument(node), "id", None) in widths
        for node in ast.walk(tree)
    )


def _last_size(node: ast.Assign) -> str | None:
    """Return the name that the last size of an argument gets: `b, t, width = x.size()` or `= x.shape`."""
    value = node.value.func if isinstance(node.value, ast.Call) else node.value
    if not (isinstance(value, ast.Attribute) and value.attr in ("size", "shape")):
        return None
    target = node.targets[0]
    last = target.elts[-1] if isinstance(target, ast.Tuple) and len(target.elts) == 3 else None
    return last.id if isinstance(last, ast.Name) else None


def _last_argument(call: ast.Call) -> ast.expr | None:
    last = call.args[-1] if call.args else None
    return last.elts[-1] if isinstance(last, ast.Tuple) and last.elts else last


def _is_output(value: ast.expr) -> bool:
    """Tell whether a value goes by a name of attention's output, not of the input itself."""
    return any(
        isinstance(node, ast.Name) and ("attn" in node.id or "context" in node.id or "output" in node.id)
        for node in ast.walk(value)
    )


@lru_cache(maxsize=1024)
def attributes_read(forward: Callable[..., Any]) -> frozenset[str]:
    """Return the names X of all `….X` in a function."""
    return frozenset(node.attr for node in ast.walk(_tree(forward)) if isinstance(node, ast.Attribute))
