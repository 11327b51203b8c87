"""Baselines on logs small enough to compute by hand, and the contract that all of them keep."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from constellation.baselines import Baseline
from constellation.baselines.always_zero import AlwaysZero
from constellation.baselines.bgnbd import BgNbdGammaGamma
from constellation.baselines.boosters import MeanBooster, QuantileBooster, ZeroBooster
from constellation.baselines.gradient_boosting import GradientBoosting
from constellation.baselines.mbgnbd import MbgNbdGammaGamma
from constellation.baselines.most_popular import MostPopular
from constellation.baselines.own_favourites import OwnFavourites
from constellation.baselines.pareto_nbd import ParetoNbdGammaGamma
from constellation.baselines.past_spend import PastSpend
from constellation.baselines.prior_fitted import PriorFitted
from constellation.baselines.recency import purchase_days
from constellation.baselines.recently_popular import RecentlyPopular
from constellation.baselines.same_rate import SameRate
from constellation.distributions.bgnbd import BgNbd
from constellation.distributions.mbgnbd import MbgNbd
from constellation.distributions.pareto_nbd import ParetoNbd
from constellation.errors import InputError
from constellation.journeys.store import Store
from constellation.journeys.vocabulary import Vocabulary
from constellation.journeys.windows import Queries, Windows, ask, panel
from constellation.metrics import LEVELS
from constellation.schema import EventSchema
from tests.helpers import at, events_frame, make_store

HORIZONS = (10, 20)
BOOSTING = {"max_trees": 12, "num_trees": 6}


def event(customer: str, day: float, amount: float | None, *products: str, kind: str = "purchase") -> dict[str, Any]:
    return {
        "customer_id": customer,
        "event_time": at(day),
        "event_type": kind,
        "amount": amount,
        "product": list(products),
    }


HAND = [
    # ann: three purchase days (two receipts on day 10), then a refund; cutoff day 40.
    event("ann", 0, 10.0, "tea"),
    event("ann", 10, 20.0, "tea", "milk"),
    event("ann", 10.2, 40.0, "soap"),
    event("ann", 34, 60.0, "tea"),
    event("ann", 38, -5.0, kind="refund"),
    event("ann", 50, 999.0, "soap"),
    # bob: one purchase. cat: visits only.
    event("bob", 36, 7.0, "bread"),
    event("cat", 5, None, kind="visit"),
]
CUTOFF = at(40)


def hand_made() -> tuple[Store, Queries]:
    store = make_store(events_frame(HAND))
    return store, ask(store, np.arange(3), np.full(3, CUTOFF), HORIZONS, CUTOFF)


def fitted(baseline: Baseline, store: Store, *, journeys: np.ndarray, until: int = CUTOFF) -> Baseline:
    windows = Windows("2017-03-20", "2017-04-10", horizons_days=HORIZONS, train_cutoffs_every_days=5)
    train = panel(store, windows, known_until=until, journeys=journeys)
    vocabulary = Vocabulary.fit(store, train, journeys=journeys, until=until, windows_days=(7, 30))
    baseline.fit(store, vocabulary, train, until=until)
    return baseline


def test_always_zero_is_certain_of_zero():
    store, queries = hand_made()
    answers = AlwaysZero().predict(store, queries, LEVELS)
    assert set(answers) == {
        f"{target}_{days}d_{part}"
        for target in ("value", "purchases")
        for days in HORIZONS
        for part in ("expected", "p_zero", "quantiles")
    }
    assert answers["value_10d_quantiles"].shape == (3, len(LEVELS))
    assert not answers["value_10d_quantiles"].any()
    assert (answers["purchases_20d_p_zero"] == 1).all()


def test_same_rate_by_hand():
    store, queries = hand_made()
    answers = SameRate(min_days=7).predict(store, queries, LEVELS)
    # ann: 3 further purchases, 20 + 40 + 60 - 5 money in 40 days. bob: none after the first. cat: nothing.
    np.testing.assert_allclose(answers["purchases_20d_expected"], [3 / 40 * 20, 0, 0])
    np.testing.assert_allclose(answers["value_10d_expected"], [115 / 40 * 10, 0, 0])
    np.testing.assert_allclose(answers["value_10d_quantiles"][0], 115 / 40 * 10)
    np.testing.assert_allclose(answers["value_10d_p_zero"], [np.exp(-0.75), 1, 1])


def test_past_spend_counts_the_last_horizon_and_all_of_a_young_history():
    store, queries = hand_made()
    answers = PastSpend().predict(store, queries, LEVELS)
    np.testing.assert_allclose(answers["value_10d_expected"], [60 - 5, 7, 0])  # (30, 40]
    np.testing.assert_allclose(answers["purchases_10d_expected"], [1, 1, 0])
    np.testing.assert_allclose(answers["purchases_20d_p_zero"], [np.exp(-1), np.exp(-1), 1])


def test_popularity_counts_training_customers_only():
    store, queries = hand_made()
    baseline = fitted(MostPopular(), store, journeys=np.array([0, 2]))
    vocabulary_order = ["tea", "milk", "soap"]
    assert set(baseline.predict(store, queries, LEVELS)) == {"next_product_scores"}
    scores = baseline.predict(store, queries, LEVELS)["next_product_scores"]
    assert scores.shape == (3, 3)
    assert scores[1].tolist() == [{"tea": 3, "milk": 1, "soap": 1}[name] for name in vocabulary_order]


def test_recently_popular_looks_back_a_window_from_each_cutoff():
    store, _ = hand_made()
    journeys = np.arange(3)
    baseline = fitted(RecentlyPopular(window_days=10), store, journeys=journeys)
    cutoffs = np.array([at(40), at(10.1), at(60), at(39)])
    queries = ask(store, np.array([0, 1, 2, 0]), cutoffs, HORIZONS, CUTOFF)
    scores = baseline.predict(store, queries, LEVELS)["next_product_scores"]
    # tea (3), then bread, milk, soap by name. (30, 40] has ann's tea, (0.1, 10.1] her tea and milk; after `until` the
    # window ends at `until`. bob is too new for any training question, so his bread does not count.
    assert scores.tolist() == [[1, 0, 0, 0], [1, 0, 1, 0], [1, 0, 0, 0], [1, 0, 0, 0]]


def test_own_favourites_come_before_popular_ones():
    store, queries = hand_made()
    baseline = fitted(OwnFavourites(), store, journeys=np.arange(3))
    scores = baseline.predict(store, queries, LEVELS)["next_product_scores"]
    assert np.floor(scores).tolist() == [[3, 0, 1, 1], [0, 1, 0, 0], [0, 0, 0, 0]]
    assert (np.argmax(scores, axis=1) == [0, 1, 0]).all()  # cat has no own: the most popular, tea


def test_purchase_days_merge_receipts_of_one_local_day():
    store, queries = hand_made()
    record = purchase_days(store, queries)
    assert record.x_Q.tolist() == [2, 0, 0]
    np.testing.assert_allclose(record.t_x_Q, [34 / 7, 0, 0])
    np.testing.assert_allclose(record.T_Q, [40 / 7, 4 / 7, 35 / 7])  # cat: since the first event
    np.testing.assert_allclose(record.mean_spend_Q, [(20 + 40 + 60) / 2, np.nan, np.nan])
    assert record.purchases_Q.tolist() == [4, 1, 0]
    assert record.days_Q.tolist() == [3, 1, 0]


def test_purchase_days_are_days_of_the_shops_zone():
    # 02:00 and 22:00 UTC are one day in UTC but two evenings in New York (UTC - 5 in early March).
    rows = [event("ann", 1 + 2 / 24, 5.0), event("ann", 1 + 22 / 24, 6.0)]
    for zone, repeats in (("UTC", 0), ("America/New_York", 1)):
        store = make_store(events_frame(rows), EventSchema(timezone=zone))
        record = purchase_days(store, ask(store, np.array([0]), np.array([at(5)]), HORIZONS, at(5)))
        assert record.x_Q[0] == repeats


def shoppers(seed: int = 0, num_customers: int = 150, days: int = 60) -> Store:
    """Poisson shoppers, a third of whom stop at some time; refunds are events of their own."""
    rng = np.random.default_rng(seed)
    rows = []
    for customer in range(num_customers):
        name, start = f"c{customer:03d}", rng.uniform(0, 15)
        end = rng.uniform(start, days) if rng.random() < 0.33 else days
        rate, spend = rng.gamma(2, 0.12), rng.lognormal(2.5, 0.6)
        times = [start, *np.sort(rng.uniform(start, end, rng.poisson(rate * (end - start))))]
        for time in times:
            basket = rng.choice(["tea", "milk", "soap", "bread"], rng.integers(1, 3), p=[0.5, 0.2, 0.2, 0.1])
            rows.append(event(name, time, round(spend * rng.gamma(4, 0.25) + 0.01, 2), *map(str, basket)))
        if rng.random() < 0.1:
            rows.append(event(name, times[-1] + 0.3, -1.0, kind="refund"))
    attributes = pd.DataFrame(
        {
            "customer_id": [f"c{customer:03d}" for customer in range(num_customers)],
            "segment": [
                None if customer % 5 == 0 else ("gold", "iron")[customer % 2] for customer in range(num_customers)
            ],
            "age": np.where(np.arange(num_customers) % 7 == 0, np.nan, 20.0 + np.arange(num_customers) % 50),
        }
    )
    return make_store(events_frame(rows), attributes=attributes, observed_until=at(days + 1))


ALL = {
    "always_zero": AlwaysZero,
    "same_rate": SameRate,
    "past_spend": PastSpend,
    "most_popular": MostPopular,
    "recently_popular": RecentlyPopular,
    "own_favourites": OwnFavourites,
    "bgnbd": BgNbdGammaGamma,
    "mbgnbd": MbgNbdGammaGamma,
    "pareto_nbd": ParetoNbdGammaGamma,
    "prior_fitted": PriorFitted,
    "gradient_boosting": lambda: GradientBoosting(**BOOSTING),
}


@pytest.mark.parametrize("name", ALL)
def test_every_baseline_keeps_the_contract(name):
    store = shoppers()
    baseline = fitted(ALL[name](), store, journeys=np.arange(0, store.num_customers, 2))
    assert baseline.name == name
    queries = ask(store, np.arange(store.num_customers), np.full(store.num_customers, CUTOFF), HORIZONS, at(61))
    answers = baseline.predict(store, queries, LEVELS)
    assert answers
    again = baseline.predict(store, queries, LEVELS)
    for key, values in answers.items():
        assert np.isfinite(values).all(), key
        np.testing.assert_array_equal(values, again[key])
        if key.endswith("_p_zero"):
            assert ((values >= 0) & (values <= 1)).all()
        if key.endswith("_quantiles"):
            assert values.shape == (len(queries), len(LEVELS))
            assert (np.diff(values, axis=1) >= -1e-9).all()
        if key.endswith(("_expected", "_p_zero")):
            assert values.shape == (len(queries),)
    # One row alone is answered as it is among others, up to the random draws of quantiles.
    alone = baseline.predict(store, queries.take(np.array([3])), LEVELS)
    for key in answers:
        if not key.endswith("_quantiles"):
            np.testing.assert_allclose(alone[key][0], answers[key][3], rtol=1e-6)


@pytest.mark.parametrize("name", ALL)
def test_no_baseline_sees_past_the_cutoff_or_into_the_held_out(name):
    """Every event after the cutoff is changed or gone, and so are the held-out customers' in the fit: nothing moves."""
    frame = events_frame(HAND + [event(f"d{i % 9}", 2 + 2.3 * i % 38, 5.0 + i % 4, "tea") for i in range(60)])
    late = frame["event_time"] > CUTOFF
    other = frame.copy()
    other.loc[late, "amount"] = 12345.0
    held_out = frame["customer_id"] == "bob"
    third = frame.copy()
    third.loc[held_out, "amount"] = 0.5
    stores = [make_store(each, observed_until=at(61)) for each in (frame, other, frame[~late], third)]
    journeys = np.array([row for row, customer in enumerate(stores[0].customer_id_C) if customer != "bob"])
    everyone = np.arange(stores[0].num_customers)
    reference: dict[str, np.ndarray] = {}
    for store in stores:
        queries = ask(store, everyone, np.full(len(everyone), CUTOFF), HORIZONS, CUTOFF)
        answers = fitted(ALL[name](), store, journeys=journeys).predict(store, queries, LEVELS)
        reference = reference or answers
        # The third store changes bob himself; everybody else must not notice.
        rows = journeys if store is stores[3] else everyone
        assert set(answers) == set(reference)
        for key, values in answers.items():
            np.testing.assert_array_equal(values[rows], reference[key][rows], err_msg=key)


