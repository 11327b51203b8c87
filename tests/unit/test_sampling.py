"""Which journeys and cutoffs come together: budgets, draws, and questions answered once each."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from constellation.errors import InputError
from constellation.journeys import sampling
from constellation.journeys.batch import Gatherer
from constellation.journeys.sampling import PredictionBatches, TrainingBatches, token_budget_batches
from constellation.journeys.windows import Queries, ask, parse_cutoff
from constellation.training import options
from tests.helpers import DAY, assert_same_tensors, at, fit_vocabulary, random_store

KNOWN_UNTIL = at(45) - 1
HORIZONS = (3, 10)
STORE = random_store(7)
VOCABULARY = fit_vocabulary(STORE, KNOWN_UNTIL)
EVERYBODY = np.arange(STORE.num_customers)


def batches(**options) -> TrainingBatches:
    gatherer = Gatherer(STORE, VOCABULARY, options.pop("max_events", 1024))
    options = {"max_tokens": 60, "max_journeys": 8, "cutoffs_per_journey": 4} | options
    return TrainingBatches(gatherer, options.pop("journeys", EVERYBODY), KNOWN_UNTIL, HORIZONS, **options)


class TestTokenBudget:
    LENGTHS = np.random.default_rng(0).geometric(0.05, 500)

    @pytest.mark.parametrize("seed", [None, 0, 1])
    def test_each_row_once_within_budget(self, seed: int | None) -> None:
        rng = None if seed is None else np.random.default_rng(seed)
        plan = token_budget_batches(self.LENGTHS, max_tokens=100, max_journeys=12, rng=rng)
        assert sorted(np.concatenate(plan).tolist()) == list(range(500))
        for rows in plan:
            assert 1 <= len(rows) <= 12
            assert self.LENGTHS[rows].sum() <= 100 or len(rows) == 1

    def test_batches_are_filled(self) -> None:
        plan = token_budget_batches(self.LENGTHS, max_tokens=100, max_journeys=500)
        # Two neighbours in the order of lengths never fit into one batch.
        for left, right in itertools.pairwise(plan):
            assert self.LENGTHS[left].sum() + self.LENGTHS[right[0]] > 100

    def test_like_lengths_share_a_batch(self) -> None:
        def padded(rng: np.random.Generator | None, lengths: np.ndarray) -> int:
            plan = token_budget_batches(lengths, max_tokens=200, max_journeys=20, rng=rng)
            return sum(len(rows) * int(lengths[rows].max()) for rows in plan)

        strict = padded(None, self.LENGTHS)
        assert strict < 1.4 * self.LENGTHS.sum()
        # Blurred, so that a batch holds good and poor customers, yet less padding than a plain shuffle has.
        blurred = np.mean([padded(np.random.default_rng(seed), self.LENGTHS) for seed in range(20)])
        orders = [np.random.default_rng(seed).permutation(len(self.LENGTHS)) for seed in range(20)]
        shuffled = np.mean([self._in_this_order(self.LENGTHS[order]) for order in orders])
        assert strict < blurred < shuffled

    @staticmethod
    def _in_this_order(lengths: np.ndarray) -> int:
        """Padded size of batches of 200 events and 20 journeys filled in the given order."""
        total, rows = 0, []
        for length in [*lengths.tolist(), None]:
            if length is None or sum(rows) + length > 200 or len(rows) == 20:
                total, rows = total + len(rows) * max(rows, default=0), []
            if length is not None:
                rows.append(length)
        return total

    def test_the_generator_decides_and_nothing_else(self) -> None:
        def plan(seed: int) -> list[list[int]]:
            rng = np.random.default_rng(seed)
            return [
                rows.tolist() for rows in token_budget_batches(self.LENGTHS, max_tokens=100, max_journeys=12, rng=rng)
            ]

        assert plan(0) == plan(0)
        assert plan(0) != plan(1)

    def test_a_journey_over_the_budget_and_empty_journeys(self) -> None:
        plan = token_budget_batches(np.array([5, 1000, 0, 0]), max_tokens=10, max_journeys=9)
        assert [rows.tolist() for rows in plan] == [[2, 3, 0], [1]]
        assert token_budget_batches(np.empty(0), max_tokens=10, max_journeys=9) == []


class TestTrainingBatches:
    def test_deterministic_in_seed_and_epoch(self) -> None:
        first = list(batches(seed=3, epoch=2))
        resumed = batches(seed=3)
        list(resumed)  # an epoch drawn before changes nothing
        resumed.epoch = 2
        for left, right in zip(first, resumed, strict=True):
            assert_same_tensors(left, right)
        for other in (batches(seed=3, epoch=3), batches(seed=4, epoch=2)):
            assert any(
                left.cutoff_Q.tolist() != right.cutoff_Q.tolist() for left, right in zip(first, other, strict=False)
            )

    def test_every_journey_with_a_known_event_once_per_epoch(self) -> None:
        sampler = batches()
        known = STORE.last_event(EVERYBODY, np.full(len(EVERYBODY), KNOWN_UNTIL)) >= 0
        assert sampler.journeys.tolist() == np.flatnonzero(known).tolist()
        assert 0 < known.sum() < len(known)
        epoch = list(sampler)
        assert len(epoch) == len(sampler) == len(sampler.plan())
        assert sum(batch.num_events for batch in epoch) == sampler.num_events
        assert sum(batch.num_journeys for batch in epoch) == known.sum()
        for batch, rows in zip(epoch, sampler.plan(), strict=True):
            begin = STORE.first_event_C[sampler.journeys[rows]]
            assert batch.time_N[batch.offsets_B[:-1]].tolist() == STORE.time_N[begin].tolist()

    def test_passes_of_an_epoch_ask_each_journey_anew(self) -> None:
        once, thrice = batches(seed=3), batches(seed=3, passes=3)
        plan = thrice.plan()
        assert sorted(np.concatenate(plan).tolist()) == sorted(3 * list(range(len(once.journeys))))
        size = len(once.plan())
        for left, right in zip(once, itertools.islice(thrice, size), strict=True):
            assert set(left.time_N.tolist()) == set(right.time_N.tolist())  # the first pass has the same batches
        asked = [np.concatenate([cutoff_RK[rows == 0] for rows, cutoff_RK in thrice.draws()])]
        assert asked[0].shape == (3, 4) and len(np.unique(asked[0], axis=0)) == 3
        resumed = batches(seed=3, passes=3)
        for left, right in zip(thrice, resumed, strict=True):
            assert_same_tensors(left, right)

    def test_nothing_after_known_until(self) -> None:
        for batch in batches():
            assert batch.time_N.max() <= KNOWN_UNTIL
            targets = batch.targets
            end_QK = batch.cutoff_Q[:, None] + torch.tensor(HORIZONS) * DAY
            assert torch.equal(targets.observed_QK, end_QK <= KNOWN_UNTIL)
            assert targets.observed_QK[:, 0].all()

    def test_cutoffs_are_days_ends_between_the_first_event_and_the_latest(self) -> None:
        seen = set()
        for epoch in range(20):
            for batch in batches(epoch=epoch):
                first_Q = batch.time_N[batch.offsets_B[:-1]][batch.query_journey_Q]
                assert (batch.cutoff_Q >= first_Q).all()
                assert (batch.cutoff_Q <= KNOWN_UNTIL - HORIZONS[0] * DAY).all()
                assert ((batch.cutoff_Q + 1) % DAY == 0).all()
                assert (batch.last_event_Q >= 0).all()
                seen |= set(batch.cutoff_Q.tolist())
        assert min(seen) < at(3)
        assert max(seen) == KNOWN_UNTIL - HORIZONS[0] * DAY

    def test_ends_of_days_in_the_zone_of_the_store(self) -> None:
        zone = "Europe/Berlin"
        store = random_store(7, timezone=zone)
        until = parse_cutoff("2017-04-14", zone)
        gatherer = Gatherer(store, fit_vocabulary(store, until))
        sampler = TrainingBatches(gatherer, np.arange(store.num_customers), until, HORIZONS)
        days = [f"03-{day:02d}" for day in range(1, 32)] + [f"04-{day:02d}" for day in range(1, 12)]
        ends = {parse_cutoff(f"2017-{day}", zone) for day in days}
        assert set(torch.cat([batch.cutoff_Q for batch in sampler]).tolist()) <= ends

    def test_nothing_is_asked_before_earliest(self) -> None:
        first = STORE.time_N[STORE.first_event_C[batches().journeys]]
        sampler = batches(earliest=at(30))
        cutoff_Q = torch.cat([batch.cutoff_Q for batch in sampler])
        assert cutoff_Q.min() >= at(30)
        assert len(cutoff_Q) == 4 * (first <= KNOWN_UNTIL - HORIZONS[0] * DAY).sum()
        # What is gathered stays the whole journey.
        assert sum(batch.num_events for batch in sampler) == batches().num_events

    def test_who_came_too_late_is_asked_nothing(self) -> None:
        sampler = batches()
        late = STORE.time_N[STORE.first_event_C[sampler.journeys]] > KNOWN_UNTIL - HORIZONS[0] * DAY
        assert (sampler.num_choices[late] == 0).all()
        assert (sampler.num_choices[~late] > 0).all()
        asked = sum(batch.num_queries for batch in sampler)
        assert asked == 4 * (~late).sum()

    def test_answers_are_those_of_ask(self) -> None:
        sampler = batches(seed=1)
        for batch, rows in zip(sampler, sampler.plan(), strict=True):
            journey_Q = sampler.journeys[rows][batch.query_journey_Q.numpy()]
            queries = ask(STORE, journey_Q, batch.cutoff_Q.numpy(), HORIZONS, KNOWN_UNTIL)
            assert np.array_equal(batch.targets.value_QK.numpy(), queries.value_QK.astype(np.float32))
            assert np.array_equal(batch.targets.purchases_QK.numpy(), queries.purchases_QK)
            assert np.array_equal(batch.targets.next_type_Q.numpy() > 0, queries.next_event_Q >= 0)

    def test_a_long_journey_is_cut_as_it_will_be_when_the_model_is_used(self) -> None:
        sampler = batches(max_events=6, max_tokens=30)
        assert sampler.is_long.any()
        assert not sampler.is_long.all()
        for batch, rows in zip(sampler, sampler.plan(), strict=True):
            assert batch.lengths_B.max() <= 6
            # No question is left with fewer events than the model will be given.
            journey_Q = sampler.journeys[rows][batch.query_journey_Q.numpy()]
            seen_Q = STORE.last_event(journey_Q, batch.cutoff_Q.numpy()) + 1 - STORE.first_event_C[journey_Q]
            held_Q = batch.last_event_Q + 1 - batch.offsets_B[batch.query_journey_Q]
            assert held_Q.tolist() == np.minimum(seen_Q, 6).tolist()

    def test_cutoffs_of_long_journeys_are_spread_as_those_of_short_ones(self) -> None:
        # Uniform over days whatever comes after: the mean of a journey's cutoffs is the middle of its days.
        journey = int(np.argmax(np.diff(STORE.first_event_C)))
        sampler = batches(max_events=6, journeys=np.array([journey]))
        num_days = int(sampler.num_choices[0])
        assert sampler.is_long.tolist() == [True]
        assert num_days > 35
        days = []
        for sampler.epoch in range(300):
            (batch,) = sampler
            assert len(set(batch.cutoff_Q.tolist())) == 1
            days.append(float(sampler.cutoffs[0] - batch.cutoff_Q[0]) / DAY)
        # Uniform on num_days days: standard error num_days / sqrt(12 * 300), about 1/60.
        assert np.mean(days) == pytest.approx((num_days - 1) / 2, abs=4 * num_days / 60)


class TestPredictionBatches:
    @staticmethod
    def queries(size: int = 120) -> Queries:
        rng = np.random.default_rng(0)
        journey_Q = rng.integers(0, STORE.num_customers, size)
        return ask(STORE, journey_Q, rng.integers(at(-2), at(60), size), HORIZONS, STORE.manifest.observed_until)

    def test_every_question_once_and_in_the_order_of_the_batch(self) -> None:
        queries = self.queries()
        assert len(set(queries.journey_Q.tolist())) < len(queries)
        sampler = PredictionBatches(Gatherer(STORE, VOCABULARY), queries, max_tokens=80, max_journeys=9)
        answered = []
        for batch, rows in sampler:
            assert batch.cutoff_Q.tolist() == queries.cutoff_Q[rows].tolist()
            assert np.array_equal(batch.targets.value_QK.numpy(), queries.value_QK[rows].astype(np.float32))
            assert batch.num_journeys == len(rows) <= 9
            answered += rows.tolist()
        assert sorted(answered) == list(range(len(queries)))
        assert len(list(sampler)) == len(sampler)

    def test_each_question_sees_its_journey_up_to_its_cutoff(self) -> None:
        queries = self.queries()
        for batch, rows in PredictionBatches(Gatherer(STORE, VOCABULARY), queries, max_tokens=80):
            for place, row in enumerate(rows.tolist()):
                journey = int(queries.journey_Q[row])
                times = STORE.time_N[STORE.first_event_C[journey] : STORE.first_event_C[journey + 1]]
                begin, end = batch.offsets_B[place : place + 2].tolist()
                assert batch.time_N[begin:end].tolist() == times[times <= queries.cutoff_Q[row]].tolist()
                assert int(batch.last_event_Q[place]) == (end - 1 if end > begin else -1)

    def test_one_customer_at_many_cutoffs_in_one_batch(self) -> None:
        journey = int(np.argmax(np.diff(STORE.first_event_C)))
        cutoff_Q = np.array([at(day) for day in (50, 10, 30, 10)])
        queries = ask(STORE, np.full(4, journey), cutoff_Q, HORIZONS, at(60))
        ((batch, rows),) = PredictionBatches(Gatherer(STORE, VOCABULARY), queries)
        assert sorted(rows.tolist()) == [0, 1, 2, 3]
        assert batch.lengths_B.tolist() == (queries.last_event_Q + 1 - STORE.first_event_C[journey])[rows].tolist()

    def test_without_targets_and_without_questions(self) -> None:
        gatherer = Gatherer(STORE, VOCABULARY)
        assert all(batch.targets is None for batch, _ in PredictionBatches(gatherer, self.queries(), targets=False))
        assert list(PredictionBatches(gatherer, self.queries(0))) == []


class TestLongJourneys:
    """Where each event is asked for the next alone: what of a journey longer than ``max_events`` trains."""

    def events_of(self, epoch: int = 0, most: int = 5, **options) -> list[tuple[int, list[int]]]:
        """Each row of an epoch: its customer, and the rows of the store that it holds."""
        training = batches(cutoffs_per_journey=0, max_events=most, epoch=epoch, **options)
        found = []
        for rows, cutoff_RK in training.draws():
            span = training.gatherer._span_before(training.journeys[rows], cutoff_RK[:, 0])
            assert training.gather(rows, cutoff_RK).lengths_B.tolist() == span.lengths_B.tolist()
            for journey, start, length in zip(span.journeys, span.start_B, span.lengths_B, strict=True):
                found.append((int(journey), list(range(start, start + length))))
        return sorted(found)

    def known(self) -> dict[int, list[int]]:
        begin_C = STORE.first_event_C[EVERYBODY].astype(np.int64)
        end_C = STORE.end_event(EVERYBODY, np.full(len(EVERYBODY), KNOWN_UNTIL))
        return {
            c: list(range(begin, end)) for c, begin, end in zip(EVERYBODY, begin_C, end_C, strict=True) if end > begin
        }

    def test_last_keeps_the_last(self) -> None:
        assert dict(self.events_of(long_journeys="last")) == {c: rows[-5:] for c, rows in self.known().items()}

    def test_pieces_hold_each_event_once(self) -> None:
        known = self.known()
        assert max(map(len, known.values())) > 10, "the store has no journey of three pieces"
        held: dict[int, list[int]] = {c: [] for c in known}
        for customer, rows in self.events_of(long_journeys="pieces"):
            assert 1 <= len(rows) <= 5
            held[customer] += rows
        for customer, rows in known.items():
            # A first event alone in its piece has nothing before or after it to learn from.
            expected = rows[1:] if len(rows) > 1 and len(rows) % 5 == 1 else rows
            assert held[customer] == expected

    def test_drawn_is_another_stretch_each_epoch_and_reaches_both_ends(self) -> None:
        known = self.known()
        firsts: dict[int, set[int]] = {c: set() for c in known}
        for epoch in range(60):
            for customer, rows in self.events_of(epoch, long_journeys="drawn"):
                assert len(rows) == min(5, len(known[customer]))
                assert set(rows) <= set(known[customer])
                firsts[customer].add(rows[0])
        for customer, rows in known.items():
            if len(rows) <= 8:
                assert firsts[customer] == set(rows[: max(len(rows) - 4, 1)])

    def test_drawn_is_the_same_again(self) -> None:
        assert self.events_of(3, long_journeys="drawn") == self.events_of(3, long_journeys="drawn")

    def test_options_know_the_same_choices(self) -> None:
        assert options.LONG_JOURNEYS == sampling.LONG_JOURNEYS
        with pytest.raises(InputError, match="one of last, drawn, pieces, found 'first'"):
            options.TrainingOptions(long_journeys="first")
