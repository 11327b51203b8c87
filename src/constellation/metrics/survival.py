"""Times under censoring: Brier score, AUC at a time, concordance; first a value per row, then a weighted mean.

A row is a question: ``days`` to the event (infinite where it was not seen) and ``watched``, how long one watched it.
Censoring is corrected by weighting each row by one over the probability that it was still watched (IPCW), with that
probability by the reverse Kaplan-Meier estimator: Graf et al. (1999); Gerds and Schumacher (2006).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from constellation.errors import InputError

MIN_WATCHED_SHARE = 1e-3
"""Below so little left under watch a weight of over a thousand would hang on one row."""


@dataclass(frozen=True)
class Followed:
    """Rows as watched. time_Q: days to the event or to the end of watching, whichever came first; seen_Q: the event."""

    time_Q: np.ndarray
    seen_Q: np.ndarray

    @classmethod
    def of(cls, days_Q: np.ndarray, watched_Q: np.ndarray) -> Followed:
        """Raises InputError where a time is not a number or below zero."""
        days_Q, watched_Q = np.asarray(days_Q, dtype=np.float64), np.asarray(watched_Q, dtype=np.float64)
        bad_Q = ~(days_Q >= 0) | ~(watched_Q >= 0)
        if bad_Q.any():
            row = int(np.flatnonzero(bad_Q)[0])
            raise InputError(
                f"Expected times of 0 days or more, found {int(bad_Q.sum())} rows that are not, the first with "
                f"{days_Q[row]} days, watched for {watched_Q[row]}. An event not seen is infinitely far."
            )
        return cls(np.minimum(days_Q, watched_Q), days_Q <= watched_Q)


def kaplan_meier(time_Q: np.ndarray, seen_Q: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distinct times [M], ascending, and P(T > time) there [M] (Kaplan and Meier 1958)."""
    times_M, place_Q = np.unique(np.asarray(time_Q, dtype=np.float64), return_inverse=True)
    ends_M = np.bincount(place_Q, minlength=len(times_M))
    events_M = np.bincount(place_Q, weights=np.asarray(seen_Q, dtype=np.float64), minlength=len(times_M))
    at_risk_M = ends_M[::-1].cumsum()[::-1]
    return times_M, np.cumprod(1 - events_M / at_risk_M)


def watched_probability(followed: Followed, at_Q: np.ndarray, *, just_before: bool) -> np.ndarray:
    """[Q], P(still watched after the time), or at the time itself with ``just_before``: Kaplan-Meier of the censoring.

    Where an event and a censoring fall together the event came first: those with events are not at risk of censoring.
    """
    times_M, place_Q = np.unique(followed.time_Q, return_inverse=True)
    ends_M = np.bincount(place_Q, minlength=len(times_M)).astype(np.float64)
    events_M = np.bincount(place_Q, weights=followed.seen_Q.astype(np.float64), minlength=len(times_M))
    at_risk_M = ends_M[::-1].cumsum()[::-1] - events_M
    left_M = np.cumprod(1 - np.divide(ends_M - events_M, at_risk_M, out=np.zeros_like(ends_M), where=at_risk_M > 0))
    before = np.searchsorted(times_M, at_Q, side="left" if just_before else "right")
    return np.concatenate([[1.0], left_M])[before]


def ipcw(followed: Followed, at_days: float) -> np.ndarray:
    """[Q], weights at a time: 1 / P(watched at the event) for events by then, 1 / P(watched then) for those still
    without, 0 for rows censored before. Raises InputError where hardly anybody was watched so long."""
    then = float(watched_probability(followed, np.array([at_days]), just_before=True)[0])
    if then < MIN_WATCHED_SHARE:
        raise InputError(
            f"Hardly anybody was watched for {at_days:g} days ({then:.2%}), so nothing can be said of that time. "
            "Ask for an earlier one."
        )
    event_Q = followed.seen_Q & (followed.time_Q <= at_days)
    without_Q = (followed.time_Q > at_days) | (~followed.seen_Q & (followed.time_Q >= at_days))
    at_event_Q = watched_probability(followed, followed.time_Q, just_before=True)
    return np.where(event_Q, 1 / np.maximum(at_event_Q, MIN_WATCHED_SHARE), np.where(without_Q, 1 / then, 0.0))


def brier(followed: Followed, p_event_Q: np.ndarray, at_days: float) -> np.ndarray:
    """[Q], weighted squared error of P(event by ``at_days``); its mean is the IPCW Brier score."""
    event_Q = followed.seen_Q & (followed.time_Q <= at_days)
    return ipcw(followed, at_days) * (event_Q - np.asarray(p_event_Q, dtype=np.float64)) ** 2


def _weighted_auc(p_event_Q: np.ndarray, event_Q: np.ndarray, weight_Q: np.ndarray) -> float:
    """Cumulative-dynamic AUC: P(who had the event by then was given more than who had not), weighted; ties are half.

    Uno et al. (2007), Hung and Chiang (2010). NaN where one side is empty.
    """
    values, place_Q = np.unique(p_event_Q, return_inverse=True)
    cases = np.bincount(place_Q, weights=np.where(event_Q, weight_Q, 0.0), minlength=len(values))
    controls = np.bincount(place_Q, weights=np.where(event_Q, 0.0, weight_Q), minlength=len(values))
    if not cases.sum() > 0 or not controls.sum() > 0:
        return float("nan")
    below = np.cumsum(controls) - controls
    return float((cases * (below + 0.5 * controls)).sum() / (cases.sum() * controls.sum()))


