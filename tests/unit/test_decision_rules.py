"""What a decision rule may say beyond the basics: propensities, eligible sets, rewards in SQL, and what it refuses."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from constellation.errors import InputError
from constellation.journeys import layout
from constellation.journeys.build import store_from_frame
from constellation.journeys.decision_features import action_features, decision_features
from constellation.journeys.decisions import DecisionRule, Decisions
from constellation.journeys.store import Store
from constellation.journeys.windows import parse_cutoff
from constellation.schema import EventSchema


@pytest.fixture
def store() -> Store:
    rows = [
        (1, "2024-01-02 00:00:00", "purchase", 8.0),
        (1, "2024-01-04 00:00:00", "fee", -2.0),
        (1, "2024-01-05 00:00:00", "purchase", 4.0),
        (2, "2024-01-03 00:00:00", "visit", None),
        (3, "2024-01-09 00:00:00", "purchase", 1.0),
    ]
    frame = pl.DataFrame(rows, schema=["customer_id", "event_time", "event_type", "amount"], orient="row")
    return store_from_frame(frame, EventSchema(purchase_types=("purchase",)), observed_until="2024-01-20")


def table(**columns: list[object]) -> pl.DataFrame:
    times = [parse_cutoff("2024-01-01", "UTC")] * 3
    return pl.DataFrame(
        {"customer_id": [1, 2, 3], "decision_time": times, "action": ["mail", "none", "call"]} | columns
    )


def test_a_reward_is_any_sql_over_what_came_after(store: Store) -> None:
    def reward(expression: str) -> list[float]:
        return DecisionRule(kind="table", reward_days=5, reward=expression).derive(store, table()).reward_Q.tolist()

    assert reward("sum(amount)") == reward("amount") == [10.0, 0.0, 0.0]
    assert reward("response") == [1.0, 0.0, 0.0]
    assert reward("coalesce(sum(amount) FILTER (event_type = 'purchase'), 0) - 0.5 * count(*)") == [10.5, -0.5, 0.0]
    assert reward("1 - count(*)") == [-2.0, 0.0, 1.0]
    # The decision lies at the end of 1 January, a microsecond before the 2nd.
    np.testing.assert_allclose(reward("max(elapsed_days)"), [3.0, 1.0, 0.0], atol=1e-9)
    with pytest.raises(InputError, match=r"as SQL over later events it failed.*Columns: event_time"):
        reward("sum(no_such_column)")


def test_sql_rewards_in_rounds_are_those_at_once(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    rule = DecisionRule(kind="table", reward_days=30, reward="sum(amount) - count(*)")
    whole = rule.derive(store, table()).reward_Q
    monkeypatch.setattr("constellation.journeys.decision_rewards.MAX_ROWS", 2)
    np.testing.assert_array_equal(rule.derive(store, table()).reward_Q, whole)


def test_propensities_by_rule(store: Store) -> None:
    rule = DecisionRule(kind="table", propensity={"none": 0.5, "default": 0.25})
    decisions = rule.derive(store, table())
    assert decisions.propensity_Q.tolist() == [0.25, 0.5, 0.25]
    logging_QA = rule.logging_QA(decisions)
    assert logging_QA is not None
    assert [decisions.actions[1:].index(name) for name in ("call", "mail", "none")] == [0, 1, 2]
    np.testing.assert_allclose(logging_QA, np.tile([0.25, 0.25, 0.5], (3, 1)))
    with pytest.raises(InputError, match=r"adds up to 0\.6"):
        DecisionRule(kind="table", propensity=0.2).derive(store, table())
    with pytest.raises(InputError, match=r"must lie in \(0, 1\], found 0"):
        DecisionRule(kind="table", propensity=0)
    with pytest.raises(InputError, match="names neither 'call' nor default"):
        DecisionRule(kind="table", propensity={"none": 0.5, "mail": 0.5}).derive(store, table())
    # A column of the table goes first.
    given = DecisionRule(kind="table", propensity={"none": 0.5, "default": 0.25}).derive(
        store, table(propensity=[0.9, None, None])
    )
    assert given.propensity_Q.tolist() == [0.9, 0.5, 0.25]


def test_eligible_sets(store: Store, tmp_path) -> None:
    sets = [["mail", "none"], None, ["call", "mail"]]
    decisions = DecisionRule(kind="table").derive(store, table(eligible=sets))
    names = decisions.actions[1:]
    assert names == ["call", "mail", "none"]
    assert decisions.eligible_QA().tolist() == [[False, True, True], [True, True, True], [True, True, False]]
    layout.write_decisions(tmp_path, decisions, "time")
    read = Decisions(**layout.read_decisions(tmp_path))
    np.testing.assert_array_equal(read.eligible_QA(), decisions.eligible_QA())
    closed = DecisionRule(kind="table").derive(store, table(eligible=[True, False, True]))
    assert closed.eligible_QA()[1].tolist() == [False, False, True]
    with pytest.raises(InputError, match="1 decisions chose an action outside eligible, such as 'mail'"):
        DecisionRule(kind="table").derive(store, table(eligible=[["call"], None, None]))
    with pytest.raises(InputError, match="outside eligible"):
        DecisionRule(kind="table").derive(store, table(eligible=[False, True, True]))


def test_decisions_in_the_future_and_rewards_that_are_not_known(store: Store) -> None:
    late = table().with_columns(decision_time=pl.lit(parse_cutoff("2024-02-01", "UTC")))
    with pytest.raises(InputError, match="3 decisions lie in the future"):
        DecisionRule(kind="table").derive(store, late)
    given = DecisionRule(kind="table").derive(store, table(reward=[1.0, None, 3.0]))
    assert given.matured_Q.tolist() == [True, False, True]


def test_features_know_the_past_and_not_the_present(store: Store) -> None:
    first, second = parse_cutoff("2024-01-01", "UTC"), parse_cutoff("2024-01-03", "UTC")
    both = pl.DataFrame(
        {"customer_id": [1, 1, 2, 2], "decision_time": [first, second] * 2, "action": ["mail", "none", "none", "mail"]}
    )
    decisions = DecisionRule(kind="table").derive(store, both)
    features = decision_features(store, decisions)
    column = {name: features.values_QX[:, place] for place, name in enumerate(features.names)}
    assert column["past_mail"].tolist() == [0, 1, 0, 0]
    assert column["past_none"].tolist() == [0, 0, 0, 1]
    np.testing.assert_allclose(column["days_since_mail"], [np.nan, 2.0, np.nan, np.nan])
    assert column["money_ever"].tolist() == [0.0, 8.0, 0.0, 0.0]
    assert column["num_events_ever"].tolist() == [0.0, 1.0, 0.0, 1.0]


def test_actions_are_described_by_numbers_and_names() -> None:
    described = {"a": {"kind": "mail", "discount": 5}, "b": {"kind": "call", "discount": 0}}
    names, values_AY = action_features(["a", "b", "c"], described)
    assert names == ("kind=call", "kind=mail", "discount")
    np.testing.assert_array_equal(values_AY, [[0, 1, 5], [1, 0, 0], [np.nan] * 3])
    with pytest.raises(InputError, match="same keys for every action"):
        DecisionRule(kind="table", action_features={"a": {"x": 1}, "b": {"y": 1}})
