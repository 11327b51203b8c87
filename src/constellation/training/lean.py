"""Lightning without what it only looks for on behalf of metrics and compilers that nobody here asks it for.

On the way to Lightning, torchmetrics imports scipy's signal processing and matplotlib where they are installed: 100 MiB
of every training process, and seconds of its start. Here they are out of its sight while it is imported. Everything
else finds them as ever; only torchmetrics' own plots and audio metrics stay off in a process that trains.

Lightning itself imports torch's compiler, 85 MiB and two seconds more, for the name of the class of compiled modules.
Until somebody else imports the compiler there is no such module, and Lightning is handed a name that says so.
"""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any

COMPILER = "torch._dynamo"
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


class _Compiled(type):
    """An instance of its classes is what is an instance of the class that the compiler has, once it is here."""

    def __instancecheck__(cls, instance: Any) -> bool:
        found = getattr(sys.modules.get(COMPILER), cls.__name__, None)
        return isinstance(found, type) and found is not cls and isinstance(instance, found)


class OptimizedModule(metaclass=_Compiled):
    """Stands for ``torch._dynamo.OptimizedModule`` in checks of what a module is."""


def _left_alone(function: Any = None, *given: Any, **named: Any) -> Any:
    """``torch._dynamo.disable``, put off until there is a compiler that must leave the function alone."""
    if function is None:
        return functools.partial(_left_alone, **named)
    kept: list[Callable[..., Any]] = []

    @functools.wraps(function)
    def called(*arguments: Any, **keywords: Any) -> Any:
        if not kept and hasattr(sys.modules.get(COMPILER), "disable"):
            kept.append(sys.modules[COMPILER].disable(function, *given, **named))
        return (kept[0] if kept else function)(*arguments, **keywords)

    return called


class _StandIn(ModuleType):
    """The compiler, as far as Lightning's import asks for it; whoever asks for more gets the real one."""

    OptimizedModule = OptimizedModule
    disable = staticmethod(_left_alone)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if sys.modules.get(COMPILER) is self:
            del sys.modules[COMPILER]
        return getattr(importlib.import_module(COMPILER), name)


@contextmanager
def _compiler_left_out() -> Iterator[None]:
    if COMPILER in sys.modules:
        yield
        return
    stands_in = _StandIn(COMPILER)
    sys.modules[COMPILER] = stands_in
    try:
        yield
    finally:
        if sys.modules.get(COMPILER) is stands_in:
            del sys.modules[COMPILER]


def _import_lightning() -> None:
    with _compiler_left_out():
        try:
            importlib.import_module("lightning")
            return
        except ImportError:  # of a module within the compiler, say, which the stand-in does not have
            pass
    for name in [name for name in sys.modules if name.partition(".")[0] == "lightning"]:
        del sys.modules[name]
    importlib.import_module("lightning")


_import_torchmetrics()
_import_lightning()

import lightning as L  # noqa: E402
from lightning.fabric.plugins import CheckpointIO  # noqa: E402
from lightning.fabric.plugins.environments import ClusterEnvironment  # noqa: E402
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, Strategy  # noqa: E402

__all__ = ["CheckpointIO", "ClusterEnvironment", "DDPStrategy", "L", "ModelParallelStrategy", "Strategy"]
