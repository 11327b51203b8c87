"""Every notebook runs from top to bottom, and is kept without its outputs.

Strip all notebooks in place with ``python -m tests.end_to_end.test_notebooks``.
"""

from __future__ import annotations

import ast
import os
import re
import tempfile
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from constellation.tracking import Run

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
SECONDS = 300
"""Patience with one cell on a machine that has other things to do; a calm one needs 30 for the whole notebook."""

with_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def test_notebooks_are_numbered_without_gaps() -> None:
    assert NOTEBOOKS
    numbers = [re.fullmatch(r"(\d\d)-[a-z0-9-]+\.ipynb", path.name) for path in NOTEBOOKS]
    assert [int(found[1]) for found in numbers if found] == list(range(1, len(NOTEBOOKS) + 1))


@with_notebook
def test_a_notebook_is_listed_and_kept_without_outputs(path: Path) -> None:
    nbformat = pytest.importorskip("nbformat")
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert f"]({path.name})" in (path.parent / "README.md").read_text(encoding="utf-8")
    for cell in notebook.cells:
        assert not cell.get("outputs") and cell.get("execution_count") is None, f"strip {path.name}: {cell.id}"
    first = notebook.cells[0]
    assert first.cell_type == "markdown" and first.source.startswith("# "), "a notebook begins with its title"


@with_notebook
def test_every_cell_runs(path: Path, work_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process, which has imported most of it; the slow test below gives the notebook a kernel of its own.

    With fewer customers, and of a run's pictures those that it shows.
    """
    nbformat, display = pytest.importorskip("nbformat"), pytest.importorskip("IPython.display")
    text, draw = path.read_text(encoding="utf-8"), Run.log_figure
    monkeypatch.setattr(
        Run, "log_figure", lambda run, name, figure: draw(run, name, figure) if f"{name}.png" in text else None
    )
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # what a notebook leaves behind goes when the test goes
    names: dict[str, Any] = {"__name__": "__main__"}
    shown = []
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "code":
            tree = ast.parse(re.sub(r"\b(num_customers\"?[=:] ?)\d+", r"\g<1>150", cell.source))
            last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
            exec(compile(tree, cell.id, "exec"), names)
            if isinstance(last, ast.Expr):
                shown.append(eval(compile(ast.Expression(last.value), cell.id, "eval"), names))
    assert any(isinstance(found, display.Image) and found.data.startswith(b"\x89PNG") for found in shown)
    assert any(isinstance(found, pd.DataFrame) and len(found) for found in shown)
    assert list(work_folder.iterdir()) == [], "a notebook writes to a temporary folder only"


@pytest.mark.slow
@with_notebook
def test_a_notebook_runs_in_a_kernel(
    path: Path, work_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setenv("TMPDIR", str(scratch))  # what a notebook leaves behind goes when the test goes
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    # The kernel is a process of its own: it must find the source that the tests test, installed or not.
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]))
    notebook = nbformat.read(path, as_version=4)
    client = nbclient.NotebookClient(
        notebook, timeout=SECONDS, kernel_name="python3", resources={"metadata": {"path": str(work_folder)}}
    )
    client.execute()
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.execution_count for cell in code)
    assert any("image/png" in output.get("data", {}) for cell in code for output in cell.outputs), "it shows a picture"
    assert list(work_folder.iterdir()) == [], "a notebook writes to a temporary folder only"


def strip(path: Path) -> None:
    """Write the notebook anew without outputs and counts."""
    import nbformat

    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
        cell.metadata = {}
    nbformat.write(notebook, path)


if __name__ == "__main__":
    for each in NOTEBOOKS:
        strip(each)
