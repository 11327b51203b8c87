"""Which peers are installed, and one measurement of one system in a fresh process."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from constellation.commands.benchmarks import throughput_meter
from constellation.commands.benchmarks.throughput_meter import RESULT, Task
from constellation.errors import InputError

OURS = "constellation"
OURS_ITEMS = "constellation_items"
"""Ours on just what peers read that take one item per event: no baskets, fields, amounts or times."""

FULL_SOFTMAX = "full softmax"
"""The loss of ours and of its nearest peers; any other loss is a cheaper one of the peer's own."""

TIME_LIMIT_SECONDS = 1800
LAST_LINES = 3  # of what a failed system wrote, to be shown


@dataclass(frozen=True)
class System:
    """Something that trains: its loss, the command that runs it, and settings of its own."""

    name: str
    loss: str
    about: str
    command: tuple[str, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)


class Failed(RuntimeError):
    """A system that gave no result; the message says why."""


def our_system(clock: str, name: str = OURS) -> System:
    module = "constellation.commands.benchmarks.throughput_ours"
    return System(name, FULL_SOFTMAX, "this package", (sys.executable, "-m", module), {"clock": clock})


def peers_folder() -> Path | None:
    """``benchmarks/peers`` below the working directory, else of the clone that this package lies in; None if absent."""
    clone = Path(__file__).resolve().parents[4]
    places = [Path("benchmarks/peers").resolve(), clone / "benchmarks" / "peers"]
    return next((place for place in places if place.is_dir()), None)


def known_peers(folder: Path | None) -> tuple[list[System], dict[str, str]]:
    """The systems of installed peers in ``folder``, and why the others cannot run, by name of the system.

    A peer is a folder with ``run.py`` and ``peer.json`` (systems by name, with ``loss``, ``about`` and ``settings``).
    With a ``requirements.txt`` it runs in an environment of its own, ``.venv`` in its folder; without, in ours.
    """
    ready: list[System] = []
    absent: dict[str, str] = {}
    for described in sorted(folder.glob("*/peer.json")) if folder is not None else ():
        home = described.parent
        python = home / ".venv" / "bin" / "python" if (home / "requirements.txt").exists() else Path(sys.executable)
        for name, facts in json.loads(described.read_text(encoding="utf-8")).items():
            if python.exists():
                command = (str(python), str(home / "run.py"))
                ready.append(System(name, facts["loss"], facts["about"], command, facts.get("settings", {})))
            else:
                absent[name] = f"is not installed; `make peers` or `python {home.parent / 'install.py'} {home.name}`"
    return ready, absent


def choose_peers(peers: str | Sequence[str] | None, folder: Path | None) -> list[System]:
    """``installed``: all that are; null or []: none; else systems by name. Raises InputError for one that is absent."""
    ready, absent = known_peers(folder)
    if peers == "installed":
        return ready
    names = [peers] if isinstance(peers, str) else list(peers or ())
    for name in names:
        if name in absent:
            raise InputError(f"The peer {name} {absent[name]}.")
        if name not in {system.name for system in ready}:
            known = ", ".join(sorted([*absent, *(system.name for system in ready)])) or "none"
            where = folder or "benchmarks/peers of a clone of the repository"
            raise InputError(f"There is no peer {name!r} in {where}. Known: {known}; or peers=installed for all.")
    return [system for system in ready if system.name in names]


def measure(system: System, task: Task) -> dict[str, float]:
    """Events per second, CPU seconds per million events and peak GiB of one training in a fresh process.

    Raises Failed where the process ends without a result.
    """
    folder = Path(task.folder)
    written = folder / "task.json"
    written.write_text(json.dumps(asdict(task) | {"settings": dict(system.settings)}), encoding="utf-8")
    try:
        done = subprocess.run(
            [*system.command, str(written)],
            capture_output=True,
            text=True,
            check=False,
            env=_environment(system, folder, task.num_threads),
            timeout=TIME_LIMIT_SECONDS,
            cwd=folder,
        )
    except subprocess.TimeoutExpired:
        raise Failed(f"gave no result in {TIME_LIMIT_SECONDS / 60:.0f} minutes") from None
    found = [line for line in done.stdout.splitlines() if line.startswith(RESULT)]
    if done.returncode != 0 or not found:
        said = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        last = " | ".join(said[-LAST_LINES:])
        killed = " (killed; is the memory too small?)" if done.returncode in (-9, 137) else ""
        raise Failed(f"ended with {done.returncode}{killed}: {last or 'it wrote nothing'}")
    result = json.loads(found[-1].removeprefix(RESULT))
    if result["num_events"] <= 0:
        raise Failed("learned from no events")
    return {
        "events_per_second": result["num_events"] / result["seconds"],
        "cpu_seconds_per_million_events": 1e6 * result["cpu_seconds"] / result["num_events"],
        "peak_memory_gib": result["peak_memory_gib"],
    }


def _environment(system: System, folder: Path, num_threads: int) -> dict[str, str]:
    """So many threads for every library; the meter, and for peers nothing else of ours, on the import path."""
    kept = {name: value for name, value in os.environ.items() if name not in ("RANK", "LOCAL_RANK")}
    kept |= dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(num_threads))
    kept |= {"CUDA_VISIBLE_DEVICES": "", "TOKENIZERS_PARALLELISM": "false"}
    if system.name not in (OURS, OURS_ITEMS):
        beside = folder / "meter"
        beside.mkdir(exist_ok=True)
        shutil.copy(throughput_meter.__file__, beside / "throughput_meter.py")
        kept["PYTHONPATH"] = str(beside)
    else:
        # The folder of the task is the working directory, so a relative path would lead nowhere.
        kept["PYTHONPATH"] = os.pathsep.join(str(Path(place).absolute()) for place in sys.path if place)
    return kept
