"""Which journeys and which cutoffs make a batch: token budgets, length bands, and a fresh draw of cutoffs per epoch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from constellation.journeys.batch import Gatherer, JourneyBatch
from constellation.journeys.questions import Queries, Until, ask, days_before, until_of
from constellation.journeys.store import MICROSECONDS_PER_DAY
from constellation.journeys.vocabulary import ragged_arange

LENGTH_BLUR = 1.5
"""Standard deviation of the log-normal blur of lengths. Long journeys are good customers: batches of strictly like
lengths are batches of like answers, and each step pulls the total its own way. On the Complete Journey a blur of a
quarter needed 9 epochs for the validation CRPS that this one reaches in 5; attention bands its rows again inside."""

LAST, DRAWN, PIECES = "last", "drawn", "pieces"
"""What of a journey of more than ``max_events`` events trains, where each event is asked for the next alone: its last,
a stretch drawn for each pass, or all, cut into pieces from its end."""
LONG_JOURNEYS = (LAST, DRAWN, PIECES)


def token_budget_batches(
    lengths: np.ndarray, *, max_tokens: int, max_journeys: int, rng: np.random.Generator | None = None
) -> list[np.ndarray]:
    """Rows grouped into batches of at most ``max_tokens`` events and ``max_journeys`` journeys.

    Journeys of like length share a batch, so that the padding inside attention stays small. With a generator the
    lengths are blurred before sorting and the batches are shuffled: random, yet banded. See ``LENGTH_BLUR``.
    A journey longer than the budget has a batch of its own.
    """
    lengths = np.maximum(np.asarray(lengths, dtype=np.int64), 1)
    if len(lengths) == 0:
        return []
    blur = 1.0 if rng is None else np.exp(rng.normal(0.0, LENGTH_BLUR, len(lengths)))
    order = np.argsort(lengths * blur, kind="stable")
    batches, start, tokens = [], 0, 0
    for place, length in enumerate(lengths[order].tolist()):
        if place > start and (tokens + length > max_tokens or place - start >= max_journeys):
            batches.append(order[start:place])
            start, tokens = place, 0
        tokens += length
    batches.append(order[start:])
    if rng is not None:
        batches = [batches[place] for place in rng.permutation(len(batches))]
    return batches


@dataclass
class TrainingBatches:
    """Batches of one epoch after another, for journeys seen up to ``known_until`` (of each customer, where it differs).

    Each journey comes with ``cutoffs_per_journey`` cutoffs drawn anew in every pass: day ends between its first event
    (or ``earliest``, where that is later) and ``known_until`` less the shortest horizon. Longer horizons that do not
    fit are censored. Deterministic in ``(seed, epoch)``, whatever was drawn before, so that a resumed run goes on with
    the same batches.

    Without horizons (questions of what comes next, where perhaps only the order is known) the cutoffs are drawn from
    the journey's own events but the last. With ``cutoffs_per_journey=0`` a batch has Q = 0: every event's state is
    asked for the event that follows, and ``long_journeys`` says what trains of a journey of more than ``max_events``.

    A journey of more than ``max_events`` events is cut at one cutoff drawn for the pass, and all its questions are
    asked there: just what is gathered when the model is used. Its last events with cutoffs before them would instead
    tell the model, by the state that is missing, how much the customer did later.

    before_first_share: so many questions more, as a share of a batch's, about customers of whom nothing but attributes
    is known: cutoffs drawn from all day ends before a first event (or from all, where no event ever came), each as
    likely. Without attributes there is nobody to ask about.
    passes: an epoch goes so often over the journeys, one pass after another, each with batches and cutoffs of its own.
    room_days: cutoffs leave at least so many days up to ``known_until``; null: the shortest horizon. With fewer, what
    learns from censored answers (times, buy-till-you-die) learns from a history shorter than any horizon.
    """

    gatherer: Gatherer
    journeys: np.ndarray
    known_until: Until
    horizons_days: tuple[int, ...]
    cutoffs_per_journey: int = 8
    max_tokens: int = 8192
    max_journeys: int = 256
    earliest: int | None = None
    seed: int = 0
    epoch: int = 0
    before_first_share: float = 0.0
    room_days: int | None = None
    long_journeys: str = LAST
    passes: int = 1

    def __post_init__(self) -> None:
        store = self.gatherer.store
        self.journeys = np.asarray(self.journeys, dtype=np.int64)
        self.everybody = self.journeys
        begin_C = store.first_event_C[self.journeys].astype(np.int64)
        until_C = until_of(self.known_until, self.journeys)
        num_known_C = store.end_event(self.journeys, until_C) - begin_C
        known_C = num_known_C > 0
        self.journeys, self.until, num_known_C = self.journeys[known_C], until_C[known_C], num_known_C[known_C]
        self.begin = begin_C[known_C]
        if self.cutoffs_per_journey == 0 and self.long_journeys == PIECES:
            row_P, num_known_C = _pieces(num_known_C, self.gatherer.max_events)
            self.journeys, self.until, self.begin = self.journeys[row_P], self.until[row_P], self.begin[row_P]
        self.lengths = np.minimum(num_known_C, self.gatherer.max_events)
        self.is_long = num_known_C > self.gatherer.max_events
        self.num_events = int(self.lengths.sum())
        self.end = self.begin + num_known_C
        self.cutoffs = np.empty(0, dtype=np.int64)  # the grid of day ends, where there are horizons
        # Of how many cutoffs each journey draws; none are asked of customers who came too late.
        if self.cutoffs_per_journey == 0:
            self.num_choices = np.zeros(len(self.journeys), dtype=np.int64)
        elif not self.horizons_days:
            self.num_choices = num_known_C - 1
        else:
            self.num_choices = self._count_days(int(until_C.max(initial=0)))
        asks = self.before_first_share > 0 and self.cutoffs_per_journey > 0 and len(self.horizons_days) > 0
        has_attributes = bool(self.gatherer.vocabulary.attribute_names)
        self.newcomers = self._count_days_before() if asks and has_attributes else np.zeros(1, dtype=np.int64)

    def _count_days(self, known_until: int) -> np.ndarray:
        """Lay the grid of day ends, and count those from each first event on."""
        first_time = self.gatherer.store.time_N[self.begin]
        if self.earliest is not None:
            first_time = np.maximum(first_time, self.earliest)
        room_days = self.horizons_days[0] if self.room_days is None else self.room_days
        latest = known_until - room_days * MICROSECONDS_PER_DAY
        self.cutoffs = days_before(self.gatherer.store, latest, int(first_time.min(initial=latest)))
        return np.searchsorted(-self.cutoffs, -first_time, side="right")

    def _count_days_before(self) -> np.ndarray:
        """Running number [C + 1] of day ends of the grid before each customer's first event that is known."""
        store = self.gatherer.store
        begin_C = store.first_event_C[self.everybody].astype(np.int64)
        none_C = store.end_event(self.everybody, until_of(self.known_until, self.everybody)) == begin_C
        # The grid begins at the first event of all, so a customer without one is asked about from then on.
        first_C = np.where(none_C, np.iinfo(np.int64).max, store.time_N[np.minimum(begin_C, store.num_events - 1)])
        before_C = len(self.cutoffs) - np.searchsorted(-self.cutoffs, -first_C, side="right")
        return np.concatenate([[0], np.cumsum(before_C)])

    def _ask_newcomers(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Customers and cutoffs before their first events, drawn for the batch of ``rows``; perhaps none."""
        wanted = self.before_first_share * len(rows) * self.cutoffs_per_journey
        # From the batch itself, so that whoever gathers it gets the same.
        rng = np.random.default_rng([self.seed, self.epoch, len(rows), *rows[:4].tolist()])
        number = int(wanted + rng.random()) if self.newcomers[-1] else 0
        draw_R = rng.integers(0, max(int(self.newcomers[-1]), 1), number)
        place_R = np.searchsorted(self.newcomers, draw_R, side="right") - 1
        # The earliest cutoffs stand last in the grid.
        cutoff_R = self.cutoffs[len(self.cutoffs) - 1 - (draw_R - self.newcomers[place_R])]
        return self.everybody[place_R], cutoff_R

    def _rng(self) -> np.random.Generator:
        return np.random.default_rng([self.seed, self.epoch])

    def plan(self) -> list[np.ndarray]:
        """Rows of ``journeys`` in each batch of the present epoch."""
        return self._plan(self._rng())

    def _plan(self, rng: np.random.Generator) -> list[np.ndarray]:
        budget = {"max_tokens": self.max_tokens, "max_journeys": self.max_journeys}
        return [rows for _ in range(self.passes) for rows in token_budget_batches(self.lengths, **budget, rng=rng)]

    def __len__(self) -> int:
        return len(self.plan())

    def __iter__(self) -> Iterator[JourneyBatch]:
        return (self.gather(rows, cutoff_RK) for rows, cutoff_RK in self.draws())

    def draws(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Rows of ``journeys`` of each batch of the epoch, and the cutoffs drawn for them [R, cutoffs_per_journey].

        Where nothing is asked at cutoffs, the rows of the store behind each journey's last event [R, 1].
        Cheap beside ``gather``: whoever wants a part of the epoch, or a part of each batch, draws all and gathers some.
        """
        rng = self._rng()
        for rows in self._plan(rng):
            if self.cutoffs_per_journey == 0:
                yield rows, self._ends(rows, rng)[:, None]
                continue
            most_R1 = np.maximum(self.num_choices[rows], 1)[:, None]
            choice_RK = rng.integers(0, most_R1, (len(rows), self.cutoffs_per_journey))
            if self.horizons_days:
                yield rows, self.cutoffs[choice_RK]
            else:
                yield rows, self.gatherer.store.time_N[self.begin[rows][:, None] + choice_RK]

    def _ends(self, rows: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Rows of the store behind the last event of each journey of a batch that asks nothing at cutoffs."""
        if self.long_journeys != DRAWN:
            return self.end[rows]
        return self.begin[rows] + rng.integers(self.lengths[rows], self.end[rows] - self.begin[rows] + 1)

    def gather(
        self, rows: np.ndarray, cutoff_RK: np.ndarray, newcomers: tuple[np.ndarray, np.ndarray] | None = None
    ) -> JourneyBatch:
        """The batch of ``rows`` of ``journeys`` with the questions at ``cutoff_RK``, and those about ``newcomers``
        (customers and cutoffs; by default those drawn for these rows)."""
        if self.cutoffs_per_journey == 0:
            return self.gatherer.gather_stretches(self.journeys[rows], cutoff_RK[:, 0])
        asked_R = self.num_choices[rows] > 0
        cut_R = self.is_long[rows] & asked_R
        cutoff_RK = np.where(cut_R[:, None], cutoff_RK[:, :1], cutoff_RK)
        until_R = np.where(cut_R, cutoff_RK[:, 0], self.until[rows])
        new_journeys, new_cutoffs = self._ask_newcomers(rows) if newcomers is None else newcomers
        queries = ask(
            self.gatherer.store,
            np.concatenate([np.repeat(self.journeys[rows[asked_R]], self.cutoffs_per_journey), new_journeys]),
            np.concatenate([cutoff_RK[asked_R].ravel(), new_cutoffs]),
            self.horizons_days,
            self.known_until,
        )
        # A newcomer is a journey of its own, cut before its first event: no state but the start state is read.
        row_of_Q = np.concatenate(
            [np.repeat(np.flatnonzero(asked_R), self.cutoffs_per_journey), len(rows) + np.arange(len(new_journeys))]
        )
        return self.gatherer.gather(
            np.concatenate([self.journeys[rows], new_journeys]),
            np.concatenate([until_R, new_cutoffs]),
            queries,
            row_of_Q=row_of_Q,
        )


def _pieces(num_events_C: np.ndarray, max_events: int) -> tuple[np.ndarray, np.ndarray]:
    """Journeys cut from their ends into pieces of ``max_events``, the first one shorter: of each piece [P] the row of
    its journey, and up to how many events of the journey it goes. A single first event joins no piece."""
    num_pieces_C = np.maximum(-(-(num_events_C - 1) // max_events), 1)
    row_P = np.repeat(np.arange(len(num_events_C)), num_pieces_C)
    return row_P, num_events_C[row_P] - max_events * ragged_arange(np.zeros_like(num_events_C), num_pieces_C)


@dataclass
class PredictionBatches:
    """Batches that answer given questions, each question as a journey of its own that ends at its cutoff.

    Yields the batch and the rows of ``queries`` it answers, in the order of its Q. A customer may be asked about at
    several cutoffs, in one batch too.
    """

    gatherer: Gatherer
    queries: Queries
    max_tokens: int = 32_768
    max_journeys: int = 1024
    targets: bool = True

    def __post_init__(self) -> None:
        begin_Q = self.gatherer.store.first_event_C[self.queries.journey_Q].astype(np.int64)
        lengths_Q = np.where(self.queries.last_event_Q >= 0, self.queries.last_event_Q + 1 - begin_Q, 0)
        self.plan = token_budget_batches(
            np.minimum(lengths_Q, self.gatherer.max_events), max_tokens=self.max_tokens, max_journeys=self.max_journeys
        )

    def __len__(self) -> int:
        return len(self.plan)

    def __iter__(self) -> Iterator[tuple[JourneyBatch, np.ndarray]]:
        for rows in self.plan:
            queries = self.queries.take(rows)
            yield (
                self.gatherer.gather(
                    queries.journey_Q,
                    queries.cutoff_Q,
                    queries,
                    row_of_Q=np.arange(len(rows)),
                    targets=self.targets,
                ),
                rows,
            )
