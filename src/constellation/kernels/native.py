"""Kernels in C++ (``cpp/``), compiled on the machine that trains, once, where it has a compiler and fast bfloat16.

Nothing is compiled at installation, and nothing needs it: where there is no compiler, or no AVX512-BF16, the same is
done by torch. A library is made for the sizes of a layer, which takes some seconds once: loops of a known length are a
tenth faster. It is kept under a name that says sizes, sources, compiler and processor, so that another machine that
shares the folder makes its own.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

SOURCES = Path(__file__).parent / "cpp"
FLAGS = (
    *("-std=c++17", "-O2", "-march=native", "-mprefer-vector-width=512", "-fno-math-errno"),
    *("-fno-strict-aliasing", "-shared", "-fPIC"),
)
COMPILERS = ("c++", "g++", "clang++")
NEEDED_FLAGS = {"avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_bf16"}
UNMEASURED = "amx_bf16"
"""Such processors multiply matrices by tiles, several times as fast as by vectors: whether these kernels pay there was
not measured, so they must be asked for."""

TIME_LIMIT_SECONDS = 120
NO_SUCH_CODE = 2
"""What a kernel returns then; 1 for want of memory, 0 where all is well."""

log = logging.getLogger(__name__)


@functools.cache
def is_possible() -> bool:
    """Whether this machine has the processor and a compiler for it."""
    if not _processor_flags() >= NEEDED_FLAGS:
        return False
    if _compiler() is None:
        asked = os.environ.get("CXX")
        named = f" (CXX={asked!r} is no program)" if asked else ""
        log.info("No C++ compiler was found%s: torch's kernels do its work, which is slower.", named)
        return False
    return True


def can_work() -> bool:
    """Whether it is possible in this process, on as many threads as torch works on."""
    return is_possible() and (torch.get_num_threads() == 1 or starter() != 0)


def is_known_to_pay() -> bool:
    """Whether it is possible, on a processor of the kind that these kernels were measured on."""
    return is_possible() and UNMEASURED not in _processor_flags()


@functools.cache
def library(name: str, **sizes: int) -> ctypes.CDLL | None:
    """``cpp/<name>.cpp`` compiled for these sizes, in C++ ``WIDTH_GIVEN`` and so on; None where it cannot be.

    That a compiler fails is said once, and torch's kernels do the work.
    """
    if not is_possible():
        return None
    try:
        return _loaded(name, sizes)
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        said = error.stderr if isinstance(error, subprocess.CalledProcessError) else ""
        if not isinstance(error, subprocess.SubprocessError):
            said = f"{error} (CONSTELLATION_KERNELS may name another folder)"
        log.warning("The kernels in C++ could not be compiled, torch's do their work: %s", (said or str(error))[-500:])
        return None


def _loaded(name: str, sizes: dict[str, int]) -> ctypes.CDLL:
    path = _built(name, sizes)
    try:
        return ctypes.CDLL(str(path))
    except OSError:  # cut short when a machine went down, say: made anew, once
        path.unlink(missing_ok=True)
        return ctypes.CDLL(str(_built(name, sizes)))


def _processor_flags() -> frozenset[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return frozenset()
    flags = next((line for line in lines if line.startswith("flags")), "")
    return frozenset(flags.partition(":")[2].split())


def _compiler() -> str | None:
    asked = os.environ.get("CXX")
    return next((found for name in ([asked] if asked else COMPILERS) if (found := shutil.which(name))), None)


def _folder() -> Path:
    """CONSTELLATION_KERNELS, else a folder of the user's cache: they belong to the machine, not to a project.

    Absolute, for a bare name would be looked for among the system's libraries. Raises RuntimeError without a home.
    """
    own = os.environ.get("CONSTELLATION_KERNELS")
    if own:
        return Path(own).expanduser().absolute()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache.absolute() / "constellation" / "kernels"


def _built(name: str, sizes: dict[str, int]) -> Path:
    """The path of the library, compiled where it is not there yet. Raises OSError, RuntimeError or SubprocessError."""
    compiler = _compiler()
    assert compiler is not None
    flags = [*FLAGS, *(f"-D{each.upper()}_GIVEN={size}" for each, size in sorted(sizes.items()))]
    sources = b"".join(path.read_bytes() for path in sorted(SOURCES.iterdir()) if path.suffix in (".h", ".cpp"))
    said = repr((sys.platform, _version(compiler), sorted(_processor_flags()), flags)).encode() + sources
    path = _folder() / f"{name}-{hashlib.sha256(said).hexdigest()[:16]}.so"
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as aside:
        made = Path(aside) / "made.so"
        _run([compiler, *flags, "-w", str(SOURCES / f"{name}.cpp"), "-o", str(made)])
        made.replace(path)  # two processes may compile at once: both are right, and neither is seen half done
    return path


@functools.cache
def _version(compiler: str) -> str:
    return _run([compiler, "--version"])


def _run(command: list[str]) -> str:
    done = subprocess.run(
        command,
        capture_output=True,
        encoding="utf-8",
        errors="replace",  # compilers quote in the language of the user, and name files of any bytes
        check=True,
        timeout=TIME_LIMIT_SECONDS,
    )
    return done.stdout


def is_plain(given: Tensor) -> bool:
    """Whether a pointer says all: no subclass, such as a shard of a weight, on the CPU, float32."""
    return type(given) in (Tensor, Parameter) and given.device.type == "cpu" and given.dtype == torch.float32


class Team(ctypes.Structure):
    """``Team`` of ``cpp/team.h``: how many threads, and what starts them."""

    _fields_ = (("size", ctypes.c_int64), ("start", ctypes.c_void_p))


@functools.cache
def starter() -> int:
    """Address of the function that starts threads in the OpenMP library that torch runs on; 0 where there is none.

    Asked of torch's own library, which finds it among those it was linked with: other packages bring further copies of
    such libraries, each with threads of its own, and torch may be built upon none.
    """
    path = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    try:
        return ctypes.cast(ctypes.CDLL(str(path)).GOMP_parallel, ctypes.c_void_p).value or 0
    except (OSError, AttributeError):
        return 0


def call(function: Any, sizes: Sequence[int], *given: Any) -> None:
    """``function(team, sizes, *given)`` with tensors, None and lists of tensors as pointers, on torch's threads.

    Raises MemoryError, and IndexError for a code that is in no table.
    """
    threads = torch.get_num_threads()
    start = starter() if threads > 1 else 0
    team = Team(threads if start else 1, start)  # torch may have got more threads since a kernel was found to fit
    found = function(ctypes.byref(team), (ctypes.c_int64 * len(sizes))(*sizes), *(_pointer(each) for each in given))
    if found == NO_SUCH_CODE:
        raise IndexError("A code lies beyond the table of embeddings.")
    if found:
        raise MemoryError("A kernel in C++ found no memory for its blocks.")


def _pointer(given: Any) -> Any:
    if given is None:
        return ctypes.c_void_p(None)
    if isinstance(given, list | tuple):
        return (ctypes.c_void_p * len(given))(*(one.data_ptr() for one in given))
    return ctypes.c_void_p(given.data_ptr()) if hasattr(given, "data_ptr") else given
