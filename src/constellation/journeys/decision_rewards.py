"""Rewards of decisions by any SQL expression over the events that came after them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from constellation.errors import InputError
from constellation.schema import EVENT_TIME
from constellation.zones import MICROSECONDS_PER_DAY

if TYPE_CHECKING:
    import polars as pl

    from constellation.journeys.store import Store

MAX_ROWS = 4_000_000
"""Events looked at together; more decisions go in further rounds."""


def reward_by_expression(
    store: Store, expression: str, start_Q: np.ndarray, end_Q: np.ndarray, time_Q: np.ndarray
) -> np.ndarray:
    """One number [Q] per decision: ``expression`` aggregates the events ``start_Q : end_Q`` of the store.

    It may name every column of the event table and ``elapsed_days`` since the decision, as in
    ``sum(amount) FILTER (event_type = 'purchase') - 0.1 * count(*)``. NULL counts as 0; a decision that no event
    follows gets the value over no rows. Raises InputError where the expression fails or gives no number.
    """
    lengths_Q = end_Q - start_Q
    reward_Q = np.full(len(start_Q), _evaluate(store, expression, np.empty(0, np.int64), np.empty(0, np.int64), time_Q))
    rounds_Q = lengths_Q.cumsum() // MAX_ROWS
    for number in np.unique(rounds_Q):
        rows = np.flatnonzero((rounds_Q == number) & (lengths_Q > 0))
        if len(rows):
            of_N = np.repeat(rows, lengths_Q[rows])
            first_N = np.repeat(np.concatenate([[0], lengths_Q[rows].cumsum()[:-1]]), lengths_Q[rows])
            events_N = start_Q[of_N] + np.arange(len(of_N)) - first_N
            reward_Q[rows] = _evaluate(store, expression, events_N, of_N, time_Q)
    return reward_Q


def _evaluate(
    store: Store, expression: str, events_N: np.ndarray, of_N: np.ndarray, time_Q: np.ndarray
) -> np.ndarray | float:
    """The expression per decision in ``of_N``, ascending; over no rows at all one number."""
    import duckdb

    table = _event_table(store, events_N, of_N, time_Q)
    connection = duckdb.connect()
    try:
        connection.execute("SET python_enable_replacements = false")
        connection.register("events", table.to_arrow())
        grouped = "SELECT decision, coalesce(({})::DOUBLE, 0) AS reward FROM events GROUP BY decision ORDER BY decision"
        single = "SELECT 0 AS decision, coalesce(({})::DOUBLE, 0) AS reward FROM events"
        found = connection.sql((grouped if len(of_N) else single).format(expression)).fetchnumpy()["reward"]
    except duckdb.Error as error:
        said = str(error).splitlines()[0]
        raise InputError(
            f"decisions.reward is neither amount, purchases nor response, and as SQL over later events it "
            f"failed: {said} "
            f"Columns: {', '.join(name for name in table.columns if name != 'decision')}. "
            "It must aggregate, such as sum(amount)."
        ) from error
    finally:
        connection.close()
    values = np.asarray(found, dtype=np.float64)
    return values if len(of_N) else float(values[0])


def _event_table(store: Store, events_N: np.ndarray, of_N: np.ndarray, time_Q: np.ndarray) -> pl.DataFrame:
    import polars as pl

    columns = {
        "decision": pl.Series(of_N, dtype=pl.Int64),
        EVENT_TIME: pl.Series(store.time_N[events_N], dtype=pl.Int64),
        "elapsed_days": pl.Series((store.time_N[events_N] - time_Q[of_N]) / MICROSECONDS_PER_DAY, dtype=pl.Float64),
    }
    if store.has_clock:
        columns[EVENT_TIME] = columns[EVENT_TIME].cast(pl.Datetime("us", "UTC"))
    for name, codes in store.categorical.items():
        known = pl.Series(store.dictionaries[name], dtype=pl.String)
        columns[name] = known.gather(pl.Series(np.asarray(codes[events_N]), dtype=pl.UInt32))
    for name, values in store.numeric.items():
        columns[name] = pl.Series(np.asarray(values[events_N], dtype=np.float64)).fill_nan(None)
    return pl.DataFrame(columns)
