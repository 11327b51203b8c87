"""The objective of decisions keeps the contract of objectives, and neither it nor what feeds it sees ahead."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import torch

from constellation.building import build_model
from constellation.encoders.gru import Gru
from constellation.journeys.batch import Gatherer
from constellation.journeys.build import store_from_frame
from constellation.journeys.decision_batches import DecisionBatches
from constellation.journeys.decision_features import decision_features
from constellation.journeys.decisions import DecisionRule
from constellation.journeys.store import MICROSECONDS_PER_DAY
from constellation.journeys.vocabulary import Vocabulary
from constellation.journeys.windows import ask
from constellation.objectives.engagement import Engagement
from constellation.schema import EventSchema

START = 1_700_000_000_000_000
MODEL = {
    "encoder": {"_target_": "constellation.encoders.gru.Gru", "width": 8},
    "readout": {"_target_": "constellation.encoders.readout.Readout", "width": 8},
    "objective": {
        "engagement": {
            "_target_": "constellation.objectives.engagement.Engagement",
            "num_actions": 3,
            "action_features": [[0.0, 1.0], [1.0, 0.0], [2.0, 0.0]],
            "reward_mean": 2.0,
            "reward_std": 3.0,
            "num_members": 3,
        }
    },
}


def events(num_customers=30, seed=0, spoil_after=None):
    """Purchases and contacts; with ``spoil_after`` everything ordered after each customer's second contact is
    changed."""
    rng = np.random.default_rng(seed)
    rows = []
    for customer in range(num_customers):
        times = np.sort(rng.integers(0, 40, size=12))
        kinds = rng.choice(["purchase", "contact"], size=12, p=[0.6, 0.4])
        actions, amounts = rng.choice(["mail", "call"], size=12), rng.gamma(2.0, size=12)
        contacts = np.flatnonzero(kinds == "contact")
        cut = contacts[spoil_after] if spoil_after is not None and len(contacts) > spoil_after else 12
        for place in range(12):
            contact = kinds[place] == "contact"
            action = str(actions[place]) if contact else None
            amount = None if contact else float(amounts[place])
            if place == cut:  # the decision's own action: what was chosen must not show
                action = "call" if action == "mail" else "mail"
            if place > cut:
                amount = None if amount is None else amount + 1000.0
            # A unique order within the day, so that "ordered after" is the same in both worlds.
            time = START + int(times[place]) * MICROSECONDS_PER_DAY
            rows.append((customer, time, str(kinds[place]), amount, action, float(place)))
    names = ["customer_id", "event_time", "event_type", "amount", "action", "place"]
    frame = pl.DataFrame(rows, schema=names, orient="row")
    return frame.with_columns(pl.col("event_time").cast(pl.Datetime("us", "UTC")))


def prepared(spoil_after=None):
    schema = EventSchema(purchase_types=("purchase",), numeric=("place",), order_by=("place",))
    store = store_from_frame(events(spoil_after=spoil_after), schema)
    decisions = DecisionRule(kind="events", types=("contact",), reward_days=5).derive(store)
    return store, decisions


@pytest.fixture(scope="module")
def vocabulary():
    store, decisions = prepared()
    late = decisions.last_event_Q >= 0
    queries = ask(store, decisions.journey_Q[late], decisions.time_Q[late], (1,), store.manifest.last_time)
    return Vocabulary.fit(store, queries, journeys=np.arange(store.num_customers), until=store.manifest.last_time)


def batches_of(store, decisions, vocabulary, rows=slice(None), max_events=64):
    return DecisionBatches(
        Gatherer(store, vocabulary, max_events),
        decisions.journey_Q[rows],
        decisions.time_Q[rows],
        decisions.last_event_Q[rows],
        decisions.action_Q[rows].astype(np.int64) - 1,
        decisions.reward_Q[rows],
        np.ones((len(decisions.journey_Q[rows]), 3)),
        max_journeys=7,
    )


def second_contacts(decisions):
    """Rows of the decisions at each customer's second contact."""
    order = np.lexsort((decisions.last_event_Q, decisions.time_Q, decisions.journey_Q))
    journeys = decisions.journey_Q[order]
    rank = np.arange(len(order)) - np.searchsorted(journeys, journeys)
    return order[rank == 1]


def model_of(vocabulary):
    torch.manual_seed(0)
    return build_model(MODEL, vocabulary, vocabulary.horizons_days).eval()


def answers(store, decisions, vocabulary, rows):
    from constellation.training.engagement_study import answer_decisions

    return answer_decisions(model_of(vocabulary), batches_of(store, decisions, vocabulary, rows), torch.device("cpu"))


def test_nothing_after_a_decision_and_nothing_of_it_reaches_the_model(vocabulary):
    store, decisions = prepared()
    spoiled_store, spoiled = prepared(spoil_after=1)
    rows, other = second_contacts(decisions), second_contacts(spoiled)
    assert len(rows) > 20
    np.testing.assert_array_equal(decisions.journey_Q[rows], spoiled.journey_Q[other])
    assert (decisions.action_Q[rows] != spoiled.action_Q[other]).any()
    assert (decisions.reward_Q[rows] != spoiled.reward_Q[other]).any()
    np.testing.assert_allclose(
        answers(store, decisions, vocabulary, rows), answers(spoiled_store, spoiled, vocabulary, other), atol=1e-6
    )
    mine, theirs = decision_features(store, decisions), decision_features(spoiled_store, spoiled)
    assert mine.names == theirs.names
    np.testing.assert_array_equal(mine.values_QX[rows], theirs.values_QX[other])


