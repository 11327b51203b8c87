"""Peak memory of this process."""

from __future__ import annotations

import sys
from pathlib import Path


def peak_memory_gib() -> float:
    """Peak resident memory of this process so far, in GiB."""
    if sys.platform == "win32":
        import psutil

        return float(psutil.Process().memory_info().peak_wset) / 2**30
    status = Path("/proc/self/status")
    if status.exists():
        # Not getrusage: its peak is handed on from the parent, who has just simulated a large table.
        peak_kib = next(line.split()[1] for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(peak_kib) / 2**20
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**30 if sys.platform == "darwin" else 2**20)  # bytes there, kibibytes elsewhere