def concordance(followed: Followed, expected_days_Q: np.ndarray) -> float:
    """Harrell's C (1982): of the pairs whose order is known, the share where the earlier event was expected earlier.

    A pair is known where the shorter time is an event; equal times are known where one of the two is censored, for it
    lasted longer. Ties of the expectation count half. NaN without a known pair. O(Q log Q).
    """
    expected_Q = np.asarray(expected_days_Q, dtype=np.float64)
    _, rank_Q = np.unique(expected_Q, return_inverse=True)
    # From the longest time to the shortest; at equal times the censored come first, for they last longer.
    order_Q = np.lexsort((followed.seen_Q, -followed.time_Q))
    tree = np.zeros(int(rank_Q.max(initial=0)) + 2)  # Fenwick tree: how many of the longer ones have each rank
    known, right, held = 0.0, 0.0, 0
    start = 0
    time_Q, seen_Q, rank_Q = followed.time_Q[order_Q], followed.seen_Q[order_Q], rank_Q[order_Q]
    while start < len(order_Q):
        end = start
        while end < len(order_Q) and time_Q[end] == time_Q[start] and seen_Q[end] == seen_Q[start]:
            end += 1
        if seen_Q[start]:
            for rank in rank_Q[start:end]:
                through, below = _sum_to(tree, rank + 1), _sum_to(tree, rank)
                known += held
                right += held - through + 0.5 * (through - below)
        for rank in rank_Q[start:end]:
            _add(tree, rank + 1)
        held += end - start
        start = end
    return right / known if known else float("nan")


def _sum_to(tree: np.ndarray, place: int) -> float:
    total = 0.0
    while place > 0:
        total += tree[place]
        place -= place & -place
    return total


def _add(tree: np.ndarray, place: int) -> None:
    while place < len(tree):
        tree[place] += 1
        place += place & -place


MAX_PAIRS = 200_000
"""Pairs behind a concordance with an interval; with fewer rows than make so many, all pairs are taken."""


class SurvivalStatistics:
    """``brier``, ``brier_skill``, ``auc`` and ``concordance`` of P(event by a time), as a function of weights [R, Q].

    The skill is one minus the Brier score over that of saying the same of everybody, the Kaplan-Meier curve's share.
    Censoring weights are those of all rows and do not move with the resamples, as is usual.
    """

    def __init__(self, followed: Followed, p_event_Q: np.ndarray, at_days: float) -> None:
        self.followed, self.at_days = followed, at_days
        self.p_event_Q = np.asarray(p_event_Q, dtype=np.float64)
        self.weight_Q = ipcw(followed, at_days)
        self.event_Q = followed.seen_Q & (followed.time_Q <= at_days)
        self.score_Q = brier(followed, self.p_event_Q, at_days)
        times_M, survival_M = kaplan_meier(followed.time_Q, followed.seen_Q)
        share = 1 - np.concatenate([[1.0], survival_M])[np.searchsorted(times_M, at_days, side="right")]
        self.reference_Q = brier(followed, np.full(len(self.p_event_Q), share), at_days)
        self.pairs = self._pairs()

    @property
    def columns(self) -> dict[str, np.ndarray]:
        """A value per row, whose mean is the metric."""
        return {"brier": self.score_Q}

    def __call__(self, weights_RQ: np.ndarray) -> dict[str, np.ndarray]:
        total_R = np.maximum(weights_RQ.sum(1), 1e-300)
        score_R, reference_R = weights_RQ @ self.score_Q / total_R, weights_RQ @ self.reference_Q / total_R
        with np.errstate(divide="ignore", invalid="ignore"):
            skill_R = np.where(reference_R > 0, 1 - score_R / reference_R, np.nan)
        both = [(self._auc(weights_Q), self._concordance(weights_Q)) for weights_Q in weights_RQ]
        auc_R, concordance_R = np.array(both, dtype=np.float64).reshape(-1, 2).T
        return {"brier": score_R, "brier_skill": skill_R, "auc": auc_R, "concordance": concordance_R}

    def take(self, rows: np.ndarray) -> SurvivalStatistics:
        followed = Followed(self.followed.time_Q[rows], self.followed.seen_Q[rows])
        return SurvivalStatistics(followed, self.p_event_Q[rows], self.at_days)

    def _auc(self, weights_Q: np.ndarray) -> float:
        return _weighted_auc(self.p_event_Q, self.event_Q, self.weight_Q * weights_Q)

    def _pairs(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Pairs of known order: the earlier, the later, and whether the earlier was given more (a half for ties)."""
        num_rows = len(self.p_event_Q)
        if num_rows * (num_rows - 1) // 2 <= MAX_PAIRS:
            one, two = np.triu_indices(num_rows, 1)
        else:
            one, two = np.random.default_rng(0).integers(0, num_rows, (2, MAX_PAIRS))
        time_Q, seen_Q = self.followed.time_Q, self.followed.seen_Q
        swap = (time_Q[two] < time_Q[one]) | ((time_Q[two] == time_Q[one]) & seen_Q[two] & ~seen_Q[one])
        first, last = np.where(swap, two, one), np.where(swap, one, two)
        known = seen_Q[first] & ((time_Q[first] < time_Q[last]) | ((time_Q[first] == time_Q[last]) & ~seen_Q[last]))
        first, last = first[known], last[known]
        ahead = self.p_event_Q[first] - self.p_event_Q[last]
        return first, last, 0.5 * (np.sign(ahead) + 1)

    def _concordance(self, weights_Q: np.ndarray) -> float:
        first, last, right = self.pairs
        weight = weights_Q[first] * weights_Q[last]
        total = weight.sum()
        return float(weight @ right / total) if total > 0 else float("nan")


def watched_enough(followed: Followed, at_days: float) -> bool:
    """Whether enough rows were watched so long that something can be said of that time."""
    if not len(followed.time_Q):
        return False
    return float(watched_probability(followed, np.array([at_days]), just_before=True)[0]) >= MIN_WATCHED_SHARE
