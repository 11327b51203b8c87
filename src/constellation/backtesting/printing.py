"""What a backtest says on the terminal: its plan, its progress, its league table."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

from constellation.backtesting.cells import SCORED, Cell
from constellation.backtesting.league import JUDGED, League
from constellation.backtesting.origins import Origin, independent_windows
from constellation.backtesting.systems import System
from constellation.metrics.names import shortfall

SHOWN = (
    "crps", "mae", "rmse", "gini_normalised", "spearman", "decile_mape", "bias_mean", "bias_mean_abs",
    "bias_worst_abs", "coverage_90", "total_coverage_90",
)  # fmt: skip

HEADINGS = {"gini_normalised": "gini norm.", "bias_mean_abs": "bias abs", "bias_worst_abs": "bias worst"}
"""Of columns whose names would be cut."""


def plan_lines(origins: Sequence[Origin], systems: Sequence[System]) -> list[str]:
    """Origins with their horizons; those that models cannot be taught there stand in brackets."""
    lines = [f"{len(origins)} origins, {len(systems)} systems: {', '.join(system.name for system in systems)}"]
    for origin in origins:
        horizons = [str(days) if days in origin.trainable_days else f"({days})" for days in origin.horizons_days]
        lines.append(f"  {origin.name}  horizons {', '.join(horizons)} days, selected {origin.select_days} days before")
    if any(origin.trainable_days != origin.horizons_days for origin in origins):
        lines.append("  (days): not trainable there, for the history before is too short to teach that horizon")
    horizons_days = sorted({days for origin in origins for days in origin.horizons_days})
    counts = [f"{days} days: {independent_windows(origins, days)}" for days in horizons_days]
    lines.append(f"windows that do not overlap, which is what a spread over origins is worth: {'; '.join(counts)}")
    return lines


class Progress:
    """One line per fit with the time that is left, by the pace of each system so far."""

    def __init__(self, num_fits: dict[str, int]) -> None:
        self.left = dict(num_fits)
        self.total, self.done = sum(num_fits.values()), 0
        self.seconds: dict[str, list[float]] = {name: [] for name in num_fits}

    def line(self, cells: Sequence[Cell], *, kept: bool) -> str:
        """After the fit that these cells come from; kept: it was found on disk."""
        key = cells[0].key
        self.done, self.left[key.system] = self.done + 1, self.left[key.system] - 1
        if not kept:
            self.seconds[key.system].append(cells[0].seconds)
        said = []
        for cell in cells:
            scored = {name: score.metrics for name, score in cell.targets.items() if "crps" in score.metrics}
            # Of money that is zero throughout no bias is known, and the purchases say more.
            known = [name for name, metrics in scored.items() if math.isfinite(metrics.get("bias_total", math.nan))]
            target = next(iter([*known, *scored]), None)
            if cell.status != SCORED:
                said.append(f"{key_days(cell)} {cell.status}")
            elif target is not None:
                metrics = cell.targets[target].metrics
                said.append(f"{target} crps {metrics['crps']:.4g} bias {metrics['bias_total']:+.1%}")
            else:
                said.append(f"{key_days(cell)} scored")
        place = f"[{self.done:>{len(str(self.total))}}/{self.total}] {key.origin} {key.system}"
        place += f" seed {key.seed}" if key.system.startswith("model") else ""
        tail = "kept" if kept else f"{cells[0].seconds:.1f} s{self._left()}"
        return f"{place}: {'; '.join(said)} ({tail})"

    def _left(self) -> str:
        known = [value for values in self.seconds.values() for value in values]
        seconds = 0.0
        for name, number in self.left.items():
            own = self.seconds[name] or known
            seconds += number * sum(own) / len(own)
        return f", about {time.strftime('%H:%M:%S', time.gmtime(seconds))} left" if self.done < self.total else ""


def key_days(cell: Cell) -> str:
    return f"{cell.key.horizon_days}d"


def print_league(league: League, targets: Sequence[str] | None = None) -> None:
    """A table per target: the mean over origins, under it the worst origin, beside it the spread over origins.

    targets: those to show; null: all.
    """
    from rich.console import Console
    from rich.table import Table

    console = Console()
    console = console if console.is_terminal else Console(width=150)
    rows = {(row.target, row.system, row.metric): row for row in league.standings()}
    for target in league.targets if targets is None else targets:
        systems = league.systems(target)
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold", title_justify="left")
        table.add_column("system", no_wrap=True)
        table.add_column("cells", justify="right")
        for metric in SHOWN:
            table.add_column(HEADINGS.get(metric, metric.replace("_", " ")), justify="right")
        lead = "crps" if any((target, system, "crps") in rows for system in systems) else "mae"

        def order(system: str, target: str = target, lead: str = lead) -> float:
            row = rows.get((target, system, lead))
            return float(shortfall(lead, row.mean)) if row is not None else math.inf

        for system in sorted(systems, key=order):
            line, worst = [system], [""]
            num_cells = max(row.num_cells for (t, s, _), row in rows.items() if (t, s) == (target, system))
            line.append(str(num_cells))
            worst.append("")
            for metric in SHOWN:
                row = rows.get((target, system, metric))
                line.append("" if row is None else _number(metric, row.mean))
                spread = row is not None and metric not in ("bias_mean_abs", "bias_worst_abs", "total_coverage_90")
                worst.append(
                    f"[dim]{_number(metric, row.worst)} ±{_number(metric, row.spread_origins, signed=False)}[/dim]"
                    if row is not None and spread
                    else ""
                )
            table.add_row(*line)
            if len(league.origins(target)) > 1:  # one origin is its own worst, and has no spread
                table.add_row(*worst)
        number = len(league.origins(target))
        over = f"{number} origins" if number > 1 else f"1 origin ({league.origins(target)[0]})"
        console.print(f"\n[bold]{target}[/bold] over {over}", highlight=False)
        console.print(table)
        console.print(_verdict(league, target), highlight=False)
    console.print(
        "[dim]Mean over origins (of the mean over seeds); under it the worst origin and the standard deviation over "
        "origins. A winner is\nnamed only where it answers at every origin and its paired 95 % interval against each "
        "other system excludes zero; customers\nare resampled, the calendar is not. Cells: origins times "
        "seeds.[/dim]",
        highlight=False,
        soft_wrap=True,
    )


def _verdict(league: League, target: str) -> str:
    named = {metric: league.winner(target, metric) for metric in JUDGED}
    won = [f"{metric} {name}" for metric, name in named.items() if name is not None]
    open_ones = [metric for metric, name in named.items() if name is None]
    said = f"winner: {', '.join(won)}. " if won else ""
    return said + (f"No winner can be named by {', '.join(open_ones)}." if open_ones else "")


def _number(metric: str, value: float, *, signed: bool = True) -> str:
    if metric.startswith("bias") or "coverage" in metric:
        sign = "+" if signed and metric == "bias_mean" else ""
        return f"{value:{sign}.1%}"
    return f"{value:.3f}" if abs(value) < 100 else f"{value:.1f}"
