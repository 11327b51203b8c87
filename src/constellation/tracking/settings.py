"""The settings that a folder was begun with, kept in it, so that nobody goes on there with others."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from constellation.errors import InputError
from constellation.tracking.records import flatten

OF_THE_MACHINE = (
    "data.root",
    "data.cache",
    "training.accelerator",
    "training.devices",
    "training.num_threads",
    "training.strategy",
    "training.checkpoint_every_steps",
    "training.checkpoint_every_minutes",
)
"""What may differ between two machines without changing the experiment."""

MOST_LISTED = 8


def check_settings(
    path: Path, settings: Mapping[str, Any], what: str, advice: str, leave_out: Collection[str] = OF_THE_MACHINE
) -> None:
    """Keep ``settings`` in the file ``path``; where it holds others already, raise InputError and leave it as it is.

    what: the beginning of that message, such as "The run to resume was started with"; advice: its end. ``leave_out``:
    dotted names of settings that may differ.
    """
    # As text a value reads the same from YAML and from JSON. A group without keys sets nothing.
    mine = {
        name: json.dumps(value, default=str)
        for name, value in flatten(settings).items()
        if value != {} and name not in leave_out
    }
    theirs = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else mine
    different = [name for name in sorted(mine | theirs) if name not in leave_out and mine.get(name) != theirs.get(name)]
    if different:
        shown = different[:MOST_LISTED]
        listed = "; ".join(f"{name}: {theirs.get(name)} then, {mine.get(name)} now" for name in shown)
        raise InputError(f"{what} other settings ({listed}). {advice}")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(mine, indent=1), encoding="utf-8")
