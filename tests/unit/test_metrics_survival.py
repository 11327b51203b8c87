"""Censored times by hand: every figure below is worked out in the comments."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from constellation.errors import InputError
from constellation.metrics.survival import (
    Followed,
    SurvivalStatistics,
    brier,
    concordance,
    ipcw,
    kaplan_meier,
    watched_enough,
    watched_probability,
)

INF = float("inf")

# Four customers: event on day 2, lost from sight on day 3, event on day 4, nothing by day 6.
FOUR = Followed.of(np.array([2.0, INF, 4.0, INF]), np.array([6.0, 3.0, 6.0, 6.0]))


def auc_of(followed: Followed, p_event_Q: np.ndarray, at_days: float) -> float:
    return float(SurvivalStatistics(followed, p_event_Q, at_days)(np.ones((1, len(p_event_Q))))["auc"][0])


def test_rows_are_followed_to_the_event_or_to_the_end_of_watching():
    assert FOUR.time_Q.tolist() == [2, 3, 4, 6]
    assert FOUR.seen_Q.tolist() == [True, False, True, False]
    # An event on the very last watched moment was seen; one after it was not.
    late = Followed.of(np.array([6.0, 7.0]), np.array([6.0, 6.0]))
    assert late.seen_Q.tolist() == [True, False]


def test_kaplan_meier_by_hand():
    times, survival = kaplan_meier(FOUR.time_Q, FOUR.seen_Q)
    # Day 2: 3 of 4 go on. Day 4: 1 of 2 goes on.
    assert times.tolist() == [2, 3, 4, 6]
    np.testing.assert_allclose(survival, [3 / 4, 3 / 4, 3 / 8, 3 / 8])


def test_kaplan_meier_of_a_published_sample():
    """Remission times of leukaemia under 6-MP (Freireich and others 1963), as tabled in every course on survival."""
    time = np.array([6, 6, 6, 6, 7, 9, 10, 10, 11, 13, 16, 17, 19, 20, 22, 23, 25, 32, 32, 34, 35], dtype=float)
    seen = np.array([1, 1, 1, 0, 1, 0, 1, 0, 0, 1, 1, 0, 0, 0, 1, 1, 0, 0, 0, 0, 0], dtype=bool)
    times, survival = kaplan_meier(time, seen)
    at = {6: 0.857, 7: 0.807, 10: 0.753, 13: 0.690, 16: 0.627, 22: 0.538, 23: 0.448}
    for day, wanted in at.items():
        assert survival[times == day][0] == pytest.approx(wanted, abs=5e-4)


def test_weights_by_hand():
    # Watched: 1 up to day 3, where one of the three still there is lost: 2/3 after; at day 6 the last one ends.
    at = np.array([2.0, 3.0, 4.0, 6.0])
    np.testing.assert_allclose(watched_probability(FOUR, at, just_before=True), [1, 1, 2 / 3, 2 / 3])
    np.testing.assert_allclose(watched_probability(FOUR, at, just_before=False), [1, 2 / 3, 2 / 3, 0])
    np.testing.assert_allclose(ipcw(FOUR, 5.0), [1, 0, 1.5, 1.5])
    assert ipcw(FOUR, 5.0).sum() == pytest.approx(4.0)  # the lost one is spoken for by the two who were like it
    # At day 3 itself the lost one was still there.
    np.testing.assert_allclose(ipcw(FOUR, 3.0), [1, 1, 1, 1])


def test_brier_score_by_hand():
    # Weights 1, 0, 3/2, 3/2; errors 0.2, -, 0.5, 0.4: (0.04 + 0.375 + 0.24) / 4.
    scores = brier(FOUR, np.array([0.8, 0.9, 0.5, 0.4]), 5.0)
    np.testing.assert_allclose(scores, [0.04, 0.0, 0.375, 0.24])


def test_auc_by_hand():
    # Events by day 5: the first (weight 1) and the third (3/2); without: the fourth (3/2). The first is given more than
    # the fourth, the third as much: (1 * 1.5 * 1 + 1.5 * 1.5 * 0.5) / (2.5 * 1.5).
    p = np.array([0.8, 0.9, 0.4, 0.4])
    assert auc_of(FOUR, p, 5.0) == pytest.approx((1.5 + 1.125) / 3.75)
    assert np.isnan(auc_of(FOUR, p, 1.0))


def test_concordance_by_hand():
    # Known pairs: the first is before the three others, the third before the fourth. Of the second nothing else is
    # known: it was lost before the others' times.
    assert concordance(FOUR, np.array([1.0, 2.0, 3.0, 4.0])) == 1.0
    assert concordance(FOUR, np.array([4.0, 3.0, 2.0, 1.0])) == 0.0
    # 1 < 2 right; 1 against 3: tie, a half; 1 against 4: right; 3 against 4: right.
    assert concordance(FOUR, np.array([1.0, 5.0, 1.0, 4.0])) == pytest.approx(3.5 / 4)
    # Equal times: event and censored are known (the censored lasted longer), two events are not.
    equal = Followed(np.array([5.0, 5.0, 5.0]), np.array([True, False, True]))
    assert concordance(equal, np.array([1.0, 2.0, 3.0])) == 0.5


def test_concordance_agrees_with_all_pairs():
    rng = np.random.default_rng(0)
    days, watched = rng.integers(1, 12, 80).astype(float), rng.integers(3, 15, 80).astype(float)
    followed, expected = Followed.of(days, watched), rng.integers(0, 6, 80).astype(float)
    known = right = 0.0
    for i in range(80):
        for j in range(80):
            later = followed.time_Q[j] > followed.time_Q[i] or (
                followed.time_Q[j] == followed.time_Q[i] and not followed.seen_Q[j]
            )
            if i != j and followed.seen_Q[i] and later:
                known += 1
                right += 1.0 if expected[i] < expected[j] else 0.5 if expected[i] == expected[j] else 0.0
    assert concordance(followed, expected) == pytest.approx(right / known)
    # With every pair taken the statistic with weights is the same, for a higher probability is an earlier event.
    statistics = SurvivalStatistics(followed, -expected / 10 + 0.7, 5.0)
    assert statistics(np.ones((1, 80)))["concordance"][0] == pytest.approx(right / known)


def test_statistics_with_weights_are_those_of_repeated_rows():
    rng = np.random.default_rng(1)
    days, watched = rng.exponential(10, 60), rng.uniform(5, 20, 60)
    followed, p = Followed.of(days, watched), rng.random(60)
    statistics = SurvivalStatistics(followed, p, 6.0)
    found = statistics(np.ones((2, 60)))
    assert found["brier"][0] == pytest.approx(brier(followed, p, 6.0).mean())
    twice = np.repeat(np.arange(60), 2)
    both = Followed(followed.time_Q[twice], followed.seen_Q[twice])
    assert found["auc"][1] == pytest.approx(auc_of(both, p[twice], 6.0))
    assert statistics.take(np.arange(60))(np.ones((1, 60)))["brier_skill"][0] == pytest.approx(found["brier_skill"][0])
    # Saying the same of everybody has no skill.
    share = 1 - kaplan_meier(followed.time_Q, followed.seen_Q)[1][np.searchsorted(np.unique(followed.time_Q), 6.0) - 1]
    flat = SurvivalStatistics(followed, np.full(60, share), 6.0)(np.ones((1, 60)))
    assert flat["brier_skill"][0] == pytest.approx(0.0, abs=1e-9)
    assert flat["auc"][0] == 0.5


@settings(max_examples=30)
@given(st.integers(0, 10_000))
def test_censoring_at_random_does_not_move_the_brier_score(seed):
    rng = np.random.default_rng(seed)
    days, p = rng.exponential(10, 4000), rng.random(4000)
    whole = Followed.of(days, np.full(4000, INF))
    lost = Followed.of(days, rng.uniform(0, 30, 4000))
    assert brier(lost, p, 8.0).mean() == pytest.approx(brier(whole, p, 8.0).mean(), abs=0.03)
    assert auc_of(lost, days.argsort().argsort() / -4000.0, 8.0) == pytest.approx(1.0)


def test_what_nobody_watched_cannot_be_said():
    assert watched_enough(FOUR, 6.0)
    assert not watched_enough(FOUR, 6.5)
    with pytest.raises(InputError, match="watched for 7 days"):
        ipcw(FOUR, 7.0)
    with pytest.raises(InputError, match="found 1 rows"):
        Followed.of(np.array([np.nan, 1.0]), np.array([2.0, 2.0]))
