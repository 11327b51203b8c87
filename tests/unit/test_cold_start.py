"""Customers of whom nothing but attributes is known: asked about in training, and answered with calibration."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import pandas as pd
import pytest
import torch

from constellation.answering import answer_all
from constellation.building import build_model
from constellation.journeys.batch import Gatherer
from constellation.journeys.sampling import TrainingBatches
from constellation.journeys.store import Store
from constellation.journeys.vocabulary import Vocabulary
from constellation.journeys.windows import Windows, ask, panel
from tests.helpers import DAY, at, events_frame, make_store

HORIZONS = (10, 20)
UNTIL = at(60)
NUM_CUSTOMERS = 600


@lru_cache
def club() -> Store:
    """A members' list: of the gold 5 in 100 come for the first time each day, of the iron 1; then both buy weekly."""
    rng = np.random.default_rng(0)
    rows, attributes = [], []
    for customer in range(NUM_CUSTOMERS):
        name, segment = f"c{customer:03d}", ("gold", "iron")[customer % 2]
        attributes.append({"customer_id": name, "segment": segment})
        first = rng.geometric(0.05 if segment == "gold" else 0.01) - rng.random()
        times = first + np.concatenate([[0.0], rng.exponential(7.0, 12).cumsum()])
        rows += [
            {"customer_id": name, "event_time": at(time), "event_type": "purchase", "amount": 10.0}
            for time in times[times < 85]
        ]
    return make_store(events_frame(rows), attributes=pd.DataFrame(attributes), observed_until=at(85))


def vocabulary() -> Vocabulary:
    windows = Windows("2017-04-10", "2017-04-30", HORIZONS)
    journeys = np.arange(NUM_CUSTOMERS)
    train = panel(club(), windows, known_until=UNTIL, journeys=journeys)
    return Vocabulary.fit(club(), train, journeys=journeys, until=UNTIL, windows_days=(7, 30))


def batches(share: float, **changes) -> TrainingBatches:
    settings = {"cutoffs_per_journey": 4, "max_journeys": 64, "before_first_share": share} | changes
    return TrainingBatches(Gatherer(club(), vocabulary()), np.arange(NUM_CUSTOMERS), UNTIL, HORIZONS, **settings)


def test_newcomers_are_asked_about_before_their_first_event():
    share = 0.25
    asked, extra = 0, []
    for batch in batches(share):
        newcomer_Q = batch.last_event_Q < 0
        asked += int((~newcomer_Q).sum())
        extra.append(batch)
        assert (batch.lengths_B[batch.query_journey_Q[newcomer_Q]] == 0).all()
    number = sum(int((batch.last_event_Q < 0).sum()) for batch in extra)
    # Customers who came too late to be asked about otherwise are part of the batches that newcomers are a share of.
    assert number == pytest.approx(share * len(batches(0).journeys) * 4, rel=0.05)
    cutoffs = torch.cat([batch.cutoff_Q[batch.last_event_Q < 0] for batch in extra]).numpy()
    assert cutoffs.min() < at(10) < at(45) < cutoffs.max()
    # Iron customers come late or never, so more days before their first event are theirs.
    codes = torch.cat([batch.attributes["segment"][batch.query_journey_Q[batch.last_event_Q < 0]] for batch in extra])
    iron = 2 + vocabulary().categories["attributes.segment"].index("iron")
    store, latest = club(), at(49, 24) - 1
    first_C = store.time_N[np.minimum(store.first_event_C[:-1], store.num_events - 1)]
    first_C = np.where(np.diff(store.first_event_C) > 0, first_C, latest + DAY)
    days_C = np.minimum(first_C, latest) - store.manifest.first_time
    wanted = days_C[1::2].sum() / days_C.sum()
    assert (codes == iron).float().mean().item() == pytest.approx(wanted, abs=0.06)


