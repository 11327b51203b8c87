"""What a Python function is made of: its module and all that this imports of the same package, read and not run."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import sysconfig
from collections.abc import Iterator
from pathlib import Path


def code_digest(module: str) -> str:
    """A hash of the texts of ``module`` and of every module of its own that it imports, at any depth.

    Its own are those of its top-level package; of a single file, files in the same folder. Imports inside functions
    count, so a world that loads its parts late is hashed whole. Installed libraries count by their absence.
    """
    texts = _texts(module)
    hasher = hashlib.blake2b(digest_size=16)
    for name in sorted(texts):
        hasher.update(f"{name}\0{len(texts[name])}\0".encode())
        hasher.update(texts[name])
    return hasher.hexdigest()


def _texts(module: str) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    start = _source(module)
    if start is None:  # written in C, or at a prompt
        return found
    todo = [(module, start)]
    while todo:
        name, path = todo.pop()
        if name in found:
            continue
        found[name] = path.read_bytes()
        package = name if path.name == "__init__.py" else name.rpartition(".")[0]
        for wanted in _imports(found[name], package):
            source = _source(wanted) if wanted not in found and _is_own(wanted, module) else None
            if source is not None and ("." in module or source.parent == start.parent):
                todo.append((wanted, source))
    return found


def _is_own(name: str, module: str) -> bool:
    top, _, rest = module.partition(".")
    if rest or name.partition(".")[0] == top:
        return name.partition(".")[0] == top
    return "." not in name


def _imports(text: bytes, package: str) -> Iterator[str]:
    """Dotted names that may be modules; relative ones made absolute."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".") if package else []
            base = parts[: len(parts) - node.level + 1] if node.level else []
            stem = ".".join([*base, *([node.module] if node.module else [])])
            yield stem
            yield from (f"{stem}.{alias.name}" for alias in node.names)


def _source(name: str) -> Path | None:
    """The file of a module; None where there is none, as of what is no module or is not written in Python."""
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, AttributeError, ValueError):
        return None
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        return None
    path = Path(spec.origin)
    library = Path(sysconfig.get_paths()["stdlib"])
    is_of_python = path.is_relative_to(library) and "site-packages" not in path.parts
    return None if is_of_python else path