@pytest.mark.parametrize("name", ["bgnbd", "mbgnbd", "pareto_nbd"])
def test_buy_till_you_die_forecasts_are_near_the_truth(name):
    store = shoppers(seed=1, num_customers=600)
    baseline = fitted(ALL[name](), store, journeys=np.arange(600))
    queries = ask(store, np.arange(600), np.full(600, CUTOFF), HORIZONS, at(61))
    answers = baseline.predict(store, queries, LEVELS)
    for column, days in enumerate(HORIZONS):
        realised = queries.purchases_QK[:, column]
        assert answers[f"purchases_{days}d_expected"].sum() == pytest.approx(realised.sum(), rel=0.15)
        assert answers[f"value_{days}d_expected"].sum() == pytest.approx(queries.value_QK[:, column].sum(), rel=0.2)
        zeros = (answers[f"value_{days}d_quantiles"] == 0).mean()
        assert answers[f"value_{days}d_p_zero"].mean() == pytest.approx(zeros, abs=0.02)
        # Quantiles are 100 equally likely members: their mean is the expected value.
        members = answers[f"purchases_{days}d_quantiles"].mean()
        assert members == pytest.approx(answers[f"purchases_{days}d_expected"].mean(), rel=0.05)
        money = answers[f"value_{days}d_quantiles"].mean()
        assert money == pytest.approx(answers[f"value_{days}d_expected"].mean(), rel=0.08)


