"""The store on disk: uncompressed Arrow IPC files of one record batch, every buffer of which numpy can map.

``events.arrow``: one row per event. ``sums.arrow``: running sums, one row more. ``customers.arrow``: one row per
customer. ``decisions.arrow``: one row per decision, where there are any. ``manifest.json`` is written last.

Events are too many to be held, so the file is first laid out with holes where the columns go (a sparse file) and
then filled from front to back; Arrow itself writes all metadata, and tells where each buffer lies.
"""

from __future__ import annotations

import mmap
import tempfile
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from constellation.schema import CATEGORICAL, CUSTOMER_ID, EVENT_TIME, LIST, NUMERIC

if TYPE_CHECKING:
    import pyarrow as pa

EVENTS, SUMS, CUSTOMERS, DECISIONS = "events.arrow", "sums.arrow", "customers.arrow", "decisions.arrow"
JOURNEY, PURCHASE = "_journey", "_purchase"
"""Columns of ``events.arrow`` beside the source's own: the row of the customer, and whether it is a purchase."""
ATTRIBUTE = "attributes."


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
                values = _coded(zeros.buffer, list_lengths[name], dictionaries[name])
                buffers = [None, offsets.buffer.slice(0, (num_rows + 1) * 8)]
                arrays.append(pa.Array.from_buffers(pa.large_list(values.type), num_rows, buffers, children=[values]))
            elif kind == CATEGORICAL:
                arrays.append(_coded(zeros.buffer, num_rows, dictionaries[name]))
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


def event_kinds(kinds: dict[str, str], clock: str) -> dict[str, Any]:
    """Columns of ``events.arrow`` in order."""
    return (
        {JOURNEY: np.dtype(np.int32), EVENT_TIME: "time" if clock == "time" else np.dtype(np.int64)}
        | kinds
        | {PURCHASE: np.dtype(np.uint8)}
    )


def write_customers(
    directory: Path,
    customer_id_C: pa.Array,
    first_event_C: np.ndarray,
    attributes: dict[str, tuple[np.ndarray, list[str | None] | None]],
) -> None:
    """Write ``customers.arrow``. ``first_event_C`` is [C + 1]; attributes are codes and dictionary, or numbers."""
    import pyarrow as pa

    columns = {
        CUSTOMER_ID: customer_id_C,
        "first_event": pa.array(first_event_C[:-1]),
        "num_events": pa.array(np.diff(first_event_C)),
    }
    for name, (values, dictionary) in attributes.items():
        columns[ATTRIBUTE + name] = pa.array(values) if dictionary is None else dictionary_array(values, dictionary)
    write_batch(directory / CUSTOMERS, columns)


def write_batch(path: Path, columns: dict[str, pa.Array]) -> None:
    """One record batch, uncompressed."""
    import pyarrow as pa

    batch = pa.record_batch(list(columns.values()), names=list(columns))
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, batch.schema) as writer:
        writer.write_batch(batch)


def dictionary_array(codes: np.ndarray, dictionary: list[str | None]) -> pa.DictionaryArray:
    import pyarrow as pa

    buffer = pa.py_buffer(np.ascontiguousarray(codes, dtype=np.int32))
    return _coded(buffer, len(codes), dictionary)


def read(directory: str | Path) -> dict[str, Any]:
    """The arrays of a store, memory-mapped and read-only, by the names of the fields of ``Store`` (less its manifest).

    ``decisions``, where there are any, is a dict by the names of the fields of ``Decisions``.
    """
    directory = Path(directory)
    dictionaries: dict[str, list[str | None]] = {}
    categorical: dict[str, np.ndarray] = {}
    numeric: dict[str, np.ndarray] = {}
    lists: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    events = _open(directory / EVENTS)
    num_events = events.num_rows
    for name, column in zip(events.schema.names, events.columns, strict=True):
        kind = _kind(column)
        if name in (JOURNEY, EVENT_TIME, PURCHASE):
            continue
        if kind == CATEGORICAL:
            categorical[name] = _view(column.indices, np.int32)
            dictionaries[name] = column.dictionary.to_pylist()
        elif kind == LIST:
            offsets = column.buffers()[1]
            has_offsets = num_events > 0 and offsets is not None
            offsets_N = np.frombuffer(offsets, np.int64, num_events + 1) if has_offsets else np.zeros(1, np.int64)
            lists[name] = (_view(column.values.indices, np.int32), offsets_N)
            dictionaries[name] = column.values.dictionary.to_pylist()
        else:
            numeric[name] = _view(column, np.float64)
    sums, customers = _open(directory / SUMS), _open(directory / CUSTOMERS)
    attributes_categorical: dict[str, np.ndarray] = {}
    attributes_numeric: dict[str, np.ndarray] = {}
    for name, column in zip(customers.schema.names, customers.columns, strict=True):
        if not name.startswith(ATTRIBUTE):
            continue
        if _kind(column) == CATEGORICAL:
            attributes_categorical[name.removeprefix(ATTRIBUTE)] = _view(column.indices, np.int32)
            dictionaries[name] = column.dictionary.to_pylist()
        else:
            attributes_numeric[name.removeprefix(ATTRIBUTE)] = _view(column, np.float64)
    arrays: dict[str, Any] = {
        "customer_id_C": customers.column(CUSTOMER_ID).to_numpy(zero_copy_only=False),
        "first_event_C": np.append(_view(customers.column("first_event"), np.int64), np.int64(num_events)),
        "time_N": _view(events.column(EVENT_TIME), np.int64),
        "categorical": categorical,
        "numeric": numeric,
        "lists": lists,
        "dictionaries": dictionaries,
        "attributes_categorical": attributes_categorical,
        "attributes_numeric": attributes_numeric,
        "purchase_N": _view(events.column(PURCHASE), np.uint8).view(bool),
        "amount_sum_N": _view(sums.column("amount_sum"), np.int64),
        "purchase_sum_N": _view(sums.column("purchase_sum"), np.int64),
    }
    if (directory / DECISIONS).exists():
        arrays["decisions"] = read_decisions(directory)
    return arrays


