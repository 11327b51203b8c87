"""Lifetime value by hand: a geometric series, its limits, and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest

from constellation.bundle.lifetime import DAYS_PER_YEAR, NAME, Lifetime
from constellation.errors import InputError

QUARTER = DAYS_PER_YEAR / 4


def test_a_geometric_series_by_hand() -> None:
    # A quarter's discount of 0.9 and a survival of 0.8: 100 x sqrt(0.9) x (1 + 0.72 + 0.72^2 + 0.72^3).
    lifetime = Lifetime(years=1.0, discount_rate=0.9**-4 - 1)
    by_hand = 100 * np.sqrt(0.9) * (1 + 0.72 + 0.5184 + 0.373248)
    assert lifetime.value(np.array([100.0]), np.array([0.8]), QUARTER) == pytest.approx(by_hand)
    assert by_hand == pytest.approx(247.763, abs=1e-3)


def test_for_ever_it_is_one_over_one_less_the_ratio() -> None:
    found = Lifetime(years=500.0, discount_rate=0.9**-4 - 1).value(np.array([100.0]), np.array([0.8]), QUARTER)
    assert found == pytest.approx(100 * np.sqrt(0.9) / (1 - 0.72))


def test_who_stays_for_sure_pays_every_period_and_who_leaves_the_first() -> None:
    stays, leaves = Lifetime(years=5.0, discount_rate=0.0).value(np.full(2, 10.0), np.array([1.0, 0.0]), QUARTER)
    assert stays == pytest.approx(200.0)
    assert leaves == pytest.approx(10.0)


def test_less_than_a_horizon_is_its_share() -> None:
    assert Lifetime(years=0.125, discount_rate=0.0).value(np.array([10.0]), np.array([0.5]), QUARTER) == pytest.approx(
        5.0
    )


def test_ends_that_were_declared_come_before_buying() -> None:
    said = {
        "value_91d_expected": np.array([10.0]),
        "value_91d_p_zero": np.array([0.6]),
        "p_active_91d": np.array([0.9]),
        "value_30d_expected": np.array([4.0]),
    }
    lifetime = Lifetime(years=2.0, discount_rate=0.0)
    assert lifetime.answers(said, (30, 91))[NAME] == pytest.approx(
        lifetime.value(np.array([10.0]), np.array([0.9]), 91)
    )
    said.pop("p_active_91d")
    assert lifetime.answers(said, (30, 91))[NAME] == pytest.approx(
        lifetime.value(np.array([10.0]), np.array([0.4]), 91)
    )


def test_what_cannot_be_extended_is_refused() -> None:
    with pytest.raises(InputError, match=r"objective=\[value_quantiles,time_to_event\]"):
        Lifetime().answers({"p_active_91d": np.array([0.9])}, (91,))
    with pytest.raises(InputError, match="years above 0"):
        Lifetime(years=0.0)
    with pytest.raises(InputError, match="discount_rate"):
        Lifetime(discount_rate=-0.1)
