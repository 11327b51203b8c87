"""The prior-fitted baseline on stores: what it reads by hand, what it must not read, and what it says."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from constellation.baselines.prior_fitted import PriorFitted
from constellation.cli import main
from constellation.commands.train_prior import CHECKPOINT, VALIDATION, WEIGHTS
from constellation.errors import InputError
from constellation.journeys.store import Store
from constellation.journeys.vocabulary import Vocabulary
from constellation.journeys.windows import Queries, Windows, ask, panel
from constellation.metrics import LEVELS
from constellation.prior.histories import histories
from constellation.schema import EventSchema
from constellation.worlds.prior.hyperparameters import PLAIN_FAMILIES
from tests.end_to_end.console import without_pictures
from tests.helpers import at, events_frame, make_store

CUTOFF, HORIZONS = at(40), (10, 20)


def event(customer: str, day: float, amount: float | None, kind: str = "purchase") -> dict[str, object]:
    return {"customer_id": customer, "event_time": at(day), "event_type": kind, "amount": amount}


HAND = [
    # ann: three purchase days (two receipts on day 10), then a refund; bob: one; cat: visits only; dan: after day 40.
    event("ann", 0, 10.0), event("ann", 10, 20.0), event("ann", 10.2, 40.0), event("ann", 34, 60.0),
    event("ann", 38, -5.0, "refund"), event("ann", 50, 999.0), event("bob", 36, 7.0), event("cat", 5, None, "visit"),
    event("dan", 45, 3.0),
]  # fmt: skip


def shoppers(num_customers: int = 150, seed: int = 0, scale: float = 1.0) -> list[dict[str, object]]:
    """Poisson buyers of many rates who come over three weeks; some leave."""
    rng = np.random.default_rng(seed)
    rows = []
    for number in range(num_customers):
        day, end = rng.uniform(0, 20), rng.choice([25.0, 60.0], p=[0.3, 0.7])
        rate = rng.gamma(1.0, 0.12)
        while day < end:
            rows.append(event(f"c{number:03d}", day, round(scale * float(rng.lognormal(3, 0.5)), 6)))
            day += rng.exponential(1 / max(rate, 1e-3))
    return rows


def everybody(store: Store, cutoff: int = CUTOFF) -> Queries:
    return ask(store, np.arange(store.num_customers), np.full(store.num_customers, cutoff), HORIZONS, at(61))


def fitted(store: Store, *, until: int = CUTOFF, journeys: np.ndarray | None = None) -> PriorFitted:
    journeys = np.arange(store.num_customers) if journeys is None else journeys
    windows = Windows("2017-03-20", "2017-04-10", horizons_days=HORIZONS, train_cutoffs_every_days=5)
    train = panel(store, windows, known_until=until, journeys=journeys)
    vocabulary = Vocabulary.fit(store, train, journeys=journeys, until=until, windows_days=(7,))
    baseline = PriorFitted()
    baseline.fit(store, vocabulary, train, until=until)
    return baseline


def test_histories_by_hand():
    store = make_store(events_frame(HAND), observed_until=at(61))
    found = histories(store, everybody(store))
    np.testing.assert_array_equal(found.start_C, [0, 3, 4, 4, 4])
    np.testing.assert_array_equal(found.day_P, [40, 30, 6, 4])
    np.testing.assert_array_equal(found.money_P, [10.0, 60.0, 60.0, 7.0])
    np.testing.assert_allclose(found.age_C, [40, 4, 35, 0])


def test_a_day_that_goes_on_after_the_cutoff_is_seen_up_to_it():
    store = make_store(events_frame(HAND), observed_until=at(61))
    found = histories(store, everybody(store, at(10.1)))
    np.testing.assert_array_equal(found.day_P, [10, 0])
    np.testing.assert_array_equal(found.money_P, [10.0, 20.0])


def test_the_answers_are_distributions():
    store = make_store(events_frame(shoppers()), observed_until=at(61))
    queries = everybody(store)
    answers = fitted(store).predict(store, queries, LEVELS)
    for days in HORIZONS:
        for name in ("purchases", "value"):
            expected, quantiles = answers[f"{name}_{days}d_expected"], answers[f"{name}_{days}d_quantiles"]
            assert (np.diff(quantiles, axis=1) >= 0).all() and (expected > 0).all()
            zeros = (quantiles == 0).mean(axis=1)
            np.testing.assert_allclose(answers[f"{name}_{days}d_p_zero"], zeros, atol=0.011)
            assert quantiles.mean() == pytest.approx(expected.mean(), rel=0.15)
            shock = answers[f"{name}_{days}d_shock_sd"]
            assert shock.shape == (len(queries),) and len(np.unique(shock)) == 1 and 0 < shock[0] < 1
    assert (answers["purchases_20d_expected"] > answers["purchases_10d_expected"]).mean() > 0.9


def test_several_receipts_a_day_count_as_purchases():
    """Everybody's every purchase twice, a microsecond apart: twice the purchases, the same chance of none."""
    rows = shoppers()
    twice = [*rows, *({**row, "event_time": row["event_time"] + 1} for row in rows)]
    one, two = (make_store(events_frame(each), observed_until=at(61)) for each in (rows, twice))
    once, doubled = (fitted(store).predict(store, everybody(store), LEVELS) for store in (one, two))
    name = "purchases_20d"
    # Some shopped twice on a day before; purchases per purchase day double all the same.
    np.testing.assert_allclose(doubled[f"{name}_expected"], 2 * once[f"{name}_expected"], rtol=1e-5)
    np.testing.assert_allclose(doubled[f"{name}_p_zero"], once[f"{name}_p_zero"], rtol=1e-5)
    assert doubled[f"{name}_quantiles"].mean() == pytest.approx(2 * once[f"{name}_quantiles"].mean(), rel=0.06)


