"""The world ``spenders`` with a time of year: the same customers, who buy more often when their season comes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from constellation.errors import InputError
from constellation.schema import CUSTOMER_ID, EVENT_TIME, EVENT_TYPE
from constellation.worlds.simulated import check_positive, streams, tables
from constellation.worlds.spenders import PURCHASE, SpendersWorld

if TYPE_CHECKING:
    from pathlib import Path

    import polars

YEAR_DAYS = 365.25


def seasons(
    root: Path | None = None,
    *,
    num_customers: int,
    seed: int,
    amplitude: float = 0.6,
    peak_day: float = 330.0,
    num_days: int = 1461,
    dropout_days: float = 2500.0,
    **parameters: Any,
) -> dict[str, polars.DataFrame]:
    """Tables of a ``SpendersWorld`` whose repeat purchases are thinned by the time of year.

    One happens with probability ``(1 + amplitude cos(2 pi (day - peak_day) / 365.25)) / (1 + amplitude)``, so rates
    swing about their mean by ``amplitude``; ``peak_day`` is counted from the first of January. Nothing is sent back and
    nobody is surveyed, for both would tell of purchases that never happened. amplitude 0 is ``spenders``.
    Raises InputError unless amplitude lies in [0, 1].
    """
    import polars as pl

    check_positive(peak_day=peak_day)
    if not 0 <= amplitude <= 1:
        raise InputError(f"amplitude must lie in [0, 1], of the mean rate of purchases, found {amplitude}.")
    fixed = sorted({"refund_share", "survey_share"} & parameters.keys())
    if fixed:
        raise InputError(f"The world seasons has no {' and no '.join(fixed)}: leave it out.")
    world = SpendersWorld(
        refund_share=0.0, survey_share=0.0, num_days=num_days, dropout_days=dropout_days, **parameters
    )
    drawn = tables(world, num_customers, seed)
    events = drawn["events"]
    (thinning,) = streams(seed + 1_000_003, 1)
    day_N = events[EVENT_TIME].dt.ordinal_day().to_numpy() + events[EVENT_TIME].dt.hour().to_numpy() / 24
    chance_N = (1 + amplitude * np.cos(2 * np.pi * (day_N - peak_day) / YEAR_DAYS)) / (1 + amplitude)
    is_repeat = (pl.col(EVENT_TYPE) == PURCHASE) & ((pl.col(EVENT_TYPE) == PURCHASE).cum_sum().over(CUSTOMER_ID) > 1)
    stays = pl.Series(thinning.random(len(events)) < chance_N)
    return drawn | {"events": events.filter(~is_repeat | stays)}
