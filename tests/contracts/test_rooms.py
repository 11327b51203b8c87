"""The floors of the house: rooms import downward only, and heavy libraries late. Read from the source, not run."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[2] / "src" / "constellation"
PACKAGE = "constellation"

FLOORS: dict[str, float] = {
    "errors": 0, "memory": 0, "paths": 0.1, "zones": 0.1, "schema": 0.2,
    "kernels": 0.5, "journeys": 1, "distributions": 1, "metrics": 1, "worlds": 1, "tracking": 1,
    "prior": 1.5,
    "encoders": 2, "objectives": 2, "baselines": 2, "allocation": 2, "policies": 2, "model": 2, "building": 2,
    "recalibration": 2,
    "answering": 2.5, "explanation": 2.7, "training": 3, "bundle": 3,
    "beginning": 4, "assessment": 4, "reporting": 4, "backtesting": 4, "tuning": 4,
    "commands": 5,
    "manual": 6, "cli": 7,
}  # fmt: skip

LATE = {"polars", "duckdb", "mlflow", "lightning", "matplotlib", "sklearn", "pyspark", "optuna", "onnx", "onnxruntime"}
"""Imported inside the functions that use them, so that neighbours load without them."""

HEAVY = LATE | {"torch", "pandas", "scipy", "pyarrow"}
"""Not even these where a command line must answer at once."""

QUICK = {"errors", "schema", "paths", "zones", "tracking", "cli", "manual"}
"""Rooms that the door passes through before a configuration has been found good."""

FILES = sorted(SOURCE.rglob("*.py"))


def room_of(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def imports(path: Path, *, top_level: bool = False) -> Iterator[tuple[str, int]]:
    """Dotted names imported, with line; those for type checkers left out, relative ones made absolute."""
    module = [PACKAGE, *path.relative_to(SOURCE).with_suffix("").parts]

    def walk(node: ast.AST) -> Iterator[tuple[str, int]]:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for child in node.orelse:
                yield from walk(child)
            return
        if top_level and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            return
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = module[: len(module) - node.level] if node.level else []
            stem = ".".join([*base, *([node.module] if node.module else [])])
            yield stem, node.lineno
            yield from ((f"{stem}.{alias.name}", node.lineno) for alias in node.names)
        for child in ast.iter_child_nodes(node):
            yield from walk(child)

    yield from walk(ast.parse(path.read_text(encoding="utf-8")))


def rooms_imported(path: Path) -> Iterator[tuple[str, int]]:
    for name, line in imports(path):
        parts = name.split(".")
        if parts[0] == PACKAGE and len(parts) > 1 and parts[1] in FLOORS:
            yield parts[1], line


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_rooms_import_downward_only(path: Path) -> None:
    room = room_of(path)
    if room == "__init__":
        assert not list(rooms_imported(path)), "importing the package must import no room"
        return
    assert room in FLOORS, f"{room} has no floor; say in docs/design.md and here where it stands"
    for other, line in rooms_imported(path):
        assert other == room or FLOORS[other] < FLOORS[room], (
            f"{path.relative_to(SOURCE)}:{line}: {room} (floor {FLOORS[room]}) imports {other} (floor {FLOORS[other]})"
        )


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_heavy_libraries_are_imported_late(path: Path) -> None:
    banned = HEAVY if room_of(path) in QUICK else LATE
    early = [(name, line) for name, line in imports(path, top_level=True) if name.split(".")[0] in banned]
    if room_of(path) == "training":  # it subclasses Lightning's classes, which takes Lightning at the top, ...
        early = [(name, line) for name, line in early if name.split(".")[0] != "lightning"]
    else:  # ... so that everybody else imports it late
        early += [
            (name, line)
            for name, line in imports(path, top_level=True)
            if f"{name}.".startswith(f"{PACKAGE}.training.")
        ]
    assert not early, f"{path.relative_to(SOURCE)} imports at its top: {early}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_only_the_door_knows_hydra(path: Path) -> None:
    known = [(name, line) for name, line in imports(path) if name.split(".")[0] in ("hydra", "omegaconf")]
    assert room_of(path) == "cli" or not known, f"{path.relative_to(SOURCE)}: {known}"


@pytest.mark.parametrize("name", sorted(path.name for path in (SOURCE / "commands").glob("[a-z]*.py")))
def test_a_command_has_its_function_and_its_yaml(name: str) -> None:
    stem = name.removesuffix(".py")
    tree = ast.parse((SOURCE / "commands" / name).read_text(encoding="utf-8"))
    assert ast.get_docstring(tree), f"commands/{name} needs a docstring: it is the command's help"
    assert stem in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    assert (SOURCE.parents[1] / "configs" / f"{stem}.yaml").is_file()


def test_the_readers_of_imports_see_what_they_should(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The checks above would pass on anything if this did not hold."""
    monkeypatch.setattr(f"{__name__}.SOURCE", tmp_path)
    path = tmp_path / "encoders" / "x.py"
    path.parent.mkdir()
    path.write_text(
        "import polars as pl\nfrom ..training import fit\nfrom typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    import duckdb\n"
        "def f():\n    import mlflow\n    from constellation import commands\n"
        "class A:\n    import sklearn.svm\n"
    )
    assert {room for room, _ in rooms_imported(path)} == {"training", "commands"}
    early = {name.split(".")[0] for name, _ in imports(path, top_level=True)} & LATE
    assert early == {"polars", "sklearn"}
    assert "mlflow" in {name for name, _ in imports(path)}
