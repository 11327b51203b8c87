"""How far the activity of all customers together swings from one stretch of days to the next, beyond chance.

Whoever forecasts a total is off by what the calendar does to everybody at once. A history too short to have seen a
forecast come true has still seen that: the same customers' totals of one stretch and of the next differ by churn (a
drift, left out), by each customer's own chances (measured from the customers), and by what they share.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from constellation.journeys.store import Store
from constellation.journeys.windows import days_before

STRETCHES_DAYS = (7, 14, 28, 56, 91)
"""Lengths at which swings are looked for, whole weeks for the sake of the weekday."""

LEAST_STEPS = 4
"""A length counts where so many steps from one stretch to the next have been seen."""

MOST_CUSTOMERS, MOST_STEPS = 50_000, 104
"""More would tell the swings no better than the prior deserves."""

LEAST_CUSTOMERS = 50


@dataclass(frozen=True)
class Swings:
    """Of one kind of total.

    variance: of the log of a stretch's total that customers share; below 0 where totals moved less than chance
    explains. noise_sd: what the customers' own chances put into the log of a stretch's total. num_steps: from one
    stretch to the next. days: of a stretch.
    """

    variance: float
    noise_sd: float
    num_steps: int
    days: int

    def windows(self, prior_sd: float) -> float:
        """How many stretches without noise they are worth to whoever expects swings of ``prior_sd``.

        The sampling variance of a variance goes with the square of it and of the noise's together.
        """
        return self.num_steps * (prior_sd**2 / (prior_sd**2 + self.noise_sd**2)) ** 2


def measured_swings(
    store: Store, until: int, *, first: int, longest_days: int, journeys: np.ndarray | None = None
) -> dict[str, Swings]:
    """Of ``value`` and ``purchases``, over the longest stretch of at most ``longest_days`` that was seen often enough.

    until: microseconds, the last moment that may be read; first: where the history begins. journeys: whose activity, by
    default everybody's. A kind without enough of a history has no entry. Steps compare customers who had come before
    the first of the two stretches, so that no first purchase is in either.
    """
    asked_C = np.arange(store.num_customers) if journeys is None else np.asarray(journeys)
    if len(asked_C) > MOST_CUSTOMERS:
        asked_C = np.sort(np.random.default_rng(0).choice(asked_C, MOST_CUSTOMERS, replace=False))
    asked_C = asked_C[store.end_event(asked_C, np.full(len(asked_C), until)) > store.first_event_C[asked_C]]
    found: dict[str, Swings] = {}
    for days in STRETCHES_DAYS:
        if days > longest_days:
            break
        for kind, steps in _steps(store, asked_C, days_before(store, until, first, days)[: MOST_STEPS + 2]).items():
            if len(steps) >= LEAST_STEPS:
                step, noise = np.array(steps).T
                # A step holds the swings of two stretches.
                own = float(noise.mean())
                variance = (float(step.var(ddof=1)) - own) / 2
                found[kind] = Swings(variance, float(np.sqrt(own / 2)), len(steps), days)
    return found


def _steps(store: Store, asked_C: np.ndarray, edges: np.ndarray) -> dict[str, list[tuple[float, float]]]:
    """By kind, for each pair of neighbouring stretches between ``edges`` (falling): the log of the later total over the
    earlier one, and the variance that the customers' own chances give it."""
    steps: dict[str, list[tuple[float, float]]] = {"value": [], "purchases": []}
    begin_C = store.first_event_C[asked_C].astype(np.int64)
    came_C = store.time_N[begin_C] if len(asked_C) else np.empty(0, dtype=np.int64)
    end_EC = [store.end_event(asked_C, np.full(len(asked_C), edge)) for edge in edges.tolist()]
    for place in range(2, len(edges)):
        known_C = came_C <= edges[place]
        if known_C.sum() < LEAST_CUSTOMERS:
            break
        start_C, middle_C, end_C = (end_EC[place - back][known_C] for back in range(3))
        for kind, between in (("value", store.money_between), ("purchases", store.purchases_between)):
            before_C, after_C = (
                np.maximum(np.asarray(between(*part), dtype=np.float64), 0.0)
                for part in ((start_C, middle_C), (middle_C, end_C))
            )
            before, after = float(before_C.sum()), float(after_C.sum())
            if before > 0 and after > 0:
                noise = float(np.square(after_C / after - before_C / before).sum())
                steps[kind].append((float(np.log(after / before)), noise))
    return steps
