"""The store on disk: uncompressed Arrow IPC files of one record batch, every buffer of which numpy can map.

``events.arrow``: one row per event. ``sums.arrow``: running sums, one row more. ``customers.arrow``: one row per
customer. ``decisions.arrow``: one row per decision, where there are any. ``manifest.json`` is written last.

Events are too many to be held; how a file of them is written piece by piece, see ``sparse_file``.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from constellation.schema import CATEGORICAL, CUSTOMER_ID, EVENT_TIME, LIST, NUMERIC

if TYPE_CHECKING:
    import pyarrow as pa

EVENTS, SUMS, CUSTOMERS, DECISIONS = "events.arrow", "sums.arrow", "customers.arrow", "decisions.arrow"
JOURNEY, PURCHASE = "_journey", "_purchase"
"""Columns of ``events.arrow`` beside the source's own: the row of the customer, and whether it is a purchase."""
ATTRIBUTE = "attributes."


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
    return coded_array(buffer, len(codes), dictionary)


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
        "customer_id_C": _values(customers.column(CUSTOMER_ID)),
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


def coded_array(buffer: pa.Buffer, length: int, dictionary: list[str | None]) -> pa.DictionaryArray:
    """The first ``length`` codes int32 of a buffer, with their dictionary."""
    import pyarrow as pa

    assert dictionary[0] is None, "code 0 is missing"
    values = pa.array(dictionary, pa.large_string())
    dtype = pa.dictionary(pa.int32(), values.type)
    return pa.DictionaryArray.from_buffers(dtype, length, [None, buffer.slice(0, length * 4)], values)


def _kind(column: pa.Array) -> str:
    import pyarrow as pa

    if pa.types.is_dictionary(column.type):
        return CATEGORICAL
    return LIST if pa.types.is_large_list(column.type) else NUMERIC


def _open(path: Path) -> pa.RecordBatch:
    import pyarrow as pa

    return pa.ipc.open_file(pa.memory_map(str(path))).get_batch(0)


def _values(array: pa.Array) -> np.ndarray:
    """Texts as objects, whole numbers as they lie. pyarrow's own way imports pandas: 40 MiB of every process."""
    import pyarrow as pa

    if pa.types.is_integer(array.type):
        return _view(array, np.dtype(str(array.type)))
    if pa.types.is_string(array.type) or pa.types.is_large_string(array.type):
        return np.array(array.to_pylist(), dtype=object)
    return array.to_numpy(zero_copy_only=False)


def _view(array: pa.Array, dtype: Any) -> np.ndarray:
    buffer = array.buffers()[1]
    return np.frombuffer(buffer, dtype, len(array)) if len(array) else np.empty(0, dtype)
