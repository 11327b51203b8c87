"""Batches whose questions are decisions: journeys end to end, each with the decisions asked about."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from constellation.journeys.batch import Gatherer, JourneyBatch
from constellation.journeys.sampling import token_budget_batches
from constellation.journeys.windows import Queries, ask


@dataclass
class DecidedTargets:
    """What was chosen and what came of it: for losses alone, no encoder and no readout looks here.

    action_Q int64; reward_Q float32, in units of the reward; known_Q bool: False is censored; member_weight_QM float32:
    how much each member of an ensemble learns from the row.
    """

    action_Q: Tensor
    reward_Q: Tensor
    known_Q: Tensor
    member_weight_QM: Tensor


@dataclass
class DecisionBatch(JourneyBatch):
    """A :class:`JourneyBatch` whose ``Q`` questions are decisions."""

    decided: DecidedTargets | None = None


def decision_queries(
    gatherer: Gatherer, journey_Q: np.ndarray, time_Q: np.ndarray, last_event_Q: np.ndarray
) -> Queries:
    """Questions at decisions: what may be seen ends with ``last_event_Q``, whatever else shares the moment."""
    store, horizons = gatherer.store, gatherer.vocabulary.horizons_days
    queries = ask(store, journey_Q, time_Q, horizons, store.manifest.observed_until)
    queries.last_event_Q = np.asarray(last_event_Q, dtype=np.int64)
    return queries


@dataclass
class DecisionBatches:
    """Batches of decisions, epoch after epoch, deterministic in ``(seed, epoch)``.

    All decisions of a customer share a batch and one pass over the journey: states are causal, so none sees what came
    after its own last event. A journey of more than ``max_events`` events is cut at one of its decisions, drawn for the
    epoch, and that one is asked alone, as when the model is used.
    journey_Q, time_Q, last_event_Q, action_Q, reward_Q, member_weight_QM: the decisions to learn from, or to answer.
    """

    gatherer: Gatherer
    journey_Q: np.ndarray
    time_Q: np.ndarray
    last_event_Q: np.ndarray
    action_Q: np.ndarray
    reward_Q: np.ndarray
    member_weight_QM: np.ndarray
    max_tokens: int = 8192
    max_journeys: int = 128
    seed: int = 0
    epoch: int = 0

    def __post_init__(self) -> None:
        store = self.gatherer.store
        self.order = np.lexsort((self.time_Q, self.journey_Q))
        self.journeys, self.begin, self.count = np.unique(
            self.journey_Q[self.order], return_index=True, return_counts=True
        )
        self.latest = self.time_Q[self.order][self.begin + self.count - 1]
        begin_C = store.first_event_C[self.journeys].astype(np.int64)
        lengths = store.end_event(self.journeys, self.latest) - begin_C
        self.is_long = lengths > self.gatherer.max_events
        self.lengths = np.minimum(lengths, self.gatherer.max_events)

    def __len__(self) -> int:
        return len(self._plan(np.random.default_rng([self.seed, self.epoch])))

    def __iter__(self) -> Iterator[DecisionBatch]:
        """For training: every decision, but one of each long journey."""
        rng = np.random.default_rng([self.seed, self.epoch])
        for rows in self._plan(rng):
            drawn_R = rng.integers(0, self.count[rows])
            first_R = np.where(self.is_long[rows], self.begin[rows] + drawn_R, self.begin[rows])
            count_R = np.where(self.is_long[rows], 1, self.count[rows])
            asked = np.repeat(first_R - np.concatenate([[0], count_R.cumsum()[:-1]]), count_R) + np.arange(
                count_R.sum()
            )
            yield self._gather(self.order[asked], np.repeat(np.arange(len(rows)), count_R), len(rows))

    def one_by_one(self) -> Iterator[tuple[DecisionBatch, np.ndarray]]:
        """For answering: each decision with a journey of its own that ends there; batches and rows of the decisions."""
        store = self.gatherer.store
        begin_Q = store.first_event_C[self.journey_Q].astype(np.int64)
        lengths_Q = store.end_event(self.journey_Q, self.time_Q) - begin_Q
        plan = token_budget_batches(
            np.minimum(lengths_Q, self.gatherer.max_events), max_tokens=self.max_tokens, max_journeys=self.max_journeys
        )
        for rows in plan:
            yield self._gather(rows, np.arange(len(rows)), len(rows)), rows

    def _plan(self, rng: np.random.Generator) -> list[np.ndarray]:
        return token_budget_batches(self.lengths, max_tokens=self.max_tokens, max_journeys=self.max_journeys, rng=rng)

    def _gather(self, asked: np.ndarray, row_of_Q: np.ndarray, num_journeys: int) -> DecisionBatch:
        queries = decision_queries(self.gatherer, self.journey_Q[asked], self.time_Q[asked], self.last_event_Q[asked])
        journeys, until = np.zeros(num_journeys, dtype=np.int64), np.zeros(num_journeys, dtype=np.int64)
        journeys[row_of_Q] = queries.journey_Q
        np.maximum.at(until, row_of_Q, queries.cutoff_Q)
        batch = self.gatherer.gather(journeys, until, queries, row_of_Q=row_of_Q, targets=False)
        decided = DecidedTargets(
            action_Q=torch.from_numpy(self.action_Q[asked].astype(np.int64)),
            reward_Q=torch.from_numpy(self.reward_Q[asked].astype(np.float32)),
            known_Q=torch.from_numpy(np.isfinite(self.reward_Q[asked])),
            member_weight_QM=torch.from_numpy(self.member_weight_QM[asked].astype(np.float32)),
        )
        whole = {field.name: getattr(batch, field.name) for field in fields(JourneyBatch)}
        return DecisionBatch(**whole, decided=decided)
