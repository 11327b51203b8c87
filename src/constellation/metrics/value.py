"""Money and counts: one column per customer, the statistics over them, and the tables behind two pictures.

Metrics use the raw net value, which refunds may push below zero; `mae` belongs to the median forecast, `rmse` and
`bias_total` to the expected one, `crps`, `pit` and `coverage_90` to the ensemble of quantiles at `LEVELS`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from constellation.errors import InputError
from constellation.metrics import LEVELS, weighted
from constellation.metrics.weighted import CentredRanks, EqualCountBins

if TYPE_CHECKING:
    import pandas

# Rows of one pass over [rows, L] quantiles: 16k x 100 float64 are 13 MB per temporary.
_CHUNK_ROWS = 16_384

COVERED_PIT = (0.05, 0.95)

# A decile that realised (almost) nothing would divide by zero; its error is then counted in units of this share of
# the overall mean. Above it, decile MAPE is exactly the published one (Wang et al. 2019).
DECILE_FLOOR_SHARE = 0.01


def crps(realised_Q: np.ndarray, quantiles_QL: np.ndarray) -> np.ndarray:
    """Continuous ranked probability score of the step distribution on L equally likely members, `[Q]`.

    Twice the mean pinball loss at midpoint levels (Gneiting & Ranjan 2011); for L members this equals
    mean |q - y| - mean |q - q'| / 2 exactly, in O(L) a row. A point forecast gives the absolute error.
    """
    result_Q = np.empty(len(realised_Q))
    num_levels = quantiles_QL.shape[1]
    levels_L = (np.arange(num_levels) + 0.5) / num_levels
    for rows in _chunks(len(realised_Q)):
        sorted_QL = _sorted(quantiles_QL[rows])
        error_QL = sorted_QL - realised_Q[rows, None]
        result_Q[rows] = 2 * np.mean(((error_QL > 0) - levels_L) * error_QL, axis=1)
    return result_Q


def randomised_pit(realised_Q: np.ndarray, quantiles_QL: np.ndarray, *, seed: int = 0) -> np.ndarray:
    """Randomised probability integral transform (Czado et al. 2009), uniform if the forecast is the truth, `[Q]`.

    Where members equal y (an atom: zero spend, a count), u is uniform on [share of q < y, share of q <= y]. Where none
    does, y lies between two midpoint levels and u is uniform between those; taking the share alone would put a true
    90 % interval at 91 %. The draw of a row depends on its place and the seed only, so systems share it.
    """
    uniform_Q = np.random.default_rng(seed).random(len(realised_Q))
    result_Q = np.empty(len(realised_Q))
    num_levels = quantiles_QL.shape[1]
    for rows in _chunks(len(realised_Q)):
        quantiles = np.asarray(quantiles_QL[rows], dtype=np.float64)
        realised = realised_Q[rows, None]
        below = np.count_nonzero(quantiles < realised, axis=1)
        through = np.count_nonzero(quantiles <= realised, axis=1)
        half = np.where(below == through, 0.5, 0.0)
        low = np.maximum(below - half, 0.0) / num_levels
        high = np.minimum(through + half, num_levels) / num_levels
        result_Q[rows] = low + uniform_Q[rows] * (high - low)
    return result_Q


def median(quantiles_QL: np.ndarray) -> np.ndarray:
    """Mean of the two middle members, `[Q]`."""
    num_levels = quantiles_QL.shape[1]
    sorted_QL = _sorted(quantiles_QL)
    return 0.5 * (sorted_QL[:, (num_levels - 1) // 2] + sorted_QL[:, num_levels // 2])


def _sorted(quantiles_QL: np.ndarray) -> np.ndarray:
    """Members in order: quantiles learned one by one may cross, the distribution they mean does not."""
    quantiles_QL = np.asarray(quantiles_QL, dtype=np.float64)
    if np.all(quantiles_QL[:, 1:] >= quantiles_QL[:, :-1]):
        return quantiles_QL
    return np.sort(quantiles_QL, axis=1)


def _chunks(num_rows: int) -> list[slice]:
    return [slice(start, start + _CHUNK_ROWS) for start in range(0, num_rows, _CHUNK_ROWS)]


@dataclass(frozen=True)
class ValueColumns:
    """What one system said of each row, and how far off it was; arrays `[Q]`, None where the system says nothing."""

    realised: np.ndarray
    expected: np.ndarray
    median: np.ndarray
    absolute_error: np.ndarray  # of the median forecast, which minimises it
    squared_error: np.ndarray  # of the expected value, which minimises it
    p_zero: np.ndarray | None = None
    crps: np.ndarray | None = None
    pit: np.ndarray | None = None

    @classmethod
    def of(
        cls,
        realised_Q: np.ndarray,
        expected_Q: np.ndarray,
        median_Q: np.ndarray | None = None,
        p_zero_Q: np.ndarray | None = None,
        crps_Q: np.ndarray | None = None,
        pit_Q: np.ndarray | None = None,
    ) -> "ValueColumns":
        """Derives the errors; without a median the expected value stands in for it."""
        median_Q = expected_Q if median_Q is None else median_Q
        return cls(
            realised=realised_Q,
            expected=expected_Q,
            median=median_Q,
            absolute_error=np.abs(median_Q - realised_Q),
            squared_error=(expected_Q - realised_Q) ** 2,
            p_zero=p_zero_Q,
            crps=crps_Q,
            pit=pit_Q,
        )

    @classmethod
    def from_predictions(
        cls, realised_Q: np.ndarray, predictions: Mapping[str, Any], target: str, *, seed: int = 0
    ) -> "ValueColumns":
        """From `<target>_expected [Q]`, and if given `_p_zero [Q]` and `_quantiles [Q, L]` at `LEVELS`.

        Raises InputError when a prediction is not finite: a system that diverged has no score.
        """
        realised_Q = np.asarray(realised_Q, dtype=np.float64)
        columns = {
            part: np.asarray(predictions[f"{target}_{part}"], dtype=np.float64)
            for part in ("expected", "p_zero", "quantiles")
            if predictions.get(f"{target}_{part}") is not None
        }
        assert "expected" in columns, f"{target}_expected is missing; found {sorted(predictions)}"
        for part, values in columns.items():
            assert len(values) == len(realised_Q), f"{target}_{part}: {len(values)} rows for {len(realised_Q)}"
            num_bad = int(np.count_nonzero(~np.isfinite(values)))
            if num_bad:
                raise InputError(
                    f"Expected finite numbers in {target}_{part}, found {num_bad} that are NaN or infinite. "
                    "The system has diverged: lower its learning rate or check the amounts it was trained on."
                )
        quantiles_QL = columns.get("quantiles")
        if quantiles_QL is None:
            return cls.of(realised_Q, columns["expected"], p_zero_Q=columns.get("p_zero"))
        assert quantiles_QL.shape[1] == len(LEVELS), f"quantiles at metrics.LEVELS wanted, found {quantiles_QL.shape}"
        return cls.of(
            realised_Q,
            columns["expected"],
            median(quantiles_QL),
            columns.get("p_zero"),
            crps(realised_Q, quantiles_QL),
            randomised_pit(realised_Q, quantiles_QL, seed=seed),
        )

    def take(self, rows: np.ndarray) -> "ValueColumns":
        """The same columns for some of the rows."""
        taken: dict[str, Any] = {name: None if column is None else column[rows] for name, column in vars(self).items()}
        return ValueColumns(**taken)


class ValueStatistics:
    """All value metrics of one system as a function of weights `[R, Q]` -> name -> `[R]`.

    What a system does not say is absent: without quantiles no `crps` and no `coverage_90`. What is undefined (Spearman
    of a constant) is NaN.
    """

    def __init__(self, columns: ValueColumns) -> None:
        self.columns = columns
        self.realised_ranks = CentredRanks(columns.realised)
        self.expected_ranks = CentredRanks(columns.expected)
        # The chance of any spend, where the system says it; else the larger expected value is the likelier.
        self.any_ranks = self.expected_ranks if columns.p_zero is None else CentredRanks(-columns.p_zero)
        self.deciles = EqualCountBins(columns.realised, columns.expected)
        means = {
            "mae": columns.absolute_error,
            "squared": columns.squared_error,
            "realised": columns.realised,
            "expected": columns.expected,
        }
        if columns.crps is not None:
            means["crps"] = columns.crps
        if columns.pit is not None:
            low, high = COVERED_PIT
            means["coverage_90"] = ((columns.pit >= low) & (columns.pit <= high)).astype(np.float64)
        self.mean_names = list(means)
        self.means_QM = np.stack(list(means.values()), axis=1)

    def __call__(self, weights_RQ: np.ndarray) -> dict[str, np.ndarray]:
        means_RM = weights_RQ @ self.means_QM / weights_RQ.sum(axis=1, keepdims=True)
        means = dict(zip(self.mean_names, means_RM.T, strict=True))
        realised_R, expected_R = means.pop("realised"), means.pop("expected")
        realised_ranks_RQ = self.realised_ranks(weights_RQ)
        expected_ranks_RQ = self.expected_ranks(weights_RQ)
        any_ranks_RQ = expected_ranks_RQ if self.any_ranks is self.expected_ranks else self.any_ranks(weights_RQ)
        realised_Q = self.columns.realised
        return {
            "rmse": np.sqrt(means.pop("squared")),
            "bias_total": weighted.divide(expected_R - realised_R, np.abs(realised_R)),
            "spearman": weighted.spearman(weights_RQ, expected_ranks_RQ, realised_ranks_RQ),
            "gini_normalised": weighted.gini_normalised(weights_RQ, realised_Q, expected_ranks_RQ, realised_ranks_RQ),
            "decile_mape": decile_mape(*self.deciles(weights_RQ)),
            "auc_any": weighted.auc(weights_RQ, realised_Q > 0, any_ranks_RQ),
            **means,
        }


def decile_mape(predicted_RK: np.ndarray, realised_RK: np.ndarray) -> np.ndarray:
    """Mean over equal-count bins of |predicted mean - realised mean| / |realised mean|, `[R]`.

    The denominator is at least `DECILE_FLOOR_SHARE` of the overall mean, so a bin that realised nothing counts, and
    counts for more the more was promised. NaN only where the overall mean is 0 and so is a bin's.
    """
    floor_R1 = DECILE_FLOOR_SHARE * np.abs(realised_RK.mean(axis=1, keepdims=True))
    scale_RK = np.maximum(np.abs(realised_RK), floor_R1)
    return weighted.divide(np.abs(predicted_RK - realised_RK), scale_RK).mean(axis=1)


def _one(weights_Q: np.ndarray | None, num_rows: int) -> np.ndarray:
    return np.ones((1, num_rows)) if weights_Q is None else np.asarray(weights_Q, dtype=np.float64)[None]


def spearman(realised_Q: np.ndarray, predicted_Q: np.ndarray, weights_Q: np.ndarray | None = None) -> float:
    """Rank correlation, ties at their middle rank; NaN if a column is constant."""
    weights = _one(weights_Q, len(realised_Q))
    return float(weighted.spearman(weights, CentredRanks(predicted_Q)(weights), CentredRanks(realised_Q)(weights))[0])


def gini_normalised(realised_Q: np.ndarray, predicted_Q: np.ndarray, weights_Q: np.ndarray | None = None) -> float:
    """Gini of the model's ranking over the oracle's: 1 perfect, 0 random, -1 reversed; raw net values, not clipped."""
    weights = _one(weights_Q, len(realised_Q))
    ranks = CentredRanks(predicted_Q)(weights), CentredRanks(realised_Q)(weights)
    return float(weighted.gini_normalised(weights, realised_Q, *ranks)[0])


def decile_table(realised_Q: np.ndarray, predicted_Q: np.ndarray, num_bins: int = 10) -> "pandas.DataFrame":
    """Columns `decile` (1 = lowest predictions), `num_customers`, `predicted_mean`, `realised_mean`, `ratio`."""
    import pandas as pd

    weights = np.ones((1, len(realised_Q)))
    predicted_RK, realised_RK = EqualCountBins(realised_Q, predicted_Q, num_bins)(weights)
    return pd.DataFrame(
        {
            "decile": np.arange(1, num_bins + 1),
            "num_customers": np.full(num_bins, len(realised_Q) / num_bins),
            "predicted_mean": predicted_RK[0],
            "realised_mean": realised_RK[0],
            "ratio": weighted.divide(predicted_RK[0], realised_RK[0]),
        }
    )


def lorenz_curve(realised_Q: np.ndarray, predicted_Q: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Share of customers, best predictions first, and the share of realised value they bring; both from 0 to 1.

    Equal predictions make one straight piece. With refunds the curve may rise above 1 before it ends there. Pass the
    realised values as predictions for the oracle's curve. Raises InputError unless the total is positive.
    """
    total = float(np.sum(realised_Q))
    if total <= 0:
        raise InputError(f"A Lorenz curve needs a positive total value, found {total:g}; choose a longer horizon.")
    order = np.argsort(-predicted_Q, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(predicted_Q[order]) != 0), len(order) - 1) + 1
    value = np.cumsum(realised_Q[order])[ends - 1] / total
    return np.append(0.0, ends / len(order)), np.append(0.0, value)
