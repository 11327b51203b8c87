"""What a backtest looks like: bias by origin, what intervals covered, calibration and Lorenz curves."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from constellation.backtesting.cells import columns
from constellation.backtesting.league import League

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def figures(league: League, folder: Path, *, ours: str = "model") -> dict[str, Figure]:
    """By name. Calibration and Lorenz curves take all origins together, of systems that answer at every one."""
    from constellation.metrics import plots

    drawn: dict[str, Figure] = {}
    for target in league.targets:
        drawn[f"bias_by_origin_{target}"] = bias_by_origin(league, target, ours=ours)
        drawn[f"coverage_{target}"] = coverage(league, target, ours=ours)
        realised_Q, expected = _pooled(league, folder, target)
        if realised_Q is None:
            continue
        name = ours if ours in expected else next(iter(expected))
        title = f"{target}, {len(league.origins(target))} origins"
        drawn[f"calibration_{target}"] = plots.decile_calibration(realised_Q, expected, ours=name, title=title)
        if realised_Q.sum() > 0:
            drawn[f"lorenz_{target}"] = plots.lorenz(realised_Q, expected, ours=name, title=title)
    return drawn


def bias_by_origin(league: League, target: str, *, ours: str = "model") -> Figure:
    """Signed error of the total at each origin, mean over seeds; ours with the range of its seeds."""
    from constellation.metrics.plots import INK, _figure, _legend_outside, _percent, _styles

    origins = league.origins(target)
    figure, (axes,) = _figure(f"{target}: error of the total by origin", 1, size=(8.6, 4.2))
    axes.axhline(0, color=INK, linewidth=0.8)
    for system, style in _styles(league.systems(target), ours):
        found = league.values(target, system, "bias_total")
        x = [place for place, origin in enumerate(origins) if origin in found]
        seeds = [list(found[origins[place]].values()) for place in x]
        axes.plot(x, [float(np.mean(values)) for values in seeds], marker="o", markersize=4, label=system, **style)
        if system == ours and any(len(values) > 1 for values in seeds):
            axes.vlines(x, [min(v) for v in seeds], [max(v) for v in seeds], color=style["color"], linewidth=1.2)
    axes.set_xticks(range(len(origins)), [origin[:10] for origin in origins], rotation=35, ha="right")
    axes.set_ylabel("predicted / realised - 1")
    axes.yaxis.set_major_formatter(_percent())
    low, high = axes.get_ylim()
    axes.set_ylim(max(low, -1.05), min(high, 1.5))
    _legend_outside(axes)
    return figure


def coverage(league: League, target: str, *, ours: str = "model") -> Figure:
    """Left: 90 % interval of the total over what was realised, by origin, of ours or else the best by CRPS.

    Right: the share that each system's intervals covered, of customers and of totals.
    """
    from constellation.metrics.plots import ACCENT, FAINT, INK, _figure, _percent

    systems = [name for name in league.systems(target) if league.values(target, name, "coverage_90")]
    by_crps = sorted(systems, key=lambda system: _mean(league.values(target, system, "crps")))
    name = ours if ours in systems else next(iter(by_crps), None)
    figure, (left, right) = _figure(f"{target}: what 90 % intervals covered", 2, size=(5.6, 4.2))
    origins = league.origins(target)
    left.axhline(1, color=INK, linewidth=0.8)
    for cell in league.cells:
        if cell.key.system != name or target not in cell.targets:
            continue
        facts = {part: cell.targets[target].facts.get(f"total_{part}") for part in ("realised", "low", "high")}
        realised, low, high = (float(value) if value is not None else np.nan for value in facts.values())
        if not realised > 0 or not np.isfinite(low):
            continue
        place, seeds = origins.index(cell.key.origin), {key.key.seed for key in league.cells}
        shift = 0.12 * (sorted(seeds).index(cell.key.seed) - (len(seeds) - 1) / 2) / max(len(seeds) / 5, 1)
        color = ACCENT if low <= realised <= high else "#D55E00"
        left.plot([place + shift] * 2, [low / realised, high / realised], color=color, linewidth=2.4)
    left.set_xticks(range(len(origins)), [origin[:10] for origin in origins], rotation=35, ha="right")
    left.set_ylabel(f"90 % interval of the total by {name} / realised")
    middle = np.arange(len(systems))
    for number, metric, color in ((-1, "coverage_90", ACCENT), (1, "total_coverage_90", "#E69F00")):
        found = [_mean(league.values(target, system, metric)) for system in systems]
        label = "customers (randomised)" if metric == "coverage_90" else "totals"
        right.barh(middle + 0.19 * number, found, height=0.36, color=color, label=label)
    right.axvline(0.9, color=INK, linewidth=1.0)
    right.axvspan(0.87, 0.93, color=FAINT, alpha=0.5, linewidth=0)
    right.set_yticks(middle, systems)
    right.invert_yaxis()
    right.set_xlim(0, 1.02)
    right.xaxis.set_major_formatter(_percent())
    right.legend(loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=2, frameon=False, fontsize=8.5)
    return figure


def _mean(found: Mapping[str, Mapping[int, float]]) -> float:
    values = [value for seeds in found.values() for value in seeds.values()]
    return float(np.mean(values)) if values else 0.0


def _pooled(league: League, folder: Path, target: str) -> tuple[np.ndarray | None, dict[str, np.ndarray]]:
    """What was realised, and what each system expected as the mean of its seeds, customers of all origins in a row."""
    origins = league.origins(target)
    realised_Q: np.ndarray | None = None
    expected: dict[str, np.ndarray] = {}
    for system in league.systems(target):
        parts, outcomes = [], []
        for origin in origins:
            found = [
                columns(folder, cell.key, target)
                for cell in league.cells
                if (cell.key.system, cell.key.origin) == (system, origin) and target in cell.targets
            ]
            tables = [table for table in found if table is not None]
            if not tables:
                break
            parts.append(np.mean([table["expected"].to_numpy() for table in tables], axis=0))
            outcomes.append(tables[0]["realised"].to_numpy())
        if len(parts) == len(origins):
            expected[system], realised_Q = np.concatenate(parts), np.concatenate(outcomes)
    return realised_Q, expected