@pytest.mark.parametrize("make", [BgNbdGammaGamma, MbgNbdGammaGamma, ParetoNbdGammaGamma])
def test_quantiles_are_those_of_the_posterior_predictive(make):
    """Against draws: rate and dropout from their posteriors, then days, then purchases, then money."""
    store = shoppers(seed=2, num_customers=60)
    queries = ask(store, np.arange(60), np.full(60, CUTOFF), HORIZONS, at(61))
    baseline = fitted(make(), store, journeys=np.arange(60))
    levels = np.array([0.25, 0.5, 0.75, 0.9, 0.97])
    answers = baseline.predict(store, queries, levels)
    record, rng = purchase_days(store, queries), np.random.default_rng(0)
    family = {"bgnbd": BgNbd, "mbgnbd": MbgNbd, "pareto_nbd": ParetoNbd}[baseline.name]
    process = family(*np.exp(baseline.log_parameters))
    days = process.sample_purchases(record.x_Q, record.t_x_Q, record.T_Q, 20 / 7, 20_000, rng)
    purchases = days + rng.poisson(days * (baseline.purchases_per_day - 1))
    money = baseline.spend.sample_total(record.x_Q, np.nan_to_num(record.mean_spend_Q), days, rng)
    for target, drawn in (("purchases", purchases), ("value", money)):
        found = answers[f"{target}_20d_quantiles"]
        for place, level in enumerate(levels):
            below = (drawn < found[:, place : place + 1]).mean(axis=1)
            through = (drawn <= found[:, place : place + 1] * (1 + 1e-9)).mean(axis=1)
            assert (below <= level + 0.02).all(), (target, level)
            assert (through >= level - 0.02).all(), (target, level)


