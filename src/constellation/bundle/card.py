"""The model card: what a bundle predicts and reads, what it was trained on, how good it was, and where it ends."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from constellation import __version__
from constellation.schema import AMOUNT, CUSTOMER_ID, EVENT_TIME, EVENT_TYPE, LIST, NUMERIC

if TYPE_CHECKING:
    from constellation.bundle.bundle import Bundle

MANY_RANKS = 3


def model_card(bundle: Bundle, columns: Mapping[str, tuple[str, str]]) -> str:
    """Markdown. ``columns``: unit and meaning of each column of the predictions."""
    data = bundle.trained_on.get("data", "a journey data set")
    horizons = " and ".join(str(days) for days in bundle.horizons_days)
    within = f" within {horizons} days" if horizons else " next"
    sections = [
        f"# Customer journeys of {data}: {'value and next event' if horizons else 'next event'}",
        f"Predicts, from the events of a customer up to a cutoff, what follows{within}. "
        f"Written by constellation {__version__}. Weights are safetensors, the rest is JSON; nothing is unpickled.",
        "## Use",
        "```python\nfrom constellation.bundle import Bundle\n\n"
        'bundle = Bundle.load("path/to/this/folder")\n'
        'predictions = bundle.predict(events, cutoff="2024-12-31")  # pandas, polars or pyarrow in, pandas out\n```',
        "Or: `constellation score bundle=path/to/this/folder events=events.parquet cutoff=2024-12-31`.",
        "## Columns of the answer",
        "One row per customer with an event at or before the cutoff, or with a row of attributes.",
        markdown_table(["column", "unit", "meaning"], _answer_rows(columns)),
        "## Columns it reads",
        markdown_table(["column", "kind", "note"], _event_rows(bundle)),
    ]
    if bundle.vocabulary.attribute_names:
        numeric = bundle.vocabulary.attributes_numeric
        rows = [
            [f"`{name}`", NUMERIC if name in numeric else "categorical"] for name in bundle.vocabulary.attribute_names
        ]
        sections += [
            "Attributes, an optional second table with one row per customer:",
            markdown_table(["column", "kind"], [[f"`{CUSTOMER_ID}`", "key"], *rows]),
        ]
    sections += ["## Trained on", markdown_table(["fact", ""], _fact_rows(bundle))]
    lines = [] if bundle.corrections is None else bundle.corrections.describe()
    sections += [
        "## Recalibration",
        "\n".join(f"- {line}" for line in lines) if lines else "None: answers are as the model was fitted.",
    ]
    numbers = {name: value for name, value in bundle.metrics.items() if value is not None and math.isfinite(value)}
    if numbers:
        rows = [[f"`{name}`", f"{value:.4g}"] for name, value in sorted(numbers.items())]
        sections += ["## Metrics", markdown_table(["metric", "value"], rows)]
    sections += ["## Limits", "\n".join(f"- {line}" for line in _limits(bundle))]
    return "\n\n".join(sections) + "\n"


def _answer_rows(columns: Mapping[str, tuple[str, str]]) -> Iterable[list[str]]:
    for name, (unit, meaning) in columns.items():
        if name.startswith("next_product_") and int(name.split("_")[2]) > MANY_RANKS:
            continue
        yield [f"`{name}`", unit, meaning]
    ranks = [int(name.split("_")[2]) for name in columns if name.startswith("next_product_")]
    if max(ranks, default=0) > MANY_RANKS:
        yield [f"`next_product_{MANY_RANKS + 1}` .. `{max(ranks)}`", "", "and so on, with their scores"]


def _event_rows(bundle: Bundle) -> Iterable[list[str]]:
    schema, kinds = bundle.schema, bundle.vocabulary.kinds
    yield [f"`{CUSTOMER_ID}`", "key", "required in every row"]
    if schema.clock == "time":
        yield [
            f"`{EVENT_TIME}`",
            "time",
            f"required in every row; {schema.timezone} where it has no offset; a date is its end",
        ]
    else:
        yield [f"`{EVENT_TIME}`", "whole number", "required in every row; a rank, only the order counts"]
    for name, kind in kinds.items():
        note = "required in every row" if name == EVENT_TYPE else "may be empty"
        if name == AMOUNT:
            note += f"; {schema.currency or 'money'} from the customer's side, a refund is negative"
        if kind != NUMERIC:
            num_known = len(bundle.vocabulary.categories[name])
            note += f"; {num_known} values known, others are read as unknown"
        if kind == LIST:
            note += "; one or a list"
        yield [f"`{name}`", kind, note]


def _fact_rows(bundle: Bundle) -> Iterable[list[str]]:
    yield from ([name, str(value)] for name, value in bundle.trained_on.items() if value is not None)
    yield ["encoder", f"`{bundle.model_config['encoder'].get('_target_')}`"]
    yield ["objectives", ", ".join(bundle.model_config["objective"])]
    yield ["parameters", f"{sum(parameter.numel() for parameter in bundle.model.parameters()):,}"]


def _limits(bundle: Bundle) -> Iterable[str]:
    yield "It speaks about customers and times like those it was trained on. Check its totals when either changes."
    yield "It says what is likely to follow, not what an action of yours would cause."
    yield f"A journey is read from its last {bundle.max_events:,} events; counts and sums still know its whole past."
    if any(kind != NUMERIC for kind in bundle.vocabulary.kinds.values()):
        yield "Values that training never saw are all read as one unknown value; `attrs['unknown_share']` counts them."
    yield "Quantiles are those of one customer's outcome, not of a mean or a total over customers."
    if AMOUNT in bundle.vocabulary.kinds:
        yield "Amounts must be in the currency and unit of the training data."


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Rows of cells below a head."""
    lines = [list(head), ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
