"""Rankings worked out by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from constellation.metrics import ranking
from constellation.metrics.ranking import concatenate, log_loss, product_columns, ranks, top_k


def ragged(*sets: list[int]) -> tuple[np.ndarray, np.ndarray]:
    return np.array([p for s in sets for p in s], dtype=np.int64), np.cumsum([0, *map(len, sets)])


def test_top_k_breaks_ties_by_index():
    scores = np.array([[1.0, 3.0, 3.0, 0.0, 3.0], [2.0, 2.0, 2.0, 2.0, 2.0], [0.0, 1.0, 2.0, 3.0, 4.0]])
    np.testing.assert_array_equal(top_k(scores, 2), [[1, 2], [0, 1], [4, 3]])
    np.testing.assert_array_equal(top_k(scores, 4), [[1, 2, 4, 0], [0, 1, 2, 3], [4, 3, 2, 1]])
    assert top_k(scores, 99).shape == (3, 5)


def test_ndcg_and_hit_rate_by_hand():
    # Ranking 0 1 2 3 in both rows. Row 0 bought 1 and 3: gain 1/log2(3) within the first two, ideal 1 + 1/log2(3).
    # Row 1 bought 3 only: not among the first two. Row 2 bought nothing: not asked.
    scores = np.tile([4.0, 3.0, 2.0, 1.0], (3, 1))
    columns = product_columns(scores, ragged([1, 3], [3], []), k=2)
    second = 1 / np.log2(3)
    np.testing.assert_allclose(columns["ndcg_at_2"], [second / (1 + second), 0, np.nan])
    np.testing.assert_allclose(columns["hit_rate_at_2"], [1, 0, np.nan])
    assert "recall_new_at_2" not in columns


def test_recall_of_the_new_strikes_what_was_bought_recently():
    # Ranking 0 1 2 3; recently bought 0 and 1, so the new ones are ranked 2 3. Bought 0 (old), 2 and 3 (new): at k = 1
    # one of two new ones is found. Row 1 bought only what it knew: not asked. Row 2 has no history and bought 0 and 3:
    # one of two.
    scores = np.tile([4.0, 3.0, 2.0, 1.0], (3, 1))
    columns = product_columns(scores, ragged([0, 2, 3], [0], [0, 3]), ragged([0, 1], [0, 1], []), k=1)
    np.testing.assert_allclose(columns["recall_new_at_1"], [0.5, np.nan, 0.5])


def test_repeats_count_once_and_products_outside_the_catalogue_are_misses():
    # Bought 0 twice and an unknown product: two things to find, one found at the first place.
    columns = product_columns(np.array([[9.0, 1.0, 0.0]]), ragged([0, 0, -1]), ragged([]), k=2)
    assert columns["ndcg_at_2"] == pytest.approx([1 / (1 + 1 / np.log2(3))])
    assert columns["recall_new_at_2"] == pytest.approx([0.5])


def test_a_catalogue_smaller_than_k():
    columns = product_columns(np.array([[1.0, 2.0]]), ragged([0]), k=10)
    assert columns["ndcg_at_10"] == pytest.approx([1 / np.log2(3)])


def test_what_is_excluded_leaves_the_ranking_and_the_question():
    # Ranking 0 1 2 3. Row 0 has 0 and 1 and gets 2: now first. Row 1 has 3 and gets 1 and 3: 3 is not asked for, and 1
    # stands second, 1 / log2(3). Row 2 has 2 and gets 2 alone: nothing is asked. Row 3 has nothing.
    scores = np.tile([4.0, 3.0, 2.0, 1.0], (4, 1))
    relevant, excluded = ragged([2], [1, 3], [2], [0]), ragged([0, 1, 0], [3], [2], [])
    columns = product_columns(scores, relevant, excluded=excluded, k=2)
    np.testing.assert_allclose(columns["ndcg_at_2"], [1, 1 / np.log2(3), np.nan, 1])
    np.testing.assert_allclose(columns["hit_rate_at_2"], [1, 1, np.nan, 1])
    np.testing.assert_array_equal(scores[0], [4, 3, 2, 1])  # not written to


def test_an_unknown_product_is_missed_even_by_who_had_an_unknown_one_before():
    columns = product_columns(np.array([[2.0, 1.0]]), ragged([-1]), excluded=ragged([-1, 0]), k=2)
    assert columns["ndcg_at_2"] == pytest.approx([0.0])


def test_integer_scores_and_views_can_be_excluded_from():
    counts = np.broadcast_to(np.array([5, 3, 1]), (2, 3))
    columns = product_columns(counts, ragged([1], [0]), excluded=ragged([0], [1]), k=1)
    np.testing.assert_allclose(columns["hit_rate_at_1"], [1, 1])


@st.composite
def few_scores(draw: st.DrawFn) -> tuple[np.ndarray, list[list[int]], list[list[int]]]:
    """Scores of few values, so that most tie; what is relevant and what is excluded in each row."""
    num_rows, num_products = draw(st.integers(1, 4)), draw(st.integers(1, 9))
    row = st.lists(st.sampled_from([-np.inf, 0.0, 0.5, 1.0]), min_size=num_products, max_size=num_products)
    some = st.lists(st.integers(-1, num_products - 1), max_size=5)
    scores = np.array([draw(row) for _ in range(num_rows)], dtype=np.float32)
    return scores, [draw(some) for _ in range(num_rows)], [draw(some) for _ in range(num_rows)]


@given(few_scores(), st.integers(1, 4), st.sampled_from([1, 7, 1 << 20]))
def test_metrics_are_those_of_a_stable_sort(
    case: tuple[np.ndarray, list[list[int]], list[list[int]]], k: int, cells: int
) -> None:
    scores, relevant, excluded = case
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranking, "RANK_CELLS", cells)
        columns = product_columns(scores, ragged(*relevant), excluded=ragged(*excluded), k=k)
    for row in range(len(scores)):
        struck = set(excluded[row]) - {-1}
        order = [p for p in np.argsort(-scores[row], kind="stable").tolist() if p not in struck]
        wanted = set(relevant[row]) - struck
        if not wanted:
            assert np.isnan(columns[f"ndcg_at_{k}"][row]) and np.isnan(columns[f"hit_rate_at_{k}"][row])
            continue
        gains = [1 / np.log2(place + 2) for place, product in enumerate(order[:k]) if product in wanted]
        ideal = sum(1 / np.log2(place + 2) for place in range(min(k, len(wanted))))
        # A score of minus infinity ties with what was struck, which then stands among the first k without being asked.
        if all(np.isfinite(scores[row, product]) for product in wanted - {-1}):
            assert columns[f"ndcg_at_{k}"][row] == pytest.approx(sum(gains) / ideal)
            assert columns[f"hit_rate_at_{k}"][row] == (len(gains) > 0)


@given(few_scores())
def test_ranks_are_places_in_a_stable_sort_and_the_first_k_are_top_k(
    case: tuple[np.ndarray, list[list[int]], list[list[int]]],
) -> None:
    scores = case[0]
    num_rows, num_products = scores.shape
    rows, products = np.divmod(np.arange(num_rows * num_products), num_products)
    found = ranks(scores, rows, products).reshape(num_rows, num_products)
    expected = np.argsort(np.argsort(-scores, axis=1, kind="stable"), axis=1, kind="stable")
    np.testing.assert_array_equal(found, expected)
    assert ranks(scores, np.zeros(1, dtype=np.int64), np.array([-1])).tolist() == [ranking.NOWHERE]
    for k in (1, 3):
        np.testing.assert_array_equal(top_k(scores, k), np.argsort(-scores, axis=1, kind="stable")[:, :k])


def test_log_loss_by_hand():
    log_probability = np.log([[0.5, 0.25, 0.25], [0.2, 0.3, 0.5]])
    found = log_loss(log_probability, ragged([0, 1, -1], []))
    np.testing.assert_allclose(found, [(np.log(2) + np.log(4)) / 2, np.nan])


def test_chunks_of_rows_join_to_the_whole():
    generator = np.random.default_rng(1)
    scores = generator.integers(0, 4, (9, 30)).astype(float)
    sets = [list(generator.integers(0, 30, generator.integers(0, 6))) for _ in range(18)]
    whole = product_columns(scores, ragged(*sets[:9]), ragged(*sets[9:]))
    parts = [product_columns(scores[r], ragged(*sets[:9][r]), ragged(*sets[9:][r])) for r in (slice(0, 4), slice(4, 9))]
    for name, column in concatenate(parts).items():
        np.testing.assert_array_equal(column, whole[name])
