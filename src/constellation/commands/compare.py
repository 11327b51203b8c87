"""`constellation compare runs=[A,B]`: is B better than A, on the same customers, beyond chance?"""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from constellation.errors import InputError
from constellation.metrics import plots
from constellation.metrics.bootstrap import CustomerBootstrap, Statistics, holm, interval, paired_p_value
from constellation.metrics.evaluate import statistics_of
from constellation.metrics.names import (
    PRODUCT_METRICS,
    VALUE_METRICS,
    flat_name,
    higher_is_better,
    is_known,
    shortfall,
)
from constellation.metrics.table import print_comparison
from constellation.tracking import Tracking, resolve_run

if TYPE_CHECKING:
    import pandas

SIGNIFICANCE = 0.05
# m comparisons need a bootstrap that can witness p = 0.05 / m: its smallest p-value is 2 / (resamples + 1).
_RESAMPLES_PER_COMPARISON = 80


@dataclass(frozen=True)
class Contender:
    """One system of one run: its rows of `predictions.parquet`, sorted by customer."""

    label: str
    predictions: "pandas.DataFrame"

    @property
    def customer_Q(self) -> np.ndarray:
        return self.predictions["customer_id"].to_numpy()


def compare(
    run: Any,
    *,
    runs: list[str],
    split: str = "test",
    target: str | None = None,
    system: str = "model",
    metrics: list[str] | None = None,
    num_resamples: int = 1000,
    seed: int = 0,
) -> "pandas.DataFrame":
    """Compares every run with the first by the paired bootstrap, resampling customers.

    Args:
        run: the `tracking.Run` of this comparison.
        runs: run folders, MLflow run ids, or `latest`; `A:gradient_boosting` names another system than `system`, so
            `[latest, latest:gradient_boosting]` compares a model with a baseline of its own run.
        split: `val`, `test`, `test_new`.
        target: `value_91d`, `purchases_91d`, `next_product`, ..; null: money over the longest horizon that all runs
            have, the number of purchases where money is zero for everybody, what else they have where there is neither.
        metrics: names; default all that every contender has.
        num_resamples: at least; many comparisons draw more, so that a verdict stays possible.

    Returns one row per run and metric: `run, metric, reference, value, difference, low, high, p_adjusted, verdict`.
    `difference` is value minus reference; for `bias_total` and `coverage_90` that of the distances from 0 and 90 %.
    The interval is the plain 95 % one; `verdict` (better, not shown, worse) holds for all rows together, by Holm's
    adjustment at 5 %.

    Raises InputError when runs, systems, customers or realised values do not fit together.
    """
    if len(runs) < 2:
        raise InputError(f"Expected at least two runs to compare, found {len(runs)}: runs=[first,second].")
    tracking = run.tracking if isinstance(run.tracking, Tracking) else None
    target = _usual_target(runs, split, system, tracking) if target is None else target
    contenders = _load_all(runs, split, target, system, tracking)
    reference, *others = contenders
    for other in others:
        _check_same_rows(reference, other)
    statistics = {contender.label: statistics_of(contender.predictions) for contender in contenders}
    names = _choose_metrics(statistics, reference, metrics)
    num_comparisons = len(others) * len(names)
    bootstrap = CustomerBootstrap(
        reference.customer_Q,
        num_resamples=max(num_resamples, _RESAMPLES_PER_COMPARISON * num_comparisons),
        seed=seed,
    )
    frame = _differences(bootstrap, statistics, names)
    print_comparison(frame, reference.label, f"{target} on {split}", bootstrap.num_customers, bootstrap.num_resamples)
    run.log_table("comparison", frame)
    run.log_figure("comparison", plots.forest(frame, reference.label, title=f"{target} on {split}"))
    run.log_metrics(_flat(frame, split, target))
    return frame


def _load_all(
    runs: list[str], split: str, target: str, system: str, tracking: Tracking | None = None
) -> list[Contender]:
    contenders: list[Contender] = []
    for text in runs:
        path, chosen = split_system(text, system)
        folder = resolve_run(path, tracking=tracking)
        label = f"{folder.name}:{chosen}"
        same_name = sum(contender.label.split("#")[0] == label for contender in contenders)
        predictions = _read(folder, text, split, target, chosen)
        contenders.append(Contender(f"{label}#{same_name + 1}" if same_name else label, predictions))
    return contenders


def _usual_target(runs: list[str], split: str, system: str, tracking: Tracking | None) -> str:
    """What is compared where nothing is named, see :func:`compare`."""
    import pandas as pd

    shared: list[str] | None = None
    has_value: set[str] = set()
    for text in runs:
        path, _ = split_system(text, system)
        table = pd.read_parquet(_predictions(resolve_run(path, tracking=tracking), text))
        table = table[table["split"] == split]
        found = list(dict.fromkeys(table["target"].astype(str)))
        shared = found if shared is None else [target for target in shared if target in found]
        if "realised" in table:
            has_value |= set(table.loc[table["realised"].fillna(0) != 0, "target"].astype(str))
    if not shared:
        raise InputError(f"The runs share no target of the split {split}: they have nothing in common to compare.")

    def rank(target: str) -> tuple[bool, bool, bool, int]:
        days = re.fullmatch(r"(value|purchases)_(\d+)d", target)
        is_kind = [days is not None and days[1] == kind for kind in ("value", "purchases")]
        return target in has_value and is_kind[0], is_kind[1], is_kind[0], int(days[2]) if days else 0

    return max(shared, key=rank)


