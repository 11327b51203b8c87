"""Contributions as tables that a person can read: one row per customer x event x field, with what the field said."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from constellation.explanation.gradients import Moved
from constellation.explanation.inputs import AGGREGATES, ATTRIBUTE, PAST_PRODUCTS, SILENCE, TIME, WEEKDAY
from constellation.journeys.vocabulary import ragged_arange
from constellation.schema import CUSTOMER_ID, EVENT_TIME

if TYPE_CHECKING:
    import pandas as pd

    from constellation.journeys.batch import Gatherer, JourneyBatch
    from constellation.journeys.windows import Queries

EVENT, JOURNEY, AGGREGATE, CALENDAR, ATTRIBUTES = "event", "journey", "aggregate", "calendar", "attribute"
PARTS = (EVENT, JOURNEY, AGGREGATE, SILENCE, CALENDAR, ATTRIBUTES, PAST_PRODUCTS)
WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
SEPARATOR = "|"


class Rows:
    """Collects the contributions batch by batch, in columns; frames at the end, in the order of the questions."""

    def __init__(self, gatherer: Gatherer, queries: Queries) -> None:
        self.store, self.vocabulary, self.queries = gatherer.store, gatherer.vocabulary, queries
        self.blocks: list[dict[str, np.ndarray]] = []
        self.customers: dict[str, np.ndarray] = {}
        self.num_done = 0

    def add(
        self,
        batch: JourneyBatch,
        asked_Q: np.ndarray,
        done_Q: np.ndarray,
        moved: Moved,
        baseline: float,
        relative_Q: torch.Tensor,
        steps: int,
        tolerance: float,
    ) -> None:
        """Keep the questions ``asked_Q`` (rows of the queries, those of the batch) where ``done_Q``."""
        self.num_done += int(done_Q.sum())
        start_Q, end_Q = moved.start_Q.cpu().numpy(), moved.end_Q.cpu().numpy()
        contribution_Q = moved.sum_Q(batch.journey_N.to(moved.end_Q.device)).cpu().numpy() + start_Q - baseline
        missed_Q = relative_Q.cpu().numpy()
        facts = {
            "prediction": end_Q,
            "baseline": np.full(len(end_Q), baseline),
            "contribution": contribution_Q,
            "gap": end_Q - baseline - contribution_Q,
            "relative_gap": missed_Q,
            "steps": np.full(len(end_Q), steps),
            "is_complete": missed_Q <= tolerance,
        }
        for name, values in facts.items():
            whole = self.customers.setdefault(name, np.empty(len(self.queries), dtype=values.dtype))
            whole[asked_Q[done_Q]] = values[done_Q]
        kept = np.flatnonzero(done_Q)
        self._block(asked_Q[kept], JOURNEY, "number and times of events", (start_Q - baseline)[kept])
        self._add_events(batch, asked_Q, done_Q, moved)
        self._add_others(asked_Q, kept, moved)

    def frames(self) -> tuple[pd.DataFrame, pd.DataFrame]:
        """``customers`` and ``contributions`` of :class:`~constellation.explanation.explaining.Explanation`."""
        import pandas as pd

        ids = np.asarray(self.store.customer_id_C)[self.queries.journey_Q]
        cutoffs = self._times(self.queries.cutoff_Q)
        customers = pd.DataFrame({CUSTOMER_ID: ids, "cutoff": cutoffs, **self.customers})
        joined = {name: np.concatenate([block[name] for block in self.blocks]) for name in self.blocks[0]}
        asked_R = joined.pop("asked")
        order_R = np.lexsort((np.arange(len(asked_R)), joined["event"], joined["part"], asked_R))
        asked_R = asked_R[order_R]
        columns = {name: values[order_R] for name, values in joined.items()}
        event_R, row_R = columns.pop("event"), columns.pop("row")
        seen_R = row_R >= 0
        known = {0: None} if not self.store.num_events else self.store.time_N[np.maximum(row_R, 0)]
        times = pd.Series(self._times(np.asarray(known)) if self.store.num_events else np.zeros(len(row_R)))
        frame = pd.DataFrame(
            {
                CUSTOMER_ID: ids[asked_R],
                "cutoff": pd.Series(cutoffs).iloc[asked_R].to_numpy(),
                "part": np.array(PARTS, dtype=object)[columns["part"]],
                "event": pd.array(np.where(seen_R, event_R, 0), dtype="Int64"),
                EVENT_TIME: times.where(pd.Series(seen_R)),
                "field": columns["field"],
                "value": columns["value"],
                "contribution": columns["contribution"],
            }
        )
        frame.loc[~seen_R, "event"] = pd.NA
        return customers, frame

    def _times(self, time: np.ndarray) -> Any:
        import pandas as pd

        return pd.to_datetime(time, unit="us", utc=True) if self.store.has_clock else time

    def _add_events(self, batch: JourneyBatch, asked_Q: np.ndarray, done_Q: np.ndarray, moved: Moved) -> None:
        kept_N = done_Q[batch.journey_N.numpy()]
        journey_N, position_N = batch.journey_N.numpy()[kept_N], batch.position_N.numpy()[kept_N]
        length_Q = batch.lengths_on_host
        # A journey ends at the last event its question may see, and keeps so many before it.
        last_Q = self.queries.last_event_Q[asked_Q]
        row_N = (last_Q + 1 - length_Q)[journey_N] + position_N
        field_FN = moved.field_FN.cpu().numpy()[:, kept_N]
        for place, name in enumerate(moved.fields):
            self._block(
                asked_Q[journey_N], EVENT, name, field_FN[place], self._event_values(name, row_N), position_N, row_N
            )

    def _add_others(self, asked_Q: np.ndarray, kept: np.ndarray, moved: Moved) -> None:
        asked = self.queries.take(asked_Q[kept])
        for name, tensor in moved.others.items():
            values = tensor.cpu().numpy()[kept]
            if name == AGGREGATES:
                raw_QF = self.vocabulary.aggregates.compute(
                    self.store, asked.journey_Q, asked.cutoff_Q, asked.last_event_Q
                )
                for place, aggregate in enumerate(self.vocabulary.aggregates.names):
                    self._block(asked_Q[kept], AGGREGATE, aggregate, values[:, place], _numbers(raw_QF[:, place]))
            elif name.startswith(ATTRIBUTE):
                column = name.removeprefix(ATTRIBUTE)
                self._block(asked_Q[kept], ATTRIBUTES, column, values, self._attribute_values(column, asked.journey_Q))
            elif name == SILENCE:
                since_Q = self._silence(asked)
                self._block(asked_Q[kept], SILENCE, "days since the last event", values, _numbers(since_Q))
            elif name == WEEKDAY:
                days = np.array(WEEKDAYS, dtype=object)[self.store.local_parts(asked.cutoff_Q)[0]]
                self._block(asked_Q[kept], CALENDAR, "weekday of the cutoff", values, days)
            else:
                assert name == PAST_PRODUCTS
                self._block(asked_Q[kept], PAST_PRODUCTS, "products of the past, counted", values)

    def _block(
        self,
        asked: np.ndarray,
        part: str,
        field: str,
        contribution: np.ndarray,
        value: np.ndarray | None = None,
        event: np.ndarray | None = None,
        row: np.ndarray | None = None,
    ) -> None:
        num_rows = len(asked)
        none = np.full(num_rows, -1, dtype=np.int64)
        self.blocks.append(
            {
                "asked": asked,
                "part": np.full(num_rows, PARTS.index(part), dtype=np.int64),
                "field": np.full(num_rows, field, dtype=object),
                "contribution": contribution.astype(np.float64),
                "value": np.full(num_rows, None, dtype=object) if value is None else value,
                "event": none if event is None else event,
                "row": none if row is None else row,
            }
        )

    def _event_values(self, name: str, row_N: np.ndarray) -> np.ndarray:
        """What a field of the events says, as text; None where it is missing."""
        store = self.store
        if name == TIME:
            return np.full(len(row_N), None, dtype=object)
        if name in store.numeric:
            return _numbers(store.numeric[name][row_N])
        if name in store.categorical:
            return np.array(store.dictionaries[name], dtype=object)[store.categorical[name][row_N]]
        if name not in store.lists:
            return np.full(len(row_N), None, dtype=object)
        values_M, offsets = store.lists[name]
        begin_N = offsets[row_N].astype(np.int64)
        length_N = offsets[row_N + 1].astype(np.int64) - begin_N
        words = np.array(store.dictionaries[name], dtype=object)[values_M[ragged_arange(begin_N, length_N)]]
        ends = np.cumsum(length_N)
        texts = [SEPARATOR.join(words[end - length : end]) or None for end, length in zip(ends, length_N, strict=True)]
        return np.array([*texts, None], dtype=object)[:-1]

    def _attribute_values(self, name: str, journey_Q: np.ndarray) -> np.ndarray:
        store = self.store
        if name in store.attributes_categorical:
            words = np.array(store.dictionaries[f"attributes.{name}"], dtype=object)
            return words[store.attributes_categorical[name][journey_Q]]
        if name in store.attributes_numeric:
            return _numbers(store.attributes_numeric[name][journey_Q])
        return np.full(len(journey_Q), None, dtype=object)

    def _silence(self, asked: Queries) -> np.ndarray:
        if not self.store.has_clock or not self.store.num_events:
            return np.full(len(asked), np.nan)
        days_Q = (asked.cutoff_Q - self.store.time_N[np.maximum(asked.last_event_Q, 0)]) / 86_400_000_000
        return np.where(asked.last_event_Q >= 0, days_Q, np.nan)


def _numbers(values: np.ndarray) -> np.ndarray:
    """Short texts, None for NaN."""
    texts = [None if not np.isfinite(value) else f"{value:.6g}" for value in np.asarray(values, dtype=np.float64)]
    return np.array([*texts, None], dtype=object)[:-1]
