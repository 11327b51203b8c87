"""From raw tables to open decisions of a store: the same validation as training, nothing after the cutoff."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from constellation.bundle.reading import as_polars, cutoff_time
from constellation.errors import InputError
from constellation.journeys.decision_questions import Asked, ask_decisions, clean_questions
from constellation.journeys.decisions import DECISION_TIME
from constellation.journeys.windows import format_time
from constellation.schema import ACTION, CUSTOMER_ID, EVENT_TIME, EVENT_TYPE, numbers, texts, validate
from constellation.zones import end_of_day

if TYPE_CHECKING:
    import polars as pl

    from constellation.bundle.engagement import EngagementBundle
    from constellation.journeys.store import Store

UNTIL = "last_decision"
"""Among the facts of the training: when the last decision was; the cutoff where nothing in the tables has a time."""


def read_questions(
    bundle: EngagementBundle, events: Any, cutoff: Any, attributes: Any, decisions: Any, further: Sequence[str]
) -> tuple[Store, Asked, dict[str, Any]]:
    """Store, open decisions, and facts about what was read. Raises InputError; see ``EngagementBundle.predict``."""
    import polars as pl

    from constellation.journeys.build import store_from_frame

    schema = bundle.schema
    customers = None if attributes is None else _attributes(as_polars(attributes, "attributes"), bundle)
    table = None if decisions is None else clean_questions(as_polars(decisions, "decisions"), schema)
    accepted, num_rejected = _events(bundle, events, customers, table)
    time = _cutoff(bundle, cutoff, accepted, table)
    # Cutting the table itself, before anything is built, is the plainest proof that the future is not read.
    seen = accepted.filter(pl.col(EVENT_TIME) <= time).with_columns(pl.col(pl.Float64).fill_nan(None))
    ignored = accepted.height - seen.height
    if schema.clock == "time":
        seen = seen.with_columns(pl.col(EVENT_TIME).cast(pl.Datetime("us", "UTC")))
    if table is not None:
        table = table.filter(pl.col(DECISION_TIME) <= time)
        customers = _with_everybody(customers, seen, table)
    if seen.height == 0 and (customers is None or customers.height == 0):
        raise InputError(
            f"Nobody can be decided about: of {accepted.height:,} events none lies at or before the cutoff "
            f"{format_time(time, schema.timezone)}. Move the cutoff later, or give attributes or decisions."
        )
    store = store_from_frame(seen, schema, customers, observed_until=None if seen.height == 0 else time)
    asked = ask_decisions(
        store, bundle.rule, bundle.actions, time, table, further=further, context=bundle.recipe.context
    )
    unknown = _unknown_actions(table, bundle.actions)
    facts = {
        "cutoff": format_time(time, schema.timezone) if schema.clock == "time" else str(time),
        "events": store.num_events,
        "events_ignored": ignored,
        "events_rejected": num_rejected,
        "knows_past": asked.knows_past or not bundle.recipe.past_actions,
        "past_decisions": len(asked.decisions) - len(asked),
        "stale_context": asked.num_stale,
        "unknown_actions": unknown,
    }
    return store, asked, facts


def _events(
    bundle: EngagementBundle, events: Any, customers: pl.DataFrame | None, table: pl.DataFrame | None
) -> tuple[pl.DataFrame, int]:
    """Validated events, perhaps none, and how many rows could not be read."""
    import polars as pl

    from constellation.bundle.reading import check_rejects

    if events is None:
        if bundle.kinds and bundle.recipe.aggregates is not None:
            raise InputError(
                "The bundle was trained on events and none were given: give the event table, with its columns "
                f"{', '.join((CUSTOMER_ID, EVENT_TIME, *bundle.kinds))}."
            )
        known = customers if customers is not None else table
        if known is None:
            raise InputError("The bundle reads no events: give attributes, a row per customer, or decisions, or both.")
        dtype = known[CUSTOMER_ID].dtype
        return pl.DataFrame(schema={CUSTOMER_ID: dtype, EVENT_TIME: pl.Int64, EVENT_TYPE: pl.String}), 0
    frame = as_polars(events, "events")
    missing = [name for name in (CUSTOMER_ID, EVENT_TIME, *bundle.kinds) if name not in frame.columns]
    if missing:
        raise InputError(
            f"The events lack {', '.join(missing)}, which the model was trained with; they have "
            f"{', '.join(frame.columns)}. Rename what has another name; add what is unknown as an empty column."
        )
    accepted, rejected = validate(frame, bundle.schema)
    check_rejects(rejected, frame.height, bundle.schema)
    return accepted, rejected.height


def _cutoff(bundle: EngagementBundle, cutoff: Any, accepted: pl.DataFrame, table: pl.DataFrame | None) -> int:
    """As given; else the last open decision; else the end of the last event's day."""
    import polars as pl

    schema = bundle.schema
    if cutoff is not None:
        return cutoff_time(cutoff, schema)
    if table is not None:
        is_open = table.filter(pl.col(ACTION).is_null())
        if len(is_open):
            return int(is_open[DECISION_TIME].to_numpy().max())
    if accepted.height:
        last = int(accepted[EVENT_TIME].to_numpy().max())
        return end_of_day(last, schema.timezone) if schema.clock == "time" else last
    return int(bundle.trained_on[UNTIL])


