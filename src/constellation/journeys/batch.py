"""The ragged batch: journeys end to end, no padding, gathered from the store by index arithmetic."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from constellation.errors import InputError
from constellation.journeys.coded_columns import CodedColumns
from constellation.journeys.packing import map_tensors, to_device
from constellation.journeys.records import AfterCutoff, PurchaseRecord, after_cutoff, purchase_record
from constellation.journeys.store import MICROSECONDS_PER_DAY, Store
from constellation.journeys.vocabulary import Vocabulary, ragged_arange
from constellation.journeys.windows import Queries
from constellation.schema import EVENT_TYPE, PRODUCT

Ragged = tuple[Tensor, Tensor]
"""Values [M] and offsets [rows + 1] of a list column."""


@dataclass
class Targets:
    """Answers to the questions of a batch. Money in units of the currency.

    value_QK, purchases_QK float32; observed_QK bool: False is censored. next_N: row in N of the next event of the same
    journey, -1 where there is none at or before the end of the span. next_type_Q: model code of the type of the next
    event, 0 for none. next_products: model codes of the products of the next basket of each query.
    """

    horizons_days: tuple[int, ...]
    value_QK: Tensor
    purchases_QK: Tensor
    observed_QK: Tensor
    next_N: Tensor
    next_type_Q: Tensor
    next_products: Ragged
    after: AfterCutoff | None = None


@dataclass
class JourneyBatch:
    """``B`` journeys of ``N`` events in all, and ``Q`` questions. Shapes stand in the names; see docs/design.md.

    time_N microseconds UTC; elapsed_days_N since the previous event of the customer (0 at the first); position_N from 0
    in the journey as gathered; last_event_Q a row of N, -1 for none. Model codes are those of the vocabulary.
    ``max_length`` is a host integer, so that nobody needs to ask the device for it; so are ``host_lengths_B``, a copy
    of the lengths, and ``num_past_products``, list entries before the cutoffs over all queries, where they are known.
    """

    lengths_B: Tensor
    offsets_B: Tensor
    max_length: int
    time_N: Tensor
    elapsed_days_N: Tensor
    first_N: Tensor
    weekday_N: Tensor
    hour_N: Tensor
    journey_N: Tensor
    position_N: Tensor
    categorical: dict[str, Tensor]
    numeric: dict[str, Tensor]
    numeric_bin: dict[str, Tensor]
    lists: dict[str, Ragged]
    attributes: dict[str, Tensor]
    attributes_numeric: dict[str, Tensor]
    query_journey_Q: Tensor
    cutoff_Q: Tensor
    last_event_Q: Tensor
    since_last_days_Q: Tensor
    weekday_Q: Tensor
    aggregates_QF: Tensor
    targets: Targets | None = None
    record: PurchaseRecord | None = None
    host_lengths_B: np.ndarray | None = None
    num_past_products: int | None = None

    @property
    def lengths_on_host(self) -> np.ndarray:
        """int64 [B]. Waits for the device only where nobody kept a copy."""
        return self.lengths_B.cpu().numpy() if self.host_lengths_B is None else self.host_lengths_B

    @property
    def num_journeys(self) -> int:
        return len(self.lengths_B)

    @property
    def num_events(self) -> int:
        return len(self.time_N)

    @property
    def num_queries(self) -> int:
        return len(self.cutoff_Q)

    def to(self, device: torch.device | str, non_blocking: bool = True) -> JourneyBatch:
        """The batch on a device, by one copy; on the same device the very same tensors."""
        device, here = torch.device(device), self.time_N.device
        if device.type == here.type and device.index in (None, here.index):
            return self
        if here.type == "cpu":
            return to_device(self, device, non_blocking)
        return map_tensors(self, lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> JourneyBatch:
        return map_tensors(self, lambda tensor: tensor.pin_memory())


@dataclass
class Span:
    """The rows of the store that a batch holds, journey after journey, as numpy arrays int64.

    begin_B: first event of the customer. start_B: first event of the batch. offsets_B: [B + 1], of the rows of N.
    """

    journeys: np.ndarray
    begin_B: np.ndarray
    start_B: np.ndarray
    lengths_B: np.ndarray
    offsets_B: np.ndarray

    @property
    def end_B(self) -> np.ndarray:
        return self.start_B + self.lengths_B

    @property
    def num_events(self) -> int:
        return int(self.offsets_B[-1])


class Gatherer:
    """Cuts batches out of a store in the codes of a vocabulary.

    max_events: journeys keep their last so many events at or before ``until``; aggregates still know the whole past.
    A column or attribute that the store lacks is missing everywhere. Raises InputError where the store has no event
    types, or holds a column as another kind than the vocabulary was fitted on.
    """

    def __init__(self, store: Store, vocabulary: Vocabulary, max_events: int = 1024) -> None:
        self.store, self.vocabulary, self.max_events = store, vocabulary, max_events
        if EVENT_TYPE not in store.categorical:
            raise InputError(f"The events lack the column {EVENT_TYPE!r}.")
        self.columns = CodedColumns(store, vocabulary)

    def gather(
        self,
        journeys: np.ndarray,
        until: np.ndarray | int,
        queries: Queries | None = None,
        *,
        row_of_Q: np.ndarray | None = None,
        targets: bool = True,
    ) -> JourneyBatch:
        """Events of ``journeys`` at or before ``until`` (one time, or one per journey), and the questions about them.

        ``queries.journey_Q`` holds rows of the store; each must be among ``journeys``, at most once there unless
        ``row_of_Q`` says which row of the batch each query reads. No cutoff may lie after the ``until`` of its row.
        Without queries the batch has Q = 0. ``targets=False`` leaves the answers out (scoring).
        """
        span = self._span(journeys, until)
        if queries is None:
            return self._unasked(span, targets)
        row_of_Q = _places(span.journeys, queries.journey_Q) if row_of_Q is None else row_of_Q
        asked = self._asked(span, queries, row_of_Q)
        answers = self._answers(queries) if targets else None
        return self._batch(span, asked, answers)

    def _batch(self, span: Span, asked: dict[str, Any], answers: Targets | None) -> JourneyBatch:
        """The batch of the events of ``span``; ``asked`` are its fields that hold no events, as tensors."""
        batch = JourneyBatch(
            lengths_B=_tensor(span.lengths_B),
            offsets_B=_tensor(span.offsets_B),
            max_length=int(span.lengths_B.max(initial=0)),
            host_lengths_B=span.lengths_B,
            **self._events(span),
            **asked,
        )
        if answers is not None:
            following_N = np.arange(1, span.num_events + 1)
            following_N[span.offsets_B[1:][span.lengths_B > 0] - 1] = -1
            batch.targets = replace(answers, next_N=_tensor(following_N))
        return batch

    def gather_stretches(self, journeys: np.ndarray, end_B: np.ndarray) -> JourneyBatch:
        """The last events of ``journeys`` before the rows ``end_B`` of the store, whatever their times: Q = 0."""
        return self._unasked(self._span_before(np.asarray(journeys, dtype=np.int64), end_B), targets=True)

    def _unasked(self, span: Span, targets: bool) -> JourneyBatch:
        queries = _no_queries(self.vocabulary.horizons_days)
        asked = self._asked(span, queries, np.empty(0, dtype=np.int64))
        return self._batch(span, asked, self._answers(queries) if targets else None)

    def _span(self, journeys: np.ndarray, until: np.ndarray | int) -> Span:
        journeys = np.asarray(journeys, dtype=np.int64)
        until_B = np.broadcast_to(np.asarray(until, dtype=np.int64), journeys.shape)
        return self._span_before(journeys, self.store.end_event(journeys, until_B))

    def _span_before(self, journeys: np.ndarray, end_B: np.ndarray) -> Span:
        begin_B = self.store.first_event_C[journeys].astype(np.int64)
        start_B = np.maximum(begin_B, end_B - self.max_events)
        offsets_B = np.concatenate([[0], np.cumsum(end_B - start_B)])
        return Span(journeys, begin_B, start_B, end_B - start_B, offsets_B)

    def _events(self, span: Span) -> dict[str, Any]:
        """The fields of a batch that have a row for each event."""
        store = self.store
        rows_N = ragged_arange(span.start_B, span.lengths_B)
        journey_N = np.repeat(np.arange(len(span.journeys)), span.lengths_B)
        time_N = store.time_N[rows_N]
        first_N = rows_N == span.begin_B[journey_N]
        num_events = len(rows_N)
        if store.has_clock:
            before_N = store.time_N[np.maximum(rows_N - 1, 0)]
            elapsed_N = np.where(first_N, 0.0, (time_N - before_N) / MICROSECONDS_PER_DAY)
            weekday_N, hour_N = store.local_parts(time_N)
        else:
            elapsed_N, weekday_N, hour_N = np.zeros(num_events), *np.zeros((2, num_events), dtype=np.int64)
        columns, vocabulary = self.columns, self.vocabulary
        categorical = {name: columns.categorical(name, rows_N) for name in vocabulary.categorical}
        numeric = {name: columns.numeric(name, rows_N) for name in vocabulary.numeric}
        return {
            "time_N": _tensor(time_N),
            "elapsed_days_N": _tensor(elapsed_N, np.float32),
            "first_N": _tensor(first_N, np.bool_),
            "weekday_N": _tensor(weekday_N),
            "hour_N": _tensor(hour_N),
            "journey_N": _tensor(journey_N),
            "position_N": _tensor(np.arange(num_events) - span.offsets_B[:-1][journey_N]),
            "categorical": {name: _tensor(codes_N) for name, codes_N in categorical.items()},
            "numeric": {name: _tensor(values_N, np.float32) for name, values_N in numeric.items()},
            "numeric_bin": {name: _tensor(vocabulary.bins(name, values_N)) for name, values_N in numeric.items()},
            "lists": {name: _ragged(columns.entries(name, rows_N)) for name in vocabulary.lists},
        }

    def _asked(self, span: Span, queries: Queries, row_of_Q: np.ndarray) -> dict[str, Any]:
        """The fields of a batch that have a row for each journey's attributes or for each query, and their number."""
        start_Q, end_Q = span.start_B[row_of_Q], span.end_B[row_of_Q]
        assert np.array_equal(span.journeys[row_of_Q], queries.journey_Q), "a query's journey is not in the batch"
        assert (queries.last_event_Q < end_Q).all(), "a query may see events that the batch does not hold"
        seen_Q = queries.last_event_Q >= start_Q
        last_event_Q = np.where(seen_Q, queries.last_event_Q - start_Q + span.offsets_B[row_of_Q], -1)
        since_Q, weekday_Q = self._since(queries)
        aggregates_QF = self.vocabulary.aggregates_scaler(
            self.vocabulary.aggregates.compute(self.store, queries.journey_Q, queries.cutoff_Q, queries.last_event_Q)
        )
        num_past_products = 0
        if PRODUCT in self.store.lists:
            entries = self.store.lists[PRODUCT][1]
            past_Q = entries[np.where(seen_Q, queries.last_event_Q + 1, 0)] - entries[np.where(seen_Q, start_Q, 0)]
            num_past_products = int(past_Q.sum())
        return {
            "attributes": {
                name: _tensor(self.columns.attribute(name, span.journeys))
                for name in self.vocabulary.attributes_categorical
            },
            "attributes_numeric": {
                name: _tensor(self.columns.attribute_number(name, span.journeys), np.float32)
                for name in self.vocabulary.attributes_numeric
            },
            "query_journey_Q": _tensor(row_of_Q),
            "cutoff_Q": _tensor(queries.cutoff_Q),
            "last_event_Q": _tensor(last_event_Q),
            "since_last_days_Q": _tensor(since_Q, np.float32),
            "weekday_Q": _tensor(weekday_Q),
            "aggregates_QF": _tensor(aggregates_QF, np.float32),
            "record": purchase_record(self.store, queries),
            "num_past_products": num_past_products,
        }

    def _answers(self, queries: Queries) -> Targets:
        """The answers to the queries; what follows each event is left empty."""
        types_Q = np.zeros(len(queries), dtype=np.int64)
        known_Q = queries.next_event_Q >= 0
        types_Q[known_Q] = self.columns.categorical(EVENT_TYPE, queries.next_event_Q[known_Q])
        return Targets(
            horizons_days=queries.horizons_days,
            value_QK=_tensor(queries.value_QK, np.float32),
            purchases_QK=_tensor(queries.purchases_QK, np.float32),
            observed_QK=_tensor(queries.observed_QK, np.bool_),
            next_N=_tensor(np.empty(0)),
            next_type_Q=_tensor(types_Q),
            next_products=_ragged(self.columns.entries(PRODUCT, queries.next_basket_Q)),
            after=after_cutoff(self.store, queries),
        )

    def _since(self, queries: Queries) -> tuple[np.ndarray, np.ndarray]:
        """Days since the last event (0 where there is none) and the local weekday of each cutoff."""
        if not self.store.has_clock or self.store.num_events == 0:
            return np.zeros(len(queries)), np.zeros(len(queries), dtype=np.int64)
        known_Q = queries.last_event_Q >= 0
        last_Q = self.store.time_N[np.where(known_Q, queries.last_event_Q, 0)]
        since_Q = np.where(known_Q, (queries.cutoff_Q - last_Q) / MICROSECONDS_PER_DAY, 0.0)
        return since_Q, self.store.local_parts(queries.cutoff_Q)[0]


def _tensor(values: np.ndarray, dtype: Any = np.int64) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values, dtype=dtype))


def _ragged(values_and_offsets: tuple[np.ndarray, np.ndarray]) -> Ragged:
    values_M, offsets = values_and_offsets
    return _tensor(values_M), _tensor(offsets)


def _places(journeys: np.ndarray, wanted_Q: np.ndarray) -> np.ndarray:
    """Row of each wanted journey in ``journeys``."""
    order = np.argsort(journeys, kind="stable")
    return order[np.minimum(np.searchsorted(journeys, wanted_Q, sorter=order), max(len(journeys) - 1, 0))]


def _no_queries(horizons_days: tuple[int, ...]) -> Queries:
    none, grid = np.empty(0, dtype=np.int64), np.empty((0, len(horizons_days)))
    return Queries(
        none, none, none, horizons_days, grid, grid.astype(np.int64), grid.astype(bool), none.copy(), none.copy()
    )
