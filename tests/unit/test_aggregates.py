"""Every aggregate against a loop over the customer's events."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from constellation.journeys.aggregates import Aggregates
from constellation.journeys.store import Store
from constellation.schema import EventSchema
from tests.helpers import BASE, DAY, at, events_frame, events_of, make_store, random_store

AGGREGATES = Aggregates(windows_days=(2, 7), event_types=("purchase", "refund"))
NAN = float("nan")


def compute(store: Store, journey: int, cutoff: int, aggregates: Aggregates = AGGREGATES) -> dict[str, float]:
    journey_Q, cutoff_Q = np.array([journey]), np.array([cutoff])
    features = aggregates.compute(store, journey_Q, cutoff_Q, store.last_event(journey_Q, cutoff_Q))
    assert features.shape == (1, len(aggregates.names))
    assert features.dtype == np.float32
    return dict(zip(aggregates.names, features[0].tolist(), strict=True))


def by_loop(store: Store, journey: int, cutoff: int) -> dict[str, float]:
    """What the names say, in days and money."""
    seen = [event for event in events_of(store, journey) if event["event_time"] <= cutoff]
    bought = [event for event in seen if event["purchase"]]

    def days(event: dict) -> float:
        return (cutoff - event["event_time"]) / DAY

    def amount(event: dict) -> float:
        return 0.0 if math.isnan(event.get("amount", NAN)) else event["amount"]

    money, products = sum(map(amount, seen)), sum(len(event.get("product", [])) for event in seen)
    tenure = days(seen[0]) if seen else NAN
    silence = days(bought[-1]) if bought else NAN
    gap = (days(bought[0]) - days(bought[-1])) / (len(bought) - 1) if len(bought) > 1 else NAN
    expected = {
        "tenure_days": tenure,
        "since_last_event_days": days(seen[-1]) if seen else NAN,
        "since_last_purchase_days": silence,
        "mean_purchase_gap_days": gap,
        "last_purchase_gap_days": days(bought[-2]) - days(bought[-1]) if len(bought) > 1 else NAN,
        "silence_in_gaps": silence / max(gap, 0.5) if len(bought) > 1 else NAN,
        "purchases_per_day": len(bought) / max(tenure, 1) if seen else NAN,
        "money_per_day": money / max(tenure, 1) if seen else NAN,
        "mean_purchase_amount": money / len(bought) if bought else NAN,
        "last_purchase_amount": amount(bought[-1]) if bought else NAN,
        "mean_purchase_products": products / len(bought) if bought else NAN,
    }
    for span, since in {"ever": -math.inf, "2d": cutoff - 2 * DAY, "7d": cutoff - 7 * DAY}.items():
        within = [event for event in seen if event["event_time"] > since]
        expected[f"num_events_{span}"] = len(within)
        expected[f"num_purchases_{span}"] = sum(event["purchase"] for event in within)
        expected[f"money_{span}"] = sum(map(amount, within))
        expected[f"num_products_{span}"] = sum(len(event.get("product", [])) for event in within)
        for name in AGGREGATES.event_types:
            expected[f"num_{name}_{span}"] = sum(event["event_type"] == name for event in within)
    return expected


def assert_agrees(store: Store, journey: int, cutoff: int) -> None:
    found, expected = compute(store, journey, cutoff), by_loop(store, journey, cutoff)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=1e-6, abs=1e-6, nan_ok=True), name


@pytest.mark.parametrize("seed", range(4))
def test_every_feature_against_a_loop(seed: int) -> None:
    store = random_store(seed, timezone="America/New_York")
    rng = np.random.default_rng(seed)
    for _ in range(60):
        journey = int(rng.integers(0, store.num_customers))
        cutoff = int(rng.choice(store.time_N)) if rng.random() < 0.5 else at(float(rng.uniform(-2, 65)))
        assert_agrees(store, journey, cutoff)


def test_by_hand() -> None:
    rows = [
        (0, "purchase", 10.0, ["milk"]),
        (4, "purchase", 20.0, ["milk", "tea"]),
        (5, "refund", -5.0, []),
        (9, "visit", None, []),
    ]
    store = make_store(
        events_frame(
            [
                {"customer_id": "a", "event_time": at(day), "event_type": name, "amount": amount, "product": products}
                for day, name, amount, products in rows
            ]
        )
    )
    found = compute(store, 0, at(6))
    assert found["tenure_days"] == 6
    assert found["since_last_event_days"] == 1
    assert found["since_last_purchase_days"] == 2
    assert found["mean_purchase_gap_days"] == found["last_purchase_gap_days"] == 4
    assert found["silence_in_gaps"] == 0.5
    assert found["purchases_per_day"] == pytest.approx(2 / 6)
    assert found["money_per_day"] == pytest.approx(25 / 6)
    assert (found["mean_purchase_amount"], found["last_purchase_amount"]) == (12.5, 20)
    assert found["mean_purchase_products"] == 1.5
    assert (found["num_events_ever"], found["num_purchases_ever"], found["money_ever"]) == (3, 2, 25)
    # The window is (day 4, day 6]: the purchase at its left end is outside.
    assert (found["num_events_2d"], found["num_purchases_2d"], found["money_2d"], found["num_products_2d"]) == (
        1,
        0,
        -5,
        0,
    )
    assert (found["num_purchase_7d"], found["num_refund_2d"]) == (2, 1)


def test_columns_the_store_lacks_and_customers_without_events() -> None:
    events = events_frame([{"customer_id": "b", "event_time": at(1), "event_type": "visit"}])
    store = make_store(events, attributes=pd.DataFrame({"customer_id": ["a", "b", "c"], "age": [1.0, 2.0, 3.0]}))
    for journey in range(3):
        for cutoff in (at(0), at(1), at(30)):
            assert_agrees(store, journey, cutoff)


def test_a_store_without_events() -> None:
    store = make_store(events_frame([]), attributes=pd.DataFrame({"customer_id": ["a"], "age": [1.0]}))
    found = compute(store, 0, BASE)
    assert math.isnan(found["tenure_days"])
    assert found["num_events_ever"] == 0


def test_names_are_distinct_and_few_types_are_counted() -> None:
    aggregates = Aggregates.fit(random_store(), (2, 7), 60.0, ["purchase", "visit", "refund"], max_types=2)
    assert aggregates.event_types == ("purchase", "visit")
    assert len(set(aggregates.names)) == len(aggregates.names)


def test_windows_longer_than_the_span_are_left_out() -> None:
    store = random_store()
    assert Aggregates.fit(store, (7, 30, 91), 40.0, []).windows_days == (7, 30)
    assert Aggregates.fit(store, (91, 30), 3.0, []).windows_days == (30,)


def test_without_a_clock_durations_say_nothing() -> None:
    events = events_frame(
        [{"customer_id": "a", "event_time": rank, "event_type": "purchase", "amount": 2.0} for rank in range(5)]
    )
    store = make_store(events, EventSchema(clock="order"), observed_until=4)
    aggregates = Aggregates.fit(store, (7, 30), 4.0, ["purchase"])
    assert aggregates.windows_days == ()
    found = compute(store, 0, 2, aggregates)
    assert found["num_purchases_ever"] == 3
    assert found["money_ever"] == 6
    assert all(math.isnan(value) for name, value in found.items() if name.endswith(("_days", "_per_day", "_gaps")))


def test_json_round_trip() -> None:
    assert Aggregates.from_json(AGGREGATES.to_json()) == AGGREGATES
