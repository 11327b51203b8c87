"""What is learned from training rows, and only from them."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from constellation.errors import InputError
from constellation.journeys.aggregates import Aggregates
from constellation.journeys.store import Store
from constellation.journeys.vocabulary import MISSING, UNKNOWN, Scaler, Vocabulary, ragged_arange, signed_log
from constellation.journeys.windows import Windows, panel
from tests.helpers import at, events_frame, fit_vocabulary, make_store, random_store


def hand_store():
    """``a`` is trained on up to day 20; ``late`` comes after it; ``held`` is nobody's training customer."""
    rows = [
        ("a", 0, "visit", None, "web", []),
        ("a", 5, "purchase", 1.0, None, ["milk", "tea"]),
        ("a", 6, "purchase", 2.0, "shop", ["milk"]),
        ("a", 7, "purchase", 3.0, "shop", ["soap", "milk", "tea"]),
        ("a", 25, "refund", -3.0, "phone", ["rice"]),
        ("held", 3, "complaint", 900.0, "fax", ["gold"]),
        ("late", 22, "purchase", 5.0, "shop", ["milk"]),
    ]
    events = [
        dict(zip(("customer_id", "event_time", "event_type", "amount", "channel", "product"), row, strict=True))
        for row in rows
    ]
    for event in events:
        event["event_time"] = at(event["event_time"])
    attributes = pd.DataFrame(
        {
            "customer_id": ["a", "held", "late", "nobody"],
            "segment": ["gold", "iron", "tin", "lead"],
            "age": [30.0, 90.0, 10.0, 1.0],
        }
    )
    return make_store(events_frame(events), attributes=attributes)


def fitted(**options) -> tuple:
    store = hand_store()
    journeys = np.array([0, 2, 3])  # everybody but held
    return store, fit_vocabulary(store, at(20), journeys, **options)


def test_scales_by_blocks_of_questions_are_those_of_all_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    store = random_store(0, num_customers=40)
    journeys = np.arange(store.num_customers)
    train = panel(store, Windows("2017-04-01", "2017-04-20", (3,)), known_until=at(40), journeys=journeys)
    whole = Vocabulary.fit(store, train, journeys=journeys, until=at(40))
    monkeypatch.setattr("constellation.journeys.vocabulary.SCALED_AT_ONCE", 7)
    assert len(train) > 14
    assert Vocabulary.fit(store, train, journeys=journeys, until=at(40)).to_json() == whole.to_json()


