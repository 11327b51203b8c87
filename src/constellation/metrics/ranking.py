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

NOWHERE = np.iinfo(np.int64).max
RANK_CELLS = 1 << 20
"""Scores compared at once: what fits in the cache of a core."""


def top_k(scores_QV: np.ndarray, k: int) -> np.ndarray:
    """Indices of the k highest scores, best first, ties by index, `[Q, min(k, V)]`; linear in V."""
    num_rows, num_products = scores_QV.shape
    k = min(k, num_products)
    threshold_Q1 = np.partition(scores_QV, num_products - k, axis=1)[:, num_products - k, None].copy()
    chosen_QV = scores_QV >= threshold_Q1
    # Where more tie with the last place than it has room for, the lower indices win. Such rows are few.
    rows_T = np.flatnonzero(np.count_nonzero(chosen_QV, axis=1) > k)
    if len(rows_T):
        above_TV = scores_QV[rows_T] > threshold_Q1[rows_T]
        tied_TV = chosen_QV[rows_T] & ~above_TV
        open_places_T1 = k - np.count_nonzero(above_TV, axis=1, keepdims=True)
        chosen_QV[rows_T] = above_TV | (tied_TV & (np.cumsum(tied_TV, axis=1, dtype=np.int32) <= open_places_T1))
    chosen_Qk = np.nonzero(chosen_QV)[1].reshape(num_rows, k)
    best_first_Qk = np.argsort(-np.take_along_axis(scores_QV, chosen_Qk, axis=1), axis=1, kind="stable")
    return np.take_along_axis(chosen_Qk, best_first_Qk, axis=1)


