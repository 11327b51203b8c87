"""Pictures of an explanation: what moved one customer's prediction, and what moves predictions in general."""

from __future__ import annotations

from typing import TYPE_CHECKING

from constellation.metrics.plots import ACCENT, FAINT, INK

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from constellation.explanation.explaining import Explanation

MOST_BARS = 12


def customer_picture(largest: pd.DataFrame, title: str, unit: str) -> Figure:
    """Bars of ``name`` and ``contribution``, largest on top. No customer is named: pictures are shown around."""
    from matplotlib.figure import Figure

    rows = largest.head(MOST_BARS)
    figure = Figure(figsize=(8.0, 0.6 + 0.34 * max(len(rows), 2) + 0.6), layout="constrained")
    axes = figure.subplots()
    places = range(len(rows))
    colours = [ACCENT if value >= 0 else FAINT for value in rows["contribution"]]
    axes.barh(places, rows["contribution"], color=colours, height=0.7)
    axes.axvline(0.0, color=INK, linewidth=0.8)
    axes.set_yticks(places, [_short(name) for name in rows["name"]], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel(f"contribution to the prediction{f', {unit}' if unit else ''}")
    axes.set_title(title, loc="left", color=INK, fontsize=10)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    return figure


def fields_picture(explanation: Explanation, unit: str) -> Figure:
    """Mean over customers of what each field moves, in either direction."""
    from matplotlib.figure import Figure

    rows = explanation.by_field().head(MOST_BARS)
    figure = Figure(figsize=(7.2, 0.8 + 0.34 * max(len(rows), 2) + 0.6), layout="constrained")
    axes = figure.subplots()
    places = range(len(rows))
    axes.barh(places, rows["mean_absolute"], color=ACCENT, height=0.7)
    axes.set_yticks(places, [_short(name) for name in field_names(rows)], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel(f"mean absolute contribution{f', {unit}' if unit else ''}")
    axes.set_title(
        f"What moves {explanation.answer}, {len(explanation.customers):,} customers", loc="left", color=INK, fontsize=10
    )
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    return figure


def field_names(rows: pd.DataFrame) -> list[str]:
    """Names of fields for people: those of events say so, for the cutoff reads some of the same columns."""
    pairs = zip(rows["part"], rows["field"], strict=True)
    return [
        f"{field} of events" if part == "event" else f"{field} of the customer" * (part == "attribute") or field
        for part, field in pairs
    ]


def _short(name: str) -> str:
    return name if len(name) <= 60 else f"{name[:57]}..."