def test_scales_of_a_large_panel_come_from_some_of_its_questions(monkeypatch: pytest.MonkeyPatch) -> None:
    store = random_store(0, num_customers=40)
    journeys = np.arange(store.num_customers)
    train = panel(store, Windows("2017-04-01", "2017-04-20", (3,)), known_until=at(40), journeys=journeys)
    rows_read: list[int] = []
    compute = Aggregates.compute

    def counted(self: Aggregates, store: Store, journey_Q: np.ndarray, *others: np.ndarray) -> np.ndarray:
        rows_read.append(len(journey_Q))
        return compute(self, store, journey_Q, *others)

    monkeypatch.setattr(Aggregates, "compute", counted)

    def scaler() -> dict[str, list[float]]:
        fitted = Vocabulary.fit(store, train, journeys=journeys, until=at(40), windows_days=(7, 30))
        return fitted.aggregates_scaler.to_json()

    whole = scaler()
    monkeypatch.setattr("constellation.journeys.vocabulary.MOST_SCALED", len(train) // 2)
    some = scaler()
    assert rows_read == [len(train), len(train) // 2]
    assert some != whole and some == scaler()  # other questions, the same ones each time
    known = np.array(whole["std"]) != 1
    np.testing.assert_allclose(np.array(some["std"])[known], np.array(whole["std"])[known], rtol=0.5)


def test_known_values_are_those_of_training_rows_most_frequent_first() -> None:
    _, vocabulary = fitted()
    assert vocabulary.categories["event_type"] == ["purchase", "visit"]
    assert vocabulary.categories["channel"] == ["shop", "web"]
    assert vocabulary.products == ["milk", "tea", "soap"]
    assert vocabulary.categories["attributes.segment"] == ["gold"]
    assert (vocabulary.categorical, vocabulary.lists, vocabulary.numeric) == (
        ["event_type", "channel"],
        ["product"],
        ["amount"],
    )
    assert (vocabulary.attributes_categorical, vocabulary.attributes_numeric) == (["segment"], ["age"])
    assert vocabulary.num_codes("product") == 5


def test_missing_and_unknown_codes() -> None:
    store, vocabulary = fitted()
    codes = vocabulary.table("product", store.dictionaries["product"])
    code_of = dict(zip(store.dictionaries["product"], codes.tolist(), strict=True))
    assert code_of == {None: MISSING, "milk": 2, "tea": 3, "soap": 4, "rice": UNKNOWN, "gold": UNKNOWN}
    # Another store, another order of its dictionary: the same codes.
    assert vocabulary.table("product", [None, "gold", "soap", "milk"]).tolist() == [MISSING, UNKNOWN, 4, 2]


def test_min_count_and_max_categories() -> None:
    _, vocabulary = fitted(min_count=2)
    assert vocabulary.products == ["milk", "tea"]
    assert vocabulary.categories["event_type"] == ["purchase"]
    _, vocabulary = fitted(max_categories=1)
    assert vocabulary.products == ["milk"]


def test_bins_are_quantiles_of_training_amounts() -> None:
    # Amounts 1, 2, 3: quartiles 1.5, 2, 2.5.
    _, vocabulary = fitted()
    assert vocabulary.bin_edges["amount"].tolist() == [1.5, 2.0, 2.5]
    assert vocabulary.num_bins("amount") == 5
    values = np.array([np.nan, -3.0, 1.4, 1.5, 2.0, 2.4, 2.5, 1e9])
    assert vocabulary.bins("amount", values).tolist() == [0, 1, 1, 2, 3, 3, 4, 4]


def test_a_numeric_column_without_a_value() -> None:
    events = events_frame(
        [{"customer_id": "a", "event_time": at(day), "event_type": "visit", "score": None} for day in range(9)]
    )
    vocabulary = fit_vocabulary(make_store(events), at(9))
    assert vocabulary.num_bins("score") == 2
    assert vocabulary.bins("score", np.array([np.nan, 4.0])).tolist() == [0, 1]
    assert vocabulary.numeric_scaler["score"](np.array([[7.0]])).tolist() == [[0.0]]


def test_the_windows_of_aggregates_follow_the_training_customers() -> None:
    # 20 days lie between the first training event and the end of training.
    _, vocabulary = fitted(windows_days=(7, 20, 21))
    assert vocabulary.aggregates.windows_days == (7, 20)
    assert vocabulary.aggregates.event_types == ("purchase", "visit")


def test_no_training_event_is_an_error_with_a_cure() -> None:
    store = hand_store()
    train = panel(store, Windows("2017-03-20", "2017-03-25", (3,)), known_until=at(20), journeys=np.array([0]))
    with pytest.raises(InputError, match="move the cutoffs later"):
        Vocabulary.fit(store, train, journeys=np.array([2, 3]), until=at(20))


def test_json_round_trip_gives_identical_codes_and_scales() -> None:
    store = random_store(5)
    vocabulary = fit_vocabulary(store, at(40))
    again = Vocabulary.from_json(json.loads(json.dumps(vocabulary.to_json())))
    assert again.to_json() == vocabulary.to_json()
    values = np.random.default_rng(0).normal(0, 30, (50, 1))
    for name in (*vocabulary.categorical, *vocabulary.lists):
        dictionary = [*store.dictionaries[name], "new"]
        assert again.table(name, dictionary).tolist() == vocabulary.table(name, dictionary).tolist()
    for name in vocabulary.numeric:
        assert again.bins(name, values[:, 0]).tolist() == vocabulary.bins(name, values[:, 0]).tolist()
        assert np.array_equal(again.numeric_scaler[name](values), vocabulary.numeric_scaler[name](values))
    aggregates = np.random.default_rng(0).normal(0, 30, (50, len(vocabulary.aggregates.names)))
    assert np.array_equal(again.aggregates_scaler(aggregates), vocabulary.aggregates_scaler(aggregates))
    assert again.attributes_categorical == vocabulary.attributes_categorical


def test_target_statistics_by_hand() -> None:
    # Cutoffs on days 17, 10 and 3. After 3 days: nothing, nothing, 1 + 2. After 10: censored, nothing, 1 + 2 + 3.
    _, vocabulary = fitted()
    assert vocabulary.horizons_days == (3, 10)
    assert vocabulary.targets is not None
    value, purchases = vocabulary.targets["value"], vocabulary.targets["purchases"]
    assert value["p_zero"] == pytest.approx([2 / 3, 1 / 2])
    assert value["mean"] == pytest.approx([1, 3])
    assert value["log_mean"] == pytest.approx([np.log(3), np.log(6)])
    assert purchases["mean"] == pytest.approx([2 / 3, 3 / 2])
    # Counts 0, 0, 2 have variance 8/9: dispersion = (2/3)^2 / (8/9 - 2/3). Counts 0, 3: (3/2)^2 / (9/4 - 3/2).
    assert purchases["dispersion"] == pytest.approx([2, 3])


class TestScaler:
    def test_by_hand(self) -> None:
        # Logs of 1 + e - 1 and its opposite are 1 and -1: mean 0, deviation 1.
        scaler = Scaler.fit(np.array([[np.e - 1], [1 - np.e], [np.nan]]))
        assert scaler(np.array([[np.e - 1], [0.0], [np.nan]])).ravel() == pytest.approx([1, 0, 0], abs=2e-3)

    def test_clips_to_the_range_of_training(self) -> None:
        scaler = Scaler.fit(np.arange(100.0)[:, None])
        top = scaler(np.array([[99.0]]))[0, 0]
        assert scaler(np.array([[1e12], [np.inf]])).ravel().tolist() == [top, top]

    def test_a_constant_and_an_empty_column_stay_finite(self) -> None:
        scaler = Scaler.fit(np.array([[5.0, np.nan], [5.0, np.nan]]))
        assert scaler(np.array([[5.0, 3.0], [9.0, np.nan]])).tolist() == [[0, 0], [0, 0]]

    def test_signed_log(self) -> None:
        assert signed_log(np.array([np.e - 1, -(np.e - 1), 0.0])) == pytest.approx([1, -1, 0])


def test_ragged_arange() -> None:
    assert ragged_arange(np.array([5, 0, 9, 2]), np.array([2, 0, 1, 3])).tolist() == [5, 6, 9, 2, 3, 4]
    assert ragged_arange(np.empty(0), np.empty(0)).tolist() == []
