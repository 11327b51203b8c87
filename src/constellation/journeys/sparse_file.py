"""An Arrow file larger than memory: laid out with holes where its columns go, then filled from front to back.

Arrow itself writes all metadata and tells where each buffer lies; the file is sparse until it is filled.
"""

from __future__ import annotations

import mmap
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np

from constellation.journeys.layout import coded_array
from constellation.schema import CATEGORICAL, LIST, NUMERIC


class _Holes:
    """A stretch of zeros, as long as needed and never in memory, for Arrow to lay out columns with."""

    def __init__(self, num_bytes: int, last_int64: int = 0) -> None:
        import pyarrow as pa

        size = -(-max(num_bytes, 8) // 8) * 8
        with tempfile.TemporaryFile() as file:
            file.truncate(size)
            file.seek(num_bytes - 8 if num_bytes >= 8 else 0)
            file.write(int(last_int64).to_bytes(8, "little"))
            file.flush()
            self.buffer = pa.py_buffer(mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ))

    def holds(self, address: int) -> bool:
        return self.buffer.address <= address < self.buffer.address + self.buffer.size


class _SparseSink:
    """A file for Arrow to write to that leaves a hole where a buffer is a stretch of `_Holes`."""

    closed = False

    def __init__(self, file: BinaryIO, holes: list[_Holes]) -> None:
        self.file, self.holes = file, holes

    def write(self, data: Any) -> int:
        import pyarrow as pa

        if isinstance(data, pa.Buffer) and any(hole.holds(data.address) for hole in self.holes):
            self.file.seek(data.size, 1)
        else:
            self.file.write(data)
        return len(data)

    def tell(self) -> int:
        return self.file.tell()

    def flush(self) -> None:
        self.file.flush()

    def close(self) -> None:
        self.flush()

    def writable(self) -> bool:
        return True

    def readable(self) -> bool:
        return False

    def seekable(self) -> bool:
        return False


class SparseFile:
    """One Arrow IPC file of known length, filled column by column, each from front to back.

    kinds: column -> kind, or a numpy dtype for a plain column. dictionaries: values of coded columns, entry 0 None.
    list_lengths: number of values of each list column.
    """

    def __init__(
        self,
        path: Path,
        kinds: dict[str, Any],
        num_rows: int,
        *,
        dictionaries: dict[str, list[str | None]] | None = None,
        list_lengths: dict[str, int] | None = None,
    ) -> None:
        import pyarrow as pa

        dictionaries, list_lengths = dictionaries or {}, list_lengths or {}
        zeros = _Holes(max(num_rows * 8, *(length * 4 for length in list_lengths.values()), 8))
        holes, arrays = [zeros], []
        for name, kind in kinds.items():
            if kind == LIST:
                # The last offset must be true: Arrow derives the length of the values from it.
                offsets = _Holes((num_rows + 1) * 8, list_lengths[name])
                holes.append(offsets)
                values = coded_array(zeros.buffer, list_lengths[name], dictionaries[name])
                buffers = [None, offsets.buffer.slice(0, (num_rows + 1) * 8)]
                arrays.append(pa.Array.from_buffers(pa.large_list(values.type), num_rows, buffers, children=[values]))
            elif kind == CATEGORICAL:
                arrays.append(coded_array(zeros.buffer, num_rows, dictionaries[name]))
            else:
                dtype = pa.timestamp("us", "UTC") if kind == "time" else pa.from_numpy_dtype(_dtype(kind))
                buffers = [None, zeros.buffer.slice(0, num_rows * dtype.bit_width // 8)]
                arrays.append(pa.Array.from_buffers(dtype, num_rows, buffers))
        batch = pa.record_batch(arrays, names=list(kinds))
        with open(path, "wb") as file:
            sink = pa.PythonFile(_SparseSink(file, holes), mode="w")
            with pa.ipc.new_file(sink, batch.schema) as writer:
                writer.write_batch(batch)
        with pa.memory_map(str(path)) as source:
            whole = source.read_buffer(source.size())
            # A buffer that is absent (no value is null) has no place and is never written.
            self._places = {
                name: [-1 if buffer is None else buffer.address - whole.address for buffer in column.buffers()]
                for name, column in zip(kinds, pa.ipc.open_file(whole).get_batch(0).columns, strict=True)
            }
        self._kinds = kinds
        self._filled: dict[tuple[str, int], int] = {}
        self._file = open(path, "r+b", buffering=0)  # noqa: SIM115 - closed by __exit__

    def append(self, name: str, values: np.ndarray) -> None:
        """The next values of a column: codes int32, numbers float64, times int64."""
        kind = self._kinds[name]
        dtype = np.dtype(np.int32) if kind == CATEGORICAL else _dtype(kind)
        self._write((name, 1), np.ascontiguousarray(values, dtype=dtype))

    def append_lists(self, name: str, values: np.ndarray, offsets: np.ndarray) -> None:
        """The next lists of a column: codes int32 of their values, and their ends in the whole file, int64.

        The first offset of the file, 0, is a hole already.
        """
        self._filled.setdefault((name, 1), 8)
        self._write((name, 1), np.ascontiguousarray(offsets, dtype=np.int64))
        self._write((name, 3), np.ascontiguousarray(values, dtype=np.int32))

    def _write(self, place: tuple[str, int], array: np.ndarray) -> None:
        name, buffer = place
        if array.size == 0:
            return
        done = self._filled.get(place, 0)
        self._file.seek(self._places[name][buffer] + done)
        data = memoryview(array.view(np.uint8))  # type: ignore[arg-type]
        self._filled[place] = done + len(data)
        while len(data):
            data = data[self._file.write(data) :]

    def __enter__(self) -> SparseFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()


def _dtype(kind: Any) -> np.dtype:
    if kind == NUMERIC:
        return np.dtype(np.float64)
    return np.dtype(np.int64) if isinstance(kind, str) else np.dtype(kind)
