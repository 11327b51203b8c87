"""Swings of common activity: by hand, by chance alone, with a known common shock; and what they do to the prior."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from constellation.backtesting.origins import plan
from constellation.backtesting.scoring import learned_shocks
from constellation.backtesting.systems import Task
from constellation.building import build_model
from constellation.errors import InputError
from constellation.journeys.build import store_from_frame
from constellation.journeys.splits import Splits
from constellation.journeys.store import Store
from constellation.journeys.vocabulary import Vocabulary
from constellation.journeys.windows import Windows, ask, parse_cutoff
from constellation.model import JourneyModel
from constellation.recalibration import Recalibrator, Swings, measured_swings
from constellation.schema import EventSchema
from constellation.training.fit import Fitted
from constellation.training.options import TrainingOptions
from constellation.training.recalibrating import learn_corrections
from constellation.training.study import Study, fit_vocabulary
from tests.bundles import MODEL

SCHEMA = EventSchema(timezone="Europe/Berlin", purchase_types=("purchase",))
START = pd.Timestamp("2023-01-01 12:00")
UNTIL = parse_cutoff("2023-06-17", SCHEMA.timezone)  # the 168th day: 24 weeks, and a clock change within


def store_of(customer: np.ndarray, day: np.ndarray, amount: np.ndarray) -> Store:
    """Purchases at noon of days counted from 0; customers come on day 0 unless they are 1000 and more."""
    return store_from_frame(
        pd.DataFrame(
            {
                "customer_id": customer,
                "event_time": START + pd.to_timedelta(day, unit="D"),
                "event_type": "purchase",
                "amount": amount,
            }
        ),
        SCHEMA,
        observed_until="2023-12-31",
    )


def swings_of(store: Store, longest_days: int = 28) -> dict[str, Swings]:
    return measured_swings(store, UNTIL, first=store.manifest.first_time, longest_days=longest_days)


def equal_customers(factor_W: np.ndarray, num_customers: int = 60) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Everybody spends the same every day: the factor of the week, weeks counted back from the last of 24."""
    customer, day = (part.ravel() for part in np.meshgrid(np.arange(num_customers), np.arange(168), indexing="ij"))
    return customer, day, factor_W[day // 7]


def test_steps_between_weeks_by_hand() -> None:
    log_W = np.tile([0.0, 0.1], 12)
    found = swings_of(store_of(*equal_customers(np.round(np.exp(log_W), 6))), longest_days=7)
    # The first stretch begins before the first event. Of 24 weeks 22 can be compared with the one before: the steps
    # are +0.1 and -0.1 in turn, their variance 0.01 * 22 / 21, and that of a week half as much.
    assert found["value"].num_steps == 22
    assert found["value"].variance == pytest.approx(0.01 * 22 / 21 / 2, rel=1e-4)
    assert found["value"].noise_sd == pytest.approx(0.0, abs=1e-6)
    assert found["purchases"] == Swings(pytest.approx(0.0, abs=1e-12), pytest.approx(0.0, abs=1e-6), 22, 7)


def test_a_steady_decline_is_no_swing() -> None:
    found = swings_of(store_of(*equal_customers(np.round(1000 * np.exp(-0.05 * np.arange(24)), 6))), longest_days=7)
    assert found["value"].variance == pytest.approx(0.0, abs=1e-6)


def test_newcomers_and_what_comes_later_change_nothing() -> None:
    customer, day, amount = equal_customers(np.tile([1.0, 2.0], 12))
    before = swings_of(store_of(customer, day, amount))
    late = np.arange(40)
    more = (
        np.concatenate([customer, 1000 + late, customer[:60]]),
        np.concatenate([day, 100 + late, np.full(60, 200)]),
        np.concatenate([amount, np.full(40, 1e6), np.full(60, 1e6)]),
    )
    # Each newcomer buys once, and that is a first purchase.
    after = swings_of(store_of(*more))
    for kind in ("value", "purchases"):
        assert after[kind].variance == pytest.approx(before[kind].variance, abs=1e-9)
        assert (after[kind].num_steps, after[kind].days) == (before[kind].num_steps, before[kind].days)


def shoppers(shock_sd: float, seed: int, num_customers: int = 400) -> Store:
    """A Poisson purchase every third day, more or less by a common factor of each four weeks."""
    rng = np.random.default_rng(seed)
    rate_D = np.repeat(np.exp(shock_sd * rng.standard_normal(6)), 28) / 3
    count_CD = rng.poisson(np.broadcast_to(rate_D, (num_customers, 168)))
    count_CD[:, 0] = 1
    customer, day = (np.repeat(part.ravel(), count_CD.ravel()) for part in np.indices(count_CD.shape))
    return store_of(customer, day, rng.gamma(2.0, 10.0, len(day)).round(2) + 0.01)


def test_chance_alone_is_told_from_a_common_shock() -> None:
    calm = [swings_of(shoppers(0.0, seed), longest_days=7)["purchases"] for seed in range(6)]
    # 400 customers a third a day for 7 days: 933 purchases, a standard deviation of 3.27 %.
    assert np.mean([each.noise_sd for each in calm]) == pytest.approx(0.0327, rel=0.1)
    assert abs(np.mean([each.variance for each in calm])) < 0.0327**2 / 4
    assert {(each.num_steps, each.days) for each in calm} == {(22, 7)}
    wild = [swings_of(shoppers(0.2, seed)) for seed in range(12)]
    for kind in ("value", "purchases"):
        assert np.sqrt(np.mean([each[kind].variance for each in wild])) == pytest.approx(0.2, rel=0.25)


def test_too_short_a_history_says_nothing() -> None:
    store = store_of(*equal_customers(np.ones(24)))
    early = parse_cutoff("2023-02-04", SCHEMA.timezone)  # five weeks: three steps
    assert measured_swings(store, early, first=store.manifest.first_time, longest_days=7) == {}
    few = store_of(*equal_customers(np.ones(24), num_customers=49))
    assert swings_of(few) == {}
    assert measured_swings(store, UNTIL, first=store.manifest.first_time, longest_days=6) == {}


def test_noise_makes_steps_worth_less() -> None:
    assert Swings(0.0, 0.0, 12, 28).windows(0.1) == 12.0
    assert Swings(0.0, 0.1, 12, 28).windows(0.1) == pytest.approx(3.0)


def test_the_prior_moves_towards_what_activity_showed() -> None:
    recalibrator = Recalibrator(prior_sd=0.1, prior_windows=4, assumed_windows=4)
    calm = Swings(-0.001, 0.0, 12, 28)
    assert recalibrator.prior_variance(calm) == pytest.approx(4 * 0.01 / 16)
    shock = recalibrator.learn_shock([], calm)
    assert (shock.sd, shock.dof, shock.num_windows) == (pytest.approx(0.05), 4.0, 0.0)
    wild = Swings(0.04, 0.1, 16, 28)  # worth four stretches
    assert recalibrator.prior_variance(wild) == pytest.approx((4 * 0.01 + 4 * 0.04) / 8)
    assert Recalibrator(assumed_windows=None).learn_shock([], wild) == Recalibrator().learn_shock([])


@given(st.floats(-0.01, 1.0), st.floats(0.0, 1.0), st.integers(4, 104))
def test_the_prior_lies_between_assumption_and_activity(variance: float, noise_sd: float, num_steps: int) -> None:
    found = Recalibrator().prior_variance(Swings(variance, noise_sd, num_steps, 28))
    low, high = sorted([0.01, max(variance, 0.0)])
    assert low - 1e-12 <= found <= high + 1e-12


def test_an_assumption_worth_nothing_is_refused() -> None:
    with pytest.raises(InputError, match="assumed_windows"):
        Recalibrator(assumed_windows=0.0)


# ---------------------------------------------------------------- where they are put to use


def test_a_study_reads_them_before_its_test_cutoff(tmp_path: Path) -> None:
    store = shoppers(0.3, seed=1, num_customers=80)
    splits = Splits(store, Windows("2023-04-20", "2023-05-20", (14, 28), holdout_share=0.0))
    options = TrainingOptions(windows_days=(7, 30), max_events=50)
    vocabulary = fit_vocabulary(splits, options, splits.select_panel, splits.select_until)
    fitted = Fitted(build_model(MODEL, vocabulary, (14, 28)), 1, 0)
    study = Study(fitted, vocabulary, fitted, vocabulary, "value_28d/crps")

    def never(train: np.ndarray) -> tuple[JourneyModel, Vocabulary]:
        raise AssertionError("nothing needs to be fitted again")

    plain, moved = (
        learn_corrections(study, splits, recalibrator, options, tmp_path / name, never).shocks
        for name, recalibrator in (("plain", Recalibrator(assumed_windows=None)), ("moved", Recalibrator()))
    )
    until, first = parse_cutoff("2023-05-20", SCHEMA.timezone), store.manifest.first_time
    swings = measured_swings(store, until, first=first, longest_days=14)
    for kind in ("value", "purchases"):
        assert swings[kind].days == 14
        # The prior is worth four windows beside the one that has come true.
        expected = 4 / 5 * (Recalibrator().prior_variance(swings[kind]) - 0.01)
        assert moved[kind].sd ** 2 - plain[kind].sd ** 2 == pytest.approx(expected)
        assert expected != 0


def test_a_backtest_reads_them_before_its_origin(tmp_path: Path) -> None:
    customer, day, amount = equal_customers(np.ones(24))
    windows = Windows("2023-03-01", "2023-04-01", (28,))
    found = []
    for later in (1.0, 50.0):
        store = store_of(customer, day, np.where(day >= 140, later, amount))
        [origin] = plan(store, windows, origins=["2023-05-20"], horizons_days=[28])
        queries = ask(store, np.arange(60), np.full(60, origin.cutoff), (28,), UNTIL)
        task = Task(store, windows, origin, queries, 0.0, 0, tmp_path)
        found.append(learned_shocks(Recalibrator(), [], "model", 0, task))
    assert found[0] == found[1]
    # By the origin 20 weeks and a day: five stretches of 14 days leave eight steps, but of 28 days only three.
    steps = measured_swings(store, origin.cutoff, first=store.manifest.first_time, longest_days=28)["value"]
    assert (steps.days, steps.num_steps) == (14, 8)
    assert found[0]["value"].sd == pytest.approx(np.sqrt(4 * 0.01 / 12))