def test_every_day_before_a_first_event_is_as_likely():
    some = batches(1.0)
    drawn = [some._ask_newcomers(np.arange(start, start + 64)) for start in range(0, 400, 16)]
    journeys, cutoffs = (np.concatenate(each) for each in zip(*drawn, strict=True))
    assert (club().last_event(journeys, cutoffs) == -1).all()
    again = some._ask_newcomers(np.arange(64))
    np.testing.assert_array_equal(again[1], some._ask_newcomers(np.arange(64))[1])
    counts = np.bincount(journeys, minlength=NUM_CUSTOMERS)
    # Draws hang on the number of days, so those with many have more, in proportion.
    days = np.diff(some.newcomers)
    many, few = days >= np.quantile(days, 0.8), (days > 0) & (days <= np.median(days[days > 0]))
    rate_many, rate_few = counts[many].sum() / days[many].sum(), counts[few].sum() / days[few].sum()
    assert rate_many == pytest.approx(rate_few, rel=0.15)


def test_without_share_or_attributes_nobody_is_asked():
    for batch in batches(0.0):
        assert (batch.last_event_Q >= 0).all()


@pytest.mark.parametrize("share", [0.05, pytest.param(0.3, marks=pytest.mark.slow)])
def test_a_customer_without_events_gets_a_calibrated_answer(share: float):
    """Both heads of value and of time: predicted and true shares and purchases of new customers agree, also where only
    a twentieth of the questions is about such customers, as by default."""
    found = vocabulary()
    config = {
        "encoder": {"_target_": "constellation.encoders.bag.Bag", "width": 16},
        "readout": {"_target_": "constellation.encoders.readout.Readout", "width": 32, "dropout": 0.0},
        "objective": {
            "value": {
                "_target_": "constellation.objectives.value.Value",
                "family": {"_target_": "constellation.objectives.families.Ziln"},
            },
            "time_to_event": {"_target_": "constellation.objectives.time_to_event.TimeToEvent"},
        },
    }
    torch.manual_seed(0)
    model = build_model(config, found, HORIZONS)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    data, num_epochs = batches(share, max_journeys=64), 14
    for epoch in range(num_epochs):
        data.epoch = epoch
        optimizer.param_groups[0]["lr"] = 1e-2 * (1 - epoch / num_epochs)
        for batch in data:
            optimizer.zero_grad()
            sum((loss.mean for loss in model.loss(batch).values()), start=torch.zeros(())).backward()
            optimizer.step()
    # At the later cutoff, whoever has no event yet: never asked about at this time in training.
    everybody = np.arange(NUM_CUSTOMERS)
    queries = ask(club(), everybody, np.full(NUM_CUSTOMERS, UNTIL), HORIZONS, at(85))
    none_Q = queries.last_event_Q < 0
    answers = answer_all(model, Gatherer(club(), found), queries, (0.5,))
    iron_Q = none_Q & (everybody % 2 == 1)
    assert iron_Q.sum() > 100
    bought_Q = queries.purchases_QK[:, 1] > 0
    # 1 - 0.99^20 = 18 % of the iron come within 20 days; active customers buy almost surely.
    realised = bought_Q[iron_Q].mean()
    assert realised == pytest.approx(0.18, abs=0.08)
    p_buys = 1 - answers["value_20d_p_zero"]
    assert p_buys[iron_Q].mean() == pytest.approx(realised, abs=0.1)
    assert answers["p_purchase_20d"][iron_Q].mean() == pytest.approx(realised, abs=0.1)
    # First comes day g with probability 0.01 x 0.99^(g - 1), about half a day before its end; then one each 7 days.
    day = np.arange(1, 21)
    purchases = float((0.01 * 0.99 ** (day - 1) * (1 + (20 - day + 0.5) / 7)).sum())
    assert purchases == pytest.approx(0.451, abs=0.001)
    assert answers["purchases_20d_expected"][iron_Q].mean() == pytest.approx(purchases, rel=0.35)
    assert answers["value_20d_expected"][iron_Q].mean() == pytest.approx(10 * purchases, rel=0.35)
    assert p_buys[~none_Q].mean() > 0.6
    # The gold come five times as fast, and the model has learned it from them before their first events.
    question = ask(club(), np.array([0, 1]), np.full(2, club().manifest.first_time - DAY), HORIZONS, at(85))
    gold, iron = answer_all(model, Gatherer(club(), found), question, (0.5,))["p_purchase_20d"]
    assert gold == pytest.approx(1 - 0.95**20, abs=0.2)
    assert iron == pytest.approx(1 - 0.99**20, abs=0.12)
