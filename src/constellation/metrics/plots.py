"""Figures of an evaluation: ours in one accent colour, baselines muted, what happened in near-black.

Figures are plain `matplotlib.figure.Figure` objects drawn by Agg: no window, no global state, safe in any thread.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from constellation.metrics.bootstrap import CustomerBootstrap
from constellation.metrics.evaluate import Evaluation
from constellation.metrics.value import decile_table, gini_normalised, lorenz_curve
from constellation.metrics.weighted import EqualCountBins

if TYPE_CHECKING:
    import pandas
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Accent and verdict colours are Okabe & Ito's, told apart with any kind of colour blindness; muted ones also differ
# in dash, so that nothing depends on hue alone.
ACCENT, INK, FAINT = "#0072B2", "#2B2B2B", "#D9D9D9"
_MUTED = ("#8A8A8A", "#B79A6B", "#7FA3A1", "#A58BAE", "#6F7F92", "#B5B5B5")
_DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1, 1.5)), (0, (5, 2, 1, 2)))
_VERDICTS = {"better": "#009E73", "not shown": "#8A8A8A", "worse": "#D55E00"}

# Not learning curves: counters and speed.
_NOT_CURVES = ("per_second", "share", "seconds", "memory", "gib", "learning_rate", "step")


def value_figures(evaluation: Evaluation, split: str, target: str, *, ours: str = "model") -> "dict[str, Figure]":
    """All figures of one split and target of values, by name: `decile_calibration`, `lorenz`, ..

    A figure that the data do not allow (no quantiles: no PIT; no positive total: no Lorenz curve) is left out.
    """
    systems = evaluation.systems(split, target)
    columns = {system: evaluation.columns(split, target, system) for system in systems}
    ours = ours if ours in columns else systems[0]
    realised_Q = columns[ours]["realised"]
    expected = {system: parts["expected"] for system, parts in columns.items()}
    title = f"{target} on {split}"
    figures = {
        "decile_calibration": decile_calibration(realised_Q, expected, ours=ours, title=title),
        "predicted_against_realised": predicted_against_realised(realised_Q, expected[ours], system=ours, title=title),
    }
    if realised_Q.sum() > 0:
        figures["lorenz"] = lorenz(realised_Q, expected, ours=ours, title=title)
    pit = {system: parts["pit"] for system, parts in columns.items() if "pit" in parts}
    if pit:
        figures["pit"] = pit_histogram(pit, ours=ours, title=title)
    return figures


def decile_calibration(
    realised_Q: np.ndarray,
    expected: Mapping[str, np.ndarray],
    *,
    ours: str = "model",
    title: str = "",
    num_bins: int = 10,
    num_resamples: int = 200,
) -> "Figure":
    """Left: our deciles, predicted against realised with 95 % intervals. Right: relative error of every system."""
    bins = EqualCountBins(realised_Q, expected[ours], num_bins)
    predicted_K, realised_K = (means[0] for means in bins(np.ones((1, len(realised_Q)))))
    bootstrap = CustomerBootstrap(np.arange(len(realised_Q)), num_resamples=num_resamples)
    resampled_RK = np.concatenate([bins(weights)[1] for weights in bootstrap.blocks()])
    low_K, high_K = np.quantile(resampled_RK, [0.025, 0.975], axis=0)

    figure, (left, right) = _figure(title, 2)
    decile_K = np.arange(1, num_bins + 1)
    left.bar(decile_K, realised_K, width=0.72, color=FAINT, label="realised, 95 % interval")
    left.vlines(decile_K, low_K, high_K, color=INK, linewidth=1.4)
    left.plot(decile_K, predicted_K, color=ACCENT, marker="o", markersize=5, label=f"predicted by {ours}")
    left.set(xlabel="decile of prediction", ylabel="mean per customer", xticks=decile_K)
    left.legend(loc="upper left", frameon=False)

    right.axhline(0, color=INK, linewidth=0.8)
    for system, style in _styles(expected, ours):
        ratio_K = decile_table(realised_Q, expected[system], num_bins)["ratio"].to_numpy()
        right.plot(decile_K, np.clip(ratio_K - 1, -1, 1.5), marker="o", markersize=3, label=system, **style)
    right.set(xlabel="decile of each system's prediction", ylabel="predicted / realised - 1", xticks=decile_K)
    right.set_ylim(-1.05, 1.6)
    right.yaxis.set_major_formatter(_percent())
    right.set_title("shown up to +150 %; no point: nothing realised", loc="left", fontsize=8.5, color="#777777")
    _legend_outside(right)
    return figure


def lorenz(
    realised_Q: np.ndarray, expected: Mapping[str, np.ndarray], *, ours: str = "model", title: str = ""
) -> "Figure":
    """Share of value brought by the best-ranked customers, with the oracle's curve and the diagonal."""
    figure, (axes,) = _figure(title, 1, size=(7.6, 4.8))
    oracle = lorenz_curve(realised_Q, realised_Q)
    axes.fill_between(*oracle, oracle[0], color="#F2F2F2", linewidth=0)
    axes.plot(*oracle, color=INK, linewidth=1.2, linestyle=(0, (2, 1.5)), label="oracle (1.000)")
    axes.plot([0, 1], [0, 1], color=INK, linewidth=0.7, alpha=0.6)
    for system, style in _styles(expected, ours):
        gini = gini_normalised(realised_Q, expected[system])
        axes.plot(*lorenz_curve(realised_Q, expected[system]), label=f"{system} ({gini:.3f})", **style)
    axes.set(xlabel="share of customers, highest predictions first", ylabel="share of realised value")
    axes.set_xlim(0, 1)
    axes.set_ylim(bottom=0)
    axes.set_aspect("equal")
    axes.xaxis.set_major_formatter(_percent())
    axes.yaxis.set_major_formatter(_percent())
    _legend_outside(axes, title="normalised Gini")
    return figure


