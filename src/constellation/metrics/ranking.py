"""Products: how well a full ranking of the catalogue finds what each customer bought next.

No negatives are sampled: sampled ranks reorder systems (Krichene & Rendle 2020). Equal scores go to the lower product
index, so a ranking never depends on the sort. Every metric is first one value per row; NaN means "not asked of this
row", as where a customer bought nothing.

Ragged sets are `(products_M, offsets [Q + 1])` with 0-based indices of the scores' columns. An index below 0 is a
product outside the catalogue: it cannot be found but counts as something to find.
"""

from collections.abc import Mapping, Sequence

import numpy as np

Ragged = tuple[np.ndarray, np.ndarray]


def top_k(scores_QV: np.ndarray, k: int) -> np.ndarray:
    """Indices of the k highest scores, best first, ties by index, `[Q, min(k, V)]`; linear in V."""
    num_rows, num_products = scores_QV.shape
    k = min(k, num_products)
    threshold_Q1 = np.partition(scores_QV, num_products - k, axis=1)[:, num_products - k, None]
    above_QV = scores_QV > threshold_Q1
    tied_QV = scores_QV == threshold_Q1
    open_places_Q1 = k - np.count_nonzero(above_QV, axis=1, keepdims=True)
    chosen_QV = above_QV | (tied_QV & (np.cumsum(tied_QV, axis=1) <= open_places_Q1))
    chosen_Qk = np.nonzero(chosen_QV)[1].reshape(num_rows, k)
    best_first_Qk = np.argsort(-np.take_along_axis(scores_QV, chosen_Qk, axis=1), axis=1, kind="stable")
    return np.take_along_axis(chosen_Qk, best_first_Qk, axis=1)


def product_columns(
    scores_QV: np.ndarray, relevant: Ragged, recent: Ragged | None = None, *, k: int = 10
) -> dict[str, np.ndarray]:
    """Columns `ndcg_at_<k>`, `hit_rate_at_<k>` and, with `recent`, `recall_new_at_<k>`, each `[Q]`.

    Args:
        scores_QV: higher = likelier; cut the rows into chunks that fit in memory, and `concatenate` the answers.
        relevant: what was bought next; repeats within a row count once.
        recent: what the customer bought lately. For `recall_new` these are struck from the ranking and from the
            relevant: of the products new to the customer that were bought, the share among the first k new ones.

    NDCG has gain 1 per product and the discount 1 / log2(rank + 1) (Jarvelin & Kekalainen 2002); the ideal puts
    min(k, number bought) first.
    """
    scores_QV = np.asarray(scores_QV)
    num_rows, num_products = scores_QV.shape
    assert not np.isnan(scores_QV).any(), "scores hold NaN"
    rows_M, products_M = _pairs(relevant, num_rows, num_products)
    num_relevant_Q = np.bincount(rows_M, minlength=num_rows)
    asked_Q = num_relevant_Q > 0

    found_Qk = _found(top_k(scores_QV, k), rows_M, products_M, num_products)
    discount_k = 1 / np.log2(np.arange(k) + 2)
    ideal_Q = np.append(0.0, np.cumsum(discount_k))[np.minimum(num_relevant_Q, k)]
    columns = {
        f"ndcg_at_{k}": _where(asked_Q, found_Qk @ discount_k[: found_Qk.shape[1]], ideal_Q),
        f"hit_rate_at_{k}": _where(asked_Q, found_Qk.max(axis=1), 1.0),
    }
    if recent is not None:
        recent_rows, recent_products = _pairs(recent, num_rows, num_products)
        is_known = recent_products >= 0
        new_scores_QV = scores_QV.astype(np.float64, copy=True)
        new_scores_QV[recent_rows[is_known], recent_products[is_known]] = -np.inf
        is_new_M = ~np.isin(_keys(rows_M, products_M, num_products), _keys(recent_rows, recent_products, num_products))
        num_new_Q = np.bincount(rows_M[is_new_M], minlength=num_rows)
        found_Qk = _found(top_k(new_scores_QV, k), rows_M[is_new_M], products_M[is_new_M], num_products)
        columns[f"recall_new_at_{k}"] = _where(num_new_Q > 0, found_Qk.sum(axis=1), num_new_Q)
    return columns


def log_loss(log_probability_QV: np.ndarray, relevant: Ragged) -> np.ndarray:
    """Mean of -log p over the products bought, `[Q]`; needs normalised log-probabilities, not mere scores.

    Products outside the catalogue have no probability and are left out; NaN where none is left.
    """
    num_rows, num_products = log_probability_QV.shape
    rows_M, products_M = _pairs(relevant, num_rows, num_products)
    is_known = products_M >= 0
    rows_M, products_M = rows_M[is_known], products_M[is_known]
    count_Q = np.bincount(rows_M, minlength=num_rows)
    total_Q = np.bincount(rows_M, weights=-log_probability_QV[rows_M, products_M], minlength=num_rows)
    return _where(count_Q > 0, total_Q, count_Q)


def concatenate(parts: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Joins the columns of chunks of rows."""
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _pairs(ragged: Ragged, num_rows: int, num_products: int) -> tuple[np.ndarray, np.ndarray]:
    """(row, product) of every distinct member, sorted; all products outside the catalogue become one, -1."""
    products_M, offsets = (np.asarray(part, dtype=np.int64) for part in ragged)
    assert len(offsets) == num_rows + 1, f"{len(offsets) - 1} sets for {num_rows} rows"
    assert len(products_M) == 0 or products_M.max() < num_products, "a product beyond the scores' columns"
    rows_M = np.repeat(np.arange(num_rows), np.diff(offsets))
    members_M = products_M[offsets[0] : offsets[-1]]
    keys = np.unique(_keys(rows_M, np.maximum(members_M, -1), num_products))
    return keys // (num_products + 1), keys % (num_products + 1) - 1


def _keys(rows_M: np.ndarray, products_M: np.ndarray, num_products: int) -> np.ndarray:
    return rows_M * (num_products + 1) + products_M + 1


def _found(top_Qk: np.ndarray, rows_M: np.ndarray, products_M: np.ndarray, num_products: int) -> np.ndarray:
    """Whether the product at each place is relevant, `[Q, k]` bool."""
    top_keys = _keys(np.arange(len(top_Qk))[:, None], top_Qk, num_products)
    return np.isin(top_keys, _keys(rows_M, products_M, num_products))


def _where(asked_Q: np.ndarray, numerator_Q: np.ndarray, denominator: np.ndarray | float) -> np.ndarray:
    result_Q = np.full(len(asked_Q), np.nan)
    return np.divide(numerator_Q, denominator, out=result_Q, where=asked_Q)