def test_the_currency_does_not_matter():
    euros, cents = (make_store(events_frame(shoppers(scale=scale)), observed_until=at(61)) for scale in (1.0, 100.0))
    said, again = (fitted(store).predict(store, everybody(store), LEVELS) for store in (euros, cents))
    np.testing.assert_allclose(again["value_20d_expected"], 100 * said["value_20d_expected"], rtol=1e-3)
    np.testing.assert_allclose(again["purchases_20d_expected"], said["purchases_20d_expected"], rtol=1e-4)


def test_nothing_after_the_cutoff_is_read_at_any_cutoff():
    """Fitted until day 40, asked at days 30, 40 and 50: what comes after each does not move its answers."""
    rows = shoppers(80)
    full = make_store(events_frame(rows), observed_until=at(61))
    journeys = np.arange(full.num_customers)
    baseline = fitted(full)
    for day in (30, 40, 50):
        cut = [row for row in rows if row["event_time"] <= at(day)]
        past = make_store(events_frame(cut), observed_until=at(61))
        same = np.flatnonzero(np.isin(full.customer_id_C, past.customer_id_C))
        queries = ask(full, same, np.full(len(same), at(day)), HORIZONS, at(61))
        said = baseline.predict(full, queries, LEVELS)
        again = fitted(past, until=min(at(day), CUTOFF)).predict(past, everybody(past, at(day)), LEVELS)
        for key, values in again.items():
            np.testing.assert_allclose(said[key], values, rtol=1e-5, atol=1e-6, err_msg=f"{day} {key}")
    # After `until` the training customers' later days are no context either: only the asked customer's own are read.
    changed = pd.DataFrame(events_frame(rows))
    changed.loc[(changed["event_time"] > CUTOFF) & (changed["customer_id"] != "c000"), "amount"] = 9e4
    other = make_store(changed, observed_until=at(61))
    asked = [ask(each, journeys[:1], np.array([at(50)]), HORIZONS, at(61)) for each in (full, other)]
    first, second = baseline.predict(full, asked[0], LEVELS), fitted(other).predict(other, asked[1], LEVELS)
    for key in first:
        np.testing.assert_array_equal(first[key], second[key], err_msg=key)


def test_cutoffs_of_one_call_are_answered_as_alone():
    store = make_store(events_frame(shoppers(60)), observed_until=at(61))
    baseline = fitted(store)
    mixed = ask(store, np.array([5, 6, 5, 7]), np.array([at(30), CUTOFF, CUTOFF, at(30)]), HORIZONS, at(61))
    together = baseline.predict(store, mixed, LEVELS)
    for row in range(4):
        for key, values in baseline.predict(store, mixed.take(np.array([row])), LEVELS).items():
            np.testing.assert_allclose(together[key][row], values[0], rtol=1e-3, atol=1e-4, err_msg=key)


