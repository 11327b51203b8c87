"""What a run writes down: plain files, and the environment it ran in."""

from __future__ import annotations

import functools
import json
import math
import os
import platform
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def environment() -> dict[str, Any]:
    """Python, platform, versions of all installed packages, commit of the code, cores and thread settings."""
    commit, changed = _commit()
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu_cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": {name: os.environ.get(name) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")},
        "commit": commit,
        "uncommitted_changes": changed,
        "command_line": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "packages": dict(_packages()),
    }


@functools.cache
def _packages() -> dict[str, str]:
    """Versions by name. Read once: it takes a tenth of a second, and a study or a notebook opens many runs."""
    from importlib import metadata

    packages = {str(found.metadata["Name"]): found.version for found in metadata.distributions()}
    return dict(sorted(packages.items(), key=lambda pair: pair[0].lower()))


def _commit() -> tuple[str | None, bool | None]:
    """Commit of the repository the package lies in, and whether files were changed since; None without one."""
    here = Path(__file__).resolve().parent
    try:
        commit = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, timeout=5, check=True
        ).stdout.strip()
        status = subprocess.run(
            ["git", "status", "--porcelain", "--untracked-files=no"],
            cwd=here, capture_output=True, text=True, timeout=5, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None, None
    return commit, bool(status.stdout.strip())


def flatten(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, keys joined by dots; lists stay values."""
    flat: dict[str, Any] = {}
    for name, value in nested.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def finite(value: float) -> float | None:
    """JSON has no NaN: an undefined metric is null."""
    return value if math.isfinite(value) else None


def write_json(path: Path, content: Any) -> None:
    """Write the whole file or nothing: a reader never sees half of it."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    partial.replace(path)


def to_yaml(config: Mapping[str, Any]) -> str:
    """YAML of plain containers, in the order given."""
    import yaml

    return yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True, default_flow_style=False)


def without_passwords(config: Any) -> Any:
    """A copy in which passwords inside addresses (``scheme://user:password@host``) are blotted out."""
    if isinstance(config, Mapping):
        return {name: without_passwords(value) for name, value in config.items()}
    if isinstance(config, list | tuple):
        return [without_passwords(value) for value in config]
    return re.sub(r"(://[^/:@\s]+):[^@/\s]+@", r"\1:***@", config) if isinstance(config, str) else config
