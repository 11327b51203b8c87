"""Tiny event logs for the tests: a builder by hand, random logs, and hypothesis strategies of event tables."""

from __future__ import annotations

from collections import Counter
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from hypothesis import strategies as st

from constellation.journeys.build import store_from_frame
from constellation.journeys.store import MICROSECONDS_PER_DAY, Manifest, Store
from constellation.journeys.vocabulary import Vocabulary
from constellation.journeys.windows import Windows, panel
from constellation.schema import (
    ACTION,
    AMOUNT,
    CATEGORICAL,
    CHANNEL,
    CUSTOMER_ID,
    EVENT_TIME,
    EVENT_TYPE,
    NUMERIC,
    PRODUCT,
    SCORE,
    EventSchema,
)
from constellation.zones import end_of_day

DAY = MICROSECONDS_PER_DAY
HOUR = DAY // 24
BASE = 1_488_326_400_000_000
"""1 March 2017, UTC: New York changes its clocks on 12 March, Berlin on 26 March."""
SPAN_DAYS = 60
ZONES = ("UTC", "America/New_York", "Europe/Berlin", "Pacific/Auckland")
TYPES = ("purchase", "refund", "visit")
PRODUCTS = ("bread", "milk", "soap", "tea")
CHANNELS = ("shop", "web")
TAGS = ("gift", "sale")
SEGMENTS = ("gold", "iron")


def at(day: float, hour: float = 0.0) -> int:
    """Microseconds UTC of a day and hour after 1 March 2017."""
    return BASE + round(day * DAY) + round(hour * HOUR)