def test_equal_records_are_answered_once_and_alike():
    rows = [event(name, day, 7.0 * scale) for scale, name in ((1, "ann"), (2, "bob")) for day in (1, 9, 20)]
    rows += [event("cat", day, 3.0) for day in (2, 30)]
    store = make_store(events_frame(rows), observed_until=at(61))
    queries = ask(store, np.arange(3), np.full(3, CUTOFF), HORIZONS, at(61))
    baseline = fitted(BgNbdGammaGamma(), store, journeys=np.arange(3))
    answers = baseline.predict(store, queries, LEVELS)
    record = purchase_days(store, queries)
    assert len(baseline._distinct(record, record.x_Q, np.empty((3, 0))).spend_x_G) == 2
    np.testing.assert_array_equal(answers["purchases_20d_quantiles"][0], answers["purchases_20d_quantiles"][1])
    # Money of equal records differs by the factor of Gamma-Gamma's scale, v + x z.
    wanted = (baseline.spend.v + 28.0) / (baseline.spend.v + 14.0)
    some = answers["value_20d_quantiles"][0] > 0
    ratio = answers["value_20d_quantiles"][1][some] / answers["value_20d_quantiles"][0][some]
    np.testing.assert_allclose(ratio, wanted, rtol=1e-9)


@pytest.mark.parametrize("make", [BgNbdGammaGamma, ParetoNbdGammaGamma])
def test_covariates_find_what_moves_the_rate(make):
    """Members of one segment buy three times as often; the other attribute says nothing."""
    rng = np.random.default_rng(5)
    rows, segment = [], ["gold" if customer % 2 else "iron" for customer in range(400)]
    for customer, name in enumerate(segment):
        start, rate = rng.uniform(0, 15), rng.gamma(3, 0.02) * (3 if name == "gold" else 1)
        times = [start, *rng.uniform(start, 60, rng.poisson(rate * (60 - start)))]
        rows += [event(f"c{customer:03d}", time, 10.0) for time in times]
    names = [f"c{customer:03d}" for customer in range(400)]
    attributes = pd.DataFrame({"customer_id": names, "segment": segment, "age": rng.normal(40, 9, 400)})
    store = make_store(events_frame(rows), attributes=attributes, observed_until=at(61))
    baseline = fitted(make(covariates=["segment", "age"]), store, journeys=np.arange(400))
    gold = baseline.design.categories["segment"].index("gold")
    # Columns: the two segments (each less its share of a half), then age. Rate 3 : 1 is a log scale of 1.1.
    difference = baseline.effects_KF[0, gold] - baseline.effects_KF[0, 1 - gold]
    assert difference == pytest.approx(np.log(3), abs=0.25)
    assert abs(baseline.effects_KF[0, 2]) < 0.12
    queries = ask(store, np.arange(400), np.full(400, CUTOFF), HORIZONS, at(61))
    answers = baseline.predict(store, queries, LEVELS)
    assert all(np.isfinite(values).all() for values in answers.values())
    plain = fitted(make(), store, journeys=np.arange(400)).predict(store, queries, LEVELS)
    quiet = purchase_days(store, queries).x_Q == 0
    rich = np.array(segment) == "gold"
    assert answers["purchases_20d_expected"][quiet & rich].mean() > plain["purchases_20d_expected"][quiet & rich].mean()


