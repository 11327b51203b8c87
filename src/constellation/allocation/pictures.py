"""Pictures of a plan: where options are lost, and what a budget brings."""

from __future__ import annotations

from typing import TYPE_CHECKING

from constellation.metrics.plots import ACCENT, FAINT, INK

if TYPE_CHECKING:
    import polars as pl
    from matplotlib.figure import Figure

LABELS = {
    "offered": "offered",
    "eligible": "eligible",
    "suitable": "worth more than none",
    "within_caps": "left by caps and cool-downs",
    "arbitrated": "worth their price",
    "chosen": "chosen",
}


def funnel_picture(funnel: pl.DataFrame) -> Figure:
    """Customers with an engagement left, stage by stage."""
    from matplotlib.figure import Figure

    rows = funnel.filter(funnel["action"] == "all")
    counts = rows["num_customers"].to_list()
    figure = Figure(figsize=(7.2, 3.4), layout="constrained")
    axes = figure.subplots()
    places = range(len(counts))
    axes.barh(places, counts, color=[FAINT] * (len(counts) - 1) + [ACCENT], height=0.7)
    for place, count in zip(places, counts, strict=True):
        axes.text(count, place, f" {count:,}", va="center", color=INK, fontsize=9)
    axes.set_yticks(places, [LABELS[stage] for stage in rows["stage"]])
    axes.invert_yaxis()
    axes.set(xlabel="customers with at least one such engagement", xlim=(0, max(counts[0], 1) * 1.15))
    axes.set_title("Where engagements are lost", loc="left", color=INK)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    return figure


def budget_picture(curve: pl.DataFrame, spent: float, gain: float, budget: float, num_customers: int) -> Figure:
    """Gain over none against budget by the linear program of a sample, and the plan's own point."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 4.0), layout="constrained")
    axes = figure.subplots()
    axes.plot(curve["budget"], curve["gain"], color=ACCENT, marker="o", markersize=4, label="highest gain (sample)")
    axes.plot([spent], [gain], color=INK, marker="D", linestyle="none", label="this plan")
    if budget < float("inf"):
        axes.axvline(budget, color=FAINT, zorder=0, label="the budget")
    axes.set(xlabel="budget", ylabel=f"gain over none, {num_customers:,} customers", ylim=(0, None), xlim=(0, None))
    axes.set_title("What a budget brings, by the predictions", loc="left", color=INK)
    axes.legend(frameon=False, loc="lower right")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    return figure
