"""Batches cut out on the device itself: the columns of the store lie there, and only questions cross over."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from constellation.journeys.batch import Gatherer, JourneyBatch, Ragged, Span, Targets
from constellation.journeys.packing import to_device
from constellation.journeys.store import MICROSECONDS_PER_DAY, Store
from constellation.journeys.vocabulary import Vocabulary

AT_A_TIME = 1 << 22
"""Events converted at a time, so that a mapped store is never whole in the memory of the host."""


class DeviceGatherer(Gatherer):
    """The batches of :class:`Gatherer`, tensor by tensor, on ``device``.

    Codes, bins and calendar of all events are worked out once, when this is made. Per batch the host finds the rows of
    the journeys and answers the questions, which it does from its own copy of the store; both cross in one copy from
    page-locked memory. It knows all sizes, so it never waits for the device.
    """

    def __init__(self, store: Store, vocabulary: Vocabulary, max_events: int, device: torch.device) -> None:
        super().__init__(store, vocabulary, max_events)
        self.device = device
        self._time = self._column(lambda rows: store.time_N[rows], np.int64)
        self._calendar = self._column(_calendar(store), np.int8) if store.has_clock else None
        self._categorical = {
            name: self._column(lambda rows, name=name: self.columns.categorical(name, rows), np.int32)
            for name in vocabulary.categorical
        }
        self._numbers = {
            name: self._column(lambda rows, name=name: self.columns.numeric(name, rows), np.float32)
            for name in vocabulary.numeric
        }
        self._bins = {
            name: self._column(
                lambda rows, name=name: vocabulary.bins(name, self.columns.numeric(name, rows)), np.int16
            )
            for name in vocabulary.numeric
        }
        self._lists = {name: self._list_column(name) for name in vocabulary.lists if name in store.lists}

    @classmethod
    def of(cls, gatherer: Gatherer, device: torch.device) -> DeviceGatherer:
        """The same store, vocabulary and length as ``gatherer``."""
        return cls(gatherer.store, gatherer.vocabulary, gatherer.max_events, device)

    def _column(self, read: Any, dtype: Any) -> Tensor:
        """[N] or [N, ..] on the device, of what ``read`` gives for rows of the store."""
        num_events = self.store.num_events
        parts = [
            torch.from_numpy(np.ascontiguousarray(read(np.arange(start, min(start + AT_A_TIME, num_events))), dtype))
            for start in range(0, max(num_events, 1), AT_A_TIME)
        ]
        return torch.cat([part.to(self.device) for part in parts])

    def _list_column(self, name: str) -> Ragged:
        values_M, offsets_N = self.store.lists[name]
        codes = [
            torch.from_numpy(self.columns.tables[name][values_M[start : start + AT_A_TIME]].astype(np.int32)).to(
                self.device
            )
            for start in range(0, max(len(values_M), 1), AT_A_TIME)
        ]
        return torch.cat(codes), self._column(lambda rows: offsets_N[rows], np.int64)

    def _batch(self, span: Span, asked: dict[str, Any], answers: Targets | None) -> JourneyBatch:
        begins = {"begin_B": span.begin_B, "start_B": span.start_B, "lengths_B": span.lengths_B}
        begins["offsets_B"] = span.offsets_B
        sizes: dict[str, int] = {}
        for name in self._lists:
            entries = self.store.lists[name][1]
            before_B = entries[span.start_B].astype(np.int64)
            entries_B = entries[span.end_B].astype(np.int64) - before_B
            # What to add to a place in the store to have the place in the batch.
            begins[f"shift of {name}"] = np.cumsum(entries_B) - entries_B - before_B
            begins[f"entries of {name}"] = entries_B
            sizes[name] = int(entries_B.sum())
        host = {name: torch.from_numpy(np.ascontiguousarray(rows)) for name, rows in begins.items()}
        here, asked, answers = to_device((host, asked, answers), self.device)
        events, next_N = self._cut(here, span.num_events, sizes)
        return JourneyBatch(
            lengths_B=here["lengths_B"],
            offsets_B=here["offsets_B"],
            max_length=int(span.lengths_B.max(initial=0)),
            host_lengths_B=span.lengths_B,
            targets=None if answers is None else replace(answers, next_N=next_N),
            **events,
            **asked,
        )

    def _cut(self, here: dict[str, Tensor], num_events: int, sizes: dict[str, int]) -> tuple[dict[str, Any], Tensor]:
        """The fields of a batch that have a row for each event, and the row of the event that follows each."""
        journey_N = torch.repeat_interleave(here["lengths_B"], output_size=num_events)
        step_N = torch.arange(num_events, device=self.device)
        position_N = step_N - here["offsets_B"].index_select(0, journey_N)
        rows_N = here["start_B"].index_select(0, journey_N) + position_N
        first_N = rows_N == here["begin_B"].index_select(0, journey_N)
        time_N = self._time.index_select(0, rows_N)
        if self._calendar is None:
            elapsed_N = torch.zeros(num_events, device=self.device)
            weekday_N, hour_N = torch.zeros(2, num_events, dtype=torch.int64, device=self.device)
        else:
            before_N = self._time.index_select(0, (rows_N - 1).clamp(min=0))
            # In float64, as on the host: microseconds of years have more digits than float32.
            elapsed_N = ((time_N - before_N).double() / MICROSECONDS_PER_DAY).masked_fill(first_N, 0.0).float()
            weekday_N, hour_N = self._calendar.index_select(0, rows_N).long().t().contiguous()
        is_last_N = position_N + 1 == here["lengths_B"].index_select(0, journey_N)
        lists = {}
        for name in self.vocabulary.lists:
            if name in self._lists:
                lists[name] = self._cut_list(name, here, sizes[name], rows_N, journey_N)
            else:
                lists[name] = (step_N[:0], torch.zeros(num_events + 1, dtype=torch.int64, device=self.device))
        events = {
            "time_N": time_N,
            "elapsed_days_N": elapsed_N,
            "first_N": first_N,
            "weekday_N": weekday_N,
            "hour_N": hour_N,
            "journey_N": journey_N,
            "position_N": position_N,
            "categorical": {name: codes.index_select(0, rows_N).long() for name, codes in self._categorical.items()},
            "numeric": {name: values.index_select(0, rows_N) for name, values in self._numbers.items()},
            "numeric_bin": {name: bins.index_select(0, rows_N).long() for name, bins in self._bins.items()},
            "lists": lists,
        }
        return events, (step_N + 1).masked_fill(is_last_N, -1)

    def _cut_list(self, name: str, here: dict[str, Tensor], size: int, rows_N: Tensor, journey_N: Tensor) -> Ragged:
        """The entries of a journey lie side by side in the store, so places are moved by one number per journey."""
        codes_M, offsets_N = self._lists[name]
        shift_B, entries_B = here[f"shift of {name}"], here[f"entries of {name}"]
        journey_M = torch.repeat_interleave(entries_B, output_size=size)
        place_M = torch.arange(size, device=self.device) - shift_B.index_select(0, journey_M)
        begin_N = offsets_N.index_select(0, rows_N) + shift_B.index_select(0, journey_N)
        end = torch.full((1,), size, dtype=torch.int64, device=self.device)
        return codes_M.index_select(0, place_M).long(), torch.cat([begin_N, end])


def _calendar(store: Store) -> Any:
    return lambda rows: np.stack(store.local_parts(store.time_N[rows]), axis=1)


def device_bytes(store: Store, vocabulary: Vocabulary) -> int:
    """What a :class:`DeviceGatherer` keeps on its device."""
    per_event = 8 + 2 * store.has_clock + 4 * len(vocabulary.categorical) + (4 + 2) * len(vocabulary.numeric)
    lists = [store.lists[name] for name in vocabulary.lists if name in store.lists]
    per_event += 8 * len(lists)
    return per_event * store.num_events + sum(4 * len(values_M) for values_M, _ in lists)
