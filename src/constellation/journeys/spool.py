"""The external sort: chunks of events in, ranges of customers out, each complete and ascending.

Chunks are gathered into runs, each sorted by customer and written to disk. When all are there the customers are
counted, so they can be cut into ranges of about equal size, and each range is one slice of every run. Two passes over
the data, whatever its size and however skewed: linear, and flat in memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from constellation.schema import CUSTOMER_ID

if TYPE_CHECKING:
    import polars as pl

RUN_BYTES = 32 * 2**20
"""Size of a run and of a range; a build holds a few times as much at once."""

NUM_EVENTS = "num_events"


class Spool:
    """Collects frames with a column ``customer_id``; data of less than one run never touch the disk.

    directory: an existing folder for runs, removed by its owner.
    """

    def __init__(self, directory: Path | None, run_bytes: int = RUN_BYTES) -> None:
        self.directory, self.run_bytes = directory, run_bytes
        self.num_rows = 0
        self._pending: list[pl.DataFrame] = []
        self._pending_bytes = self._num_bytes = 0
        self._runs: list[Path] = []
        self._customers: list[pl.DataFrame] = []

    def add(self, frame: pl.DataFrame) -> None:
        if frame.height == 0 and self._pending:
            return
        self._pending.append(frame)
        size = int(frame.estimated_size())
        self._pending_bytes += size
        self._num_bytes += size
        self.num_rows += frame.height
        if self.directory is not None and self._pending_bytes >= self.run_bytes:
            self._write_run()

    def customers(self) -> pl.DataFrame:
        """Ascending ``customer_id`` and ``num_events`` (Int64) of all customers seen."""
        if not self._runs:
            return _count(self._whole_pending())
        if self._pending_bytes:
            self._write_run()
        return _merge_counts(self._customers)

    def ranges(self, customers: pl.DataFrame) -> Iterator[tuple[pl.DataFrame, int, int]]:
        """All events of customers ``start : end`` of the table of customers, for consecutive ranges of it.

        Rows come grouped by customer only where a caller sorts them; each frame holds at least one customer.
        """
        import polars as pl

        if not self._runs:
            frame, self._pending = self._whole_pending(), []
            yield frame, 0, customers.height
            return
        counts = customers[NUM_EVENTS].to_numpy()
        rows_per_range = max(1, int(self.num_rows * self.run_bytes / max(self._num_bytes, 1)))
        part = (np.cumsum(counts) - counts) // rows_per_range
        starts = np.flatnonzero(np.diff(part, prepend=-1))
        ends = np.append(starts[1:], customers.height)
        first_ids = customers[CUSTOMER_ID].gather(starts)
        bounds = [self._bounds(path, first_ids) for path in self._runs]
        for index, (start, end) in enumerate(zip(starts.tolist(), ends.tolist(), strict=True)):
            slices = [
                _slice(path, int(bound[index]), int(bound[index + 1] - bound[index]))
                for path, bound in zip(self._runs, bounds, strict=True)
                if bound[index + 1] > bound[index]
            ]
            yield pl.concat(slices), start, end

    def _whole_pending(self) -> pl.DataFrame:
        import polars as pl

        if len(self._pending) > 1:
            self._pending = [pl.concat(self._pending)]
        return self._pending[0]

    def _write_run(self) -> None:
        assert self.directory is not None
        run = _by_customer(self._whole_pending().rechunk())
        self._pending, self._pending_bytes = [], 0
        path = self.directory / f"run-{len(self._runs):06d}.arrow"
        run.write_ipc(path, compression="uncompressed")
        self._runs.append(path)
        self._customers.append(_count(run))
        # Merging when the newer counts outweigh the older keeps the work at n log n and the memory at two tables.
        if sum(part.height for part in self._customers[1:]) > self._customers[0].height:
            self._customers = [_merge_counts(self._customers)]

    @staticmethod
    def _bounds(path: Path, first_ids: pl.Series) -> np.ndarray:
        import polars as pl

        ids = pl.scan_ipc(path).select(CUSTOMER_ID).collect()[CUSTOMER_ID]
        starts = ids.search_sorted(first_ids, side="left").to_numpy().astype(np.int64)
        return np.append(starts, len(ids))


def _by_customer(frame: pl.DataFrame) -> pl.DataFrame:
    """Rows by customer. Small integer ids share 64 bits with the row; plain integers sort ten times faster."""
    import polars as pl

    ids = frame[CUSTOMER_ID]
    if ids.dtype == pl.Int64 and frame.height:
        numbers = ids.to_numpy()
        row_bits, span = frame.height.bit_length(), int(numbers.max()) - int(numbers.min())
        if span.bit_length() + row_bits <= 63:
            key = np.sort(((numbers - numbers.min()) << row_bits) | np.arange(frame.height))
            ordered = frame[key & ((1 << row_bits) - 1)]
            return ordered.with_columns(pl.col(CUSTOMER_ID).set_sorted())
    return frame.sort(CUSTOMER_ID)


def _slice(path: Path, offset: int, length: int) -> Any:
    import polars as pl

    return pl.scan_ipc(path).slice(offset, length).collect()


def _count(frame: pl.DataFrame) -> pl.DataFrame:
    import polars as pl

    return frame.group_by(CUSTOMER_ID).agg(pl.len().cast(pl.Int64).alias(NUM_EVENTS)).sort(CUSTOMER_ID)


def _merge_counts(parts: list[pl.DataFrame]) -> pl.DataFrame:
    import polars as pl

    return pl.concat(parts).group_by(CUSTOMER_ID).agg(pl.col(NUM_EVENTS).sum()).sort(CUSTOMER_ID)