def ranks(scores_QV: np.ndarray, rows_M: np.ndarray, products_M: np.ndarray) -> np.ndarray:
    """Place of each product M in the full ranking of its row, from 0, ties by index; NOWHERE outside the catalogue.

    Counting who stands before takes a few passes over the row and no sort, so it costs less than the k best would, as
    long as a row asks for some tens of products at most. Some rows at a time, so that no copy is large.
    """
    num_products = scores_QV.shape[1]
    found_M = np.full(len(rows_M), NOWHERE, dtype=np.int64)
    known_M = np.flatnonzero(products_M >= 0)
    step = max(1, RANK_CELLS // max(num_products, 1))
    for start in range(0, len(known_M), step):
        block_M = known_M[start : start + step]
        scores_MV, product_M = scores_QV[rows_M[block_M]], products_M[block_M]
        own_M1 = np.take_along_axis(scores_MV, product_M[:, None], axis=1)
        ahead_M = np.count_nonzero(scores_MV > own_M1, axis=1)
        tied_MV = scores_MV == own_M1
        for row in np.flatnonzero(np.count_nonzero(tied_MV, axis=1) > 1):
            ahead_M[row] += np.count_nonzero(tied_MV[row, : product_M[row]])
        found_M[block_M] = ahead_M
    return found_M


def product_columns(
    scores_QV: np.ndarray,
    relevant: Ragged,
    recent: Ragged | None = None,
    *,
    excluded: Ragged | None = None,
    k: int = 10,
) -> dict[str, np.ndarray]:
    """Columns `ndcg_at_<k>`, `hit_rate_at_<k>` and, with `recent`, `recall_new_at_<k>`, each `[Q]`.

    Args:
        scores_QV: higher = likelier; cut the rows into chunks that fit in memory, and `concatenate` the answers.
        relevant: what was bought next; repeats within a row count once.
        recent: what the customer bought lately. For `recall_new` these are struck from the ranking and from the
            relevant: of the products new to the customer that were bought, the share among the first k new ones.
        excluded: what must not be recommended, as products a customer already has. These are struck from the ranking
            and from the relevant in every metric; a row of which nothing relevant is left is not asked.

    NDCG has gain 1 per product and the discount 1 / log2(rank + 1) (Jarvelin & Kekalainen 2002); the ideal puts
    min(k, number bought) first.
    """
    scores_QV = np.asarray(scores_QV)
    num_rows, num_products = scores_QV.shape
    assert not np.isnan(scores_QV).any(), "scores hold NaN"
    rows_M, products_M = _pairs(relevant, num_rows, num_products)
    if excluded is not None:
        rows_P, products_P = _pairs(excluded, num_rows, num_products)
        known_P = products_P >= 0  # an unknown product is not the unknown product of before: it stays, and is missed
        scores_QV, is_left_M = _struck(scores_QV, rows_M, products_M, (rows_P[known_P], products_P[known_P]))
        rows_M, products_M = rows_M[is_left_M], products_M[is_left_M]
    num_relevant_Q = np.bincount(rows_M, minlength=num_rows)
    asked_Q = num_relevant_Q > 0

    found_M = ranks(scores_QV, rows_M, products_M)
    in_list_M = found_M < k
    discount_k = 1 / np.log2(np.arange(k) + 2)
    gain_M = np.where(in_list_M, discount_k[np.minimum(found_M, k - 1)], 0.0)
    ideal_Q = np.append(0.0, np.cumsum(discount_k))[np.minimum(num_relevant_Q, k)]
    columns = {
        f"ndcg_at_{k}": _where(asked_Q, np.bincount(rows_M, gain_M, num_rows), ideal_Q),
        f"hit_rate_at_{k}": _where(asked_Q, np.bincount(rows_M, in_list_M, num_rows) > 0, 1.0),
    }
    if recent is not None:
        new_scores_QV, is_new_M = _struck(scores_QV, rows_M, products_M, _pairs(recent, num_rows, num_products))
        rows_M, products_M = rows_M[is_new_M], products_M[is_new_M]
        num_new_Q = np.bincount(rows_M, minlength=num_rows)
        in_list_M = ranks(new_scores_QV, rows_M, products_M) < k
        columns[f"recall_new_at_{k}"] = _where(num_new_Q > 0, np.bincount(rows_M, in_list_M, num_rows), num_new_Q)
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
    keys = np.sort(_keys(rows_M, np.maximum(members_M, -1), num_products))
    keys = keys[np.append(True, keys[1:] != keys[:-1])[: len(keys)]]  # np.unique hashes, which is forty times slower
    return keys // (num_products + 1), keys % (num_products + 1) - 1


def _struck(
    scores_QV: np.ndarray, rows_M: np.ndarray, products_M: np.ndarray, pairs: tuple[np.ndarray, np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """The scores with those of ``pairs`` (row, product) at minus infinity, and which of the M are left.

    ``pairs`` ascend, as :func:`_pairs` makes them.
    """
    num_products = scores_QV.shape[1]
    rows_P, products_P = pairs
    # A copy, in the precision it has: baselines hand out views, and minus infinity is no integer.
    dtype = scores_QV.dtype if np.issubdtype(scores_QV.dtype, np.floating) else np.float64
    left_QV = np.array(scores_QV, dtype=dtype)
    known_P = products_P >= 0
    left_QV[rows_P[known_P], products_P[known_P]] = -np.inf
    struck, keys_M = _keys(rows_P, products_P, num_products), _keys(rows_M, products_M, num_products)
    place_M = np.minimum(np.searchsorted(struck, keys_M), max(len(struck) - 1, 0))
    return left_QV, struck[place_M] != keys_M if len(struck) else np.ones(len(keys_M), dtype=bool)


def _keys(rows_M: np.ndarray, products_M: np.ndarray, num_products: int) -> np.ndarray:
    return rows_M * (num_products + 1) + products_M + 1


def _where(asked_Q: np.ndarray, numerator_Q: np.ndarray, denominator: np.ndarray | float) -> np.ndarray:
    result_Q = np.full(len(asked_Q), np.nan)
    return np.divide(numerator_Q, denominator, out=result_Q, where=asked_Q)
