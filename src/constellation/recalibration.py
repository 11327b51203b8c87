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
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from constellation.errors import InputError
from constellation.journeys.store import MICROSECONDS_PER_DAY
from constellation.metrics.value import randomised_pit

GRID = 201
"""Points of [0, 1] at which the distribution of the transform is kept."""

ROWS_PER_GROUP = 200
"""Groups of predicted value are deciles where each has so many rows; with fewer rows there are fewer groups."""

PRIOR_ROWS = 100
"""So many rows of the wider group stand behind each group's distribution of the transform."""

TAIL_POINTS, LEAST_TAIL = 21, 10
"""How many quantiles of what lay beyond the outermost quantile are kept, and how many cases they need."""

SIMULATED = 2000
"""Draws of a total; above ``EXACT_CUSTOMERS`` customers the sum is as good as normal."""

EXACT_CUSTOMERS = 10_000


@dataclass(frozen=True)
class Shock:
    """A factor common to all customers: ``exp(sd t)``, with ``t`` of Student's distribution of ``dof`` degrees.

    num_windows: how many independent earlier windows it was learned from; 0 is the prior alone.
    """

    sd: float = 0.0
    dof: float = 30.0
    num_windows: float = 0.0


@dataclass(frozen=True)
class PastTotal:
    """A total that was predicted at an earlier origin and has come true since.

    origin: microseconds. noise_sd: what the customers' own chances put into the total, relative to it.
    """

    origin: int
    horizon_days: int
    expected: float
    realised: float
    noise_sd: float


