"""Decisions and their rewards, by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from constellation.errors import InputError
from constellation.journeys.build import store_from_frame
from constellation.journeys.dataset import DataSet
from constellation.journeys.decisions import DecisionRule
from constellation.journeys.prepare import prepare
from constellation.journeys.sources import SqlSource
from constellation.journeys.store import Store
from constellation.journeys.windows import Windows, parse_cutoff
from constellation.schema import EventSchema


@pytest.fixture
def store() -> Store:
    rows = [
        # customer 1: a contact, a purchase at its moment but after it, one in the window, one at its end, one past it
        (1, "2024-01-01 10:00:00", "contact", None, "mail"),
        (1, "2024-01-01 10:00:00", "purchase", 8.0, None),
        (1, "2024-01-05 12:00:00", "purchase", 4.0, None),
        (1, "2024-01-11 10:00:00", "refund", -1.0, None),
        (1, "2024-01-11 10:00:01", "purchase", 100.0, None),
        # customer 2: a purchase, then two contacts, of which one names no action
        (2, "2024-01-02 00:00:00", "purchase", 50.0, None),
        (2, "2024-01-09 00:00:00", "contact", None, None),
        (2, "2024-01-16 00:00:00", "contact", None, "call"),
        (2, "2024-01-17 00:00:00", "purchase", 7.0, None),
    ]
    frame = pl.DataFrame(rows, schema=["customer_id", "event_time", "event_type", "amount", "action"], orient="row")
    return store_from_frame(frame, EventSchema(purchase_types=("purchase",)), observed_until="2024-01-20")


def test_each_contact_is_a_decision_rewarded_by_what_is_ordered_after_it(store: Store) -> None:
    rule = DecisionRule(kind="events", types=("contact",), reward_days=10, cost={"mail": 0.5})
    decisions = rule.derive(store)
    assert decisions.journey_Q.tolist() == [0, 1, 1]
    assert decisions.last_event_Q.tolist() == [-1, 5, 6]
    assert [decisions.actions[code] for code in decisions.action_Q] == ["mail", "contact", "call"]
    assert decisions.cost_Q.tolist() == [0.5, 0.0, 0.0]
    # 8 + 4 - 1 - 0.5: the refund lies exactly at the end of the window, the last purchase a second after it.
    assert decisions.reward_Q.tolist() == [10.5, 7.0, 7.0]
    assert decisions.matured_Q.tolist() == [True, True, False]
    assert np.isnan(decisions.propensity_Q).all() and decisions.eligible_Q.all()
    counted = DecisionRule(kind="events", types=("contact",), reward_days=10, reward="purchases").derive(store)
    assert counted.reward_Q.tolist() == [2.0, 1.0, 1.0]


def test_a_grid_asks_every_customer_seen_so_far_and_says_none(store: Store) -> None:
    decisions = DecisionRule(kind="grid", types=("contact",), every_days=7, reward_days=7, cost=1.0).derive(store)
    sixth, thirteenth = parse_cutoff("2024-01-06", "UTC"), parse_cutoff("2024-01-13", "UTC")
    assert decisions.time_Q.tolist() == [sixth, thirteenth, sixth, thirteenth]
    assert decisions.journey_Q.tolist() == [0, 0, 1, 1]
    assert decisions.last_event_Q.tolist() == [2, 4, 5, 6]
    assert [decisions.actions[code] for code in decisions.action_Q] == ["none", "none", "contact", "call"]
    # From the 7th to the 13th customer 1 pays 99 net, customer 2 nothing; from the 14th on, nothing and 7.
    assert decisions.cost_Q.tolist() == [0, 0, 1, 1]
    assert decisions.reward_Q.tolist() == [99.0, 0.0, -1.0, 6.0]
    assert decisions.matured_Q.all()


def test_table_form_is_joined_by_customer(store: Store) -> None:
    table = pl.DataFrame(
        {
            "customer_id": [2, 1],
            "decision_time": [parse_cutoff("2024-01-16", "UTC"), parse_cutoff("2024-01-01", "UTC")],
            "action": ["b", "a"],
            "propensity": [0.25, None],
        }
    )
    decisions = DecisionRule(kind="table", reward_days=30).derive(store, table)
    assert decisions.last_event_Q.tolist() == [1, 7]
    assert decisions.reward_Q.tolist() == [103.0, 7.0]
    assert np.isnan(decisions.propensity_Q[0]) and decisions.propensity_Q[1] == 0.25
    frame = decisions.to_frame(store)
    assert frame["customer_id"].to_list() == [1, 2] and frame["action"].to_list() == ["a", "b"]
    with pytest.raises(InputError, match="propensity outside"):
        DecisionRule(kind="table").derive(store, table.with_columns(propensity=pl.lit(1.5)))


def test_a_table_of_decisions_needs_no_journeys(tmp_path: Path) -> None:
    sql = """SELECT * FROM (VALUES
        ('x', DATE '2024-03-01', 'mail', 0.5, 12.0, true), ('y', DATE '2024-03-02', 'none', 0.5, 0.0, false)
    ) AS t(customer_id, decision_time, action, propensity, reward, matured)"""
    attributes = "SELECT 'y' AS customer_id, 'N' AS region UNION ALL SELECT 'z', 'S'"
    data = DataSet(
        name="flat",
        source=SqlSource(decisions_sql=sql, attributes_sql=attributes),
        windows=Windows(val_cutoff="2024-01-01", test_cutoff="2024-02-01"),
        decisions=DecisionRule(kind="table"),
        cache=str(tmp_path),
    )
    store = prepare(data)
    assert store.num_events == 0 and store.customer_id_C.tolist() == ["x", "y", "z"]
    decisions = store.decisions
    assert decisions is not None
    assert decisions.last_event_Q.tolist() == [-1, -1]
    assert decisions.reward_Q.tolist() == [12.0, 0.0] and decisions.matured_Q.tolist() == [True, False]
    assert [decisions.actions[code] for code in decisions.action_Q] == ["mail", "none"]
    assert decisions.time_Q[0] == parse_cutoff("2024-03-01", "UTC")
    assert prepare(data).manifest.content == store.manifest.content


def test_rules_that_cannot_hold_are_refused(store: Store) -> None:
    with pytest.raises(InputError, match=r"mailing, which no event has.*contact, purchase, refund"):
        DecisionRule(kind="events", types=("mailing",)).derive(store)
    with pytest.raises(InputError, match="every_days"):
        DecisionRule(kind="grid", types=("contact",))
    with pytest.raises(InputError, match="decisions_sql"):
        DecisionRule(kind="table").derive(store)