def test_covariates_must_be_attributes():
    store = shoppers(num_customers=20)
    with pytest.raises(InputError, match=r"colour are no attributes.*segment, age"):
        fitted(BgNbdGammaGamma(covariates=["colour"]), store, journeys=np.arange(20))


def test_gradient_boosting_chooses_trees_on_val_and_keeps_them():
    store = shoppers(num_customers=200)
    journeys = np.arange(200)
    windows = Windows("2017-03-20", "2017-04-10", horizons_days=HORIZONS, train_cutoffs_every_days=5)
    select = panel(store, windows, known_until=at(30), journeys=journeys)
    vocabulary = Vocabulary.fit(store, select, journeys=journeys, until=at(30), windows_days=(7, 30))
    val = ask(store, journeys, np.full(200, at(30)), HORIZONS, at(50))
    baseline = GradientBoosting(**BOOSTING)
    baseline.fit(store, vocabulary, select, until=at(30), val=val)
    chosen = dict(baseline.chosen_trees)
    assert set(chosen) == {
        (f"{target}_{days}d", part)
        for target in ("value", "purchases")
        for days in HORIZONS
        for part in ("mean", "zero", "quantile_0.05", "quantile_0.25", "quantile_0.5", "quantile_0.75", "quantile_0.95")
    }
    assert all(1 <= trees <= 12 for trees in chosen.values())
    refit = panel(store, windows, known_until=at(50), journeys=journeys)
    baseline.fit(store, vocabulary, refit, until=at(50))
    assert baseline.chosen_trees == chosen
    assert baseline.boosters["value_10d", "mean"].model.n_iter_ == chosen["value_10d", "mean"]