def _attributes(frame: pl.DataFrame, bundle: EngagementBundle) -> pl.DataFrame:
    """The attributes that the model knows, each of the kind it had in training."""
    import polars as pl

    wanted = bundle.recipe.attributes
    missing = [name for name in (CUSTOMER_ID, *wanted) if name not in frame.columns]
    if missing:
        raise InputError(
            f"The attributes lack {', '.join(missing)}, which the model was trained with; they have "
            f"{', '.join(frame.columns) or 'no columns'}. Add what is unknown as an empty column."
        )
    columns = [frame[CUSTOMER_ID]]
    for name in wanted:
        column = frame[name]
        if name in bundle.recipe.numeric and not column.dtype.is_temporal():
            number = numbers(column)
            bad = number.is_null() & column.is_not_null()
            if bad.any():
                raise InputError(
                    f"The attribute {name} is a number, found {column.filter(bad)[0]!r}. Mend or empty it."
                )
            column = number
        elif name not in bundle.recipe.numeric:
            column = texts(column)
        columns.append(column)
    return pl.DataFrame(columns)


def _with_everybody(customers: pl.DataFrame | None, seen: pl.DataFrame, table: pl.DataFrame) -> pl.DataFrame | None:
    """Customers of the decisions have a place in the store, with or without events and attributes."""
    import polars as pl

    from constellation.journeys.tables import identifiers

    if customers is None:
        customers = pl.DataFrame({CUSTOMER_ID: table[CUSTOMER_ID].clear()})
    customers = customers.with_columns(identifiers(customers[CUSTOMER_ID], "the attributes"))
    if (
        len({customers[CUSTOMER_ID].dtype, table[CUSTOMER_ID].dtype, *([seen[CUSTOMER_ID].dtype] * bool(len(seen)))})
        > 1
    ):
        raise InputError(f"{CUSTOMER_ID} has not one type in events, attributes and decisions. Write the ids alike.")
    ids = table.select(pl.col(CUSTOMER_ID).unique()).join(customers, on=CUSTOMER_ID, how="anti")
    return pl.concat([customers, ids], how="diagonal")


def _unknown_actions(table: pl.DataFrame | None, actions: Sequence[str]) -> float:
    """Share of past decisions whose action the training did not know."""
    if table is None:
        return 0.0
    past = table[ACTION].drop_nulls()
    return round(1 - int(past.is_in(list(actions)).sum()) / len(past), 6) if len(past) else 0.0
