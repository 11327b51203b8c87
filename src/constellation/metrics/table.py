"""The table a person reads first: systems as rows, metrics as columns, an interval under each estimate."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from constellation.metrics.bootstrap import Interval
from constellation.metrics.evaluate import Evaluation

if TYPE_CHECKING:
    import pandas
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

# What says the most; the rest is in metrics.json and in MLflow.
MAIN_METRICS = (
    "gini_normalised",
    "spearman",
    "mae",
    "bias_total",
    "decile_mape",
    "crps",
    "coverage_90",
    "ndcg_at_10",
    "hit_rate_at_10",
    "recall_new_at_10",
    "brier",
    "brier_skill",
    "auc",
    "concordance",
)

_HEADINGS = {
    "gini_normalised": "Gini\n(norm.) ↑",
    "spearman": "Spearman\n↑",
    "mae": "MAE\n↓",
    "rmse": "RMSE\n↓",
    "bias_total": "bias of\ntotal → 0",
    "decile_mape": "decile\nMAPE ↓",
    "crps": "CRPS\n↓",
    "coverage_90": "coverage\n→ 90 %",
    "auc_any": "AUC any\nspend ↑",
    "ndcg_at_10": "NDCG@10\n↑",
    "hit_rate_at_10": "hit rate\n@10 ↑",
    "recall_new_at_10": "recall of\nnew @10 ↑",
    "brier": "Brier\n↓",
    "brier_skill": "Brier\nskill ↑",
    "auc": "AUC\n↑",
    "concordance": "concord-\nance ↑",
}
_PERCENT = {"bias_total", "coverage_90"}
# Outside a terminal the width must not depend on who runs the command; 128 holds seven metrics.
_PIPE_WIDTH = 128
_GAP = 2
_VERDICT_STYLE = {"better": "bold green", "not shown": "dim", "worse": "bold red"}


def format_number(metric: str, value: float, *, signed: bool = False) -> str:
    """Three digits after the point for scores, about four significant ones for money, percent for bias and coverage."""
    if not math.isfinite(value):
        return "–"
    sign = "+" if signed or metric == "bias_total" else ""
    if metric in _PERCENT:
        return f"{value * 100:{sign}.1f} %"
    size = abs(value)
    digits = 3 if size < 10 else 1 if size < 1000 else 0
    return f"{value:{sign},.{digits}f}"


def format_interval(metric: str, found: Interval, *, signed: bool = False) -> str:
    """`[low, high]`, without the unit and without what a narrow column can spare: `[.856, .880]`, `[168, 175]`."""
    if not math.isfinite(found.low) or not math.isfinite(found.high):
        return ""
    return f"[{_end(metric, found.low, signed)}, {_end(metric, found.high, signed)}]"


def _end(metric: str, value: float, signed: bool) -> str:
    sign = "+" if signed or metric == "bias_total" else ""
    if metric in _PERCENT:
        percent = value * 100
        return f"{percent:{sign}.{0 if abs(percent) >= 100 or (metric == 'coverage_90' and not signed) else 1}f}"
    if abs(value) >= 100:
        return f"{value:{sign},.0f}"
    text = format_number(metric, value, signed=signed)
    return text.replace("0.", ".", 1) if abs(value) < 1 else text


def build_tables(
    evaluation: Evaluation, split: str, target: str, *, metrics: Sequence[str] | None = None, width: int = _PIPE_WIDTH
) -> "list[Table]":
    """One table, or where the width does not hold all metrics several of the same systems, to be printed in turn."""
    from rich.table import Table
    from rich.text import Text

    present = evaluation.metrics(split, target)
    names = [name for name in (MAIN_METRICS if metrics is None else metrics) if name in present]
    systems = evaluation.systems(split, target)
    found = {system: evaluation.intervals(split, target, system) for system in systems}
    columns = {}
    for name in names:
        best = evaluation.best(split, target, name)
        cells = [_cell(name, found[system].get(name), is_best=best == system) for system in systems]
        columns[name] = [Text(_HEADINGS.get(name, name), style="bold"), *cells]
    system_width = max(len(system) for system in [*systems, "system"])
    tables = []
    for shown in _pack(columns, width - system_width):
        table = Table(box=None, pad_edge=False, padding=(0, 0, 0, _GAP), header_style="bold")
        table.add_column("system", no_wrap=True, min_width=system_width)
        for name in shown:
            table.add_column(columns[name][0], justify="right", no_wrap=True)
        for row, system in enumerate(systems, start=1):
            heading = Text(system, style="bold" if system == "model" else "")
            table.add_row(heading, *(columns[name][row] for name in shown))
        tables.append(table)
    return tables


def _cell(metric: str, found: Interval | None, *, is_best: bool) -> "Text":
    from rich.text import Text

    if found is None or not math.isfinite(found.estimate):
        return Text("–  \n", style="dim")
    text = Text(format_number(metric, found.estimate) + (" *" if is_best else "  "))
    text.stylize("bold green" if is_best else "")
    return text.append("\n" + format_interval(metric, found), style="dim")


def _pack(columns: "Mapping[str, list[Text]]", width: int) -> list[list[str]]:
    """Names in order, as many to a table as fit beside the column of systems."""
    packed: list[list[str]] = []
    room = 0
    for name, cells in columns.items():
        needed = _GAP + max(len(line) for cell in cells for line in cell.plain.split("\n"))
        if not packed or needed > room:
            packed.append([])
            room = width
        packed[-1].append(name)
        room -= needed
    return packed


def print_table(
    evaluation: Evaluation,
    split: str,
    target: str,
    *,
    metrics: Sequence[str] | None = None,
    console: "Console | None" = None,
) -> None:
    """Prints one split and target; a star only where the lead over the runner-up is more than chance.

    In a terminal the table fills its width; in a pipe or file it is always the same, 128 columns.
    """
    console = console or _console()
    num_rows = evaluation.num_rows(split, target)
    note = f"; {evaluation.notes[target]}" if target in evaluation.notes else ""
    console.print(f"[bold]{target}[/bold] on [bold]{split}[/bold], {num_rows:,} customers{note}", highlight=False)
    for number, table in enumerate(build_tables(evaluation, split, target, metrics=metrics, width=console.width)):
        if number:
            console.print()
        console.print(table)
    console.print(
        f"[dim]Under each figure its 95 % interval ({evaluation.num_resamples} resamples of customers). "
        "* = best, and the paired interval\nagainst the runner-up excludes zero; no star: the lead is not shown.[/dim]",
        highlight=False,
        soft_wrap=True,
    )


def print_comparison(
    frame: "pandas.DataFrame",
    reference: str,
    subject: str,
    num_customers: int,
    num_resamples: int,
    *,
    console: "Console | None" = None,
) -> None:
    """Prints the rows of `commands.compare.compare`: one block per run, one row per metric."""
    from rich.table import Table
    from rich.text import Text

    console = console or _console()
    console.print(f"[bold]{subject}[/bold], {num_customers:,} customers, against {reference}", highlight=False)
    for label, rows in frame.groupby("run", sort=False):
        table = Table(box=None, pad_edge=False, padding=(0, _GAP, 0, 0), header_style="bold", title_justify="left")
        table.add_column(str(label), no_wrap=True, min_width=18)
        for heading in ("reference", "this run", "difference", "95 % interval"):
            table.add_column(heading, justify="right", no_wrap=True)
        table.add_column("verdict", no_wrap=True)
        for row in rows.to_dict("records"):
            metric = row["metric"]
            found = Interval(row["difference"], row["low"], row["high"])
            table.add_row(
                metric,
                format_number(metric, row["reference"]),
                format_number(metric, row["value"]),
                format_number(metric, row["difference"], signed=True),
                format_interval(metric, found, signed=True),
                Text(row["verdict"], style=_VERDICT_STYLE[row["verdict"]]),
            )
        console.print(table)
    console.print(
        f"[dim]Paired bootstrap of customers, {num_resamples:,} resamples. Verdicts hold together (Holm, 5 %), "
        "intervals each alone.\nFor bias and coverage the difference is of the distances from 0 and from 90 %.[/dim]",
        highlight=False,
        soft_wrap=True,
    )


def _console() -> "Console":
    from rich.console import Console

    console = Console()
    return console if console.is_terminal else Console(width=_PIPE_WIDTH)
