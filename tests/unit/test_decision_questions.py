"""Open decisions: who is asked about and when, what is past, and that features of another store are the same."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from constellation.errors import InputError
from constellation.journeys.build import store_from_frame
from constellation.journeys.decision_features import FeatureRecipe
from constellation.journeys.decision_questions import ask_decisions, clean_questions, decisions_table
from constellation.journeys.decisions import DecisionRule
from constellation.journeys.store import Store
from constellation.journeys.windows import parse_cutoff
from constellation.schema import EventSchema

ROWS = [
    (1, "2024-01-02 00:00:00", "purchase", 8.0, None),
    (1, "2024-01-09 00:00:00", "contact", None, "mail"),
    (1, "2024-01-12 00:00:00", "purchase", 4.0, None),
    (1, "2024-01-16 00:00:00", "contact", None, "call"),
    (2, "2024-01-03 00:00:00", "visit", None, None),
    (2, "2024-01-15 12:00:00", "contact", None, "mail"),
    (3, "2024-01-18 00:00:00", "purchase", 1.0, None),
]
SCHEMA = EventSchema(purchase_types=("purchase",))
PEOPLE = pl.DataFrame(
    {"customer_id": [1, 2, 3, 4], "town": ["Ulm", "Bonn", None, "Ulm"], "age": [30.0, None, 50.0, 20.0]}
)


def store_of(rows=ROWS, people=PEOPLE, until="2024-01-20") -> Store:
    names = ["customer_id", "event_time", "event_type", "amount", "action"]
    frame = pl.DataFrame(rows, schema=names, orient="row", infer_schema_length=None)
    return store_from_frame(frame, SCHEMA, people, observed_until=until)


def day(text: str) -> int:
    return parse_cutoff(text, "UTC")


@pytest.mark.parametrize(
    "rule", [DecisionRule(types=("contact",)), DecisionRule(kind="grid", types=("contact",), every_days=7)]
)
def test_the_past_of_an_open_decision_is_that_of_the_training(rule: DecisionRule) -> None:
    """At each decision of the log: the features from the whole store, and from what was known then alone."""
    whole = store_of()
    decisions = rule.derive(whole)
    actions = [str(name) for name in decisions.actions[1:]]
    recipe = FeatureRecipe.of(whole, decisions, (7, 14))
    assert recipe.past_actions == tuple(actions) and recipe.attributes == ("age", "town")
    expected = recipe.compute(whole, decisions)
    for row in range(len(decisions)):
        time, last = int(decisions.time_Q[row]), int(decisions.last_event_Q[row])
        customer = int(whole.customer_id_C[decisions.journey_Q[row]])
        # Of its own customer what was ordered before, of the others nothing.
        seen = [event for place, event in enumerate(ROWS) if event[0] == customer and place <= last]
        before = store_of(seen, until=None)
        asked = ask_decisions(before, rule, actions, time)
        place = int(np.flatnonzero(before.customer_id_C[asked.journey_Q] == customer)[0])
        found = recipe.compute(before, asked.decisions).values_QX[asked.rows[place]]
        np.testing.assert_allclose(found, expected.values_QX[row], err_msg=f"decision {row}")
        assert asked.knows_past


def test_open_rows_of_a_table_and_what_may_be_chosen() -> None:
    table = pl.DataFrame(
        {
            "customer_id": [1, 2, 1, 4, 3],
            "decision_time": ["2024-01-10", "2024-01-11", "2024-01-19", "2024-01-19", "2024-01-25"],
            "action": ["mail", "fax", None, None, None],
            "eligible": [None, None, ["none"], None, None],
            "propensity_none": [None, None, 1.0, 0.25, 0.5],
            "propensity_mail": [None, None, 0.0, 0.75, 0.5],
            "context_visits": [3.0, 1.0, None, 7.0, 2.0],
        }
    )
    asked = ask_decisions(
        store_of(), DecisionRule(kind="table"), ("none", "mail"), day("2024-01-20"), clean_questions(table, SCHEMA),
        further=("card",), context=("visits",),
    )  # fmt: skip
    store = store_of()
    assert store.customer_id_C[asked.journey_Q].tolist() == [1, 4]  # the third open one lies after the cutoff
    assert asked.eligible_QA.tolist() == [[True, False, False], [True, True, True]]
    assert asked.logging_QA.tolist() == [[1.0, 0.0], [0.25, 0.75]]
    assert asked.decisions.action_Q.tolist() == [2, 0, 0, 0]  # mail; fax is not known; open; open
    assert asked.num_stale == 1 and asked.decisions.context_QX[asked.rows, 0].tolist() == [3.0, 7.0]
    contacts = asked.contacts(store)
    assert contacts.select("customer_id", "action").rows() == [(1, "mail")]
    assert asked.last_event_Q.tolist() == [3, -1]
    later = asked.take(np.array([1]))
    assert later.eligible_QA.tolist() == [[True, True, True]] and len(later.decisions) == 4


def test_tables_that_do_not_fit_are_refused() -> None:
    store, rule = store_of(), DecisionRule(kind="table")

    def ask(**columns: object):
        table = {"customer_id": [1], "decision_time": ["2024-01-19"]} | columns
        cleaned = clean_questions(pl.DataFrame(table), SCHEMA)
        return ask_decisions(store, rule, ("none", "mail"), day("2024-01-20"), cleaned, context=("a", "b"))

    assert not ask_decisions(store, rule, ("none", "mail"), day("2024-01-20")).knows_past
    for columns, match in (
        ({"customer_id": [9]}, "customers without events and attributes, such as 9"),
        ({"customer_id": ["x"]}, "Write the ids alike"),
        ({"propensity_none": [1.0]}, "but not propensity_mail: give all or none"),
        ({"propensity_none": [0.9], "propensity_mail": [0.9]}, "add up to 1"),
        ({"context_a": [1.0]}, "lack context_b"),
        ({"decision_time": ["soon"]}, "no valid decision_time"),
    ):
        with pytest.raises(InputError, match=match):
            ask(**columns)


def test_a_store_of_few_customers_has_the_columns_of_the_training() -> None:
    rule = DecisionRule(types=("contact",))
    whole = store_of()
    decisions = rule.derive(whole)
    recipe = FeatureRecipe.from_json(FeatureRecipe.of(whole, decisions, (7,)).to_json())
    one = store_of(ROWS[4:5], PEOPLE[1:2].with_columns(town=pl.lit("Jena")))
    asked = ask_decisions(one, rule, ("mail", "call"), day("2024-01-20"))
    found = recipe.compute(one, asked.decisions)
    values = dict(zip(found.names, found.values_QX[0], strict=True))
    assert found.names == recipe.compute(whole, decisions).names
    assert values["town=Ulm"] == values["town=Bonn"] == values["town=missing"] == 0.0  # Jena was not there
    assert values["past_mail"] == 0.0 and np.isnan(values["days_since_mail"]) and values["num_purchase_ever"] == 0.0


def test_only_what_was_chosen_is_an_action() -> None:
    """Other values of the columns, such as types of events that are no contacts, are not to be recommended."""
    assert DecisionRule(types=("contact",)).derive(store_of()).actions == [None, "call", "mail"]
    grid = DecisionRule(kind="grid", types=("contact",), every_days=7).derive(store_of())
    assert sorted(map(str, grid.actions[1:])) == ["call", "mail", "none"]
    past = store_of()
    past.decisions = DecisionRule(types=("contact",)).derive(past)
    assert decisions_table(past)["action"].to_list() == ["mail", "call", "mail"]
