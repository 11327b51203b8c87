"""The world of contracts: its truth against what comes out of it, and against sums by hand."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import polars as pl
import pytest

from constellation.errors import InputError
from constellation.journeys.windows import parse_cutoff
from constellation.schema import AMOUNT, CUSTOMER_ID, EVENT_TIME, EVENT_TYPE
from constellation.worlds.contracts import CANCEL, LAPSE, PAYMENT, VISIT, ContractsWorld, contracts
from constellation.worlds.simulated import MICROSECONDS_PER_DAY, Simulated

CUTOFF = "2024-07-01"


@lru_cache
def drawn(mirror: bool = False) -> Simulated:
    return ContractsWorld(mirror=mirror).simulate(8000, seed=0)


def realised(simulated: Simulated, cutoff: int, days: int) -> pl.DataFrame:
    """Payments and whether the contract ended within the horizon, beside the truth, of those still active."""
    time = pl.col(EVENT_TIME).dt.timestamp("us")
    ahead = simulated.events.filter((time > cutoff) & (time <= cutoff + days * MICROSECONDS_PER_DAY))
    counts = ahead.group_by(CUSTOMER_ID).agg(
        (pl.col(EVENT_TYPE) == PAYMENT).sum().alias("payments"),
        pl.col(AMOUNT).sum().alias("money"),
        pl.col(EVENT_TYPE).is_in([CANCEL, LAPSE]).any().alias("ended"),
    )
    truth = simulated.truth.expected(cutoff, days).join(counts, on=CUSTOMER_ID, how="left")
    return truth.with_columns(
        pl.col("payments").fill_null(0), pl.col("money").fill_null(0.0), pl.col("ended").fill_null(False)
    )


@pytest.mark.parametrize("days", [30, 91])
@pytest.mark.parametrize("name", ["expected", "from_history"])
def test_the_truth_is_calibrated(days: int, name: str) -> None:
    table = realised(drawn(), parse_cutoff(CUTOFF, "Europe/Berlin"), days)
    gone = table.filter(~pl.col("is_active"))
    assert gone["payments"].sum() == 0
    assert gone[f"p_active_{name}"].max() == 0
    active = table.filter("is_active")
    for said, came in (("purchases", "payments"), ("value", "money")):
        error = (active[came] - active[f"{said}_{name}"]).to_numpy()
        assert abs(error.mean()) < 4 * error.std() / np.sqrt(len(error))
    stayed = 1.0 - active["ended"].to_numpy()
    p_active = active[f"p_active_{name}"].to_numpy()
    for rows in np.array_split(np.argsort(p_active), 5):
        error = stayed[rows] - p_active[rows]
        assert abs(error.mean()) < 4 * np.sqrt((p_active[rows] * (1 - p_active[rows])).mean() / len(rows))


def test_one_renewal_by_hand() -> None:
    world = ContractsWorld()
    simulated = drawn()
    ends = world.ends()
    # Engaged on the basic plan, first period: odds 2 / 98 doubled, after 1 % of failed payments.
    cancels = (2 * 0.02 / 0.98) / (1 + 2 * 0.02 / 0.98)
    assert ends[0, 0, 0] == pytest.approx([cancels * 0.99, 0.01])
    # Fading on the premium plan, later: odds 3 / 7 times 0.6.
    cancels = (0.6 * 3 / 7) / (1 + 0.6 * 3 / 7)
    assert ends[1, 1, 1] == pytest.approx([cancels * 0.99, 0.01])
    truth = simulated.truth
    cutoff = parse_cutoff(CUTOFF, "Europe/Berlin")
    table = truth.expected(cutoff, 28)  # a period long, so that just one renewal comes
    stays = np.unique(np.round(table.filter("is_active")["p_active_expected"].to_numpy(), 12))
    assert stays == pytest.approx(np.unique(np.round(1 - ends.sum(axis=-1).ravel(), 12)))


def test_events_of_a_contract_are_in_order() -> None:
    events = drawn().events
    last = events.group_by(CUSTOMER_ID).agg(
        pl.col(EVENT_TYPE).last(), pl.col(EVENT_TYPE).is_in([CANCEL, LAPSE]).sum().alias("ends")
    )
    assert last["ends"].max() == 1
    assert (last.filter(pl.col("ends") == 1)[EVENT_TYPE].is_in([CANCEL, LAPSE])).all()
    first = events.group_by(CUSTOMER_ID).agg(pl.col(EVENT_TYPE).first())
    assert (first[EVENT_TYPE] == PAYMENT).all()
    gaps = events.filter(pl.col(EVENT_TYPE) == PAYMENT).select(
        pl.col(EVENT_TIME).dt.timestamp("us").diff().over(CUSTOMER_ID).alias("gap")
    )["gap"].drop_nulls()  # fmt: skip
    assert np.abs(gaps.to_numpy() - 28 * MICROSECONDS_PER_DAY).max() <= 1


def test_in_the_mirror_visits_tell_nothing() -> None:
    cutoff = parse_cutoff(CUTOFF, "Europe/Berlin")

    def told(mirror: bool) -> float:
        table = drawn(mirror).truth.expected(cutoff, 91).filter("is_active")
        return float(np.corrcoef(table["p_active_expected"], table["p_active_from_history"])[0, 1])

    assert told(False) > 0.8
    assert told(True) < 0.5
    events = drawn(True).events
    assert events.filter(pl.col(EVENT_TYPE) == VISIT).height > drawn().events.filter(pl.col(EVENT_TYPE) == VISIT).height


def test_same_seed_same_tables_and_impossible_settings_are_named() -> None:
    one, two = (contracts(num_customers=50, seed=3) for _ in range(2))
    assert one["events"].equals(two["events"])
    assert not one["events"].equals(contracts(num_customers=50, seed=4)["events"])
    with pytest.raises(InputError, match="prices must be two numbers"):
        ContractsWorld(prices=(1.0,))  # type: ignore[arg-type]
    with pytest.raises(InputError, match="lapses must lie in"):
        ContractsWorld(lapses=1.5)
    with pytest.raises(InputError, match="num_days must leave"):
        ContractsWorld(num_days=100)
