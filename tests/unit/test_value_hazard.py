"""Horizon value from hazards: a coin each day, learned from a history shorter than the horizon that is asked."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from constellation.errors import InputError
from constellation.journeys.batch import Gatherer, JourneyBatch
from constellation.journeys.store import Store
from constellation.journeys.vocabulary import Vocabulary
from constellation.journeys.windows import ask
from constellation.metrics import LEVELS
from constellation.objectives.value_hazard import DAYS_PER_YEAR, ValueHazard
from tests.helpers import at, events_frame, fit_vocabulary, make_store

HORIZONS = (7, 60)
CUTOFF, KNOWN = at(1, 24) - 1, at(21, 24) - 1
CHANCE, MONEY = 0.2, 5.0


def coins(num_customers: int = 1500, seed: int = 0) -> Store:
    """On day 1 everybody buys; then on each day with chance 0.2, for 5 on average; watched to day 21 only."""
    rng = np.random.default_rng(seed)
    rows = []
    for customer in range(num_customers):
        days = np.concatenate([[1], 2 + np.flatnonzero(rng.random(20) < CHANCE)])
        rows += [
            {
                "customer_id": f"c{customer:04d}",
                "event_time": at(day, 12),
                "event_type": "purchase",
                "amount": float(np.round(rng.gamma(4.0, MONEY / 4.0), 2)),
            }
            for day in days
        ]
    return make_store(events_frame(rows), observed_until=at(200))


def asked(store: Store, vocabulary: Vocabulary) -> JourneyBatch:
    everybody = np.arange(store.num_customers)
    queries = ask(store, everybody, np.full(len(everybody), CUTOFF), HORIZONS, KNOWN)
    assert not queries.observed_QK[:, 1].any(), "the longer horizon must be beyond what was watched"
    return Gatherer(store, vocabulary).gather(everybody, KNOWN, queries)


@pytest.fixture(scope="module")
def learned() -> tuple[ValueHazard, JourneyBatch, Vocabulary]:
    """The objective with nothing to read, so that it learns the hazards of everybody."""
    store = coins()
    vocabulary = fit_vocabulary(store, KNOWN)
    torch.manual_seed(0)
    objective = ValueHazard(vocabulary, 3, 2, HORIZONS, lifetime_years=1.0, discount_rate=0.1)
    batch = asked(store, vocabulary)
    readout_QD = torch.zeros(store.num_customers, 2)
    optimizer = torch.optim.Adam(objective.parameters(), lr=0.05)
    for step in range(250):
        optimizer.param_groups[0]["lr"] = 0.05 * (1 - step / 250)
        optimizer.zero_grad()
        objective.loss(torch.zeros(0, 3), readout_QD, batch).mean.backward()
        optimizer.step()
    return objective.requires_grad_(False), batch, vocabulary


def test_a_horizon_that_nobody_saw_is_answered(learned: tuple[ValueHazard, JourneyBatch, Vocabulary]) -> None:
    objective, batch, _ = learned
    answers = objective.predict(torch.zeros(1, 2), batch, LEVELS)
    for days in HORIZONS:
        assert answers[f"purchases_{days}d_expected"].item() == pytest.approx(CHANCE * days, rel=0.06)
        assert answers[f"value_{days}d_expected"].item() == pytest.approx(CHANCE * days * MONEY, rel=0.06)
        # Members are equally likely: their mean is the distribution's, but for its outermost tail.
        for kind in ("purchases", "value"):
            mean = answers[f"{kind}_{days}d_quantiles"].double().mean().item()
            assert mean == pytest.approx(answers[f"{kind}_{days}d_expected"].item(), rel=0.08)
    assert answers["purchases_7d_p_zero"].item() == pytest.approx(0.8**7, rel=0.15)
    # Binomial over 60 days: deviation 3.1; the days of 5 with a spread of half: sqrt(60 x (0.2 x 31.25 - 1)). Two waits
    # of each customer leave it open whether a few are slower than others, so somewhat more is said.
    assert 3.0 < answers["purchases_60d_quantiles"].double().std().item() < 1.35 * np.sqrt(60 * 0.16)
    assert 16.0 < answers["value_60d_quantiles"].double().std().item() < 1.4 * np.sqrt(60 * 5.25)


def test_the_lifetime_is_a_geometric_series(learned: tuple[ValueHazard, JourneyBatch, Vocabulary]) -> None:
    """A coin each day goes on for ever: 0.2 x 5 a day, discounted at a tenth a year, for a year."""
    objective, batch, _ = learned
    discount = 1.1 ** (-1 / DAYS_PER_YEAR)
    by_hand = CHANCE * MONEY * discount * (1 - discount**365) / (1 - discount)
    assert by_hand == pytest.approx(348.2, abs=0.3)
    found = objective.predict(torch.zeros(1, 2), batch, [0.5])["value_lifetime_expected"].item()
    assert found == pytest.approx(by_hand, rel=0.12)


def test_paces_are_mixed_by_their_shares(learned: tuple[ValueHazard, JourneyBatch, Vocabulary]) -> None:
    """Two paces by hand: half of the customers never come, half come each day with chance 0.4."""
    _, batch, vocabulary = learned
    objective = ValueHazard(vocabulary, 3, 2, HORIZONS).requires_grad_(False)
    for head in (objective.hazards, objective.paces, objective.spend):
        head.weight.zero_()
    # Steps that bring each interval's logit to a hazard of 0.4 a day, and a pace far below it.
    length_J = objective.edges_J.diff(prepend=torch.zeros(1))
    wanted_J = torch.log(1 / 0.6**length_J - 1) - objective.start_J
    objective.hazards.bias.copy_(wanted_J.diff(prepend=torch.zeros(1)).repeat(2))
    objective.pace_offset_K.copy_(torch.tensor([-25.0, 0.0, 0.0]))
    objective.paces.bias.copy_(torch.tensor([0.0, 0.0, -50.0]))
    answers = objective.predict(torch.zeros(1, 2), batch, LEVELS)
    assert answers["purchases_7d_p_zero"].item() == pytest.approx(0.5 + 0.5 * 0.6**7, rel=1e-4)
    further = 1 + math.exp(objective.start_P[4].item())
    assert answers["purchases_60d_expected"].item() == pytest.approx(0.5 * 0.4 * 60 * further, rel=1e-4)
    assert (answers["purchases_60d_quantiles"] == 0).float().mean().item() == pytest.approx(0.5, abs=0.011)


def test_new_purchase_days_are_watched_as_whole_days() -> None:
    rows = [
        {"customer_id": "ann", "event_time": at(day, hour), "event_type": "purchase", "amount": 2.0}
        for day, hour in ((1, 9), (3, 8), (3, 20), (8, 11))
    ] + [{"customer_id": "bob", "event_time": at(1, 9), "event_type": "purchase", "amount": 2.0},
         {"customer_id": "bob", "event_time": at(5, 9), "event_type": "refund", "amount": -1.5}]  # fmt: skip
    store = make_store(events_frame(rows), observed_until=at(200))
    vocabulary = fit_vocabulary(store, KNOWN)
    after = asked(store, vocabulary).targets.after
    assert after.first_day_Q.tolist() == [2, float("inf")]
    assert after.second_day_Q.tolist() == [7, float("inf")]
    assert after.days_Q.tolist() == [2, 0]
    assert after.purchases_Q.tolist() == [3, 0]
    assert after.value_Q.tolist() == [6, -1.5]


def test_impossible_settings_are_named() -> None:
    store = coins(20)
    vocabulary = fit_vocabulary(store, KNOWN)
    with pytest.raises(InputError, match="lifetime_years > 0"):
        ValueHazard(vocabulary, 3, 2, HORIZONS, lifetime_years=0.0)
    with pytest.raises(InputError, match="whole days from 1 on"):
        ValueHazard(vocabulary, 3, 2, HORIZONS, edges_days=[0])