def events_frame(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """An event table of dictionaries; ``event_time`` in microseconds UTC, absent columns missing."""
    frame = pd.DataFrame(rows, dtype=object)
    for name in (CUSTOMER_ID, EVENT_TIME, EVENT_TYPE):
        if name not in frame:
            frame[name] = pd.Series(dtype=object)
    return frame


def make_store(
    events: pd.DataFrame,
    schema: EventSchema | None = None,
    attributes: pd.DataFrame | None = None,
    *,
    observed_until: int | None = None,
) -> Store:
    """A store in memory, written as plainly as can be: loops, sorting and dictionaries, no code of ours but the types.

    Customers without events come from ``attributes``. Cells that are None, NaN or absent are missing.
    """
    schema = schema or EventSchema()
    kinds = {name: kind for name, kind in schema.kinds().items() if name in events.columns}
    rows = [{name: _clean(cell) for name, cell in row.items()} for row in events.to_dict("records")]
    ids = {row[CUSTOMER_ID] for row in rows}
    attribute_rows = [] if attributes is None else attributes.to_dict("records")
    customers = sorted(ids | {row[CUSTOMER_ID] for row in attribute_rows})
    rows.sort(key=lambda row: (row[CUSTOMER_ID], row[EVENT_TIME], *(_sortable(row[name]) for name in kinds)))
    count_of = Counter(row[CUSTOMER_ID] for row in rows)
    counts = [count_of[customer] for customer in customers]
    time_N = np.array([row[EVENT_TIME] for row in rows], dtype=np.int64)
    categorical, numeric, lists, dictionaries = {}, {}, {}, {}
    for name, kind in kinds.items():
        cells = [row[name] for row in rows]
        if kind == CATEGORICAL:
            categorical[name], dictionaries[name] = _coded(cells)
        elif kind == NUMERIC:
            numeric[name] = np.array([np.nan if cell is None else cell for cell in cells], dtype=np.float64)
        else:
            members = [cell or [] for cell in cells]
            codes, dictionaries[name] = _coded([value for cell in members for value in cell])
            lists[name] = codes, np.cumsum([0, *map(len, members)], dtype=np.int64)
    attributes_categorical, attributes_numeric = {}, {}
    by_customer = {row[CUSTOMER_ID]: row for row in attribute_rows}
    for name in [] if attributes is None else [name for name in attributes.columns if name != CUSTOMER_ID]:
        cells = [_clean(by_customer.get(customer, {}).get(name)) for customer in customers]
        if any(isinstance(cell, str) for cell in cells):
            attributes_categorical[name], dictionaries[f"attributes.{name}"] = _coded(cells)
        else:
            attributes_numeric[name] = np.array([np.nan if cell is None else cell for cell in cells], dtype=np.float64)
    amount_N = np.nan_to_num(numeric.get(AMOUNT, np.zeros(len(rows))))
    if schema.purchase_types:
        purchase_N = np.array([row[EVENT_TYPE] in schema.purchase_types for row in rows], dtype=bool)
    else:
        purchase_N = amount_N > 0
    last_time = int(time_N.max(initial=BASE))
    if observed_until is None:
        observed_until = end_of_day(last_time, schema.timezone)
    return Store(
        manifest=Manifest(
            name="tiny",
            schema=schema,
            kinds=kinds,
            num_customers=len(customers),
            num_events=len(rows),
            first_time=int(time_N.min(initial=last_time)),
            last_time=last_time,
            observed_until=observed_until,
            fingerprint="",
        ),
        customer_id_C=np.array(customers, dtype=object),
        first_event_C=np.cumsum([0, *counts], dtype=np.int64),
        time_N=time_N,
        categorical=categorical,
        numeric=numeric,
        lists=lists,
        dictionaries=dictionaries,
        attributes_categorical=attributes_categorical,
        attributes_numeric=attributes_numeric,
        purchase_N=purchase_N,
        amount_sum_N=np.concatenate([[0], np.cumsum(np.round(amount_N * 1e6).astype(np.int64))]),
        purchase_sum_N=np.concatenate([[0], np.cumsum(purchase_N.astype(np.int64))]),
    )


def built_store(
    events: pd.DataFrame,
    schema: EventSchema | None = None,
    attributes: pd.DataFrame | None = None,
    *,
    observed_until: int | None = None,
) -> Store:
    """The same store by the real builder: validated, coded, sorted."""
    times = pd.to_datetime(events[EVENT_TIME].astype("int64"), unit="us", utc=True)
    events = events.assign(**{EVENT_TIME: times})
    return store_from_frame(events, schema or EventSchema(), attributes, observed_until=observed_until)


def _clean(cell: Any) -> Any:
    if isinstance(cell, (list, tuple, np.ndarray)):
        return sorted(cell)  # a basket has no order
    return None if cell is None or pd.isna(cell) else cell


def _sortable(cell: Any) -> tuple[bool, Any]:
    return (cell is not None, 0 if cell is None else cell)


def _coded(cells: list[str | None]) -> tuple[np.ndarray, list[str | None]]:
    """Storage codes in order of appearance; 0 is missing."""
    dictionary: list[str | None] = [None]
    for cell in cells:
        if cell is not None and cell not in dictionary:
            dictionary.append(cell)
    return np.array([dictionary.index(cell) for cell in cells], dtype=np.int32), dictionary


def events_of(store: Store, journey: int) -> list[dict[str, Any]]:
    """The events of one customer as dictionaries, decoded, with their store index under ``row``."""
    found = []
    for row in range(int(store.first_event_C[journey]), int(store.first_event_C[journey + 1])):
        event: dict[str, Any] = {
            "row": row,
            EVENT_TIME: int(store.time_N[row]),
            "purchase": bool(store.purchase_N[row]),
        }
        event |= {name: store.dictionaries[name][codes[row]] for name, codes in store.categorical.items()}
        event |= {name: float(values[row]) for name, values in store.numeric.items()}
        for name, (values_M, offsets) in store.lists.items():
            event[name] = [store.dictionaries[name][code] for code in values_M[offsets[row] : offsets[row + 1]]]
        found.append(event)
    return found


def random_events(
    seed: int = 0, *, num_customers: int = 30, num_events: int = 400, span_days: float = SPAN_DAYS
) -> pd.DataFrame:
    """A log with refunds, ties, baskets and gaps in every optional column. Customer ids are ``c00``, ``c01``, ..."""
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(num_events):
        event_type = str(rng.choice(TYPES, p=[0.6, 0.1, 0.3]))
        amount = {"purchase": 1.0, "refund": -1.0}.get(event_type)
        rows.append(
            {
                # Squared: a few customers with long journeys, many with short ones.
                CUSTOMER_ID: f"c{int(num_customers * rng.random() ** 2):02d}",
                EVENT_TIME: BASE + int(rng.integers(0, int(span_days * 8))) * 3 * HOUR,
                EVENT_TYPE: event_type,
                AMOUNT: None if amount is None else amount * round(float(rng.lognormal(2, 1)), 2),
                PRODUCT: [str(value) for value in rng.choice(PRODUCTS, rng.integers(0, 4) if amount else 0)],
                CHANNEL: None if rng.random() < 0.2 else str(rng.choice(CHANNELS)),
                SCORE: float(rng.integers(1, 6)) if rng.random() < 0.1 else None,
                ACTION: "mail" if rng.random() < 0.1 else None,
                "tags": [str(rng.choice(TAGS))] if rng.random() < 0.3 else [],
            }
        )
    return events_frame(rows)


def random_attributes(seed: int = 0, *, num_customers: int = 32) -> pd.DataFrame:
    """Attributes of the customers of ``random_events``, and of two more who have no events."""
    rng = np.random.default_rng(seed)
    return pd.DataFrame(
        {
            CUSTOMER_ID: [f"c{place:02d}" for place in range(num_customers)],
            "segment": [None if rng.random() < 0.2 else str(rng.choice(SEGMENTS)) for _ in range(num_customers)],
            "age": [None if rng.random() < 0.2 else float(rng.integers(18, 90)) for _ in range(num_customers)],
        }
    )


def random_store(seed: int = 0, *, timezone: str = "UTC", **sizes: Any) -> Store:
    return make_store(
        random_events(seed, **sizes), EventSchema(timezone=timezone, lists=("tags",)), random_attributes(seed)
    )


def fit_vocabulary(store: Store, until: int, journeys: np.ndarray | None = None, **options: Any) -> Vocabulary:
    """A vocabulary of short windows and few bins, fitted up to ``until``, for horizons of 3 and 10 days."""
    journeys = np.arange(store.num_customers) if journeys is None else journeys
    train = panel(store, Windows("2017-04-01", "2017-04-10", (3, 10)), known_until=until, journeys=journeys)
    options = {"windows_days": (2, 7, 30), "num_bins": 4} | options
    return Vocabulary.fit(store, train, journeys=journeys, until=until, **options)


def tensors(thing: Any, name: str = "", leave_out: tuple[str, ...] = ()) -> dict[str, torch.Tensor]:
    """All tensors in dataclasses, dicts and tuples, by their path."""
    if isinstance(thing, torch.Tensor):
        return {name: thing}
    if is_dataclass(thing):
        parts = {field.name: getattr(thing, field.name) for field in fields(thing) if field.name not in leave_out}
    elif isinstance(thing, dict):
        parts = thing
    elif isinstance(thing, tuple):
        parts = {str(place): part for place, part in enumerate(thing)}
    else:
        return {}
    found: dict[str, torch.Tensor] = {}
    for key, part in parts.items():
        found |= tensors(part, f"{name}.{key}".strip("."), leave_out)
    return found


def assert_same_tensors(left: Any, right: Any, leave_out: tuple[str, ...] = ()) -> None:
    """The same tensors bit for bit, NaN where NaN was."""
    left, right = tensors(left, leave_out=leave_out), tensors(right, leave_out=leave_out)
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        assert tensor.dtype == right[name].dtype, name
        assert np.array_equal(tensor.numpy(), right[name].numpy(), equal_nan=tensor.is_floating_point()), name


# Hypothesis: small integers and choices, so that a failure shrinks to a log that a person can read, and few of them per
# event, because drawing costs more than testing.


def _cells() -> list[dict[str, Any]]:
    """What an event may say besides who and when, plain ones first."""
    rng = np.random.default_rng(0)
    amounts = (None, -20.0, -0.1, 0.0, 0.1, 0.2, 5.0, 1999.99)
    plain = [{EVENT_TYPE: "visit"}, {EVENT_TYPE: "purchase", AMOUNT: 0.1}, {EVENT_TYPE: "refund", AMOUNT: -20.0}]
    mixed = [
        {
            EVENT_TYPE: str(rng.choice(TYPES)),
            AMOUNT: amounts[rng.integers(len(amounts))],
            PRODUCT: rng.choice(PRODUCTS, rng.integers(0, 4)).tolist(),
            CHANNEL: (None, *CHANNELS)[rng.integers(3)],
            SCORE: (None, 1.0, 3.0)[rng.integers(3)],
            "tags": rng.choice(TAGS, rng.integers(0, 2)).tolist(),
        }
        for _ in range(40)
    ]
    return plain + mixed


CELLS = _cells()
COLUMNS = [CUSTOMER_ID, EVENT_TIME, *CELLS[-1]]


def events(first_quarter: int = 0, last_quarter: int = 4 * SPAN_DAYS) -> st.SearchStrategy[dict[str, Any]]:
    """One event at a quarter of a day after 1 March 2017, or a microsecond before one."""
    return st.builds(
        lambda customer, quarter, early, cells: {
            CUSTOMER_ID: f"c{customer}",
            EVENT_TIME: BASE + quarter * DAY // 4 - (early and quarter > first_quarter),
            **cells,
        },
        st.integers(0, 6),
        st.integers(first_quarter, last_quarter),
        st.booleans(),
        st.sampled_from(CELLS),
    )


@st.composite
def event_tables(
    draw: st.DrawFn, *, min_events: int = 1, max_events: int = 20, zones: tuple[str, ...] = ZONES
) -> tuple[pd.DataFrame, EventSchema, pd.DataFrame]:
    """Events, schema and attributes: refunds, ties, baskets, missing values, some columns absent, empty journeys.

    Attributes exist for ``a``, ``c0`` .. ``c6`` and ``z``, so the first and the last customer never have an event.
    """
    rows = draw(st.lists(events(), min_size=min_events, max_size=max_events))
    absent = draw(st.sets(st.sampled_from([AMOUNT, PRODUCT, CHANNEL, SCORE, "tags"]), max_size=2))
    frame = events_frame(rows).reindex(columns=[name for name in COLUMNS if name not in absent])
    schema = EventSchema(
        timezone=draw(st.sampled_from(zones)),
        lists=("tags",),
        purchase_types=draw(st.sampled_from([(), ("purchase",)])),
    )
    return frame, schema, draw(attribute_tables)


attribute_tables = st.integers(0, 7).map(
    lambda seed: random_attributes(seed, num_customers=9).assign(
        **{CUSTOMER_ID: ["a", *(f"c{place}" for place in range(7)), "z"]}
    )
)


@st.composite
def stores(draw: st.DrawFn, **options: Any) -> Store:
    return make_store(*draw(event_tables(**options)))


@st.composite
def questions(draw: st.DrawFn, store: Store, max_size: int = 8) -> tuple[np.ndarray, np.ndarray]:
    """Journeys and cutoffs; many of the cutoffs are the very time of an event, or a microsecond before."""
    size = draw(st.integers(1, max_size))
    journey_Q = [draw(st.integers(0, store.num_customers - 1)) for _ in range(size)]
    moments = st.integers(-8, 4 * SPAN_DAYS + 8).map(lambda quarter: BASE + quarter * DAY // 4)
    if store.num_events:
        moments |= st.sampled_from(sorted(set(store.time_N.tolist())))
    cutoff_Q = [draw(moments) - draw(st.sampled_from([0, 0, 1])) for _ in range(size)]
    return np.array(journey_Q, dtype=np.int64), np.array(cutoff_Q, dtype=np.int64)
