"""The prior over worlds: how customers come, buy, stay and pay, one row a world.

Times are shares of the observation window, rates purchases per window, unless a name says days. Every range is an
assumption about businesses in general, chosen before any real data were looked at, and wide on purpose. What
``widening`` adds is 0 here.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np

from constellation.errors import InputError

FAMILIES = ("bgnbd", "pareto_nbd", "regular", "calendar", "contract", "mixed", "shoppers")
"""The classical two without anything else; evenly spaced purchases; seasons, trends and shocks on the classical two;
memberships that end with a period; everything at once; and, in the wide prior alone, households that shop every week or
so."""

PLAIN_FAMILIES = FAMILIES[:-1]

FAMILY_SHARES = (0.2, 0.2, 0.12, 0.16, 0.08, 0.24, 0.0)

ADDED = (
    "other_share", "other_rate", "cohort", "wander", "paused", "novelty", "weekly", "spend_shape_spread",
    "spend_wander", "big_share", "big",
)  # fmt: skip
ADDED_TIMES = ("wander_time", "pause_time", "novelty_time", "spend_time")
"""What the wide prior adds: without effect at 0, and at any time scale."""

STAYS, LEAVES_AFTER_PURCHASE, LEAVES_IN_TIME, LEAVES_WITH_PERIOD = range(4)
AT_ONCE, ARRIVING, LONG_THERE = range(3)

MOST_PER_DAY = 0.6
"""Average purchases per day of a world; a customer buys on a day or not."""


@dataclass
class Hyperparameters:
    """All ``[W]``, one entry a world.

    family: place in ``FAMILIES``. leaving: one of the four constants above. window_days, horizon_days: whole days.
    rate: mean purchases per window of a customer who stays; rate_shape: its gamma shape among customers (log-normal of
    the same coefficient of variation where rate_log_normal); other_share of them have other_rate added to their log
    rate; cohort: added to it by who comes a window later. regularity: gamma shape of the gaps, 1 is Poisson. drift:
    standard deviation of the log rate's step at each purchase. never: share who never come back.
    wander, wander_time: of the log of a customer's own intensity, which comes back to its mean: standard deviation, and
    time in which it forgets. paused, pause_time: share of a customer's time without interest, and the time scale of
    such pauses. novelty, novelty_time: what a new customer's log intensity has more, and how fast that wears off.
    weekly: share of purchases that are made on the customer's own day of the week.
    leave_mean, leave_concentration: of the Beta chance to leave at a purchase or period; stay, stay_shape: mean stay
    over 1 and gamma shape of the rate of leaving. period: of memberships; renewals: purchases are the renewals.
    flip_at_start: the first purchase already brings a chance to leave. entry: one of the three constants above;
    entry_share: of the window in which all come at once; growth: log of late over early arrivals; past: how long before
    the window those who were long there may have come. registered: customers are known before they buy.
    trend: of the log intensity over a window; season, season_period, season_phase; shock: standard deviation of the
    log intensity's random walk over a window; spikes: of independent departures from it.
    spend_spread: standard deviation of customers' log mean spend; spend_shape: gamma shape of the spend of one purchase
    (log-normal where spend_log_normal), whose log differs among customers by spend_shape_spread; spend_wander,
    spend_time: of a customer's log mean spend, as for the intensity; big_share of purchases have big added to their log
    spend; spend_rate: correlation of log spend with log rate; free: share of purchases that cost nothing; inflation: of
    the log of prices over a window; currency: what one unit of money is worth.
    """

    family: np.ndarray
    num_customers: np.ndarray
    window_days: np.ndarray
    horizon_days: np.ndarray
    rate: np.ndarray
    rate_shape: np.ndarray
    rate_log_normal: np.ndarray
    other_share: np.ndarray
    other_rate: np.ndarray
    cohort: np.ndarray
    regularity: np.ndarray
    drift: np.ndarray
    never: np.ndarray
    wander: np.ndarray
    wander_time: np.ndarray
    paused: np.ndarray
    pause_time: np.ndarray
    novelty: np.ndarray
    novelty_time: np.ndarray
    weekly: np.ndarray
    leaving: np.ndarray
    leave_mean: np.ndarray
    leave_concentration: np.ndarray
    stay: np.ndarray
    stay_shape: np.ndarray
    period: np.ndarray
    renewals: np.ndarray
    flip_at_start: np.ndarray
    entry: np.ndarray
    entry_share: np.ndarray
    growth: np.ndarray
    past: np.ndarray
    registered: np.ndarray
    trend: np.ndarray
    season: np.ndarray
    season_period: np.ndarray
    season_phase: np.ndarray
    shock: np.ndarray
    spikes: np.ndarray
    spend_spread: np.ndarray
    spend_shape: np.ndarray
    spend_log_normal: np.ndarray
    spend_shape_spread: np.ndarray
    spend_wander: np.ndarray
    spend_time: np.ndarray
    big_share: np.ndarray
    big: np.ndarray
    spend_rate: np.ndarray
    free: np.ndarray
    inflation: np.ndarray
    currency: np.ndarray

    def __len__(self) -> int:
        return len(self.family)

    def set(self, **values: float) -> Hyperparameters:
        """The same worlds with some entries the same in all, for tests and studies of one kind of world."""
        named = {each.name: getattr(self, each.name).copy() for each in fields(self)}
        for name, value in values.items():
            named[name] = np.full_like(named[name], value)
        return Hyperparameters(**named)


def draw(
    num_worlds: int,
    rng: np.random.Generator,
    *,
    family: str | None = None,
    customers: tuple[int, int] = (150, 2500),
) -> Hyperparameters:
    """Worlds of the prior; of one family, or of all by ``FAMILY_SHARES``. customers: least and most, log-uniform."""
    if family is not None and family not in PLAIN_FAMILIES:
        raise InputError(f"family must be one of {', '.join(PLAIN_FAMILIES)}, found {family!r}.")
    if not 2 <= customers[0] <= customers[1]:
        raise InputError(f"customers must be two ascending numbers of at least 2, found {customers}.")

    def log_uniform(low: float, high: float) -> np.ndarray:
        return np.exp(rng.uniform(np.log(low), np.log(high), num_worlds))

    def chance(share: float | np.ndarray) -> np.ndarray:
        return rng.random(num_worlds) < share

    def one_of(shares: tuple[float, ...]) -> np.ndarray:
        return rng.choice(len(shares), size=num_worlds, p=shares)

    kind = one_of(FAMILY_SHARES) if family is None else np.full(num_worlds, FAMILIES.index(family))
    bgnbd, pareto, regular, calendar, contract, mixed, _ = (kind == number for number in range(len(FAMILIES)))
    added = {name: np.zeros(num_worlds) for name in ADDED} | {name: np.ones(num_worlds) for name in ADDED_TIMES}
    leaving = rng.choice([LEAVES_AFTER_PURCHASE, LEAVES_IN_TIME], size=num_worlds)
    anything = one_of((0.08, 0.4, 0.42, 0.1))
    leaving = np.select(
        [bgnbd, pareto, contract, mixed],
        [LEAVES_AFTER_PURCHASE, LEAVES_IN_TIME, LEAVES_WITH_PERIOD, anything],
        leaving,
    )
    window_days = np.rint(log_uniform(45, 1200)).astype(np.int64)
    horizon_days = np.clip(np.rint(window_days * log_uniform(0.05, 2.0)), 3, 1200).astype(np.int64)
    rate = np.clip(np.exp(rng.normal(np.log(4.0), 1.3, num_worlds)), 0.15, MOST_PER_DAY * window_days)
    period = log_uniform(0.02, 0.25)
    renewals = chance(0.5) & (leaving == LEAVES_WITH_PERIOD)
    some = calendar | (mixed & chance(0.6))
    extra = mixed & chance(0.5)
    regularity = np.where(regular | (mixed & chance(0.3)), log_uniform(1.3, 8.0), 1.0)
    regularity = np.where(mixed & chance(0.15), log_uniform(0.5, 1.0), regularity)
    return Hyperparameters(
        family=kind,
        num_customers=np.rint(log_uniform(*customers)).astype(np.int64),
        window_days=window_days,
        horizon_days=horizon_days,
        rate=np.where(renewals, 1 / period, rate),
        rate_shape=np.where(renewals, 400.0, log_uniform(0.2, 6.0)),
        rate_log_normal=mixed & chance(0.4),
        regularity=np.where(renewals, 60.0, regularity),
        drift=np.where(extra & chance(0.5), rng.uniform(0.02, 0.3, num_worlds), 0.0),
        never=np.where(extra & chance(0.5), rng.uniform(0.05, 0.6, num_worlds), 0.0),
        leaving=leaving,
        leave_mean=log_uniform(0.015, 0.5),
        leave_concentration=log_uniform(0.6, 12.0),
        stay=log_uniform(0.2, 20.0),
        stay_shape=log_uniform(0.3, 4.0),
        period=period,
        renewals=renewals,
        flip_at_start=mixed & chance(0.4),
        entry=one_of((0.4, 0.38, 0.22)),
        entry_share=log_uniform(0.01, 0.7),
        growth=rng.normal(0.0, 0.8, num_worlds),
        past=log_uniform(0.2, 4.0),
        registered=mixed & chance(0.25),
        trend=np.where(some & chance(0.6), rng.normal(0.0, 0.4, num_worlds), 0.0),
        season=np.where(some & chance(0.6), rng.uniform(0.0, 0.6, num_worlds), 0.0),
        season_period=log_uniform(0.15, 3.0),
        season_phase=rng.uniform(0.0, 1.0, num_worlds),
        shock=np.where(some, log_uniform(0.02, 0.4), 0.0),
        spikes=np.where(some & chance(0.5), rng.uniform(0.0, 0.3, num_worlds), 0.0),
        spend_spread=rng.uniform(0.15, 1.1, num_worlds),
        spend_shape=log_uniform(0.7, 25.0),
        spend_log_normal=chance(0.4),
        spend_rate=np.where(chance(0.6), rng.uniform(-0.35, 0.5, num_worlds), 0.0),
        free=np.where(chance(0.15), rng.uniform(0.0, 0.2, num_worlds), 0.0),
        inflation=np.where(chance(0.4), rng.normal(0.0, 0.1, num_worlds), 0.0),
        currency=log_uniform(0.1, 1000.0),
        **added,
    )
