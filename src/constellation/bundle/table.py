"""Answers as a table: which columns, in which units, and how far two tables are apart."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from constellation.bundle.lifetime import NAME as LIFETIME
from constellation.errors import InputError
from constellation.journeys.vocabulary import Vocabulary
from constellation.metrics.ranking import top_k
from constellation.schema import CUSTOMER_ID, EVENT_TYPE, PRODUCT, EventSchema

if TYPE_CHECKING:
    import pandas as pd

DEFAULT_LEVELS = (0.05, 0.25, 0.5, 0.75, 0.95)

QUANTILES, SCORES = "_quantiles", "_scores"
RANKED = {"next_product": PRODUCT, "next_type": EVENT_TYPE}
"""Answers that score the known values of a column; the best of them enter the table."""

MAX_TYPES = 3  # event types are few, and the likeliest say it all


def check_levels(levels: Sequence[float]) -> list[float]:
    """Ascending distinct levels strictly between 0 and 1, or InputError."""
    found = [float(level) for level in levels]
    if not found or any(not 0 < level < 1 for level in found) or sorted(set(found)) != found:
        raise InputError(f"levels must rise strictly within (0, 1), such as [0.05, 0.5, 0.95]; found {found}.")
    return found


def level_name(level: float) -> str:
    """``q05`` for 0.05, ``q50`` for 0.5, ``q975`` for 0.975: the digits after the point, two at least."""
    digits = np.format_float_positional(level, trim="-").split(".")[1]
    return f"q{digits:0<2}"


class AnswerTable:
    """Collects answers batch by batch: numbers as they are, quantiles one column per level, the best of the scores."""

    def __init__(self, vocabulary: Vocabulary, num_rows: int, levels: Sequence[float], top_products: int) -> None:
        self.vocabulary, self.num_rows, self.levels, self.top_products = vocabulary, num_rows, levels, top_products
        self.columns: dict[str, np.ndarray] = {}

    def add(self, rows: np.ndarray, answers: Mapping[str, np.ndarray]) -> None:
        """Answers [rows, ...] by the names of docs/design.md, for ``rows`` of the table."""
        for name, values in answers.items():
            if name.endswith(QUANTILES):
                assert values.shape == (len(rows), len(self.levels))
                for place, level in enumerate(self.levels):
                    self._put(f"{name.removesuffix(QUANTILES)}_{level_name(level)}", rows, values[:, place])
            elif name.endswith(SCORES):
                self._rank(name.removesuffix(SCORES), rows, values)
            else:
                self._put(name, rows, values)

    def _rank(self, name: str, rows: np.ndarray, scores_QV: np.ndarray) -> None:
        values = np.array(self.vocabulary.categories[RANKED[name]], dtype=object)
        assert scores_QV.shape == (len(rows), len(values))
        # The scores are logits of one softmax: as probabilities they can be compared between customers.
        greatest_Q1 = scores_QV.max(axis=1, keepdims=True, initial=-np.inf)
        exponent_QV = np.exp((scores_QV - np.where(np.isfinite(greatest_Q1), greatest_Q1, 0.0)).astype(np.float64))
        probability_QV = exponent_QV / np.maximum(exponent_QV.sum(axis=1, keepdims=True), 1e-300)
        most = min(self.top_products if name == "next_product" else MAX_TYPES, len(values))
        best_QT = top_k(scores_QV, most)
        for place in range(most):
            best_Q1 = best_QT[:, place : place + 1]
            # Minus infinity is what may not be named: a customer may have everything.
            open_Q = np.take_along_axis(scores_QV, best_Q1, axis=1)[:, 0] > -np.inf
            score_Q = np.take_along_axis(probability_QV, best_Q1, axis=1)[:, 0]
            named_Q = values[best_Q1[:, 0]]
            named_Q[~open_Q] = None
            self._put(f"{name}_{place + 1}", rows, named_Q)
            self._put(f"{name}_{place + 1}_score", rows, np.where(open_Q, score_Q, np.nan))

    def _put(self, name: str, rows: np.ndarray, values: np.ndarray) -> None:
        if name not in self.columns:
            # Sums of money over many customers need more digits than float32 has.
            self.columns[name] = np.empty(self.num_rows, dtype=object if values.dtype == object else np.float64)
        self.columns[name][rows] = values

    def frame(self, customer_id: np.ndarray) -> pd.DataFrame:
        """One row per customer, values before purchases before products, horizons as the model gives them."""
        import pandas as pd

        def turn(name: str) -> int:
            return 0 if name.startswith("value_") else 1 if name.startswith("purchases_") else 2

        names = sorted(self.columns, key=turn)
        return pd.DataFrame({CUSTOMER_ID: customer_id} | {name: self.columns[name] for name in names})


@dataclass(frozen=True)
class Description:
    """What columns of a name mean. pattern: of the whole name; its groups fill ``unit`` and ``meaning`` by number."""

    pattern: str
    unit: str
    meaning: str


AFTER = "the {0} days after the cutoff"
DESCRIPTIONS = (
    Description(rf"{CUSTOMER_ID}", "", "the key, as in the events"),
    Description(r"value_(\d+)d_expected", "MONEY", f"expected money in {AFTER}"),
    Description(r"value_(\d+)d_p_zero", "probability", f"that the money in {AFTER} is zero"),
    Description(r"value_(\d+)d_q(\d+)", "MONEY", f"quantile 0.{{1}} of the money in {AFTER}"),
    Description(r"purchases_(\d+)d_expected", "purchases", f"expected number of purchases in {AFTER}"),
    Description(r"purchases_(\d+)d_p_zero", "probability", f"that the number of purchases in {AFTER} is zero"),
    Description(r"purchases_(\d+)d_q(\d+)", "purchases", f"quantile 0.{{1}} of the number of purchases in {AFTER}"),
    Description(
        r"value_lifetime_expected",
        "MONEY",
        "expected money of the lifetime after the cutoff, by the process of buying and leaving, discounted; "
        "years and rate are settings of the objective; beyond anything that was observed",
    ),
    Description(
        LIFETIME,
        "MONEY",
        "expected money of the lifetime asked for: that of the longest horizon, again in each further period as often "
        "as survival lets, discounted; an extension beyond anything that was learned",
    ),
    Description(r"p_purchase_(\d+)d", "probability", f"of a purchase in {AFTER}"),
    Description(r"p_active_(\d+)d", "probability", f"ACTIVE {AFTER}"),
    Description(
        r"p_end_(.+)_(\d+)d", "probability", "that `{0}` ends the relationship within {1} days, before any other end"
    ),
    Description(
        r"p_alive", "probability", "of still being a customer at the cutoff, by the model's process of leaving"
    ),
    Description(
        r"wait_expected_days", "days", "expected until the next purchase, counted up to the longest horizon at most"
    ),
    Description(
        r"duration_expected_days",
        "days",
        "expected until the relationship ends, counted up to the longest horizon at most; 0 where it has ended",
    ),
    Description(r"next_product_(\d+)", "", "likeliest product of the next basket, rank {0}"),
    Description(r"next_type_(\d+)", "", "likeliest type of the next event, rank {0}"),
    Description(r"(next_(?:product|type)_\d+)_score", "probability", "of `{0}`; all known values together have 1"),
)
"""One entry per kind of answer; an objective with new answers adds its own. MONEY and ACTIVE depend on the schema."""

STAYING = "that the relationship does not end in"
BUYING = "of a purchase, for without declared ends a customer is active by buying, in"


def describe(frame: pd.DataFrame, schema: EventSchema) -> dict[str, tuple[str, str]]:
    """Unit and meaning of each column of a table of predictions, for the model card."""
    money = schema.currency or "money, in the unit of `amount`"
    found = {}
    for name in map(str, frame.columns):
        found[name] = ("", "see the objective that the model was trained with")
        for each in DESCRIPTIONS:
            match = re.fullmatch(each.pattern, name)
            if match is not None:
                meaning = each.meaning.format(*match.groups())
                meaning = meaning.replace("ACTIVE", STAYING if schema.churn_types else BUYING)
                found[name] = (each.unit.replace("MONEY", money), meaning)
                break
    return found


def largest_difference(first: pd.DataFrame, second: pd.DataFrame) -> float:
    """Largest relative difference between the numbers of two tables with the same customers, matched by id.

    Relative to the larger of the two, and to a thousandth of the column's mean size at least, so that two near-zeros
    are equal. Names of products count through their scores alone, because equal scores may change places. Of each
    column of quantiles the largest hundredth is left out: counts step, and money near the level P(zero) rises straight
    up, so that there the last digit of a float32 shows. Infinite where the columns or the customers differ, or a number
    on one side only is not finite.
    """
    first, second = (frame.set_index(CUSTOMER_ID).sort_index() for frame in (first, second))
    if not first.columns.equals(second.columns) or not first.index.equals(second.index):
        return float("inf")
    largest = 0.0
    for name in first.select_dtypes("number").columns:
        one, two = first[name].to_numpy(dtype=np.float64), second[name].to_numpy(dtype=np.float64)
        if not np.array_equal(np.isfinite(one), np.isfinite(two)):
            return float("inf")
        one, two = one[np.isfinite(one)], two[np.isfinite(two)]
        if len(one):
            size = np.maximum(np.maximum(np.abs(one), np.abs(two)), max(1e-3 * float(np.abs(one).mean()), 1e-12))
            share = 0.99 if re.search(r"_q\d+$", name) else 1.0
            largest = max(largest, float(np.quantile(np.abs(one - two) / size, share, method="lower")))
    return largest
