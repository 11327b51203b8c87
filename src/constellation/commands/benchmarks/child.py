"""A measurement in a process of its own: no earlier one has warmed its caches or left memory behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from typing import Any


def measured_in_child(
    module: str, *arguments: str, what: str, environment: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """What ``python -m module arguments`` prints as JSON in its last line.

    environment: variables beside those of this process. Raises RuntimeError with what it said where ``what`` failed.
    """
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | dict(environment or {}),
    )
    if done.returncode != 0:
        raise RuntimeError(f"{what} failed:\n{done.stderr}")
    return dict(json.loads(done.stdout.splitlines()[-1]))
