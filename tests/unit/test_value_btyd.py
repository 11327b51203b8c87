"""With a constant encoder the amortised head is the classical model: likelihood, predictions, totals."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from constellation.distributions.bgnbd import BgNbd
from constellation.distributions.gamma_gamma import GammaGamma
from constellation.distributions.mbgnbd import MbgNbd
from constellation.distributions.pareto_nbd import ParetoNbd
from constellation.errors import InputError
from constellation.journeys.batch import Gatherer
from constellation.journeys.recency import purchase_days
from constellation.journeys.windows import ask
from constellation.metrics import LEVELS
from constellation.objectives import purchase_processes
from constellation.objectives.value_btyd import BASE_GAIN, REACH, ValueBtyd
from tests.helpers import at, events_frame, fit_vocabulary, make_store

READOUT_WIDTH = 4
HORIZONS = (3, 10)
UNTIL = at(60)
PROCESSES = {
    "bgnbd": (BgNbd(0.7, 3.0, 0.8, 2.4), purchase_processes.BgNbd()),
    "mbgnbd": (MbgNbd(0.7, 3.0, 0.8, 2.4), purchase_processes.BgNbd(leaves_at_start=True)),
    "pareto_nbd": (ParetoNbd(0.7, 3.0, 0.6, 9.0), purchase_processes.ParetoNbd()),
}
SPEND = GammaGamma(5.0, 3.5, 20.0)
processes = pytest.mark.parametrize("name", PROCESSES)


def shop():
    """Forty customers, at most one purchase a day."""
    rng = np.random.default_rng(4)
    rows = []
    for customer in range(40):
        start = int(rng.integers(0, 10))
        days = sorted({start, *(start + rng.integers(1, 50, rng.poisson(4))).tolist()})
        rows += [
            {"customer_id": f"c{customer:02d}", "event_time": at(day, 12), "event_type": "purchase", "amount": amount}
            for day, amount in zip(days, rng.lognormal(2.5, 0.6, len(days)).round(2).tolist(), strict=True)
        ]
    return make_store(events_frame(rows), observed_until=at(70))


def constant(name, vocabulary, **settings):
    """The objective whose head says the same of everybody: the parameters of the classical model."""
    model, process = PROCESSES[name]
    objective = ValueBtyd(vocabulary, 3, READOUT_WIDTH, HORIZONS, process=process, **settings)
    wanted = torch.tensor([*vars(model).values(), SPEND.p, SPEND.q - 1, SPEND.v, 1e-4]).double().log()
    with torch.no_grad():
        objective.head.weight.zero_()
        bent = ((wanted - objective.start_P) / REACH).clamp(-0.999, 0.999)
        objective.base_P.copy_(REACH * torch.atanh(bent) / BASE_GAIN)
    return objective.requires_grad_(False)


def asked(store, vocabulary, cutoff_Q, horizons=HORIZONS):
    journeys = np.arange(store.num_customers)
    queries = ask(store, journeys, cutoff_Q, horizons, UNTIL)
    batch = Gatherer(store, vocabulary).gather(journeys, UNTIL, queries)
    return queries, batch, torch.zeros(len(queries), READOUT_WIDTH)


@processes
def test_loss_from_the_first_purchase_on_is_the_classical_likelihood(name, monkeypatch):
    store, model = shop(), PROCESSES[name][0]
    vocabulary = fit_vocabulary(store, UNTIL)
    first_C = store.time_N[store.first_event_C[:-1]]
    # A horizon that reaches to the end of what is known: the future is all of it, and censored for nobody.
    objective = constant(name, vocabulary)
    monkeypatch.setattr(objective, "horizons_days", (100,))
    _, batch, readout_QD = asked(store, vocabulary, first_C, (100,))
    loss = objective.loss(torch.zeros(0, 3), readout_QD, batch)
    journeys = np.arange(store.num_customers)
    record = purchase_days(store, ask(store, journeys, np.full(40, UNTIL), (), UNTIL))
    classical = model.log_likelihood(record.x_Q, record.t_x_Q, record.T_Q).sum()
    assert loss.parts["purchases"].item() * 40 == pytest.approx(-classical, rel=1e-5)
    some = record.x_Q > 0
    spend = SPEND.log_likelihood(record.x_Q[some], record.mean_spend_Q[some]).sum() + some.sum() * objective.log_unit
    assert loss.parts["money"].item() * 40 == pytest.approx(-spend, rel=1e-5)
    assert loss.count == 40


@processes
def test_loss_later_on_is_the_likelihood_of_the_longer_record_over_the_shorter(name):
    store, model = shop(), PROCESSES[name][0]
    vocabulary = fit_vocabulary(store, UNTIL)
    objective = constant(name, vocabulary)
    # Ten days on from day 55 are known for five only.
    for day, known in ((20, 30), (55, 60)):
        cutoff_Q = np.full(40, at(day, 24) - 1)
        queries, batch, readout_QD = asked(store, vocabulary, cutoff_Q)
        end_Q = np.minimum(cutoff_Q + (at(10) - at(0)), UNTIL)
        now, later = (
            purchase_days(store, queries),
            purchase_days(store, ask(store, queries.journey_Q, end_Q, (), UNTIL)),
        )
        assert known == 30 or (end_Q == UNTIL).all()
        ratio = model.log_likelihood(later.x_Q, later.t_x_Q, later.T_Q) - model.log_likelihood(
            now.x_Q, now.t_x_Q, now.T_Q
        )
        loss = objective.loss(torch.zeros(0, 3), readout_QD, batch)
        # Those who came between the cutoff and the end have another first day in the longer record: none here.
        assert (now.days_Q > 0).all()
        assert loss.parts["purchases"].item() == pytest.approx(-ratio.mean(), rel=1e-4)


@processes
def test_predictions_are_the_classical_ones(name):
    store, model = shop(), PROCESSES[name][0]
    vocabulary = fit_vocabulary(store, UNTIL)
    objective = constant(name, vocabulary, num_paths=4096)
    queries, batch, readout_QD = asked(store, vocabulary, np.full(40, UNTIL))
    answers = objective.predict(readout_QD, batch, LEVELS)
    record = purchase_days(store, queries)
    rows = (record.x_Q, record.t_x_Q, record.T_Q)
    spend = SPEND.expected_spend(record.x_Q, np.nan_to_num(record.mean_spend_Q))
    np.testing.assert_allclose(answers["p_alive"], model.p_alive(*rows), rtol=1e-4)
    for days in HORIZONS:
        expected = model.expected_purchases(*rows, days / 7)
        np.testing.assert_allclose(answers[f"purchases_{days}d_expected"], expected * (1 + 1e-4), rtol=1e-3)
        np.testing.assert_allclose(answers[f"value_{days}d_expected"], expected * spend, rtol=1e-3)
        np.testing.assert_allclose(answers[f"value_{days}d_p_zero"], model.p_zero(*rows, days / 7), rtol=1e-4)
    # The total is the closed form's, and the quantiles are those of the compound law: by analytic table, by paths.
    pmf = model.count_pmf(*rows, 10 / 7, 200)
    ratio = SPEND.total_ratio_quantiles(record.x_Q, pmf, LEVELS)
    wanted = ratio * (SPEND.v + np.nan_to_num(record.mean_spend_Q) * record.x_Q)[:, None]
    found = answers["value_10d_quantiles"].numpy()
    np.testing.assert_array_equal(found > 0, wanted > 0)
    some = (wanted > 0) & (LEVELS < 0.97)
    # Money at the level P(zero) rises straight up, so quantiles are compared by the money they add up to, and at large.
    np.testing.assert_allclose(found[some], wanted[some], rtol=0.25)
    assert np.abs(found[some] / wanted[some] - 1).mean() < 0.02
    counts = np.array([np.searchsorted(row.cumsum(), LEVELS) for row in pmf])
    assert (np.abs(answers["purchases_10d_quantiles"].numpy() - counts) <= 1).all()
    assert (answers["purchases_10d_quantiles"].numpy() == counts).mean() > 0.98


@processes
def test_lifetime_is_the_discounted_sum_of_what_each_quarter_brings(name):
    store, model = shop(), PROCESSES[name][0]
    vocabulary = fit_vocabulary(store, UNTIL)
    queries, batch, readout_QD = asked(store, vocabulary, np.full(40, UNTIL))
    record = purchase_days(store, queries)
    rows = (record.x_Q, record.t_x_Q, record.T_Q)
    spend = SPEND.expected_spend(record.x_Q, np.nan_to_num(record.mean_spend_Q))
    plain = constant(name, vocabulary, discount_rate=0.0, lifetime_years=2.0)
    undiscounted = plain.predict(readout_QD, batch, [0.5])["value_lifetime_expected"]
    np.testing.assert_allclose(undiscounted, model.expected_purchases(*rows, 2 * 365.25 / 7) * spend, rtol=1e-3)
    objective = constant(name, vocabulary, discount_rate=0.2, lifetime_years=0.5)
    first, both = (model.expected_purchases(*rows, years * 365.25 / 7) for years in (0.25, 0.5))
    wanted = (first * 1.2**-0.125 + (both - first) * 1.2**-0.375) * spend
    found = objective.predict(readout_QD, batch, [0.5])["value_lifetime_expected"]
    np.testing.assert_allclose(found, wanted, rtol=1e-3)


def test_further_purchases_of_a_day_are_poisson():
    rows = [{"customer_id": "a", "event_time": at(day, hour), "event_type": "purchase", "amount": 5.0}
            for day, hour in ((1, 9), (14, 9), (14, 10), (14, 11), (17, 9))]  # fmt: skip
    store = make_store(events_frame(rows), observed_until=at(70))
    vocabulary = fit_vocabulary(store, UNTIL)
    objective = constant("pareto_nbd", vocabulary)
    objective.head.bias[7] = 4.0
    queries = ask(store, np.array([0]), np.array([at(10, 24) - 1]), HORIZONS, UNTIL)
    batch = Gatherer(store, vocabulary).gather(np.array([0]), UNTIL, queries)
    readout_QD = torch.zeros(1, READOUT_WIDTH)
    extra = objective.parameters_of(readout_QD)[2].item()
    # Two purchase days, four purchases: two further ones where 2 kappa are expected.
    after = batch.targets.after
    assert (after.days_Q.item(), after.purchases_Q.item(), after.money_Q.item()) == (2, 4, 20)
    wanted = 2 * extra - 2 * math.log(2 * extra) + math.log(2)
    assert objective.loss(torch.zeros(0, 3), readout_QD, batch).parts["further"].item() == pytest.approx(
        wanted, rel=1e-5
    )


def test_training_recovers_the_population():
    """From the neutral start, with nothing to read, the shared parameters move to what the likelihood wants."""
    rng = np.random.default_rng(1)
    rows = []
    for customer in range(150):
        rate, end, start = rng.gamma(2.0, 0.05), rng.exponential(60), rng.uniform(0, 20)
        span = min(end, 75 - start)
        days = sorted({int(start), *(start + rng.uniform(0, span, rng.poisson(rate * span))).astype(int).tolist()})
        rows += [
            {"customer_id": f"c{customer:03d}", "event_time": at(day, 12), "event_type": "purchase", "amount": 9.0}
            for day in days
        ]
    store = make_store(events_frame(rows), observed_until=at(75))
    vocabulary = fit_vocabulary(store, UNTIL)
    objective = ValueBtyd(vocabulary, 3, READOUT_WIDTH, HORIZONS, process=purchase_processes.ParetoNbd())
    journeys = np.arange(150)
    queries = ask(store, np.tile(journeys, 2), np.repeat([at(30), at(45)], 150), HORIZONS, UNTIL)
    batch = Gatherer(store, vocabulary).gather(journeys, UNTIL, queries, row_of_Q=np.tile(journeys, 2))
    readout_QD = torch.zeros(300, READOUT_WIDTH)
    optimizer = torch.optim.Adam([objective.base_P], lr=0.03)
    losses = []
    for _ in range(50):
        optimizer.zero_grad()
        loss = objective.loss(torch.zeros(0, 3), readout_QD, batch)
        losses.append(loss.mean.item())
        loss.mean.backward()
        optimizer.step()
    assert losses[-1] < losses[0] - 0.01
    later = ask(store, journeys, np.full(150, UNTIL), HORIZONS, at(75))
    objective.requires_grad_(False)
    answers = objective.predict(
        readout_QD[:150], Gatherer(store, vocabulary).gather(journeys, UNTIL, later, targets=False), [0.5]
    )
    assert answers["purchases_10d_expected"].sum().item() == pytest.approx(later.purchases_QK[:, 1].sum(), rel=0.3)


def test_settings_that_mean_nothing_are_named():
    vocabulary = fit_vocabulary(shop(), UNTIL)
    for settings in ({"discount_rate": -0.1}, {"lifetime_years": 0.0}, {"num_paths": 3}):
        with pytest.raises(InputError, match="found"):
            ValueBtyd(vocabulary, 3, 4, HORIZONS, process=purchase_processes.BgNbd(), **settings)
    with pytest.raises(InputError, match="only the order is known"):
        ValueBtyd(vocabulary, 3, 4, (), process=purchase_processes.BgNbd())
