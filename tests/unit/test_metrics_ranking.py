"""Rankings worked out by hand."""

import numpy as np
import pytest

from constellation.metrics.ranking import concatenate, log_loss, product_columns, top_k


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
