"""Waits by hand, and an objective that learns a known hazard from censored answers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from constellation.errors import InputError
from constellation.journeys.batch import Gatherer
from constellation.journeys.recency import purchase_days
from constellation.journeys.vocabulary import Vocabulary
from constellation.journeys.waits import has_left, waits
from constellation.journeys.windows import Windows, ask, panel
from constellation.objectives.time_to_event import TimeToEvent
from constellation.schema import EventSchema
from tests.helpers import at, events_frame, fit_vocabulary, make_store

HORIZONS = (3, 10)
CONTRACT = EventSchema(churn_types=("cancel", "lapse"))


def row(customer, day, kind="purchase"):
    return {
        "customer_id": customer,
        "event_time": at(day),
        "event_type": kind,
        "amount": 5.0 if kind == "purchase" else None,
    }


HAND = [
    row("ann", 1), row("ann", 8, "visit"), row("ann", 12), row("ann", 20, "cancel"),
    row("bob", 2), row("bob", 6, "cancel"), row("bob", 25), row("bob", 28, "lapse"),
    row("cat", 3), row("cat", 40),
]  # fmt: skip


def contract(rows=HAND, observed=50):
    return make_store(events_frame(rows), CONTRACT, observed_until=at(observed))


def test_waits_by_hand():
    store = contract()
    queries = ask(store, np.arange(3), np.full(3, at(7)), HORIZONS, at(30))
    found = waits(store, queries)
    assert found.watched_Q.tolist() == [23, 23, 23]
    assert found.event_Q.tolist() == [1, 18, math.inf]
    assert found.purchase_Q.tolist() == [5, 18, math.inf]  # cat's purchase on day 40 is not known by day 30
    assert found.churn_QR.tolist() == [[13, math.inf], [math.inf, 21], [math.inf, math.inf]]
    # bob has cancelled on day 6 and not bought since; by day 26 he is back.
    assert has_left(store, queries).tolist() == [False, True, False]
    assert not has_left(store, ask(store, np.array([1]), np.array([at(26)]), HORIZONS, at(30))).any()


def test_what_lies_after_what_is_known_is_not_read():
    later = [*HAND, row("cat", 31), row("cat", 32, "cancel"), row("ann", 33)]
    one, two = (
        waits(s, ask(s, np.arange(3), np.full(3, at(7)), HORIZONS, at(30))) for s in (contract(), contract(later))
    )
    for name in vars(one):
        np.testing.assert_array_equal(getattr(one, name), getattr(two, name))


def test_new_purchase_days_by_hand():
    rows = [row("ann", 1.4), row("ann", 1.6), row("ann", 1.8), row("ann", 5.1), row("ann", 5.9), row("ann", 30)]
    store = make_store(events_frame(rows), observed_until=at(50))
    # In the middle of day 1: its third receipt belongs to a day already counted.
    queries = ask(store, np.array([0]), np.array([at(1.7)]), (10,), at(40))
    new = store.purchase_index.after(queries, np.array([at(20)]))
    assert (new.days_Q[0], new.purchases_Q[0], new.money_Q[0]) == (1, 2, 10)
    assert new.last_Q[0] == pytest.approx(4 / 7)
    assert new.weeks_Q[0] == pytest.approx(19 / 7)
    # Before and after add up to the record of the longer history.
    now = purchase_days(store, queries)
    later = purchase_days(store, ask(store, np.array([0]), np.array([at(20)]), (10,), at(40)))
    assert later.x_Q[0] == now.x_Q[0] + new.days_Q[0]
    assert later.t_x_Q[0] == pytest.approx(now.T_Q[0] + new.last_Q[0])
    assert later.T_Q[0] == pytest.approx(now.T_Q[0] + new.weeks_Q[0])
    # A customer whose purchases are all to come: the first of them counts.
    before = ask(store, np.array([0]), np.array([at(0)]), (10,), at(40))
    assert store.purchase_index.after(before, np.array([at(20)])).days_Q[0] == 2


def test_churn_types_travel_with_the_vocabulary():
    store = contract()
    vocabulary = fit_vocabulary(store, at(40))
    assert vocabulary.churn_types == ("cancel", "lapse")
    assert Vocabulary.from_json(vocabulary.to_json()).churn_types == ("cancel", "lapse")
    old = {name: part for name, part in vocabulary.to_json().items() if name != "churn_types"}
    assert Vocabulary.from_json(old).churn_types == ()


def fitted(store, vocabulary, until, cutoff_Q, journeys, steps=150):
    """The objective with nothing to read, so that it learns the hazards of everybody."""
    torch.manual_seed(0)
    objective = TimeToEvent(vocabulary, 3, 2, HORIZONS)
    queries = ask(store, journeys, cutoff_Q, HORIZONS, until)
    everybody = np.arange(store.num_customers)
    batch = Gatherer(store, vocabulary).gather(everybody, until, queries, row_of_Q=journeys)
    readout_QD = torch.zeros(len(queries), 2)
    optimizer = torch.optim.Adam(objective.parameters(), lr=0.1)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 0.1 * (1 - step / steps)
        optimizer.zero_grad()
        objective.loss(torch.zeros(0, 3), readout_QD, batch).mean.backward()
        optimizer.step()
    return objective.requires_grad_(False), batch, readout_QD


def subscribers(num_customers=800):
    """Every second day a payment; cancelled with 4 % a day, lapsed with 2 %; watched for at most a few days each."""
    rng = np.random.default_rng(0)
    rows = []
    for customer in range(num_customers):
        name, start = f"c{customer:03d}", rng.uniform(0, 10)
        leaves = start + rng.exponential(1 / 0.06)
        rows += [row(name, day) for day in np.arange(start, min(leaves, 20), 2)]
        if leaves < 20:
            rows.append(row(name, leaves, "cancel" if rng.random() < 2 / 3 else "lapse"))
    return contract(rows, observed=20)


def test_ends_are_learned_under_censoring_with_their_causes():
    store = subscribers()
    vocabulary = fit_vocabulary(store, at(20))
    # At day 10 and at day 16: of the later ones only four days are known, so the horizon of 10 was never seen there.
    journeys = np.tile(np.arange(store.num_customers), 2)
    cutoff_Q = np.repeat([at(10), at(16)], store.num_customers)
    here = store.last_event(journeys, cutoff_Q) >= 0
    objective, batch, readout_QD = fitted(store, vocabulary, at(20), cutoff_Q[here], journeys[here])
    answers = objective.predict(readout_QD, batch, [0.5])
    gone = batch.record.left_Q
    assert gone.any() and not gone.all()
    assert (answers["p_active_10d"][gone] == 0).all()
    assert (answers["duration_expected_days"][gone] == 0).all()
    stays = math.exp(-0.06 * 10)
    assert answers["p_active_10d"][~gone].mean().item() == pytest.approx(stays, abs=0.05)
    assert answers["p_active_3d"][~gone].mean().item() == pytest.approx(math.exp(-0.18), abs=0.04)
    cancel, lapse = (answers[f"p_end_{cause}_10d"][~gone].mean().item() for cause in ("cancel", "lapse"))
    assert cancel == pytest.approx((1 - stays) * 2 / 3, abs=0.05)
    assert cancel + lapse == pytest.approx(1 - answers["p_active_10d"][~gone].mean().item(), abs=1e-5)
    # The area under exp(-0.06 t) up to day 10.
    duration = answers["duration_expected_days"][~gone].mean().item()
    assert duration == pytest.approx((1 - stays) / 0.06, abs=0.35)


def test_it_learns_from_a_history_shorter_than_any_horizon():
    """Two days of watching after the cutoff: no horizon of 3 days is observed, and yet two days are learned."""
    rng = np.random.default_rng(3)
    rows = [row(f"c{customer:03d}", 0.5) for customer in range(600)]
    rows += [row(f"c{customer:03d}", 1 + wait) for customer, wait in enumerate(rng.exponential(2.0, 600)) if wait < 2.2]
    store = make_store(events_frame(rows), observed_until=at(20))
    vocabulary = fit_vocabulary(store, at(15))
    journeys = np.arange(600)
    objective, batch, readout_QD = fitted(store, vocabulary, at(3) + 1, np.full(600, at(1)), journeys, steps=400)
    assert not batch.targets.observed_QK.any()
    waiting = objective.next_purchase(readout_QD[:1])
    assert waiting.survival_at(1).item() == pytest.approx(math.exp(-0.5), abs=0.05)
    assert waiting.survival_at(2).item() == pytest.approx(math.exp(-1.0), abs=0.05)
    # Beyond what was watched things go on about as they were, by steps of logits and not of hazards.
    assert waiting.survival_at(3).item() == pytest.approx(math.exp(-1.5), abs=0.06)
    assert waiting.survival_at(10).item() == pytest.approx(math.exp(-5.0), abs=0.03)


def test_data_without_declared_ends_are_active_while_they_buy():
    rows = [{**each, "event_type": "visit"} if each["event_type"] in ("cancel", "lapse") else each for each in HAND]
    store = make_store(events_frame(rows), observed_until=at(50))
    vocabulary = fit_vocabulary(store, at(40))
    objective = TimeToEvent(vocabulary, 3, 2, HORIZONS)
    queries = ask(store, np.arange(3), np.full(3, at(7)), HORIZONS, at(30))
    batch = Gatherer(store, vocabulary).gather(np.arange(3), at(30), queries)
    answers = objective.predict(torch.randn(3, 2), batch, [0.5])
    assert set(answers) == {
        "p_purchase_3d", "p_purchase_10d", "p_active_3d", "p_active_10d", "wait_expected_days"
    }  # fmt: skip
    torch.testing.assert_close(answers["p_active_10d"], answers["p_purchase_10d"])
    assert (answers["p_active_3d"] <= answers["p_active_10d"]).all()


def test_room_days_lets_training_begin_before_a_horizon_has_passed():
    store = contract()
    journeys = np.arange(3)
    until = at(9)
    short = panel(store, Windows("2017-03-09", "2017-03-20", (30,), room_days=1), known_until=until, journeys=journeys)
    assert not short.observed_QK.any()
    assert short.cutoff_Q.max() == until - (at(1) - at(0))
    with pytest.raises(InputError, match="No training question fits"):
        panel(store, Windows("2017-03-09", "2017-03-20", (30,)), known_until=until, journeys=journeys)
    with pytest.raises(InputError, match=r"room_days must lie in 1 \.\. 30"):
        Windows("2017-03-09", "2017-03-20", (30,), room_days=31)


def test_impossible_edges_are_named():
    vocabulary = fit_vocabulary(contract(), at(40))
    with pytest.raises(InputError, match="whole days from 1 on"):
        TimeToEvent(vocabulary, 3, 2, HORIZONS, edges_days=[0, 3])
    assert TimeToEvent(vocabulary, 3, 2, HORIZONS, edges_days=[5]).edges_days == [3, 5, 10]