def test_gradient_boosting_leaves_out_a_horizon_it_never_saw():
    store = shoppers(num_customers=60)
    baseline = fitted(GradientBoosting(**BOOSTING), store, journeys=np.arange(60), until=at(22))
    queries = ask(store, np.arange(60), np.full(60, at(22)), (10, 55), at(61))
    answers = baseline.predict(store, queries, LEVELS)
    assert "value_10d_expected" in answers
    assert not any("55d" in key for key in answers)


def test_gradient_boosting_meets_a_column_known_only_after_the_longest_horizon_was_seen():
    rng = np.random.default_rng(0)
    visits = {customer: [rng.uniform(0, 5), *rng.uniform(20, 45, customer % 4)] for customer in range(60)}
    rows = [event(f"c{customer}", day, 5.0) for customer, days in visits.items() for day in days]
    store = make_store(events_frame(rows), observed_until=at(46))
    # By day 15, the last from which 30 days are known by day 45, everybody has come once: no time between visits.
    journeys, windows = np.arange(60), Windows("2017-03-20", "2017-04-10", horizons_days=(5, 30))
    train = panel(store, windows, known_until=at(45), journeys=journeys)
    vocabulary = Vocabulary.fit(store, train, journeys=journeys, until=at(45), windows_days=(7, 30))
    baseline = GradientBoosting(**BOOSTING)
    baseline.fit(store, vocabulary, train, until=at(45))
    answers = baseline.predict(store, ask(store, journeys, np.full(60, at(45)), (5, 30), at(46)), LEVELS)
    assert np.isfinite(answers["value_30d_expected"]).all() and np.isfinite(answers["value_5d_expected"]).all()


