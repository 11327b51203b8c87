"""Every system through the same evaluation: chunks, splits, slices, and systems that cannot say everything."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

from constellation import assessment
from constellation.assessment import Assessment, slice_labels
from constellation.errors import InputError
from constellation.journeys.baskets import next_products
from constellation.journeys.splits import Splits
from constellation.journeys.windows import Queries, Windows, ask
from constellation.metrics import LEVELS
from constellation.metrics.evaluate import Evaluation
from constellation.schema import AMOUNT, CUSTOMER_ID, EVENT_TIME, EVENT_TYPE, PRODUCT
from tests.helpers import at, events_frame, events_of, fit_vocabulary, make_store, random_attributes, random_store

STORE = random_store(3, num_customers=40, num_events=600)
SPLITS = Splits(STORE, Windows("2017-04-01", "2017-04-15", (3, 10), holdout_share=0.3))
VOCABULARY = fit_vocabulary(STORE, SPLITS.test_cutoff, SPLITS.train_journeys)


def fair_guess(queries: Queries) -> dict[str, np.ndarray]:
    """Answers that hang on the customer alone, so that they are the same however the questions come."""
    size_Q = 1.0 + queries.journey_Q % 7
    answers: dict[str, np.ndarray] = {}
    for name in ("value", "purchases"):
        for days in queries.horizons_days:
            answers[f"{name}_{days}d_expected"] = size_Q * days
            answers[f"{name}_{days}d_p_zero"] = 1 / (1 + size_Q)
            answers[f"{name}_{days}d_quantiles"] = size_Q[:, None] * days * np.asarray(LEVELS)
    columns_V = np.arange(len(VOCABULARY.products))
    answers["next_product_scores"] = np.cos(queries.journey_Q[:, None] + columns_V).astype(np.float32)
    answers["next_type_scores"] = np.zeros((len(queries), 3), dtype=np.float32)
    return answers


def assessed(
    *systems: str, splits: Mapping[str, np.ndarray] | None = None, queries: Queries | None = None
) -> Evaluation:
    queries = SPLITS.test if queries is None else queries
    evaluation = Evaluation(num_resamples=10)
    everyone = {"test": np.ones(len(queries), dtype=bool)}
    collected = Assessment(evaluation, STORE, VOCABULARY, queries, everyone if splits is None else splits)
    for system in systems or ("guess",):
        collected.add(system, fair_guess)
    return evaluation


@pytest.mark.parametrize("chunk", [1, 3, 7])
def test_chunks_smaller_than_the_questions_change_nothing(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = assessed().flat()
    asked: list[int] = []
    monkeypatch.setattr(assessment, "CHUNK_QUERIES", chunk)
    monkeypatch.setattr(
        assessment, "next_products", lambda *given: asked.append(len(given[2])) or next_products(*given)
    )
    assert assessed().flat() == whole
    assert max(asked) <= chunk and sum(asked) == len(SPLITS.test) > 7
    assert {"test/value_10d/guess/crps", "test/next_product/guess/ndcg_at_10"} <= whole.keys()


def test_the_numbers_are_those_of_the_questions() -> None:
    queries, metrics = SPLITS.test, assessed().flat()
    expected_Q = (1.0 + queries.journey_Q % 7) * 10
    truth_Q = queries.value_QK[:, 1]
    assert metrics["test/value_10d/realised/total"] == pytest.approx(truth_Q.sum())
    assert metrics["test/value_10d/guess/bias_total"] == pytest.approx(expected_Q.sum() / truth_Q.sum() - 1)
    # The median of the levels 0.005 .. 0.995 is half of what stands at 1.
    assert metrics["test/value_10d/guess/mae"] == pytest.approx(np.abs(expected_Q / 2 - truth_Q).mean())
    assert metrics["test/purchases_3d/guess/rmse"] == pytest.approx(
        np.sqrt((((1.0 + queries.journey_Q % 7) * 3 - queries.purchases_QK[:, 0]) ** 2).mean())
    )


def test_test_new_is_the_customers_held_out() -> None:
    everyone = np.ones(len(SPLITS.test), dtype=bool)
    table = assessed(splits={"test": everyone, "test_new": SPLITS.test_is_new_Q}).predictions()
    held_out = set(STORE.customer_id_C[SPLITS.held_out_C])
    seen = {split: set(table.loc[table["split"] == split, CUSTOMER_ID]) for split in ("test", "test_new")}
    assert seen["test"] == set(STORE.customer_id_C[SPLITS.test.journey_Q])
    assert seen["test_new"] == seen["test"] & held_out
    assert 0 < len(seen["test_new"]) < len(seen["test"])
    by_customer = table[table["target"] == "value_10d"].set_index(["split", CUSTOMER_ID])["expected"].unstack("split")
    new = by_customer.dropna()
    assert (new["test"] == new["test_new"]).all()


def test_a_split_without_rows_is_left_out() -> None:
    nobody = np.zeros(len(SPLITS.test), dtype=bool)
    evaluation = assessed(splits={"test": ~nobody, "test_new": nobody})
    assert {split for split, _ in evaluation.groups()} == {"test"}


def test_censored_horizons_are_left_out_not_counted_as_zero() -> None:
    queries = ask(STORE, SPLITS.test.journey_Q, SPLITS.test.cutoff_Q, (3, 10), SPLITS.test_cutoff + (at(4) - at(0)))
    assert queries.observed_QK[:, 0].all() and not queries.observed_QK[:, 1].any()
    targets = {target for _, target in assessed(queries=queries).groups()}
    assert targets == {"value_3d", "purchases_3d", "next_product"}


def test_a_system_says_what_it_can() -> None:
    evaluation = assessed("guess")
    everyone = {"test": np.ones(len(SPLITS.test), dtype=bool)}
    collected = Assessment(evaluation, STORE, VOCABULARY, SPLITS.test, everyone)
    collected.add("point", lambda queries: {"value_10d_expected": np.ones(len(queries))})
    metrics = evaluation.flat()
    said = {name.split("/")[3] for name in metrics if name.startswith("test/value_10d/point/")}
    assert {"mae", "rmse", "bias_total"} <= said
    assert not said & {"crps", "coverage_90", "crps_low", "coverage_90_low"}
    assert [name for name in metrics if "/point/" in name and not name.startswith("test/value_10d/")] == []
    assert "test/value_10d/guess/crps" in metrics


def test_slice_labels_by_hand() -> None:
    """Three customers at the end of day 40: first and last event, and money so far, are written down here."""
    rows = [
        *({CUSTOMER_ID: "a", EVENT_TIME: at(day), EVENT_TYPE: "purchase", AMOUNT: 10.0} for day in (0, 39)),
        *({CUSTOMER_ID: "b", EVENT_TIME: at(day), EVENT_TYPE: "purchase", AMOUNT: 1.0} for day in (20, 30)),
        {CUSTOMER_ID: "c", EVENT_TIME: at(5), EVENT_TYPE: "purchase", AMOUNT: 500.0},
        {CUSTOMER_ID: "c", EVENT_TIME: at(45), EVENT_TYPE: "purchase", AMOUNT: 9.0},
    ]
    attributes = random_attributes(num_customers=3).assign(
        **{CUSTOMER_ID: ["a", "b", "c"], "segment": ["gold", None, "iron"]}
    )
    store = make_store(events_frame(rows), None, attributes, observed_until=at(60))
    vocabulary = fit_vocabulary(store, at(44))
    queries = ask(store, np.arange(3), np.full(3, at(40)), (3,), at(60))
    labels = slice_labels(store, vocabulary, queries, ["tenure", "recency", "spend_decile", "history", "segment"])
    # a: 40 days a customer, silent for 1; b: 20 and 10; c: 35 and 35, the purchase of day 45 lying ahead.
    first, second, third = labels["tenure"]
    assert first == third != second
    assert len(set(labels["recency"])) == 3
    assert labels["history"].tolist() == ["000-005 events"] * 3
    order = np.argsort(np.asarray(labels["spend_decile"], dtype=str), kind="stable").tolist()
    assert order == [1, 0, 2], "b spent 2, a 20, c 500"
    assert labels["segment"].tolist() == ["gold", None, "iron"]
    with pytest.raises(InputError, match=r"no slice 'colour'.*tenure, recency, spend_decile, history, segment"):
        slice_labels(store, vocabulary, queries, ["colour"])


def test_slices_count_every_row_once() -> None:
    evaluation = assessed()
    labels = slice_labels(STORE, VOCABULARY, SPLITS.test, ["recency", "segment"])
    table = evaluation.slices(labels, "test")
    rows = table[table["target"] == "value_3d"].drop_duplicates(["slice", "level"]).groupby("slice")["num_rows"].sum()
    assert rows["recency"] == len(SPLITS.test)
    known_Q = np.array([label is not None for label in labels["segment"]])
    assert rows["segment"] == known_Q.sum() < len(SPLITS.test)


def test_spend_decile_follows_money_ever() -> None:
    queries = SPLITS.test
    labels = np.asarray(slice_labels(STORE, VOCABULARY, queries, ["spend_decile"])["spend_decile"], dtype=str)
    begin_Q = STORE.first_event_C[queries.journey_Q]
    spent_Q = STORE.money_between(begin_Q, queries.last_event_Q + 1)
    in_order = labels[np.argsort(spent_Q, kind="stable")]
    assert list(in_order) == sorted(labels)


def test_excluding_what_is_seen_is_a_choice_that_the_table_names() -> None:
    queries = SPLITS.test
    everyone = {"test": np.ones(len(queries), dtype=bool)}
    found = {}
    for exclude_seen in (False, True):
        evaluation = Evaluation(num_resamples=10)
        Assessment(evaluation, STORE, VOCABULARY, queries, everyone, exclude_seen).add("guess", fair_guess)
        assert ("but those" in evaluation.notes["next_product"]) is exclude_seen
        columns = evaluation.columns("test", "next_product", "guess")
        found[exclude_seen] = {name: column.copy() for name, column in columns.items()}
    # By hand, for each question: products of all events up to the cutoff are struck from the ranking and the basket.
    names = {name: place for place, name in enumerate(VOCABULARY.products)}
    scores = fair_guess(queries)["next_product_scores"]
    basket = next_products(STORE, VOCABULARY, queries)
    num_asked = 0
    for row in range(len(queries)):
        past = int(queries.last_event_Q[row])
        events = [event for event in events_of(STORE, int(queries.journey_Q[row])) if event["row"] <= past]
        had = {names[name] for event in events for name in event[PRODUCT] if name in names}
        wanted = set(basket[0][basket[1][row] : basket[1][row + 1]].tolist()) - had
        ranking = [place for place in np.argsort(-scores[row], kind="stable").tolist() if place not in had]
        ndcg = found[True]["ndcg_at_10"][row]
        gain = sum(1 / np.log2(place + 2) for place, product in enumerate(ranking[:10]) if product in wanted)
        ideal = sum(1 / np.log2(place + 2) for place in range(len(wanted)))
        assert ndcg == pytest.approx(gain / ideal) if wanted else np.isnan(ndcg)
        num_asked += bool(wanted)
    assert 0 < num_asked < np.isfinite(found[False]["ndcg_at_10"]).sum()
