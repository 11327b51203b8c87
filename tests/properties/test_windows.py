"""Questions and answers from running sums equal a loop over each customer's events, whatever the log."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from constellation.journeys.store import Store
from constellation.journeys.windows import Windows, ask, at_risk, panel
from tests.helpers import BASE, DAY, HOUR, SPAN_DAYS, at, events_of, questions, stores

HORIZONS = (3, 10)
moments = st.integers(0, 4 * SPAN_DAYS).map(lambda quarter: BASE + quarter * DAY // 4)


def amount(event: dict) -> float:
    value = event.get("amount", math.nan)
    return 0.0 if math.isnan(value) else value


@given(stores(min_events=0), st.data())
@settings(max_examples=60, deadline=None)
def test_last_and_end_event(store: Store, data: st.DataObject) -> None:
    journey_Q, time_Q = data.draw(questions(store))
    last_Q, end_Q = store.last_event(journey_Q, time_Q), store.end_event(journey_Q, time_Q)
    for place, (journey, time) in enumerate(zip(journey_Q.tolist(), time_Q.tolist(), strict=True)):
        seen = [event["row"] for event in events_of(store, journey) if event["event_time"] <= time]
        assert last_Q[place] == (seen[-1] if seen else -1)
        assert end_Q[place] - store.first_event_C[journey] == len(seen)


@given(stores(min_events=0), moments, st.data())
@settings(max_examples=100, deadline=None)
def test_ask_against_a_loop(store: Store, known_until: int, data: st.DataObject) -> None:
    journey_Q, cutoff_Q = data.draw(questions(store))
    queries = ask(store, journey_Q, cutoff_Q, HORIZONS, known_until)
    assert len(queries) == len(journey_Q)
    for place, (journey, cutoff) in enumerate(zip(journey_Q.tolist(), cutoff_Q.tolist(), strict=True)):
        events = events_of(store, journey)
        after = [event for event in events if cutoff < event["event_time"] <= known_until]
        for column, days in enumerate(HORIZONS):
            within = [event for event in after if event["event_time"] <= cutoff + days * DAY]
            assert queries.value_QK[place, column] == sum(round(amount(event) * 1e6) for event in within) / 1e6
            assert queries.purchases_QK[place, column] == sum(event["purchase"] for event in within)
            # Two hours of grace, so that a wall-clock day of 25 hours is a day.
            assert queries.observed_QK[place, column] == (cutoff + days * DAY <= known_until + 2 * HOUR)
        baskets = [event for event in after if event.get("product")]
        assert queries.next_event_Q[place] == (after[0]["row"] if after else -1)
        assert queries.next_basket_Q[place] == (baskets[0]["row"] if baskets else -1)


@given(stores(), st.data())
@settings(max_examples=40, deadline=None)
def test_answers_of_one_question_do_not_depend_on_the_others(store: Store, data: st.DataObject) -> None:
    journey_Q, cutoff_Q = data.draw(questions(store))
    together = ask(store, journey_Q, cutoff_Q, HORIZONS, at(50))
    for place in range(len(journey_Q)):
        one = slice(place, place + 1)
        alone, taken = ask(store, journey_Q[one], cutoff_Q[one], HORIZONS, at(50)), together.take(np.array([place]))
        assert vars(alone).keys() == vars(taken).keys()
        assert all(np.array_equal(vars(alone)[name], part) for name, part in vars(taken).items())


@given(stores(min_events=0), moments)
@settings(max_examples=40, deadline=None)
def test_at_risk_are_those_with_an_event_so_far(store: Store, cutoff: int) -> None:
    expected = [
        journey
        for journey in range(store.num_customers)
        if any(event["event_time"] <= cutoff for event in events_of(store, journey))
    ]
    assert at_risk(store, cutoff).tolist() == expected


@given(stores(), st.integers(1, 9), st.integers(8, SPAN_DAYS))
@settings(max_examples=60, deadline=None)
def test_panel_asks_everybody_at_risk_on_a_grid(store: Store, every_days: int, known_day: int) -> None:
    windows = Windows("2017-04-01", "2017-04-10", HORIZONS, train_cutoffs_every_days=every_days)
    known_until = at(known_day) - 1
    latest = known_until - HORIZONS[0] * DAY
    if len(at_risk(store, latest)) == 0:
        return
    queries = panel(store, windows, known_until=known_until, journeys=np.arange(store.num_customers))
    cutoffs = sorted(set(queries.cutoff_Q.tolist()), reverse=True)
    assert cutoffs[0] == latest
    assert all(abs((latest - cutoff) % (every_days * DAY)) in (0, HOUR, every_days * DAY - HOUR) for cutoff in cutoffs)
    for cutoff in cutoffs:
        assert queries.journey_Q[queries.cutoff_Q == cutoff].tolist() == at_risk(store, cutoff).tolist()
    # Nobody whose first event lies before the last cutoff less one step is forgotten.
    earliest = min(cutoffs)
    assert len(at_risk(store, earliest - every_days * DAY - HOUR)) == 0