def predicted_against_realised(
    realised_Q: np.ndarray, expected_Q: np.ndarray, *, system: str = "model", title: str = ""
) -> "Figure":
    """Each customer on logarithmic axes; zeros (and refunds) in a band of their own, not thrown away."""
    figure, (axes,) = _figure(title, 1, size=(6.0, 5.2))
    positive = realised_Q[realised_Q > 0]
    # One power of ten below the smaller values: the band of zeros lies below it.
    floor = 10 ** np.floor(np.log10(np.quantile(positive, 0.02))) if len(positive) else 1.0
    top = 1.6 * max(float(np.max(realised_Q)), float(np.max(expected_Q)), 10 * floor)
    zero_line = floor / 3
    is_zero_Q = realised_Q <= 0
    shift_Q = 10 ** np.random.default_rng(0).uniform(-0.16, 0.16, len(realised_Q))
    shown_Q = np.where(is_zero_Q, zero_line * shift_Q, np.maximum(realised_Q, floor))
    predicted_Q = np.where(expected_Q < floor, zero_line * shift_Q[::-1], expected_Q)

    axes.set(xscale="log", yscale="log", xlim=(floor / 6, top), ylim=(floor / 6, top))
    if len(realised_Q) > 5000:
        shades = axes.hexbin(
            predicted_Q, shown_Q, gridsize=55, xscale="log", yscale="log", bins="log", cmap=_accent_map(), mincnt=1,
            linewidths=0, extent=(np.log10(floor / 6), np.log10(top), np.log10(floor / 6), np.log10(top)),
        )  # fmt: skip
        figure.colorbar(shades, ax=axes, label="customers", shrink=0.7)
    else:
        axes.scatter(predicted_Q, shown_Q, s=7, color=ACCENT, alpha=0.22, linewidths=0)
    axes.plot([floor, top], [floor, top], color=INK, linewidth=0.8)
    bins = EqualCountBins(realised_Q, expected_Q, 20)
    mean_predicted_K, mean_realised_K = (means[0] for means in bins(np.ones((1, len(realised_Q)))))
    seen_K = (mean_predicted_K >= floor) & (mean_realised_K >= floor)
    axes.plot(
        mean_predicted_K[seen_K], mean_realised_K[seen_K], color="#E69F00", marker="o", markersize=4.5, linewidth=1.2,
        markeredgecolor="white", markeredgewidth=0.6, label="means of 20 equal groups",
    )  # fmt: skip
    for band in (axes.axhspan, axes.axvspan):
        band(floor / 6, floor * 0.62, color="#F2F2F2", zorder=0, linewidth=0)
    note = f"shaded: {is_zero_Q.mean():.0%} realised nothing; left band: expected below {floor:g}"
    axes.set_title(note, loc="left", fontsize=8.5, color="#777777")
    axes.set(xlabel=f"expected by {system}", ylabel="realised")
    axes.set_aspect("equal")
    axes.legend(loc="upper left", frameon=False)
    return figure


