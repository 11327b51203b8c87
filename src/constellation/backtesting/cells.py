"""A cell is an origin, a horizon, a system and a seed: what came of it, and how it lies on disk.

A cell whose ``cell.json`` exists is finished; it is written last, in one move, so that a run that was killed finds
whole cells or none.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from constellation.tracking.settings import check_settings

if TYPE_CHECKING:
    import pandas

SCORED, NOT_TRAINABLE, NO_ANSWER = "scored", "not trainable", "no answer"


@dataclass(frozen=True)
class Key:
    """Names one cell; ``path`` is its folder in that of the backtest, and its name among MLflow's runs."""

    origin: str
    system: str
    seed: int
    horizon_days: int

    @property
    def path(self) -> str:
        return f"cells/{self.origin.replace(':', '-')}/{self.system}/seed_{self.seed}/{self.horizon_days}d"


@dataclass
class TargetScore:
    """One target of a cell.

    metrics: estimates by name. samples: the same on resamples of customers [R], which all cells share. columns: per
    customer at risk [Q], with ``journey``, the row in the store.
    """

    metrics: dict[str, float]
    samples: dict[str, np.ndarray]
    columns: dict[str, np.ndarray]
    facts: dict[str, float | str] = field(default_factory=dict)


@dataclass
class Cell:
    """A finished cell. cutoff: microseconds. targets: without scores where the system had nothing to say."""

    key: Key
    cutoff: int
    status: str
    seconds: float = 0.0
    targets: dict[str, TargetScore] = field(default_factory=dict)

    def save(self, folder: Path) -> None:
        """Scores and samples, the columns, and at last ``cell.json``."""
        import pandas as pd

        place = folder / self.key.path
        place.mkdir(parents=True, exist_ok=True)
        samples = {f"{target}/{name}": values for target, score in self.targets.items() for name, values in
                   score.samples.items()}  # fmt: skip
        np.savez_compressed(place / "samples.npz", **samples)  # type: ignore[arg-type]
        for target, score in self.targets.items():
            pd.DataFrame(score.columns).to_parquet(place / f"{target}.parquet", index=False)
        written = {
            **asdict(self.key),
            "cutoff": self.cutoff,
            "status": self.status,
            "seconds": self.seconds,
            "targets": {
                name: {"metrics": _jsonable(score.metrics), "facts": _jsonable(score.facts)}
                for name, score in self.targets.items()
            },
        }
        partial = place / "cell.json.partial"
        partial.write_text(json.dumps(written, indent=1), encoding="utf-8")
        os.replace(partial, place / "cell.json")

    @classmethod
    def load(cls, folder: Path, key: Key) -> Cell | None:
        """None where the cell is not finished. Columns are left on disk; see :func:`columns`."""
        path = folder / key.path / "cell.json"
        if not path.is_file():
            return None
        read = json.loads(path.read_text(encoding="utf-8"))
        cell = cls(key, read["cutoff"], read["status"], read["seconds"])
        with np.load(folder / key.path / "samples.npz") as samples:
            for target, parts in read["targets"].items():
                of_target = {
                    name.partition("/")[2]: samples[name] for name in samples.files if name.startswith(f"{target}/")
                }
                metrics = {name: float("nan") if value is None else value for name, value in parts["metrics"].items()}
                cell.targets[target] = TargetScore(metrics, of_target, {}, parts["facts"])
        return cell

    def rows(self) -> Iterator[dict[str, Any]]:
        """Rows of the table of all cells, one per target, or one for a cell without scores."""
        keys = {**asdict(self.key), "status": self.status, "seconds": self.seconds}
        for target, score in self.targets.items():
            yield {**keys, "target": target, **score.facts, **score.metrics}
        if not self.targets:
            yield {**keys, "target": None}


def columns(folder: Path, key: Key, target: str) -> pandas.DataFrame | None:
    """Per customer: ``journey, realised, expected, median``, and where the system says so ``p_zero, crps, pit``."""
    import pandas as pd

    path = folder / key.path / f"{target}.parquet"
    return pd.read_parquet(path) if path.is_file() else None


def check_same(folder: Path, settings: Mapping[str, Any]) -> None:
    """Cells of two different backtests must not mix: raises InputError where the finished ones had other settings."""
    check_settings(
        folder / "cells" / "settings.json",
        settings,
        f"The finished cells in {folder} come from",
        "Resume with the same, or choose another folder with output=DIR.",
    )


def _jsonable(values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: (value if isinstance(value, str) else float(value) if np.isfinite(value) else None)
        for name, value in values.items()
    }
