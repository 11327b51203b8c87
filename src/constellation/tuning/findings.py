"""What a study found: the best trials, what mattered, pictures, and one page to pass on."""

from __future__ import annotations

import html
import io
import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import optuna
    import pandas
    from matplotlib.figure import Figure

LEAST_TRIALS = 4
"""Fewer finished trials say nothing about what mattered."""


def finished(study: optuna.Study) -> list[optuna.trial.FrozenTrial]:
    """Trials with a score, in order."""
    import optuna

    return study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,))


def best(study: optuna.Study) -> list[optuna.trial.FrozenTrial]:
    """The best trial; with several metrics those that no other beats in all of them (the Pareto front)."""
    return list(study.best_trials) if finished(study) else []


def importances(study: optuna.Study, num_metrics: int) -> list[dict[str, float]]:
    """Per metric the share of its variance that each parameter explains (fANOVA); empty where too little was tried."""
    import optuna

    trials = finished(study)
    found: list[dict[str, float]] = []
    for place in range(num_metrics):
        values = {trial.values[place] for trial in trials}
        varied = trials and any(len({str(trial.params.get(name)) for trial in trials}) > 1 for name in trials[0].params)
        if len(trials) < LEAST_TRIALS or len(values) < 2 or not varied:
            found.append({})
            continue
        evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
        target = partial(_value, place)
        shares = optuna.importance.get_param_importances(study, evaluator=evaluator, target=target)
        found.append({name: float(share) for name, share in shares.items()})
    return found


def _value(place: int, trial: optuna.trial.FrozenTrial) -> float:
    return trial.values[place]


def table(study: optuna.Study, metrics: Sequence[str]) -> pandas.DataFrame:
    """One row per trial: number, state, metrics (of a pruned one its last), seconds, parameters."""
    import pandas as pd

    rows = []
    for trial in study.get_trials(deepcopy=False):
        values = trial.values or [math.nan] * len(metrics)
        seconds = trial.duration.total_seconds() if trial.duration is not None else math.nan
        last = trial.intermediate_values[max(trial.intermediate_values)] if trial.intermediate_values else math.nan
        rows.append(
            {"trial": trial.number, "state": trial.state.name.lower(), **dict(zip(metrics, values, strict=True))}
            | {"last_epoch_value": last, "seconds": seconds, **trial.params}
        )
    return pd.DataFrame(rows)


def figures(study: optuna.Study, metrics: Sequence[str], as_configured: Sequence[float] | None) -> dict[str, Figure]:
    """``history`` and ``importance``, and ``front`` with two metrics or more."""
    drawn = {"history": history(study, metrics, as_configured)}
    shares = importances(study, len(metrics))
    if any(shares):
        drawn["importance"] = importance(dict(zip(metrics, shares, strict=True)))
    if len(metrics) > 1:
        drawn["front"] = front(study, metrics)
    return drawn


def history(study: optuna.Study, metrics: Sequence[str], as_configured: Sequence[float] | None) -> Figure:
    """Each trial's score, the best so far, and the settings as they were configured."""
    from constellation.metrics.plots import ACCENT, INK, _figure

    trials = finished(study)
    figure, all_axes = _figure("trials on validation", len(metrics), size=(6.4, 3.8))
    for place, (axes, metric) in enumerate(zip(all_axes, metrics, strict=True)):
        numbers = [trial.number for trial in trials]
        values = np.array([trial.values[place] for trial in trials])
        better = np.minimum if study.directions[place].name == "MINIMIZE" else np.maximum
        axes.plot(numbers, values, "o", color="#8A8A8A", markersize=4, label="trial")
        if len(values):
            axes.step(numbers, better.accumulate(values), where="post", color=ACCENT, linewidth=2, label="best so far")
        pruned = [trial for trial in study.get_trials(deepcopy=False) if trial.state.name == "PRUNED"]
        if pruned and len(metrics) == 1:
            last = [trial.intermediate_values[max(trial.intermediate_values)] for trial in pruned]
            axes.plot([trial.number for trial in pruned], last, "x", color="#D55E00", markersize=5, label="pruned")
        if as_configured is not None:
            axes.axhline(as_configured[place], color=INK, linewidth=1, linestyle=(0, (4, 2)), label="as configured")
        axes.set(xlabel="trial", ylabel=metric)
        axes.legend(frameon=False, fontsize=8.5)
    return figure


def importance(shares: Mapping[str, Mapping[str, float]]) -> Figure:
    """Bars per metric: which parameter the score depended on."""
    from constellation.metrics.plots import ACCENT, _figure, _percent

    most = max(len(part) for part in shares.values())
    figure, all_axes = _figure("what the score depended on", len(shares), size=(5.6, 1.2 + 0.34 * most))
    for axes, (metric, part) in zip(all_axes, shares.items(), strict=True):
        names = list(part)
        axes.barh(range(len(names)), [part[name] for name in names], color=ACCENT, height=0.6)
        axes.set_yticks(range(len(names)), names)
        axes.invert_yaxis()
        axes.set_xlabel(f"share of the variance of {metric}")
        axes.xaxis.set_major_formatter(_percent())
    return figure


def front(study: optuna.Study, metrics: Sequence[str]) -> Figure:
    """The first metric against each other one; those that nobody beats in all stand out."""
    from constellation.metrics.plots import ACCENT, _figure

    unbeaten = {trial.number for trial in best(study)}
    figure, all_axes = _figure("what no trial beats in all metrics", len(metrics) - 1, size=(5.2, 4.2))
    for place, axes in enumerate(all_axes, start=1):
        for trial in finished(study):
            color = ACCENT if trial.number in unbeaten else "#B5B5B5"
            axes.plot(trial.values[0], trial.values[place], "o", color=color, markersize=6)
            axes.annotate(str(trial.number), (trial.values[0], trial.values[place]), fontsize=8, xytext=(4, 3),
                          textcoords="offset points")  # fmt: skip
        axes.set(xlabel=metrics[0], ylabel=metrics[place])
    return figure


def page(title: str, drawn: Mapping[str, Figure], trials: pandas.DataFrame, lines: Sequence[str]) -> str:
    """One self-contained HTML page: what was found, the pictures as SVG, every trial."""
    parts = []
    for name, figure in drawn.items():
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", bbox_inches="tight")
        svg = buffer.getvalue()
        parts.append(f"<figure id='{html.escape(name)}'>{svg[svg.index('<svg') :]}</figure>")
    rows = trials.to_html(index=False, na_rep="", float_format=lambda value: f"{value:.5g}", border=0)
    said = "".join(f"<p>{html.escape(line)}</p>" for line in lines)
    style = (
        "body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:70rem;color:#2B2B2B;padding:0 1rem}"
        "table{border-collapse:collapse;font-size:13px}td,th{padding:.2rem .7rem;text-align:right;"
        "border-bottom:1px solid #eee}figure{margin:1rem 0}svg{max-width:100%;height:auto}code{background:#f4f4f4}"
    )
    return (
        f"<!doctype html><html lang='en'><meta charset='utf-8'><title>{html.escape(title)}</title>"
        f"<style>{style}</style><h1>{html.escape(title)}</h1>{said}{''.join(parts)}<h2>Trials</h2>{rows}</html>"
    )