DECISION_COLUMNS = {
    "journey": ("journey_Q", np.int64),
    "decision_time": ("time_Q", np.int64),
    "last_event": ("last_event_Q", np.int64),
    "action": ("action_Q", np.int32),
    "propensity": ("propensity_Q", np.float64),
    "eligible": ("eligible_Q", np.uint8),
    "cost": ("cost_Q", np.float64),
    "reward": ("reward_Q", np.float64),
    "matured": ("matured_Q", np.uint8),
    "choices": ("choices_Q", np.int32),
}
"""Column of ``decisions.arrow`` -> field of ``Decisions`` and type on disk."""


def write_decisions(directory: Path, decisions: Any, clock: str) -> None:
    """Write ``decisions.arrow`` from a ``Decisions``; ``journey`` is the row of the customer in ``customers.arrow``."""
    import pyarrow as pa

    from constellation.journeys.decisions import CHANCE, CONTEXT

    columns = {}
    for name, (field, dtype) in DECISION_COLUMNS.items():
        values = np.ascontiguousarray(getattr(decisions, field)).astype(dtype)
        if name in ("action", "choices"):
            columns[name] = dictionary_array(values, decisions.actions if name == "action" else decisions.choice_sets)
        elif name == "decision_time" and clock == "time":
            columns[name] = pa.array(values.view("datetime64[us]"), pa.timestamp("us", "UTC"))
        else:
            columns[name] = pa.array(values)
    if decisions.propensity_QA is not None:
        for action, chance_Q in zip(decisions.actions[1:], decisions.propensity_QA.T, strict=True):
            columns[f"{CHANCE}{action}"] = pa.array(np.ascontiguousarray(chance_Q))
    for place, known in enumerate(decisions.context_names):
        columns[f"{CONTEXT}{known}"] = pa.array(np.ascontiguousarray(decisions.context_QX[:, place]))
    write_batch(directory / DECISIONS, columns)


def read_decisions(directory: Path) -> dict[str, Any]:
    from constellation.journeys.decisions import CHANCE, CONTEXT

    batch = _open(directory / DECISIONS)
    fields: dict[str, Any] = {
        "actions": batch.column("action").dictionary.to_pylist(),
        "choice_sets": batch.column("choices").dictionary.to_pylist(),
    }
    for name, (field, dtype) in DECISION_COLUMNS.items():
        column = batch.column(name)
        values = _view(column.indices if name in ("action", "choices") else column, dtype)
        fields[field] = values.view(bool) if dtype is np.uint8 else values
    names = batch.schema.names
    chances = [f"{CHANCE}{action}" for action in fields["actions"][1:]]
    if chances and set(chances) <= set(names):
        fields["propensity_QA"] = np.stack([_view(batch.column(name), np.float64) for name in chances], axis=1)
    context = [name for name in names if name.startswith(CONTEXT)]
    if context:
        fields["context_QX"] = np.stack([_view(batch.column(name), np.float32) for name in context], axis=1)
        fields["context_names"] = tuple(name.removeprefix(CONTEXT) for name in context)
    return fields


def _coded(buffer: pa.Buffer, length: int, dictionary: list[str | None]) -> pa.DictionaryArray:
    import pyarrow as pa

    assert dictionary[0] is None, "code 0 is missing"
    values = pa.array(dictionary, pa.large_string())
    dtype = pa.dictionary(pa.int32(), values.type)
    return pa.DictionaryArray.from_buffers(dtype, length, [None, buffer.slice(0, length * 4)], values)


def _dtype(kind: Any) -> np.dtype:
    if kind == NUMERIC:
        return np.dtype(np.float64)
    return np.dtype(np.int64) if isinstance(kind, str) else np.dtype(kind)


def _kind(column: pa.Array) -> str:
    import pyarrow as pa

    if pa.types.is_dictionary(column.type):
        return CATEGORICAL
    return LIST if pa.types.is_large_list(column.type) else NUMERIC


def _open(path: Path) -> pa.RecordBatch:
    import pyarrow as pa

    return pa.ipc.open_file(pa.memory_map(str(path))).get_batch(0)


def _view(array: pa.Array, dtype: Any) -> np.ndarray:
    buffer = array.buffers()[1]
    return np.frombuffer(buffer, dtype, len(array)) if len(array) else np.empty(0, dtype)
