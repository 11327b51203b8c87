"""Recalibration: what held-out customers or earlier days say about a system's answers, put to use.

::

    learned = Recalibrator().learn("value_91d", realised_Q, answers, "time slice")
    answers |= learned.apply(answers)
    low, high = total_interval(answers["value_91d_expected"], answers["value_91d_quantiles"], shock)

Three steps, each of which may be left out: the mean by one factor or by isotonic regression, the distribution by the
probability integral transform within groups of predicted value, and for totals a shock that all customers share. What
is learned is drawn towards "no change" by how little there is to learn from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from constellation.errors import InputError
from constellation.journeys.store import MICROSECONDS_PER_DAY
from constellation.metrics.value import randomised_pit
from constellation.recalibration.learned import GRID, TAIL_POINTS, Recalibration, tail_unit
from constellation.recalibration.swings import Swings
from constellation.recalibration.totals import PastTotal, Shock

ROWS_PER_GROUP = 200
"""Groups of predicted value are deciles where each has so many rows; with fewer rows there are fewer groups."""

PRIOR_ROWS = 100
"""So many rows of the wider group stand behind each group's distribution of the transform."""

LEAST_TAIL = 10
"""So many outcomes must lie beyond the outermost quantile before a tail is made of them."""


@dataclass(frozen=True)
class Recalibrator:
    """How to recalibrate.

    mean: ``scale``, one factor for all; ``isotonic``, a rising curve; null leaves expected values, as becomes a system
    that was refitted on the slice after it was tried there.
    intervals: ``conformal``, quantiles by groups of predicted value; null leaves them.
    shock: ``history``, totals get a common shock learned at earlier origins, from the prior where there are none; null:
    totals are sums of independent customers. prior_sd: of the log of that shock before anything is known, worth
    ``prior_windows`` windows; a tenth is an ordinary forecasting error of a business over a quarter, and is an
    assumption. assumed_windows: what ``prior_sd`` is worth in stretches of days beside the swings that the activity of
    customers itself showed before the origin (``measured_swings``), which move it; null: nobody looks at the activity.
    lasting_sd: of a fault that lasts from the slice to the origin: a bias seen once is believed by
    ``lasting^2 / (lasting^2 + shock^2 + noise^2)``, and so is a distortion of the distribution, without the noise.
    folds: of customers, where no slice of time is left.
    """

    mean: str | None = None
    intervals: str | None = "conformal"
    shock: str | None = "history"
    prior_sd: float = 0.1
    prior_windows: float = 4.0
    assumed_windows: float | None = 4.0
    lasting_sd: float = 0.1
    folds: int = 2

    def __post_init__(self) -> None:
        for name, known in (("mean", ("scale", "isotonic")), ("intervals", ("conformal",)), ("shock", ("history",))):
            if getattr(self, name) is not None and getattr(self, name) not in known:
                raise InputError(
                    f"recalibration.{name} must be {' or '.join(known)} or null, found {getattr(self, name)!r}."
                )
        if self.prior_sd <= 0 or self.lasting_sd <= 0 or self.prior_windows <= 0 or self.folds < 2:
            raise InputError(
                "recalibration.prior_sd, lasting_sd and prior_windows must be above 0, and folds at least 2; found "
                f"{self.prior_sd}, {self.lasting_sd}, {self.prior_windows}, {self.folds}."
            )
        if self.assumed_windows is not None and self.assumed_windows <= 0:
            raise InputError(
                f"recalibration.assumed_windows must be above 0, or null to leave activity alone; found "
                f"{self.assumed_windows}."
            )

    def learn(
        self, target: str, realised_Q: np.ndarray, answers: Mapping[str, np.ndarray], method: str, *, seed: int = 0
    ) -> Recalibration:
        """From answers to questions whose outcome is known and which the system did not learn from.

        realised_Q: raw; refunds count as zero for the mean, which positive heads cannot go below.
        """
        realised_Q = np.asarray(realised_Q, dtype=np.float64)
        expected_Q = np.asarray(answers[f"{target}_expected"], dtype=np.float64)
        learned = Recalibration(target, method, num_rows=len(realised_Q))
        if self.mean is not None:
            learned.mean_from, learned.mean_to = self._mean(expected_Q, np.maximum(realised_Q, 0.0))
        quantiles_QL = answers.get(f"{target}_quantiles")
        if self.intervals is not None and quantiles_QL is not None and len(realised_Q):
            sorted_QL = np.sort(np.asarray(quantiles_QL, dtype=np.float64), axis=1)
            learned.outermost = 0.5 / sorted_QL.shape[1]
            pit_Q = randomised_pit(realised_Q, sorted_QL, seed=seed)
            belief = self._belief(0.0)
            learned.edges_G, learned.transform_GP = _transforms(learned.mean(expected_Q), pit_Q, belief)
            group_Q = np.searchsorted(learned.edges_G, learned.mean(expected_Q), side="right")
            above_Q = (realised_Q - sorted_QL[:, -1]) / np.maximum(tail_unit(sorted_QL[:, -1], expected_Q), 1e-9)
            below_Q = np.minimum(1 - realised_Q / np.maximum(sorted_QL[:, 0], 1e-9), 1.0)
            below_Q[sorted_QL[:, 0] <= 0] = 0.0
            for group in range(len(learned.transform_GP)):
                learned.above_GT.append(_tail(above_Q[group_Q == group]))
                learned.below_GT.append(_tail(below_Q[group_Q == group]))
        return learned

    def _belief(self, noise_sd: float) -> float:
        """How far what one slice of time shows is taken to last: its days had a shock of their own."""
        return self.lasting_sd**2 / (self.lasting_sd**2 + self.prior_sd**2 + noise_sd**2)

    def _mean(self, expected_Q: np.ndarray, realised_Q: np.ndarray) -> tuple[list[float], list[float]]:
        total, top = float(realised_Q.sum()), float(expected_Q.max(initial=0.0))
        if top <= 0 or total <= 0:
            return [], []
        ratio = total / float(expected_Q.sum())
        noise = float(np.sqrt(np.square(realised_Q - ratio * expected_Q).sum())) / total
        factor = ratio ** self._belief(noise)
        if self.mean == "scale":
            return [0.0, top], [0.0, top * factor]
        from sklearn.isotonic import isotonic_regression

        order = np.argsort(expected_Q, kind="stable")
        x, y = expected_Q[order], realised_Q[order] / ratio  # the level is the factor's matter, the shape the curve's
        bins = np.array_split(np.arange(len(x)), max(1, min(len(x) // ROWS_PER_GROUP, 50)))
        x = np.array([x[rows].mean() for rows in bins])
        y = np.asarray(isotonic_regression(np.array([y[rows].mean() for rows in bins])))
        shape = len(expected_Q) / (len(expected_Q) + 10 * PRIOR_ROWS)
        kept = np.append(True, np.diff(x) > 0) & (x > 0)
        points, values = x[kept], factor * ((1 - shape) * x + shape * y)[kept]
        return [0.0, *points.tolist()], [0.0, *values.tolist()]

    def prior_variance(self, swings: Swings | None = None) -> float:
        """Of the log of the shock before any total has come true: assumed, and moved by the swings of activity.

        Swings move what is expected, and never how little it counts beside totals that came true: a system can be
        wrong where the calendar is calm.
        """
        assumed = self.prior_sd**2
        if swings is None or self.assumed_windows is None:
            return assumed
        num = swings.windows(self.prior_sd)
        return (self.assumed_windows * assumed + num * max(swings.variance, 0.0)) / (self.assumed_windows + num)

    def learn_shock(self, past: Sequence[PastTotal], swings: Swings | None = None) -> Shock:
        """The common shock from totals that have come true; windows that overlap count once.

        The log of realised over expected, its square less what chance alone explains, averaged over windows and joined
        with the prior as variances are (scaled inverse chi-squared). swings: of the customers' activity of this kind.
        """
        if self.shock is None:
            return Shock()
        of_horizon: dict[int, list[PastTotal]] = {}
        for total in past:
            if total.expected > 0 and total.realised > 0:
                of_horizon.setdefault(total.horizon_days, []).append(total)
        weights, variances = [], []
        for days, totals in of_horizon.items():
            span = max(total.origin for total in totals) - min(total.origin for total in totals)
            weights.append(min(len(totals), 1 + span / (days * MICROSECONDS_PER_DAY)))
            squares = [np.log(total.realised / total.expected) ** 2 - total.noise_sd**2 for total in totals]
            variances.append(max(float(np.mean(squares)), 0.0))
        num_windows = max(weights, default=0.0)  # horizons of one origin look at the same days
        seen = float(np.average(variances, weights=weights)) if weights else 0.0
        degrees = self.prior_windows + num_windows
        variance = (self.prior_windows * self.prior_variance(swings) + num_windows * seen) / degrees
        return Shock(float(np.sqrt(variance)), degrees, num_windows)


def _transforms(expected_Q: np.ndarray, pit_Q: np.ndarray, belief: float) -> tuple[list[float], list[list[float]]]:
    """Edges of the groups, and the distribution of the transform in each, drawn towards all rows' and uniform."""
    grid = np.linspace(0.0, 1.0, GRID)

    def joined(values: np.ndarray, prior: np.ndarray) -> np.ndarray:
        counts = np.searchsorted(np.sort(values), grid, side="right")
        return (counts + PRIOR_ROWS * prior) / (len(values) + PRIOR_ROWS)

    everybody = joined(pit_Q, grid)
    num_groups = int(np.clip(len(pit_Q) // ROWS_PER_GROUP, 1, 10))
    edges = _edges(expected_Q, num_groups)
    group_Q = np.searchsorted(edges, expected_Q, side="right")
    groups = [joined(pit_Q[group_Q == group], everybody) for group in range(len(edges) + 1)]
    return edges.tolist(), [_anchored(belief * group + (1 - belief) * grid).tolist() for group in groups]


def _edges(expected_Q: np.ndarray, num_groups: int) -> np.ndarray:
    """Inner edges of groups of about equal size, each halfway between two values: nobody stands on one, and the last
    digit of a float32 moves nobody across."""
    values = np.unique(expected_Q)
    places = np.searchsorted(values, np.quantile(expected_Q, np.arange(1, num_groups) / num_groups))
    places = np.unique(places[(places > 0) & (places < len(values))])
    return (values[places - 1] + values[places]) / 2


def _anchored(transform_P: np.ndarray) -> np.ndarray:
    """A distribution function on the grid: from 0 to 1, never falling."""
    transform_P = np.maximum.accumulate(transform_P)
    transform_P[0], transform_P[-1] = 0.0, 1.0
    return transform_P


def _tail(beyond_Q: np.ndarray) -> list[float]:
    """Quantiles of the positive ones, from 0; all 0 where there are too few."""
    beyond = beyond_Q[beyond_Q > 0]
    if len(beyond) < LEAST_TAIL:
        return [0.0] * TAIL_POINTS
    tail = np.quantile(beyond, np.linspace(0.0, 1.0, TAIL_POINTS))
    tail[0] = 0.0
    return tail.tolist()
