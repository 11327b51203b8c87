"""The model with one pass an epoch and with more, beside the baselines: ``python collect.py BEFORE AFTER results.csv``.

BEFORE and AFTER are folders of backtests, one folder per log; baselines are taken from BEFORE. One row per log, target
and metric: means over origins; ``change``, by how much the model is further from the ideal than before, and ``behind``,
than the baseline it is furthest behind, on the origins that both answer (below zero is better), each with its paired
95 % interval over customers.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pandas as pd

from constellation.backtesting.cells import Cell, Key
from constellation.backtesting.league import League
from constellation.metrics.bootstrap import Interval

PAIRED = ("crps", "mae", "rmse", "gini_normalised", "spearman")
ALONE = ("coverage_90", "total_coverage_90", "bias_mean", "bias_mean_abs")
BEFORE, AFTER = "model", "model_after"


def cells(folder: Path) -> list[Cell]:
    """The finished cells of one backtest, the model as it was fitted left out."""
    paths = sorted(folder.glob("cells/*/*/seed_*/*d"))
    keys = [Key(p.parts[-4], p.parts[-3], int(p.parts[-2][5:]), int(p.parts[-1][:-1])) for p in paths]
    found = [Cell.load(folder, key) for key in keys if key.system != "model_raw"]
    return [cell for cell in found if cell is not None]


def joined(before: Path, after: Path) -> League:
    """Baselines at the origins that the model has finished, and the model twice where it was run twice."""
    first = cells(before)
    finished = {cell.key.origin for cell in first if cell.key.system == BEFORE}
    renamed = [cell for cell in cells(after) if cell.key.system == BEFORE] if after.is_dir() else []
    for cell in renamed:
        cell.key = replace(cell.key, system=AFTER)
    return League([cell for cell in [*first, *renamed] if cell.key.origin in finished])


def ends(name: str, found: Interval | None) -> dict[str, float]:
    return {} if found is None else {name: found.estimate, f"{name}_low": found.low, f"{name}_high": found.high}


def rows(name: str, league: League) -> list[dict[str, object]]:
    """Of one log."""
    means = {(row.target, row.metric, row.system): row for row in league.standings()}
    found: list[dict[str, object]] = []
    for target in league.targets:
        systems = [system for system in league.systems(target) if system not in (BEFORE, AFTER)]
        for metric in (*PAIRED, *ALONE):
            row: dict[str, object] = {"log": name, "target": target, "metric": metric}
            for system, label in ((BEFORE, "one_pass"), (AFTER, "more_passes")):
                standing = means.get((target, metric, system))
                if standing is not None:
                    row |= {label: standing.mean, f"{label}_origins": standing.num_origins}
            ours = AFTER if (target, metric, AFTER) in means else BEFORE
            if metric in PAIRED:
                row |= ends("change", league.paired(target, metric, AFTER, BEFORE))
                pairs = {system: league.paired(target, metric, ours, system) for system in systems}
                known = {system: pair for system, pair in pairs.items() if pair is not None}
                if known:
                    best = max(known, key=lambda system: known[system].estimate)
                    row |= {"best": best, "baseline": means[target, metric, best].mean} | ends("behind", known[best])
            found.append(row)
    return found


if __name__ == "__main__":
    if len(sys.argv) != 4:
        raise SystemExit("Usage: python collect.py BEFORE AFTER results.csv")
    one, other = Path(sys.argv[1]), Path(sys.argv[2])
    logs = sorted(path.parent.parent.name for path in one.glob("*/cells/settings.json"))
    table = pd.DataFrame([row for log in logs for row in rows(log, joined(one / log, other / log))])
    table.to_csv(sys.argv[3], index=False, float_format="%.5g")