def learning_curves(
    history: Sequence[Mapping[str, float]],
    *,
    names: Sequence[str] | None = None,
    best_epoch: float | None = None,
    title: str = "learning curves",
) -> "Figure":
    """One panel per metric over the epochs, `train/x` and `val/x` together.

    history: one dict per epoch with `epoch` and `train/..`, `val/..` metrics; names: which metrics (without the
    prefix), by default all but counters and speed.
    """
    panels: dict[str, list[str]] = {}
    for key in dict.fromkeys(key for row in history for key in row):
        part, slash, name = key.partition("/")
        is_curve = slash and part in ("train", "val") and not any(word in name for word in _NOT_CURVES)
        if is_curve if names is None else name in names:
            panels.setdefault(name, []).append(key)
    if not panels:
        panels = {"no metric was recorded": []}
    figure, all_axes = _figure(title, len(panels), columns=3, size=(3.9, 2.7))
    for axes, (name, keys) in zip(all_axes, panels.items(), strict=True):
        for key in keys:
            points = [(row["epoch"], row[key]) for row in history if key in row and np.isfinite(row[key])]
            is_train = key.startswith("train/")
            style = {"color": _MUTED[0], "linestyle": _DASHES[1]} if is_train else {"color": ACCENT}
            if points:
                axes.plot(*zip(*points, strict=True), marker="o", markersize=3, label=key.partition("/")[0], **style)
        if best_epoch is not None:
            axes.axvline(best_epoch, color=INK, linewidth=0.8, linestyle=_DASHES[2])
        axes.set_title(name, loc="left", fontsize=9)
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(_few_ticks(7, integer=True))
        if keys:
            axes.legend(loc="best", frameon=False)
    return figure


def pit_histogram(
    pit: Mapping[str, np.ndarray], *, ours: str = "model", title: str = "", num_bins: int = 20
) -> "Figure":
    """Where outcomes fell in the forecast distributions: flat is calibrated, a U too narrow, a hump too wide."""
    ordered = [system for system, _ in reversed(list(_styles(pit, ours)))]
    figure, all_axes = _figure(title, len(ordered), columns=4, size=(2.6, 2.3), share_y=True)
    for axes, system in zip(all_axes, ordered, strict=True):
        values_Q = pit[system]
        density, edges = np.histogram(values_Q, bins=num_bins, range=(0, 1), density=True)
        noise = 2 * np.sqrt(num_bins / len(values_Q))  # about 95 % of the bars of a calibrated forecast
        axes.axhspan(1 - noise, 1 + noise, color="#EDEDED", linewidth=0)
        axes.axhline(1, color=INK, linewidth=0.8)
        color = ACCENT if system == ours else _MUTED[0]
        axes.bar(edges[:-1], np.minimum(density, 4), width=0.9 / num_bins, align="edge", color=color, alpha=0.85)
        axes.set_title(system, loc="left", fontsize=9)
        axes.set(xlim=(0, 1), ylim=(0, 4.1))
        axes.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
        axes.set_xlabel("PIT")
    all_axes[0].set_ylabel("density (cut at 4)")
    return figure


