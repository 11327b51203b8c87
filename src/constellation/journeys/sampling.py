"""Which journeys and which cutoffs make a batch: token budgets, length bands, and a fresh draw of cutoffs per epoch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from constellation.journeys.batch import Gatherer, JourneyBatch
from constellation.journeys.store import MICROSECONDS_PER_DAY
from constellation.journeys.windows import Queries, ask, days_before

LENGTH_BLUR = 1.5
"""Standard deviation of the log-normal blur of lengths. Long journeys are good customers: batches of strictly like
lengths are batches of like answers, and each step pulls the total its own way. On the Complete Journey a blur of a
quarter needed 9 epochs for the validation CRPS that this one reaches in 5; attention bands its rows again inside."""


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
    """Batches of one epoch after another, for journeys seen up to ``known_until``.

    Each journey comes with ``cutoffs_per_journey`` cutoffs drawn anew every epoch: day ends between its first event (or
    ``earliest``, where that is later) and ``known_until`` less the shortest horizon. Longer horizons that do not fit
    are censored. Deterministic in ``(seed, epoch)``, whatever was drawn before, so that a resumed run goes on with the
    same batches.

    A journey of more than ``max_events`` events is cut at one cutoff drawn for the epoch, and all its questions are
    asked there: just what is gathered when the model is used. Its last events with cutoffs before them would instead
    tell the model, by the state that is missing, how much the customer did later.
    """

    gatherer: Gatherer
    journeys: np.ndarray
    known_until: int
    horizons_days: tuple[int, ...]
    cutoffs_per_journey: int = 8
    max_tokens: int = 8192
    max_journeys: int = 256
    earliest: int | None = None
    seed: int = 0
    epoch: int = 0

    def __post_init__(self) -> None:
        store = self.gatherer.store
        self.journeys = np.asarray(self.journeys, dtype=np.int64)
        begin_C = store.first_event_C[self.journeys].astype(np.int64)
        num_known_C = store.end_event(self.journeys, np.full(len(self.journeys), self.known_until)) - begin_C
        self.journeys, num_known_C = self.journeys[num_known_C > 0], num_known_C[num_known_C > 0]
        self.lengths = np.minimum(num_known_C, self.gatherer.max_events)
        self.is_long = num_known_C > self.gatherer.max_events
        self.num_events = int(self.lengths.sum())
        first_time = store.time_N[store.first_event_C[self.journeys].astype(np.int64)]
        if self.earliest is not None:
            first_time = np.maximum(first_time, self.earliest)
        latest = self.known_until - self.horizons_days[0] * MICROSECONDS_PER_DAY
        self.cutoffs = days_before(store, latest, int(first_time.min(initial=latest)))
        # Number of day ends from the first event on; 0 for customers who came too late to be asked anything.
        self.num_days = np.searchsorted(-self.cutoffs, -first_time, side="right")

    def _rng(self) -> np.random.Generator:
        return np.random.default_rng([self.seed, self.epoch])

    def plan(self) -> list[np.ndarray]:
        """Rows of ``journeys`` in each batch of the present epoch."""
        return self._plan(self._rng())

    def _plan(self, rng: np.random.Generator) -> list[np.ndarray]:
        return token_budget_batches(self.lengths, max_tokens=self.max_tokens, max_journeys=self.max_journeys, rng=rng)

    def __len__(self) -> int:
        return len(self.plan())

    def __iter__(self) -> Iterator[JourneyBatch]:
        rng = self._rng()
        for rows in self._plan(rng):
            cutoff_RK = self.cutoffs[
                rng.integers(0, np.maximum(self.num_days[rows], 1)[:, None], (len(rows), self.cutoffs_per_journey))
            ]
            until_R = np.full(len(rows), self.known_until)
            cut_R = self.is_long[rows] & (self.num_days[rows] > 0)
            cutoff_RK[cut_R] = cutoff_RK[cut_R, :1]
            until_R[cut_R] = cutoff_RK[cut_R, 0]
            asked_R = self.num_days[rows] > 0
            queries = ask(
                self.gatherer.store,
                np.repeat(self.journeys[rows[asked_R]], self.cutoffs_per_journey),
                cutoff_RK[asked_R].ravel(),
                self.horizons_days,
                self.known_until,
            )
            row_of_Q = np.repeat(np.flatnonzero(asked_R), self.cutoffs_per_journey)
            yield self.gatherer.gather(self.journeys[rows], until_R, queries, row_of_Q=row_of_Q)


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
