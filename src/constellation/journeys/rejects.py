"""Rows that could not be used: never silently away."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from constellation.errors import InputError
from constellation.schema import EventSchema

if TYPE_CHECKING:
    import polars as pl
    import pyarrow as pa


@dataclass
class Rejects:
    """Rows that could not be used: counted, one shown, all kept in a Parquet file where there is a place for it."""

    path: Path | None
    num_rows: int = 0
    reasons: dict[str, int] = field(default_factory=dict)
    example: dict[str, Any] = field(default_factory=dict)
    _writer: Any = None

    def add(self, rejected: pl.DataFrame, num_rows: int) -> None:
        self.num_rows += num_rows
        if rejected.height == 0:
            return
        for reason, count in rejected["reason"].value_counts().iter_rows():
            self.reasons[reason] = self.reasons.get(reason, 0) + count
        self.example = self.example or rejected.row(0, named=True)
        if self.path is not None:
            import polars as pl
            import pyarrow.parquet as pq

            table = rejected.to_arrow(compat_level=pl.CompatLevel.oldest())
            if self._writer is None:
                self._writer = pq.ParquetWriter(self.path, table.schema)
            elif table.schema != self._writer.schema:
                table = _like(table, self._writer.schema)
            self._writer.write_table(table)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    @property
    def total(self) -> int:
        return sum(self.reasons.values())

    def too_many(self, schema: EventSchema) -> bool:
        return self.total > schema.max_reject_share * self.num_rows


def _like(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """A later frame of a source in Python may differ in a type; what cannot be brought into line is a mistake there."""
    import pyarrow as pa

    try:
        return table.select(schema.names).cast(schema)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, KeyError) as error:
        raise InputError(
            f"The frames of the source differ in their columns ({error}). Yield the same types."
        ) from error
