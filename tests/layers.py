"""Who imports whom in a package, read from its source: rooms in order, cycles, late imports."""

import ast
from pathlib import Path

ROOMS = (
    "catalogue",
    "metrics",
    "numerics",
    "scaling",
    "engines",
    "gemm",
    "kv",
    "models",
    "throughput",
    "study",
    "report",
    "cli",
)
ENTRANCES = ("", "__main__")
"""`lowprec` itself and its command, which see every room."""


def modules(package: Path) -> dict[str, Path]:
    """The modules of a package by dotted name, the package's own folder first."""
    found = {}
    for path in sorted(package.rglob("*.py")):
        parts = (package.name, *path.relative_to(package).with_suffix("").parts)
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(name: str, path: Path, known: dict[str, Path]) -> dict[str, int]:
    """The package's modules that a module imports, anywhere in it, with the line."""
    parts = name.split(".")
    # A relative import counts from the package that holds the module.
    base = parts if path.name == "__init__.py" else parts[:-1]
    found: dict[str, int] = {}
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            wanted = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            prefix = base[: len(base) - node.level + 1] if node.level else []
            source = ".".join([*prefix, *filter(None, [node.module])])
            wanted = [
                full if (full := f"{source}.{alias.name}") in known else source
                for alias in node.names
            ]
        else:
            continue
        for target in wanted:
            if target.split(".")[0] == parts[0]:
                found.setdefault(target, node.lineno)
    return found


def room(name: str) -> str:
    """The room of a dotted module name, `cli` of `cli_ledger`; empty for the package itself."""
    first = [*name.split("."), ""][1]
    return "cli" if first.startswith("cli_") else first


def violations(package: Path) -> list[str]:
    """Imports of a room by one above it, and modules in no room."""
    known, out = modules(package), []
    for name, path in known.items():
        here = room(name)
        if here in ENTRANCES:
            continue
        if here not in ROOMS:
            out.append(f"{path}: {here} is no room; the rooms are {', '.join(ROOMS)}")
            continue
        for target, line in imports(name, path, known).items():
            there = room(target)
            allowed = there in ROOMS and ROOMS.index(there) <= ROOMS.index(here)
            if not allowed:
                out.append(f"{path}:{line}: {here} must not import {target}")
    return out


def cycle(package: Path) -> list[str]:
    """Modules that import each other in a ring, or nothing."""
    known = modules(package)
    graph = {
        name: [x for x in imports(name, path, known) if x in known] for name, path in known.items()
    }
    done: set[str] = set()

    def visit(name: str, trail: list[str]) -> list[str]:
        if name in trail:
            return [*trail[trail.index(name) :], name]
        if name not in done:
            for target in graph[name]:
                if ring := visit(target, [*trail, name]):
                    return ring
            done.add(name)
        return []

    return next((ring for name in graph if (ring := visit(name, []))), [])


def late_imports(path: Path) -> list[int]:
    """Lines of imports that do not stand at the top level of a module."""
    tree = ast.parse(path.read_text())
    inside = [
        child
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Lambda)
        for child in ast.walk(node)
    ]
    return sorted({x.lineno for x in inside if isinstance(x, ast.Import | ast.ImportFrom)})