def test_without_money_without_customers_or_without_a_clock():
    free = [{**row, "amount": 0.0} for row in shoppers(40)]
    store = make_store(events_frame(free), EventSchema(purchase_types=("purchase",)), observed_until=at(61))
    answers = fitted(store).predict(store, everybody(store), LEVELS)
    assert {name.partition("_")[0] for name in answers} == {"purchases"}
    store = make_store(events_frame(HAND), observed_until=at(61))
    alone = PriorFitted()  # dan alone, who came after the cutoff: nobody to read
    alone.fit(store, None, everybody(store).take(np.array([3])), until=CUTOFF)  # type: ignore[arg-type]
    assert alone.predict(store, everybody(store), LEVELS) == {}
    ordered = [{**row, "event_time": number} for number, row in enumerate(HAND)]
    store = make_store(events_frame(ordered), EventSchema(clock="order"))
    reason = PriorFitted().left_out(store, ())
    assert reason is not None and "order" in reason


def test_it_beats_what_a_practitioner_has_without_a_fit():
    """On a fresh draw its CRPS is below that of the population's own recent counts given to everybody."""
    from constellation.metrics.value import crps

    store = make_store(events_frame(shoppers(400, seed=3)), observed_until=at(61))
    queries = everybody(store)
    realised_Q = queries.purchases_QK[:, 1].astype(float)
    found = crps(realised_Q, fitted(store).predict(store, queries, LEVELS)["purchases_20d_quantiles"]).mean()
    climatology = np.quantile(realised_Q, LEVELS, method="inverted_cdf")
    assert found < 0.9 * crps(realised_Q, np.tile(climatology, (len(realised_Q), 1))).mean()


QUICK = [
    "tracking=null", "teaching.steps=4", "teaching.worlds_per_step=2", "teaching.customers=[30,40]", "network.width=8",
    "network.context=4", "network.hidden=8",
]  # fmt: skip


def test_the_console_teaches_stops_goes_on_and_uses_what_was_taught(tmp_path: Path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["train_prior", *QUICK, "max_minutes=1e-9", "worlds_per_family=0", "output=taught"]) == 0
    assert "Go on with resume=" in capsys.readouterr().out
    assert (tmp_path / "taught" / CHECKPOINT).is_file() and not (tmp_path / "taught" / WEIGHTS).exists()
    assert main(["train_prior", "resume=taught", "max_minutes=null", "worlds_per_family=1"]) == 0
    table = pd.read_csv(tmp_path / "taught" / VALIDATION)
    assert set(table["family"]) == set(PLAIN_FAMILIES)
    assert table["coverage_money"].between(0, 1).all() and (table["crps_money"] > 0).all()
    assert np.isfinite(table["crps_prior_fitted"]).all()
    store = make_store(events_frame(shoppers(40)), observed_until=at(61))
    own = PriorFitted(weights=str(tmp_path / "taught" / WEIGHTS))
    own.fit(store, None, everybody(store), until=CUTOFF)  # type: ignore[arg-type]
    assert own.predict(store, everybody(store), LEVELS)
    assert main(["train_prior", *QUICK, "teaching.steps=-1", "output=bad"]) == 2


def test_a_backtest_asks_it_about_horizons_that_no_label_can_teach(tmp_path: Path, monkeypatch):
    """Four and a half months of history, half a year ahead: a horizon head has nothing to learn from there."""
    monkeypatch.chdir(tmp_path)
    words = [
        "data=spenders", "data.source.arguments.num_customers=120", "origins=[2023-05-15]", "horizons_days=[182]",
        "num_resamples=5", "baseline=[prior_fitted,same_rate]", "encoder=null", "tracking=null", "output=bt",
    ]  # fmt: skip
    with without_pictures():
        assert main(["backtest", *words]) == 0
    cells = pd.read_parquet(tmp_path / "bt" / "cells.parquet")
    ours = cells[cells["system"] == "prior_fitted"]
    assert len(ours) and (ours["status"] == "scored").all()
    metrics = json.loads((tmp_path / "bt" / "metrics.json").read_text())
    found, naive = (metrics[f"backtest/purchases_182d/{name}/crps"] for name in ("prior_fitted", "same_rate"))
    assert found < naive
    assert metrics["backtest/value_182d/prior_fitted/crps"] < metrics["backtest/value_182d/same_rate/crps"]


def test_unknown_weights_are_refused():
    store = make_store(events_frame(shoppers(20)), observed_until=at(61))
    baseline = PriorFitted(weights="nowhere.safetensors")
    baseline.fit(store, None, everybody(store), until=CUTOFF)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="No weights in"):
        baseline.predict(store, everybody(store), LEVELS)