def test_gradient_boosting_answers_no_more_than_was_ever_seen():
    store = shoppers(num_customers=60)
    journeys = np.arange(60)
    baseline = fitted(GradientBoosting(**BOOSTING), store, journeys=journeys)
    highest = baseline.highest["value_10d"]
    windows = Windows("2017-03-20", "2017-04-10", horizons_days=HORIZONS, train_cutoffs_every_days=5)
    seen = panel(store, windows, known_until=CUTOFF, journeys=journeys)
    assert highest == seen.value_QK[seen.observed_QK[:, 0], 0].max() > 0
    # Zero at 75 % and half the highest at 95 %: the line through both would pass the highest a thousandfold at 99.5 %.
    for level in baseline.quantile_levels:
        constant = np.log1p(highest / 2) if level == 0.95 else 0.0
        baseline.boosters["value_10d", f"quantile_{level:g}"].constant = constant
    queries = ask(store, journeys, np.full(60, CUTOFF), HORIZONS, CUTOFF)
    answers = baseline.predict(store, queries, LEVELS)
    assert answers["value_10d_quantiles"].max() == highest
    assert (answers["value_10d_quantiles"][:, LEVELS > 0.97] == highest).all()


def test_boosters_learn_their_own_question():
    rng = np.random.default_rng(0)
    group = rng.integers(0, 2, 4000)
    y = np.where(group == 1, rng.poisson(5, 4000), rng.poisson(0.5, 4000)).astype(float)
    settings = {"learning_rate": 0.3, "min_samples_leaf": 20, "random_state": 0}
    features, question = group[:, None].astype(float), np.array([[0.0], [1.0]])
    mean, zero, upper = MeanBooster(settings), ZeroBooster(settings), QuantileBooster(settings, 0.9)
    for booster in (mean, zero, upper):
        booster.fit(features, y, 40)
    means = [y[group == each].mean() for each in (0, 1)]
    np.testing.assert_allclose(mean.predict(question), means, rtol=0.02)
    np.testing.assert_allclose(zero.predict(question), [(y[group == each] == 0).mean() for each in (0, 1)], atol=0.01)
    # Poisson: P(y <= 1) = 0.910 at mean 0.5, P(y <= 8) = 0.932 at mean 5.
    np.testing.assert_allclose(np.expm1(upper.predict(question)), [1, 8], atol=0.01)


def test_boosters_answer_a_constant_where_nothing_varies():
    booster = ZeroBooster({})
    booster.fit(np.zeros((5, 1)), np.ones(5), 10)
    assert booster.keep_best(np.zeros((2, 1)), np.ones(2)) == 1
    assert booster.predict(np.zeros((3, 1))).tolist() == [0.0, 0.0, 0.0]


def test_what_cannot_be_said_is_left_out():
    rows = [{key: row[key] for key in ("customer_id", "event_time", "event_type")} for row in HAND]
    store = make_store(events_frame(rows), EventSchema(purchase_types=("purchase",)))
    queries = ask(store, np.arange(3), np.full(3, CUTOFF), HORIZONS, CUTOFF)
    for baseline in (MostPopular(), RecentlyPopular(), OwnFavourites()):
        assert fitted(baseline, store, journeys=np.arange(3)).predict(store, queries, LEVELS) == {}
    answers = fitted(BgNbdGammaGamma(), store, journeys=np.arange(3)).predict(store, queries, LEVELS)
    assert {key.split("_")[0] for key in answers} == {"purchases"}
    # Nobody buys on two days: no rate can be fitted.
    lonely = make_store(events_frame([event("bob", 1, 7.0), event("cat", 5, None, kind="visit")]))
    queries = ask(lonely, np.arange(2), np.full(2, CUTOFF), HORIZONS, CUTOFF)
    assert fitted(ParetoNbdGammaGamma(), lonely, journeys=np.arange(2)).predict(lonely, queries, LEVELS) == {}


@pytest.mark.parametrize(
    "make",
    [
        lambda: GradientBoosting(quantile_levels=[0.5]),
        lambda: GradientBoosting(quantile_levels=[0.0, 0.5]),
        lambda: GradientBoosting(num_trees=500, max_trees=100),
        lambda: BgNbdGammaGamma(penalty=-1.0),
        lambda: RecentlyPopular(window_days=0),
    ],
)
def test_impossible_settings_are_named(make):
    with pytest.raises(InputError, match="found"):
        make()
