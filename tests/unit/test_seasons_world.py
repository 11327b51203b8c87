"""The world with a season: its swing is the one asked for, first purchases stay, and without a swing it is spenders."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from constellation.errors import InputError
from constellation.worlds.seasons import seasons
from constellation.worlds.spenders import spenders

LONG = {"num_customers": 1500, "seed": 3, "num_days": 1461, "dropout_days": 2500.0}


def repeats(events: pl.DataFrame) -> pl.DataFrame:
    bought = events.filter(pl.col("event_type") == "purchase")
    return bought.filter(pl.int_range(pl.len()).over("customer_id") > 0)


def test_purchases_swing_by_the_amplitude() -> None:
    found = repeats(seasons(amplitude=0.6, peak_day=330.0, **LONG)["events"])
    without = repeats(seasons(amplitude=0.0, **LONG)["events"])
    # Thirty days about the peak and about the trough, half a year before.
    for middle, wanted in ((330, 1.0), (330 - 182, 0.4 / 1.6)):
        near = [abs(part["event_time"].dt.ordinal_day().to_numpy() - middle) <= 15 for part in (found, without)]
        kept, offered = (int(rows.sum()) for rows in near)
        assert kept / offered == pytest.approx(wanted, abs=4 * np.sqrt(wanted * (1.01 - wanted) / offered) + 0.02)


def test_everybody_is_still_there_and_nothing_is_sent_back() -> None:
    events = seasons(amplitude=0.9, **LONG)["events"]
    assert events["customer_id"].n_unique() == 1500
    firsts = events.filter(pl.col("event_type") == "purchase").group_by("customer_id").first()
    calm = seasons(amplitude=0.0, **LONG)["events"].filter(pl.col("event_type") == "purchase")
    assert firsts.sort("customer_id")["event_time"].equals(
        calm.group_by("customer_id").first().sort("customer_id")["event_time"]
    )
    assert set(events["event_type"]) == {"purchase", "contact"}


def test_without_a_swing_it_is_spenders() -> None:
    plain = spenders(refund_share=0.0, survey_share=0.0, **LONG)["events"]
    assert seasons(amplitude=0.0, **LONG)["events"].equals(plain)


@pytest.mark.parametrize(("wrong", "named"), [({"amplitude": 1.5}, "amplitude"), ({"refund_share": 0.1}, "refund")])
def test_what_the_world_cannot_do_is_said(wrong: dict[str, float], named: str) -> None:
    with pytest.raises(InputError, match=named):
        seasons(num_customers=5, seed=0, **wrong)