def split_system(text: str, system: str) -> tuple[str, str]:
    """`run` or `run:system`; a path that exists, or a colon before a slash (a drive letter), is no system."""
    head, colon, tail = text.rpartition(":")
    if not colon or os.path.exists(text) or "/" in tail or "\\" in tail:
        return text, system
    if not head or not tail:
        raise InputError(f"Expected `run` or `run:system`, found {text!r}.")
    return head, tail


def _predictions(folder: Path, text: str) -> Path:
    path = folder / "predictions.parquet"
    if not path.is_file():
        raise InputError(
            f"Run {text} has no predictions.parquet in {folder}. Give a finished `train` or `evaluate` run; "
            "one fetched from a tracking server has none, because customer ids stay in its folder."
        )
    return path


def _read(folder: Path, text: str, split: str, target: str, system: str) -> "pandas.DataFrame":
    import pandas as pd

    table = pd.read_parquet(_predictions(folder, text))
    chosen = table[(table["split"] == split) & (table["target"] == target) & (table["system"] == system)]
    if chosen.empty:
        there = table[(table["split"] == split) & (table["target"] == target)]
        if not there.empty:
            found = ", ".join(map(str, there["system"].unique()))
            raise InputError(
                f"Run {text} has no system {system} for {split}/{target}. It has: {found}. Name one as {text}:SYSTEM."
            )
        pairs = table[["split", "target"]].drop_duplicates().astype(str)
        found = ", ".join("/".join(pair) for pair in pairs.itertuples(index=False))
        raise InputError(f"Run {text} has no {split}/{target}. It has: {found}.")
    return chosen.sort_values("customer_id", kind="stable").reset_index(drop=True)


def _check_same_rows(reference: Contender, other: Contender) -> None:
    ours, theirs = reference.customer_Q, other.customer_Q
    if not np.array_equal(ours, theirs):
        shared = len(np.intersect1d(ours.astype(str), theirs.astype(str)))
        raise InputError(
            f"Runs must answer for the same customers: {reference.label} has {len(ours)}, {other.label} has "
            f"{len(theirs)}, and {shared} are in both. Evaluate both at the same cutoff on the same data: "
            "`constellation evaluate run=... data=... cutoff=...`."
        )
    if "realised" not in reference.predictions or "realised" not in other.predictions:
        return
    difference_Q = np.abs(
        reference.predictions["realised"].to_numpy(np.float64) - other.predictions["realised"].to_numpy(np.float64)
    )
    num_different = int(np.count_nonzero(difference_Q > 1e-6))
    if num_different:
        raise InputError(
            f"Runs must be judged by the same outcomes, but the realised values of {num_different} of {len(ours)} "
            f"customers differ between {reference.label} and {other.label}, by up to {difference_Q.max():g}. "
            "Was the cutoff, the horizon or the data another one? Evaluate both the same way first."
        )


def _choose_metrics(statistics: dict[str, Statistics], reference: Contender, metrics: list[str] | None) -> list[str]:
    weights = np.ones((1, len(reference.customer_Q)))
    defined = [
        {name for name, value in statistic(weights).items() if np.isfinite(value[0]) and is_known(name)}
        for statistic in statistics.values()
    ]
    shared = set.intersection(*defined)
    order = [name for name in VALUE_METRICS + PRODUCT_METRICS if name in shared]
    shared_in_order = order + sorted(shared.difference(order))
    if metrics is None:
        if not shared_in_order:
            raise InputError("These runs share no metric that is defined for all of them; compare other systems.")
        return shared_in_order
    unknown = [name for name in metrics if name not in shared]
    if unknown or not metrics:
        raise InputError(
            f"Expected metrics that every run has, found {', '.join(unknown) or 'none'}. "
            f"Choose among: {', '.join(shared_in_order)}."
        )
    return list(dict.fromkeys(metrics))


def _differences(
    bootstrap: CustomerBootstrap, statistics: dict[str, Statistics], names: list[str]
) -> "pandas.DataFrame":
    import pandas as pd

    def all_of_them(weights_RQ: np.ndarray) -> dict[str, np.ndarray]:
        found = {label: statistic(weights_RQ) for label, statistic in statistics.items()}
        return {f"{label}/{name}": found[label][name] for label in statistics for name in names}

    estimates, samples = bootstrap.estimates(all_of_them), bootstrap.samples(all_of_them)
    reference, *others = statistics
    rows = []
    for label in others:
        for name in names:
            ours, theirs = f"{label}/{name}", f"{reference}/{name}"
            # As distances from the ideal, below zero is better; shown the way the metric itself runs.
            sign = -1 if higher_is_better(name) else 1
            difference_R = sign * (shortfall(name, samples[ours]) - shortfall(name, samples[theirs]))
            estimate = sign * float(shortfall(name, estimates[ours]) - shortfall(name, estimates[theirs]))
            found = interval(estimate, difference_R)
            rows.append(
                {
                    "run": label,
                    "metric": name,
                    "reference": estimates[theirs],
                    "value": estimates[ours],
                    "difference": estimate,
                    "low": found.low,
                    "high": found.high,
                    "p_adjusted": paired_p_value(difference_R),
                    "is_gain": sign * estimate < 0,
                }
            )
    frame = pd.DataFrame(rows)
    frame["p_adjusted"] = holm(frame["p_adjusted"].to_numpy())
    direction = np.where(frame.pop("is_gain"), "better", "worse")
    frame["verdict"] = np.where(frame["p_adjusted"] < SIGNIFICANCE, direction, "not shown")
    return frame


def _flat(frame: "pandas.DataFrame", split: str, target: str) -> dict[str, float]:
    flat: dict[str, float] = {}
    for row in frame.to_dict("records"):
        name = flat_name(split, target, row["run"], f"{row['metric']}_difference")
        flat |= {name: row["difference"], f"{name}_low": row["low"], f"{name}_high": row["high"]}
    return flat
