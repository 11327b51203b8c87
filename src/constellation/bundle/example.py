"""Made-up journeys in the values that a model knows: to try a bundle on, without anybody's data."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from constellation.journeys.store import MICROSECONDS_PER_DAY
from constellation.journeys.vocabulary import Vocabulary
from constellation.schema import CATEGORICAL, CUSTOMER_ID, EVENT_TIME, EVENT_TYPE, LIST, EventSchema
from constellation.zones import year_start

if TYPE_CHECKING:
    import pandas as pd

SPAN_DAYS = 300
MISSING_SHARE = 0.1


def example_events(vocabulary: Vocabulary, schema: EventSchema, num_customers: int = 64, seed: int = 0) -> pd.DataFrame:
    """An event table of ``num_customers`` with 1, 2, 3 .. events each (40 at most), every column that the model reads.

    Values are drawn evenly from the vocabulary and its bins, a tenth is missing; times, in the zone of the schema,
    fall into one year.
    """
    import pandas as pd

    rng = np.random.default_rng(seed)
    lengths = 1 + np.arange(num_customers) % 40
    num_events = int(lengths.sum())
    columns: dict[str, Any] = {CUSTOMER_ID: np.repeat(np.arange(1, num_customers + 1), lengths)}
    if schema.clock == "order":
        columns[EVENT_TIME] = rng.permutation(num_events)
    else:
        micros = year_start(2024) + rng.integers(0, SPAN_DAYS * MICROSECONDS_PER_DAY, num_events)
        columns[EVENT_TIME] = pd.to_datetime(micros, unit="us")
    for name, kind in vocabulary.kinds.items():
        missing = rng.random(num_events) < (0.0 if name == EVENT_TYPE else MISSING_SHARE)
        if kind == CATEGORICAL:
            drawn = _drawn(rng, vocabulary.categories[name], num_events)
            drawn[missing] = None
            columns[name] = drawn
        elif kind == LIST:
            drawn = _drawn(rng, vocabulary.categories[name], 3 * num_events).reshape(num_events, 3)
            columns[name] = [[] if gone else list(dict.fromkeys(row)) for gone, row in zip(missing, drawn, strict=True)]
        else:
            edges = vocabulary.bin_edges[name]
            values = rng.choice(edges, num_events) if len(edges) else np.zeros(num_events)
            columns[name] = np.where(missing, np.nan, values)
    for name in schema.order_by:
        columns.setdefault(name, np.arange(num_events))
    return pd.DataFrame(columns)


def _drawn(rng: np.random.Generator, known: list[str], size: int) -> np.ndarray:
    return rng.choice(np.array(known or ["none known"], dtype=object), size)
