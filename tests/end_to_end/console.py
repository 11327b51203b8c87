"""What the tests of the command line share: a console of their own, the same in this process, and what a run left."""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytest

from constellation.cli import main
from constellation.tracking import Run

SECONDS = 400
"""Patience with a machine that has other things to do."""


def console(*words: str) -> list[str]:
    """The command line of the installed script beside this Python, for a process of its own."""
    script = Path(sys.executable).with_name("constellation")
    return [str(script), *words] if script.exists() else [sys.executable, "-m", "constellation.cli", *words]


def console_environment() -> dict[str, str]:
    """The environment of a console: nothing of the tester's own settings leaks in."""
    away = ("MLFLOW_", "CONSTELLATION_", "RANK", "LOCAL_RANK")
    kept = {name: text for name, text in os.environ.items() if not name.startswith(away)}
    return kept | {"OMP_NUM_THREADS": "1", "MLFLOW_DISABLE_TELEMETRY": "true"}


@contextmanager
def inside(folder: Path) -> Iterator[None]:
    """In ``folder`` with the environment of a console, for commands in this process: that spares seconds of imports."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name in set(os.environ) - set(console_environment()):
            patch.delenv(name)
        yield


@contextmanager
def without_pictures() -> Iterator[None]:
    """For runs whose pictures another test looks at: drawing a run's takes longer than a small training."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Run, "log_figure", lambda run, name, figure: run.folder / "figures" / f"{name}.png")
        yield


def said_in(folder: Path, *words: str, pictures: bool = False) -> str:
    """What a command that must succeed prints when it is given in ``folder``, in this process."""
    printed = io.StringIO()
    with inside(folder), contextlib.redirect_stdout(printed), nullcontext() if pictures else without_pictures():
        assert main(list(words)) == 0
    return printed.getvalue()


def metrics_of(folder: Path | str) -> dict[str, float]:
    """``metrics.json`` of a run's folder."""
    found = json.loads((Path(folder) / "metrics.json").read_text())
    assert isinstance(found, dict)
    return found
