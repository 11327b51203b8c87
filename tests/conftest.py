"""Fixtures and habits of all tests."""

from __future__ import annotations

import copy
import importlib.util
import os
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from constellation.cli import diagnosing
from constellation.cli.composing import Composed
from constellation.paths import config_directories

# Small tensors on shared cores: more threads only wait for one another. Set before torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("DO_NOT_TRACK", "1")

# Deadlines measure the machine, not the code.
settings.register_profile("house", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("house")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked or _has_gpu():
        return
    for item in marked:
        item.add_marker(pytest.mark.skip(reason="no CUDA device"))


def _has_gpu() -> bool:
    if importlib.util.find_spec("torch") is None:
        return False
    import torch

    return torch.cuda.is_available()


@pytest.fixture(scope="session", autouse=True)
def compositions_kept() -> Iterator[None]:
    """Hydra composes in a fifth of a second, every command has it compose twice, and the tests give hundreds of them:
    the same words over the same files get a copy of what they got before."""
    compose, kept = diagnosing.compose_unchecked, dict[object, Composed]()

    def composed(command: str, overrides: Sequence[str]) -> Composed:
        files = sorted(path for folder in config_directories() for path in folder.rglob("*.yaml"))
        key = command, *overrides, *((path, path.stat().st_mtime_ns, path.stat().st_size) for path in files)
        if key not in kept:
            kept[key] = compose(command, overrides)
        return copy.deepcopy(kept[key])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(diagnosing, "compose_unchecked", composed)
        yield


@pytest.fixture(scope="session")
def quick_databases() -> Iterator[None]:
    """SQLite, of MLflow and Optuna in this process, waits for no disk: no test has its power cut."""
    from sqlalchemy import event
    from sqlalchemy.engine import Engine

    def connected(connection: Any, _record: Any) -> None:
        if isinstance(connection, sqlite3.Connection):
            connection.execute("PRAGMA synchronous = OFF")

    event.listen(Engine, "connect", connected)
    yield
    event.remove(Engine, "connect", connected)


@pytest.fixture
def work_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder: what a command writes by default lands here, and no setting leaks in from outside."""
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    for name in ("MLFLOW_TRACKING_URI", "CONSTELLATION_OUTPUT", "CONSTELLATION_DATA", "RANK", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CONSTELLATION_CACHE", str(folder / ".constellation"))
    return folder


@pytest.fixture
def repository() -> Path:
    """Root of the clone."""
    return Path(__file__).resolve().parents[1]