@dataclass
class Recalibration:
    """What was learned for one target; plain numbers, ``to_json`` and ``from_json``.

    mean_from, mean_to: points of a rising piecewise linear map of the expected value, beyond which its last ratio goes
    on; empty: unchanged. edges_G: inner edges of the groups of (recalibrated) expected value. transform_GP: in each
    group the distribution of the transform at ``GRID`` points; empty: the quantiles stay. above_GT, below_GT: how far
    outcomes lay beyond the outermost quantiles, in units of them, as ``TAIL_POINTS`` quantiles; 0 where few did.
    method: where it comes from.
    """

    target: str
    method: str
    mean_from: list[float] = field(default_factory=list)
    mean_to: list[float] = field(default_factory=list)
    edges_G: list[float] = field(default_factory=list)
    transform_GP: list[list[float]] = field(default_factory=list)
    above_GT: list[list[float]] = field(default_factory=list)
    below_GT: list[list[float]] = field(default_factory=list)
    num_rows: int = 0

    def mean(self, expected_Q: np.ndarray) -> np.ndarray:
        """The recalibrated expected value; 0 stays 0, and the order of customers stays."""
        if not self.mean_from:
            return expected_Q
        x, y = np.asarray(self.mean_from), np.asarray(self.mean_to)
        return np.where(expected_Q > x[-1], expected_Q * (y[-1] / x[-1]), np.interp(expected_Q, x, y))

    def apply(self, answers: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Answers of this target in the place of those given: ``_expected``, and if there, ``_quantiles``, ``_p_zero``.

        The new distribution is ``G(F(y))``, where G is how the transform was distributed: its quantile at a level is
        the old one at ``G^-1(level)``, and P(zero) becomes ``G(P(zero))`` (Chernozhukov et al. 2021).
        """
        expected_Q = self.mean(np.asarray(answers[f"{self.target}_expected"], dtype=np.float64))
        new = {f"{self.target}_expected": expected_Q}
        quantiles_QL, p_zero_Q = answers.get(f"{self.target}_quantiles"), answers.get(f"{self.target}_p_zero")
        for name, values in (("quantiles", quantiles_QL), ("p_zero", p_zero_Q)):
            if values is not None:
                new[f"{self.target}_{name}"] = np.array(values, dtype=np.float64)
        if not self.transform_GP or quantiles_QL is None:
            return new
        grid = np.linspace(0.0, 1.0, GRID)
        group_Q = np.searchsorted(self.edges_G, expected_Q, side="right")
        for group, transform in enumerate(self.transform_GP):
            rows = group_Q == group
            if rows.any():
                old_QL = np.sort(np.asarray(quantiles_QL, dtype=np.float64)[rows], axis=1)
                unit_Q = _unit(old_QL, np.asarray(answers[f"{self.target}_expected"], dtype=np.float64)[rows])
                new[f"{self.target}_quantiles"][rows] = self._quantiles(old_QL, unit_Q, group)
                if p_zero_Q is not None:
                    new[f"{self.target}_p_zero"][rows] = np.interp(np.asarray(p_zero_Q)[rows], grid, transform)
        return new

    def _quantiles(self, old_QL: np.ndarray, unit_Q: np.ndarray, group: int) -> np.ndarray:
        """The new quantiles of one group: inside the old ones by their places, beyond them by the tails."""
        num_levels = old_QL.shape[1]
        levels_L = (np.arange(num_levels) + 0.5) / num_levels
        grid, transform = np.linspace(0.0, 1.0, GRID), np.asarray(self.transform_GP[group])
        is_count = self.target.startswith("purchases")
        place_L = np.clip(np.interp(levels_L, transform, grid) * num_levels - 0.5, 0, num_levels - 1)
        place_L = np.rint(place_L) if is_count else place_L  # counts stay whole
        low_L = np.floor(place_L).astype(np.int64)
        share_L = place_L - low_L
        new_QL = (1 - share_L) * old_QL[:, low_L] + share_L * old_QL[:, np.minimum(low_L + 1, num_levels - 1)]
        tail = np.linspace(0.0, 1.0, TAIL_POINTS)
        first, last = np.interp([levels_L[0], levels_L[-1]], grid, transform)
        over_L, under_L = levels_L > last, levels_L < first
        if over_L.any():
            beyond = np.interp((levels_L[over_L] - last) / max(1 - last, 1e-9), tail, self.above_GT[group])
            new_QL[:, over_L] = old_QL[:, -1:] + unit_Q[:, None] * beyond
        if under_L.any():
            short = np.interp(1 - levels_L[under_L] / max(first, 1e-9), tail, self.below_GT[group])
            new_QL[:, under_L] = old_QL[:, :1] * (1 - short)
        return np.rint(new_QL) if is_count else new_QL

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Recalibration:
        return cls(**data)


@dataclass(frozen=True)
class Recalibrator:
    """How to recalibrate.

    mean: ``scale``, one factor for all; ``isotonic``, a rising curve; null leaves expected values, as becomes a system
    that was refitted on the slice after it was tried there.
    intervals: ``conformal``, quantiles by groups of predicted value; null leaves them.
    shock: ``history``, totals get a common shock learned at earlier origins, from the prior where there are none; null:
    totals are sums of independent customers. prior_sd: of the log of that shock before anything is known, worth
    ``prior_windows`` windows; a tenth is an ordinary forecasting error of a business over a quarter, and is an
    assumption. lasting_sd: of a fault that lasts from the slice to the origin: a bias seen once is believed by
    ``lasting^2 / (lasting^2 + shock^2 + noise^2)``, and so is a distortion of the distribution, without the noise.
    folds: of customers, where no slice of time is left.
    """

    mean: str | None = None
    intervals: str | None = "conformal"
    shock: str | None = "history"
    prior_sd: float = 0.1
    prior_windows: float = 4.0
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
            pit_Q = randomised_pit(realised_Q, sorted_QL, seed=seed)
            belief = self._belief(0.0)
            learned.edges_G, learned.transform_GP = _transforms(learned.mean(expected_Q), pit_Q, belief)
            group_Q = np.searchsorted(learned.edges_G, learned.mean(expected_Q), side="right")
            above_Q = (realised_Q - sorted_QL[:, -1]) / np.maximum(_unit(sorted_QL, expected_Q), 1e-9)
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

    def learn_shock(self, past: Sequence[PastTotal]) -> Shock:
        """The common shock from totals that have come true; windows that overlap count once.

        The log of realised over expected, its square less what chance alone explains, averaged over windows and joined
        with the prior as variances are (scaled inverse chi-squared).
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
        variance = (self.prior_windows * self.prior_sd**2 + num_windows * seen) / degrees
        return Shock(float(np.sqrt(variance)), degrees, num_windows)


def _transforms(expected_Q: np.ndarray, pit_Q: np.ndarray, belief: float) -> tuple[list[float], list[list[float]]]:
    """Edges of the groups, and the distribution of the transform in each, drawn towards all rows' and uniform."""
    grid = np.linspace(0.0, 1.0, GRID)

    def joined(values: np.ndarray, prior: np.ndarray) -> np.ndarray:
        counts = np.searchsorted(np.sort(values), grid, side="right")
        return (counts + PRIOR_ROWS * prior) / (len(values) + PRIOR_ROWS)

    everybody = joined(pit_Q, grid)
    num_groups = int(np.clip(len(pit_Q) // ROWS_PER_GROUP, 1, 10))
    edges = np.unique(np.quantile(expected_Q, np.arange(1, num_groups) / num_groups)) if num_groups > 1 else np.zeros(0)
    group_Q = np.searchsorted(edges, expected_Q, side="right")
    groups = [joined(pit_Q[group_Q == group], everybody) for group in range(len(edges) + 1)]
    return edges.tolist(), [_anchored(belief * group + (1 - belief) * grid).tolist() for group in groups]


def _anchored(transform_P: np.ndarray) -> np.ndarray:
    """A distribution function on the grid: from 0 to 1, never falling."""
    transform_P = np.maximum.accumulate(transform_P)
    transform_P[0], transform_P[-1] = 0.0, 1.0
    return transform_P


def _unit(sorted_QL: np.ndarray, expected_Q: np.ndarray) -> np.ndarray:
    """What a customer's upper tail is measured in: the uppermost quantile, or the mean where that is 0."""
    return np.where(sorted_QL[:, -1] > 0, sorted_QL[:, -1], np.maximum(expected_Q, 0.0))


def _tail(beyond_Q: np.ndarray) -> list[float]:
    """Quantiles of the positive ones, from 0; all 0 where there are too few."""
    beyond = beyond_Q[beyond_Q > 0]
    if len(beyond) < LEAST_TAIL:
        return [0.0] * TAIL_POINTS
    tail = np.quantile(beyond, np.linspace(0.0, 1.0, TAIL_POINTS))
    tail[0] = 0.0
    return tail.tolist()


def relative_noise(expected_Q: np.ndarray, quantiles_QL: np.ndarray) -> float:
    """Standard deviation over mean of a sum of independent customers, by their quantiles as equally likely members."""
    total = float(np.sum(expected_Q))
    variance = float(np.var(np.asarray(quantiles_QL, dtype=np.float64), axis=1).sum())
    return float(np.sqrt(variance) / total) if total > 0 else 0.0


def total_interval(
    expected_Q: np.ndarray, quantiles_QL: np.ndarray, shock: Shock | None = None, *, level: float = 0.9, seed: int = 0
) -> tuple[float, float]:
    """Central interval of the customers' total: independent draws of each, about the sum of their expected values.

    The draws take the quantiles as equally likely members, whose mean misses the outermost tail, so their sum is
    brought to the expected total. With a shock each draw is multiplied by a draw of it.
    """
    rng = np.random.default_rng(seed)
    expected_Q, quantiles_QL = np.asarray(expected_Q, dtype=np.float64), np.asarray(quantiles_QL)
    total, num_levels = float(expected_Q.sum()), quantiles_QL.shape[1]
    if len(expected_Q) > EXACT_CUSTOMERS:
        draws_S = total * (1 + relative_noise(expected_Q, quantiles_QL) * rng.standard_normal(SIMULATED))
    else:
        draws_S = np.zeros(SIMULATED)
        for start in range(0, len(expected_Q), 1024):
            members_QL = quantiles_QL[start : start + 1024]
            drawn_QS = rng.integers(num_levels, size=(len(members_QL), SIMULATED))
            draws_S += np.take_along_axis(members_QL, drawn_QS, axis=1).sum(axis=0, dtype=np.float64)
        middle = float(np.asarray(quantiles_QL, dtype=np.float64).mean(axis=1).sum())
        draws_S = draws_S * (total / middle) if middle > 0 else draws_S
    if shock is not None and shock.sd > 0:
        draws_S = draws_S * np.exp(shock.sd * rng.standard_t(shock.dof, SIMULATED))
    low, high = np.quantile(draws_S, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