def forest(frame: "pandas.DataFrame", reference: str, *, title: str = "") -> "Figure":
    """Differences to the reference with intervals, one panel per metric, one line per run; from `compare`."""
    metrics = list(dict.fromkeys(frame["metric"]))
    labels = list(dict.fromkeys(frame["run"]))
    size = (3.4, 1.1 + 0.34 * len(labels))
    figure, all_axes = _figure(f"{title}, against {reference}".lstrip(", "), len(metrics), columns=3, size=size)
    for number, (axes, metric) in enumerate(zip(all_axes, metrics, strict=True)):
        axes.axvline(0, color=INK, linewidth=0.8)
        rows = frame[frame["metric"] == metric].set_index("run")
        for place, label in enumerate(labels):
            row = rows.loc[label]
            color = _VERDICTS[row["verdict"]]
            axes.plot([row["low"], row["high"]], [place, place], color=color, linewidth=2.2, solid_capstyle="round")
            mark = {"better": "^", "not shown": "o", "worse": "v"}[row["verdict"]]
            axes.plot(row["difference"], place, marker=mark, color=color, markersize=7, markeredgecolor="white")
        axes.set_yticks(range(len(labels)), labels if number % 3 == 0 else [""] * len(labels))
        axes.set_ylim(len(labels) - 0.4, -0.6)
        axes.grid(visible=False, axis="y")
        axes.margins(x=0.12)
        axes.set_title(metric, loc="left", fontsize=9)
        axes.xaxis.set_major_locator(_few_ticks(4))
    handles = [
        all_axes[0].plot([], [], marker=mark, color=_VERDICTS[verdict], linestyle="none", label=verdict)[0]
        for verdict, mark in (("better", "^"), ("not shown", "o"), ("worse", "v"))
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    return figure


def _figure(
    title: str, num_panels: int, *, columns: int = 2, size: tuple[float, float] = (5.2, 4.2), share_y: bool = False
) -> "tuple[Figure, list[Axes]]":
    """Panels in rows of at most `columns`, `size` inches each, in the house style."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = min(columns, num_panels)
    num_rows = -(-num_panels // columns)
    style = {
        "font.size": 9.5,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.edgecolor": "#888888",
        "axes.labelcolor": INK,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": "#ECECEC",
        "xtick.color": "#555555",
        "ytick.color": "#555555",
    }
    with rc_context(style):  # type: ignore[arg-type]
        width = max(size[0] * columns, 5.0)
        figure = Figure(figsize=(width, size[1] * num_rows + 0.4), layout="constrained", facecolor="white")
        FigureCanvasAgg(figure)
        grid = figure.subplots(num_rows, columns, squeeze=False, sharey=share_y)
    axes = list(grid.flat)
    for unused in axes[num_panels:]:
        unused.set_visible(False)
    if title:
        figure.suptitle(title, x=0.01, ha="left", fontsize=11.5, fontweight="bold", color=INK)
    return figure, axes[:num_panels]


def _styles(systems: Iterable[str], ours: str) -> list[tuple[str, dict[str, Any]]]:
    """Baselines first and muted, ours last, so that it lies on top."""
    others = [system for system in systems if system != ours]
    styles: list[tuple[str, dict[str, Any]]] = [
        (system, {"color": _MUTED[n % len(_MUTED)], "linestyle": _DASHES[n % len(_DASHES)], "linewidth": 1.3})
        for n, system in enumerate(others)
    ]
    if ours in systems:
        styles.append((ours, {"color": ACCENT, "linewidth": 2.2, "zorder": 5}))
    return styles


def _legend_outside(axes: "Axes", title: str | None = None) -> None:
    handles, labels = axes.get_legend_handles_labels()
    axes.legend(
        handles[::-1], labels[::-1], loc="upper left", bbox_to_anchor=(1.01, 1), fontsize=8.5, frameon=False,
        title=title, title_fontsize=8.5, alignment="left",
    )  # fmt: skip


def _percent() -> Any:
    from matplotlib.ticker import PercentFormatter

    return PercentFormatter(1.0, decimals=0)


def _few_ticks(number: int, *, integer: bool = False) -> Any:
    from matplotlib.ticker import MaxNLocator

    # One tick may have to do: else a single epoch is ticked with fractions of it.
    return MaxNLocator(number, integer=integer, min_n_ticks=1 if integer else 2)


def _accent_map() -> Any:
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("accent", ["#E3EEF6", "#7FB3D5", ACCENT, "#012F4B"])
