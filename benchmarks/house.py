"""The source in figures: rooms and floors, longest import chain, untyped options, names defined twice, lines.

A room is a folder right under `sparse_trainer` with all that is below it, a file beside those folders, or `patchers` as
a whole; the package's own `__init__` is none. A room stands one floor above the highest room that it imports. The chain
runs through files, by the imports that run when a file is imported.

    python benchmarks/house.py
"""

import ast
from collections import defaultdict
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

PACKAGES = ("patchers", "sparse_trainer")
Edges = Mapping[str, set[str]]


def modules(root: Path) -> dict[str, ast.Module]:
    """Return the source of both packages, by dotted name."""
    files = [file for package in PACKAGES for file in sorted((root / package).rglob("*.py"))]
    names = (".".join(file.relative_to(root).with_suffix("").parts) for file in files)
    return {
        name.removesuffix(".__init__"): ast.parse(file.read_text())
        for name, file in zip(names, files, strict=True)
    }


def imported(tree: ast.Module, known: Mapping[str, ast.Module]) -> Iterator[str]:
    """Yield the modules that importing this one imports; what functions import is not among them."""
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    inside = {id(node) for function in functions for node in ast.walk(function)}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and id(node) not in inside:
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                if name in known or node.module in known:
                    yield name if name in known else node.module


def imports(known: Mapping[str, ast.Module]) -> dict[str, set[str]]:
    """Return what every module imports of the others."""
    return {name: set(imported(tree, known)) - {name} for name, tree in known.items()}


def longest(edges: Edges) -> list[str]:
    """Return the longest chain of imports, from the top."""

    @cache
    def height(name: str) -> int:
        return 1 + max((height(other) for other in edges[name]), default=0)

    chain = [max(edges, key=height)]
    while edges[chain[-1]]:
        chain.append(max(sorted(edges[chain[-1]]), key=height))
    return chain


def rooms(edges: Edges) -> dict[str, set[str]]:
    """Return what every room imports of the others."""
    found: dict[str, set[str]] = defaultdict(set)
    for name, others in edges.items():
        found[_room(name)] |= {_room(other) for other in others}
    faces = set(PACKAGES[1:])
    return {room: others - {room} - faces for room, others in found.items() if room not in faces}


def _room(name: str) -> str:
    package, _, rest = name.partition(".")
    return package if package == PACKAGES[0] or not rest else f"{package}.{rest.split('.')[0]}"


def untyped(known: Mapping[str, ast.Module]) -> list[str]:
    """Return the functions that take options as `Any`."""
    return [
        f"{name}.{node.name}"
        for name, tree in known.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        for argument in (*node.args.args, *node.args.kwonlyargs)
        if argument.arg in ("args", "options", "sparse_args")
        and isinstance(argument.annotation, ast.Name)
        and argument.annotation.id == "Any"
    ]


def twice(known: Mapping[str, ast.Module]) -> dict[str, list[str]]:
    """Return the public functions and classes that more than one module defines."""
    homes: dict[str, list[str]] = defaultdict(list)
    for name, tree in known.items():
        for node in tree.body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                homes[node.name].append(name)
    return {name: places for name, places in homes.items() if len(places) > 1}


def main() -> None:
    """Print the figures."""
    root = Path(__file__).parents[1]
    known = modules(root)
    edges = imports(known)
    chain, plan, doubled, bare = longest(edges), rooms(edges), twice(known), untyped(known)
    lines = sum(len(file.read_text().splitlines()) for p in PACKAGES for file in (root / p).rglob("*.py"))
    print(f"rooms {len(plan)}, floors {len(longest(plan))}, modules {len(known)}, lines {lines}")
    print(f"longest chain {len(chain)}: {' -> '.join(chain)}")
    print(f"options typed Any {len(bare)}: {', '.join(bare) or 'none'}")
    print(f"names defined twice {len(doubled)}: {', '.join(sorted(doubled)) or 'none'}")


if __name__ == "__main__":
    main()
