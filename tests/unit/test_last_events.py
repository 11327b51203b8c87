"""Leave-one-out on logs small enough to read: who is asked what, and what each phase may know."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from constellation.errors import InputError
from constellation.journeys.batch import Gatherer
from constellation.journeys.last_events import LastEvents
from constellation.journeys.profile import format_profile, profile
from constellation.journeys.questions import ask, until_of
from constellation.journeys.sampling import TrainingBatches
from constellation.journeys.splits import Splits, time_windows
from constellation.journeys.store import Store
from constellation.journeys.vocabulary import Vocabulary
from constellation.journeys.windows import Windows
from constellation.schema import CUSTOMER_ID, EVENT_TIME, EVENT_TYPE, PRODUCT, EventSchema
from tests.helpers import at, make_store

ORDER = EventSchema(clock="order")


def films(journeys: dict[str, list[tuple[int, str]]]) -> pd.DataFrame:
    """An event table of (rank, film) per customer; ``x y`` are two films of one event."""
    rows: list[dict[str, Any]] = [
        {CUSTOMER_ID: customer, EVENT_TIME: rank, EVENT_TYPE: "rating", PRODUCT: names.split()}
        for customer, events in journeys.items()
        for rank, names in events
    ]
    return pd.DataFrame(rows)


def ranked(**journeys: str) -> pd.DataFrame:
    """Films in order, ranks from 0: ``ranked(a="x y z")``."""
    return films({customer: list(enumerate(names.split())) for customer, names in journeys.items()})


def names_at(store: Store, event_Q: np.ndarray) -> list[list[str | None]]:
    values_M, offsets = store.lists[PRODUCT]
    return [[store.dictionaries[PRODUCT][code] for code in values_M[offsets[e] : offsets[e + 1]]] for e in event_Q]


STORE = make_store(
    ranked(a="p q r s", b="p q", c="r", d="q p s r p"),
    ORDER,
    pd.DataFrame({CUSTOMER_ID: ["e"], "age": [30.0]}),  # a customer without an event
    observed_until=4,
)


class TestWhoIsAskedWhat:
    def test_the_last_event_is_the_test_and_the_one_before_it_the_validation(self) -> None:
        splits = Splits(STORE, LastEvents())
        assert STORE.customer_id_C[splits.val.journey_Q].tolist() == ["a", "d"], "b, c have too few events, e none"
        assert names_at(STORE, splits.val.next_basket_Q) == [["r"], ["r"]]
        assert names_at(STORE, splits.val.last_event_Q) == [["q"], ["s"]]
        assert STORE.customer_id_C[splits.test.journey_Q].tolist() == ["a", "d"]
        assert names_at(STORE, splits.test.next_basket_Q) == [["s"], ["p"]]
        assert names_at(STORE, splits.test.last_event_Q) == [["r"], ["r"]]
        assert splits.test.next_event_Q.tolist() == splits.test.next_basket_Q.tolist()

    def test_each_phase_knows_what_precedes_its_question(self) -> None:
        splits = Splits(STORE, LastEvents())
        assert until_of(splits.select_until, np.arange(4)).tolist() == [1, 1, 0, 2]
        assert until_of(splits.refit_until, np.arange(4)).tolist() == [2, 1, 0, 3]

    def test_customers_with_too_few_events_train_with_all_of_them(self) -> None:
        splits = Splits(STORE, LastEvents(min_history=3))
        assert STORE.customer_id_C[splits.test.journey_Q].tolist() == ["d"]
        assert until_of(splits.select_until, np.arange(4)).tolist() == [3, 1, 0, 2]
        assert "the last event of 1 customers is the test" in splits.windows.describe(STORE)
        assert "3 with too few events only train" in splits.windows.describe(STORE)

    def test_the_panel_asks_everybody_with_an_event_for_the_last_one_known(self) -> None:
        splits = Splits(STORE, LastEvents())
        select, refit = splits.select_panel, splits.refit_panel
        assert STORE.customer_id_C[select.journey_Q].tolist() == ["a", "b", "c", "d"]
        assert names_at(STORE, select.next_event_Q) == [["q"], ["q"], ["r"], ["s"]]
        assert names_at(STORE, refit.next_event_Q) == [["r"], ["q"], ["r"], ["r"]]
        assert select.last_event_Q[2] == -1, "a customer of one event is asked before it"
        assert select.value_QK.shape == (4, 0)

    def test_events_at_one_moment_are_held_out_together(self) -> None:
        events = {"a": [(0, "p"), (1, "q"), (1, "r"), (2, "s"), (2, "t")], "b": [(0, "p"), (7, "q"), (7, "r")]}
        store = make_store(films(events), ORDER, observed_until=7)
        splits = Splits(store, LastEvents())
        assert store.customer_id_C[splits.test.journey_Q].tolist() == ["a"], "b has two moments only"
        assert names_at(store, splits.val.last_event_Q) == [["p"]]
        assert names_at(store, splits.test.last_event_Q) == [["r"]]
        assert names_at(store, splits.test.next_event_Q) == [["s"]]

    def test_with_a_clock_the_time_of_the_answer_is_not_told(self) -> None:
        events = films({"a": [(at(0), "p"), (at(3), "q"), (at(40), "r")]})
        store = make_store(events)
        splits = Splits(store, LastEvents())
        assert splits.test.cutoff_Q.tolist() == [at(3)], "the moment of the last event seen, not a hair before the next"

    def test_customers_held_out_never_train_and_are_asked_in_the_test(self) -> None:
        store = make_store(ranked(**{f"c{place:02d}": "p q r s" for place in range(40)}), ORDER, observed_until=3)
        splits = Splits(store, LastEvents(holdout_share=0.3))
        new = set(store.customer_id_C[splits.held_out_C])
        assert 0 < len(new) < 40
        assert new.isdisjoint(store.customer_id_C[splits.refit_panel.journey_Q])
        assert new.isdisjoint(store.customer_id_C[splits.val.journey_Q])
        assert set(store.customer_id_C[splits.test.journey_Q[splits.test_is_new_Q]]) == new

    def test_an_empty_store_has_no_questions(self) -> None:
        nobody = make_store(films({"a": [(0, "p")]}).iloc[:0], ORDER, pd.DataFrame({CUSTOMER_ID: ["e"]}))
        splits = Splits(nobody, LastEvents())
        assert len(splits.val) == len(splits.test) == 0
        with pytest.raises(InputError, match="No customer has an event to learn from"):
            _ = splits.select_panel


class TestWhatCannotBe:
    def test_a_date_is_refused_where_customers_have_cutoffs_of_their_own(self) -> None:
        splits = Splits(STORE, LastEvents())
        with pytest.raises(InputError, match="one date for all"):
            _ = splits.val_cutoff
        with pytest.raises(InputError, match="one date for all"):
            _ = splits.test_cutoff
        with pytest.raises(InputError, match="one date for all"):
            time_windows(LastEvents())

    def test_dates_are_refused_where_only_the_order_is_known(self) -> None:
        with pytest.raises(InputError, match=r"clock: order.*LastEvents"):
            Splits(STORE, Windows("2017-04-01", "2017-04-10"))

    @pytest.mark.parametrize("wrong", [{"min_history": 0}, {"holdout_share": 1.0}, {"holdout_share": -0.1}])
    def test_impossible_settings(self, wrong: dict[str, Any]) -> None:
        with pytest.raises(InputError, match=next(iter(wrong))):
            LastEvents(**wrong)


def test_ask_takes_a_last_known_moment_for_each_customer() -> None:
    known_until = np.array([2, 1, 0, 3, 0])
    journey_Q, cutoff_Q = np.array([0, 0, 3, 3]), np.array([1, 2, 2, 3])
    queries = ask(STORE, journey_Q, cutoff_Q, (), known_until)
    assert (queries.next_event_Q >= 0).tolist() == [True, False, True, False]
    for row in range(4):
        alone = ask(STORE, journey_Q[[row]], cutoff_Q[[row]], (), int(known_until[journey_Q[row]]))
        assert queries.next_event_Q[row] == alone.next_event_Q[0]


def test_the_vocabulary_reads_each_customer_up_to_its_own_moment() -> None:
    store = make_store(ranked(a="p q r s", b="t u v w"), ORDER, observed_until=3)
    splits = Splits(store, LastEvents())

    def known(train: Any, until: Any) -> set[str]:
        return set(Vocabulary.fit(store, train, journeys=splits.train_journeys, until=until).products)

    assert known(splits.select_panel, splits.select_until) == {"p", "q", "t", "u"}
    assert known(splits.refit_panel, splits.refit_until) == {"p", "q", "r", "t", "u", "v"}


class TestTrainingBatches:
    store = make_store(
        ranked(**{f"c{place}": " ".join(f"f{(place + step) % 9}" for step in range(3 + place)) for place in range(9)}),
        ORDER,
        observed_until=11,
    )
    splits = Splits(store, LastEvents())
    vocabulary = Vocabulary.fit(store, splits.select_panel, journeys=splits.train_journeys, until=splits.select_until)

    def batches(self, max_events: int = 100, **options: Any) -> TrainingBatches:
        gatherer = Gatherer(self.store, self.vocabulary, max_events)
        return TrainingBatches(gatherer, self.splits.train_journeys, self.splits.select_until, (), **options)

    def test_without_cutoffs_a_batch_asks_nothing_but_what_follows(self) -> None:
        sampler = self.batches(cutoffs_per_journey=0, max_tokens=12)
        batches = list(sampler)
        assert len(batches) == len(sampler) > 1
        assert all(batch.num_queries == 0 and batch.targets is not None for batch in batches)
        # Customer c<n> has n + 3 events, of which selection may know n + 1.
        assert sorted(length for batch in batches for length in batch.lengths_B.tolist()) == list(range(1, 10))
        assert sampler.num_events == sum(batch.num_events for batch in batches) == 45
        followed = sum(int((batch.targets.next_N >= 0).sum()) for batch in batches if batch.targets is not None)
        assert followed == 45 - 9, "the last known event of each customer is followed by nothing known"

    def test_a_long_journey_keeps_its_last_known_events(self) -> None:
        (batch,) = self.batches(max_events=3, cutoffs_per_journey=0)
        assert sorted(batch.lengths_B.tolist()) == [1, 2, 3, 3, 3, 3, 3, 3, 3]
        # Ranks, so the last of customer c8 (9 of its 11 events known) are 6, 7, 8.
        last = {tuple(batch.time_N[int(a) : int(b)].tolist()) for a, b in batch.offsets_B.unfold(0, 2, 1)}
        assert (6, 7, 8) in last and (7, 8, 9) not in last

    def test_cutoffs_are_drawn_from_the_events_but_the_last(self) -> None:
        drawn: dict[int, set[int]] = {}
        sampler = self.batches(cutoffs_per_journey=4)
        for epoch in range(30):
            sampler.epoch = epoch
            for batch in sampler:
                journey = sampler.journeys[sampler.plan()[0]][batch.query_journey_Q.numpy()]
                for customer, cutoff in zip(journey.tolist(), batch.cutoff_Q.tolist(), strict=True):
                    drawn.setdefault(customer, set()).add(cutoff)
                assert batch.targets is not None
                assert (batch.targets.next_type_Q > 0).all(), "every question has a known answer"
        # Customer c<n> has events 0 .. n known to selection; c0 has no second one to be asked for.
        assert drawn == {place: set(range(place)) for place in range(1, 9)}

    def test_the_answer_of_a_question_is_the_event_that_follows(self) -> None:
        (batch,) = self.batches(cutoffs_per_journey=3)
        assert batch.targets is not None
        values_M, offsets = batch.lists[PRODUCT]
        asked = batch.targets.next_products
        for place, row in enumerate(batch.last_event_Q.tolist()):
            answer = asked[0][asked[1][place] : asked[1][place + 1]].tolist()
            assert answer == values_M[offsets[row + 1] : offsets[row + 2]].tolist()

    def test_a_rank_with_nothing_to_do_gets_an_empty_batch(self) -> None:
        sampler = self.batches(cutoffs_per_journey=0)
        batch = sampler.gather(np.empty(0, dtype=np.int64), np.empty((0, 1), dtype=np.int64))
        assert batch.num_events == batch.num_journeys == batch.num_queries == 0


def test_the_profile_says_that_only_the_order_is_known() -> None:
    assert "only the order of events is known" in format_profile(profile(STORE, LastEvents.horizons_days))