def test_a_pass_over_a_journey_answers_as_each_decision_alone(vocabulary):
    store, decisions = prepared()
    model = model_of(vocabulary)
    alone_QAM = answers(store, decisions, vocabulary, slice(None))
    seen = 0
    batches = batches_of(store, decisions, vocabulary)
    by_question = {
        (int(journey), int(last)): row
        for row, (journey, last) in enumerate(zip(decisions.journey_Q, decisions.last_event_Q, strict=True))
    }
    for batch, planned in zip(batches, batches._plan(np.random.default_rng([0, 0])), strict=True):
        with torch.inference_mode():
            members = model.predict(batch, [0.5])["reward_members"].numpy()
        first = store.first_event_C[batches.journeys[planned]]
        for place in range(batch.num_queries):
            row_of_B = int(batch.query_journey_Q[place])
            last = int(batch.last_event_Q[place])
            event = -1 if last < 0 else int(first[row_of_B]) + last - int(batch.offsets_B[row_of_B])
            row = by_question[(int(batches.journeys[planned][row_of_B]), event)]
            np.testing.assert_allclose(members[place], alone_QAM[row], atol=1e-5)
            seen += 1
    assert seen == len(decisions)


def test_long_journeys_are_asked_once_where_they_are_cut(vocabulary):
    store, decisions = prepared()
    batches = batches_of(store, decisions, vocabulary, max_events=3)
    assert batches.is_long.any()
    asked = [batch.num_queries for batch in batches]
    assert sum(asked) == int(np.where(batches.is_long, 1, batches.count).sum())
    first = [batch.cutoff_Q.tolist() for batch in batches]
    assert first == [batch.cutoff_Q.tolist() for batch in batches]
    batches.epoch = 1
    assert first != [batch.cutoff_Q.tolist() for batch in batches]


def test_loss_and_predictions_keep_the_contract(vocabulary):
    store, decisions = prepared()
    batch = next(iter(batches_of(store, decisions, vocabulary)))
    model = model_of(vocabulary)
    loss = model.loss(batch)["engagement"]
    assert loss.total.shape == loss.count.shape == ()
    assert loss.count == batch.num_queries
    loss.total.backward()
    for name, parameter in model.objectives.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().sum() > 0, name
    found = model.predict(batch, [0.1, 0.5, 0.9])
    assert found["reward_members"].shape == (batch.num_queries, 3, 3)
    torch.testing.assert_close(found["reward_expected"], found["reward_members"].mean(dim=2))
    assert (found["reward_quantiles"].diff(dim=2) >= 0).all()


def test_censored_rewards_are_not_read(vocabulary):
    store, decisions = prepared()
    batch = next(iter(batches_of(store, decisions, vocabulary)))
    model = model_of(vocabulary)
    known_Q = batch.decided.known_Q.clone()
    known_Q[::2] = False
    reward_Q = batch.decided.reward_Q.clone()
    spoiled_Q = reward_Q.clone()
    spoiled_Q[::2] = float("nan")

    def loss_with(rewards):
        return model.loss(replace(batch, decided=replace(batch.decided, known_Q=known_Q, reward_Q=rewards)))[
            "engagement"
        ]

    assert loss_with(spoiled_Q).count == known_Q.sum()
    torch.testing.assert_close(loss_with(spoiled_Q).total, loss_with(reward_Q).total)


def test_an_action_never_logged_is_scored_from_its_description():
    """The reward rises with a feature of the action; the fourth action was never tried."""
    torch.manual_seed(0)
    objective = Engagement(
        None, 4, 4, (1,), num_actions=4, num_members=1, quantile_weight=0.0,
        action_features=[[0.0], [1.0], [2.0], [3.0]],
    )  # fmt: skip
    with torch.no_grad():
        objective.of_action.zero_()
    parts = [*objective.customer.parameters(), *objective.of_customer.parameters(), *objective.of_features.parameters()]
    optimizer = torch.optim.Adam(parts, lr=0.05)
    readout_QD, action_Q = torch.randn(512, 4), torch.randint(0, 3, (512,))
    reward_Q = action_Q * (1 + readout_QD[:, 0])
    for _ in range(300):
        means = objective._means(readout_QD)[torch.arange(512), action_Q, 0]
        optimizer.zero_grad()
        (means - reward_Q).square().mean().backward()
        optimizer.step()
    new_Q = objective._means(readout_QD)[:, 3, 0]
    assert (new_Q - 3 * (1 + readout_QD[:, 0])).abs().mean() < 0.5


def test_the_encoder_is_a_plain_encoder(vocabulary):
    """What cross-fitting builds is what a bundle builds: classes of the modelling rooms, nothing else."""
    assert isinstance(model_of(vocabulary).encoder, Gru)
