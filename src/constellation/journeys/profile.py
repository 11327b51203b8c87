"""What a person should know about a data set before training on it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from constellation.journeys.layout import ATTRIBUTE
from constellation.journeys.purchases import purchases_in_words
from constellation.journeys.store import MICROSECONDS_PER_DAY, Store, to_local
from constellation.journeys.windows import at_risk, format_time, latest_cutoff, parse_cutoff
from constellation.schema import AMOUNT, CATEGORICAL, EVENT_TYPE, LIST

CHUNK = 4_000_000
"""Events looked at in one go, so that a profile of a large store stays small in memory."""

QUANTILES = (0.0, 0.25, 0.5, 0.75, 0.9, 0.99, 1.0)


def profile(store: Store, horizons_days: Sequence[int] = ()) -> dict[str, Any]:
    """Counts, span, gaps, events per customer, zero value, and the latest cutoff that each horizon allows.

    ``gap_days``: quantiles of the days between events of a customer (of the first ones where the store is large).
    ``longest_silence_days``: the longest run of days without a single event: a hole in the log.
    ``known_amount_share``: of the purchases, those with an amount. ``without_amount``: by event type how many events
    have no amount, and so are no purchases, though others of their type are.
    ``attributes``: per attribute of the customers the share of them it is known of, and of categories their number.
    ``horizons``: per horizon the latest cutoff (a local date), customers at risk there, and the shares of them with
    zero net value, and without a purchase, in the horizon.
    """
    manifest, zone = store.manifest, store.schema.timezone
    per_customer = np.diff(store.first_event_C)
    result: dict[str, Any] = {
        "num_customers": store.num_customers,
        "num_customers_without_events": int((per_customer == 0).sum()),
        "num_events": store.num_events,
        **manifest.profile,
        "events_per_customer": _quantiles(per_customer[per_customer > 0]),
        "event_types": _counts(store, EVENT_TYPE),
        "num_values": {
            name: len(store.dictionaries[name]) - 1
            for name, kind in manifest.kinds.items()
            if kind in (CATEGORICAL, LIST)
        },
    }
    if store.attributes_categorical or store.attributes_numeric:
        result["attributes"] = _attributes(store)
    if store.decisions is not None:
        result["num_decisions"] = len(store.decisions)
    if not store.has_clock:
        result["clock"] = store.schema.clock
    if store.num_events == 0 or not store.has_clock:
        return result
    result |= {
        "first_event": format_time(manifest.first_time, zone),
        "last_event": format_time(manifest.last_time, zone),
        "observed_until": format_time(manifest.observed_until, zone),
        "span_days": round((manifest.observed_until - manifest.first_time) / MICROSECONDS_PER_DAY, 1),
        "gap_days": _quantiles(_gaps(store)),
        "longest_silence_days": _longest_silence(store),
        "num_purchases": int(store.purchase_sum_N[-1]),
        "purchases_are": purchases_in_words(store),
        **_amounts(store),
        "without_amount": _without_amount(store),
        "horizons": {str(days): _horizon(store, days) for days in horizons_days},
    }
    return result


def format_profile(facts: dict[str, Any]) -> str:
    """The profile as lines for the terminal."""
    lines = [
        f"{facts['num_customers']:,} customers, {facts['num_events']:,} events"
        + (f", {facts['num_decisions']:,} decisions" if "num_decisions" in facts else "")
    ]

    def add(label: str, text: str) -> None:
        lines.append(f"  {label:<22} {text}")

    if "first_event" in facts:
        add("span", f"{facts['first_event']} to {facts['last_event']}, observed until {facts['observed_until']}")
    elif "clock" in facts:
        add("time", "only the order of events is known: features of time are off")
    add("event types", ", ".join(f"{name} {count:,}" for name, count in facts["event_types"].items()))
    add("distinct values", ", ".join(f"{name} {count:,}" for name, count in facts["num_values"].items()))
    if facts["events_per_customer"]:
        add("events per customer", _line(facts["events_per_customer"], "{:,.0f}"))
    if facts["num_customers_without_events"]:
        add("without events", f"{facts['num_customers_without_events']:,} customers")
    if facts.get("gap_days"):
        add("days between events", _line(facts["gap_days"], "{:,.2f}"))
    if "longest_silence_days" in facts:
        add("longest silence", f"{facts['longest_silence_days']} days without any event")
    if "num_purchases" in facts:
        add("purchases", _purchases_line(facts))
    for name, count in facts.get("without_amount", {}).items():
        add(
            "without an amount",
            f"{count:,} events of type {name}, which are not counted as purchases for want of an amount; if they are "
            f"purchases, write purchase_types: [{name}] under schema",
        )
    if facts.get("zero_amount_share") is not None:
        negative = f"; {facts['num_negative_amounts']:,} are negative" if facts["num_negative_amounts"] else ""
        add("zero amounts", f"{facts['zero_amount_share']:.1%} of the events that have an amount{negative}")
    if facts.get("attributes"):
        add("attributes", "; ".join(_attribute(name, about) for name, about in facts["attributes"].items()))
    if facts.get("num_duplicates"):
        add("duplicate rows", f"{facts['num_duplicates']:,} (kept; use DISTINCT in the SELECT if they are errors)")
    if facts.get("num_rejected"):
        reasons = "; ".join(f"{reason} ({count:,})" for reason, count in facts["reject_reasons"].items())
        add("rejected rows", f"{facts['num_rejected']:,} of {facts['num_rows']:,}: {reasons}")
    if facts.get("ignored_columns"):
        add("columns not declared", ", ".join(facts["ignored_columns"]))
    for days, horizon in facts.get("horizons", {}).items():
        if horizon is None:
            add(f"horizon {days} days", "longer than the data")
        else:
            add(
                f"horizon {days} days",
                f"latest cutoff {horizon['latest_cutoff']}: {horizon['at_risk']:,} customers at risk, "
                + (
                    f"{horizon['zero_value_share']:.1%} of them with zero value"
                    if facts.get("known_amount_share")
                    else f"{horizon['zero_purchases_share']:.1%} of them without a purchase"
                ),
            )
    return "\n".join(lines)


def _purchases_line(facts: dict[str, Any]) -> str:
    if not facts["num_purchases"]:
        return (
            f"none: there is no event {facts['purchases_are']}, so money and purchases are zero; "
            "name schema.purchase_types in the YAML"
        )
    share = facts["known_amount_share"]
    if share:
        money = "all with an amount" if share == 1 else f"{share:.1%} with an amount"
    else:
        money = "none with an amount: there is no money to predict, only the number of purchases"
    return f"{facts['num_purchases']:,} (events {facts['purchases_are']}), {money}"


def _attribute(name: str, about: dict[str, float]) -> str:
    kind = f"{about['num_values']:,.0f} values" if "num_values" in about else "a number"
    return f"{name} {kind}, known of {about['known_share']:.1%}"


def _attributes(store: Store) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {}
    for name, codes_C in store.attributes_categorical.items():
        num_values = len(store.dictionaries[f"{ATTRIBUTE}{name}"]) - 1
        found[name] = {"num_values": num_values, "known_share": float(np.mean(codes_C > 0))}
    for name, values_C in store.attributes_numeric.items():
        found[name] = {"known_share": float(np.mean(~np.isnan(values_C)))}
    return found


def _line(quantiles: dict[str, float], form: str) -> str:
    return ", ".join(f"{name} {form.format(value)}" for name, value in quantiles.items())


def _quantiles(values: np.ndarray) -> dict[str, float]:
    if len(values) == 0:
        return {}
    names = ["min", *(f"p{round(100 * q)}" for q in QUANTILES[1:-1]), "max"]
    return {name: float(value) for name, value in zip(names, np.quantile(values, QUANTILES), strict=True)}


def _chunks(store: Store) -> list[slice]:
    return [slice(start, min(start + CHUNK, store.num_events)) for start in range(0, store.num_events, CHUNK)]


def _counts(store: Store, name: str) -> dict[str, int]:
    known = store.dictionaries[name]
    counts = np.zeros(len(known), dtype=np.int64)
    for part in _chunks(store):
        counts += np.bincount(store.categorical[name][part], minlength=len(known))
    order = np.argsort(-counts, kind="stable")[:20]
    return {str(known[code]): int(counts[code]) for code in order if counts[code]}


def _gaps(store: Store) -> np.ndarray:
    """Days between consecutive events of a customer, from the first customers up to ten million events."""
    last_customer = max(1, int(np.searchsorted(store.first_event_C, 10_000_000, side="right")) - 1)
    end = int(store.first_event_C[min(last_customer, store.num_customers)])
    gaps = np.diff(store.time_N[:end]) / MICROSECONDS_PER_DAY
    starts = store.first_event_C[(store.first_event_C > 0) & (store.first_event_C < end)]
    inside = np.ones(len(gaps), dtype=bool)
    inside[starts - 1] = False
    return gaps[inside]


def _longest_silence(store: Store) -> int:
    zone = store.schema.timezone
    ends = to_local(np.array([store.manifest.first_time, store.manifest.last_time]), zone)
    first_day, last_day = (int(day) for day in ends // MICROSECONDS_PER_DAY)
    seen = np.zeros(last_day - first_day + 3, dtype=bool)  # a day of margin: zones shift
    for part in _chunks(store):
        seen[to_local(store.time_N[part], zone) // MICROSECONDS_PER_DAY - first_day] = True
    days = np.flatnonzero(seen)
    return int(np.diff(days).max() - 1) if len(days) > 1 else 0


def _amounts(store: Store) -> dict[str, Any]:
    """Share of zeros among the amounts, number of negative ones, share of the purchases that have one."""
    known = zero = negative = bought = 0
    num_purchases = int(store.purchase_sum_N[-1])
    for part in _chunks(store) if AMOUNT in store.numeric else ():
        amounts = store.numeric[AMOUNT][part]
        known_N = ~np.isnan(amounts)
        known += int(known_N.sum())
        zero += int((amounts == 0).sum())
        negative += int((amounts < 0).sum())
        bought += int((known_N & store.purchase_N[part]).sum())
    return {
        "zero_amount_share": zero / known if known else None,
        "num_negative_amounts": negative,
        "known_amount_share": bought / num_purchases if num_purchases else None,
    }


def _without_amount(store: Store) -> dict[str, int]:
    """By event type the events whose amount is missing, where an amount decides what a purchase is and others of the
    type are purchases: a gap in the source would else make customers look less active than they were."""
    if AMOUNT not in store.numeric or store.schema.purchase_types:
        return {}
    known = store.dictionaries[EVENT_TYPE]
    bought, missing = np.zeros(len(known), dtype=np.int64), np.zeros(len(known), dtype=np.int64)
    for part in _chunks(store):
        codes, amounts = store.categorical[EVENT_TYPE][part], store.numeric[AMOUNT][part]
        bought += np.bincount(codes[store.purchase_N[part]], minlength=len(known))
        missing += np.bincount(codes[np.isnan(amounts)], minlength=len(known))
    return {str(known[code]): int(missing[code]) for code in np.flatnonzero((bought > 0) & (missing > 0))}


def _horizon(store: Store, days: int) -> dict[str, Any] | None:
    zone = store.schema.timezone
    date = latest_cutoff(store, days).isoformat()
    cutoff = parse_cutoff(date, zone)
    journeys = at_risk(store, cutoff)
    if len(journeys) == 0:
        return None
    start = store.last_event(journeys, np.full(len(journeys), cutoff)) + 1
    end = store.end_event(journeys, np.full(len(journeys), cutoff + days * MICROSECONDS_PER_DAY))
    value = store.money_between(start, end)
    return {
        "latest_cutoff": date,
        "at_risk": len(journeys),
        "zero_value_share": float((value == 0).mean()),
        "zero_purchases_share": float((store.purchases_between(start, end) == 0).mean()),
    }
