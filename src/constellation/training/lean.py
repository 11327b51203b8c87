"""Lightning without what it only looks for on behalf of metrics that nobody here asks it for.

On the way to Lightning, torchmetrics imports scipy's signal processing and matplotlib where they are installed: 100 MiB
of every training process, and seconds of its start. Here they are out of its sight while it is imported. Everything
else finds them as ever; only torchmetrics' own plots and audio metrics stay off in a process that trains.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

UNSEEN = ("matplotlib", "scipy")


class _Hides:
    """A finder of modules that says of some packages that they are not installed."""

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: Any = None) -> None:
        if name.partition(".")[0] in UNSEEN:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


@contextmanager
def _out_of_sight() -> Iterator[None]:
    """``UNSEEN`` can neither be found nor asked for their version."""
    asks: Any = importlib.import_module("lightning_utilities.core.imports")
    plain_version, hides = asks._version, _Hides()

    def version(name: str) -> str:
        if name in UNSEEN:
            raise importlib.metadata.PackageNotFoundError(name)
        return str(plain_version(name))

    sys.meta_path.insert(0, hides)  # type: ignore[arg-type]
    asks._version = version
    try:
        yield
    finally:
        asks._version = plain_version
        sys.meta_path.remove(hides)  # type: ignore[arg-type]


def _import_torchmetrics() -> None:
    if "torchmetrics" in sys.modules or any(name in sys.modules for name in UNSEEN):
        return  # nothing is left to be saved
    before = set(sys.modules)
    try:
        with _out_of_sight():
            importlib.import_module("torchmetrics")
    except (ImportError, AttributeError):  # a version that asks in another way: it is imported as it comes
        for name in set(sys.modules) - before:
            if name.partition(".")[0] == "torchmetrics":
                del sys.modules[name]


_import_torchmetrics()

import lightning as L  # noqa: E402
from lightning.fabric.plugins import CheckpointIO  # noqa: E402
from lightning.fabric.plugins.environments import ClusterEnvironment  # noqa: E402
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, Strategy  # noqa: E402

__all__ = ["CheckpointIO", "ClusterEnvironment", "DDPStrategy", "L", "ModelParallelStrategy", "Strategy"]
