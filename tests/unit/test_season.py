"""The season: hand-computed factors, bounds of the moved distribution, and belief only where two years agree."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from constellation.bundle import Bundle
from constellation.distributions.season import MICROSECONDS_PER_DAY, NUM_SLOTS, STEP_DAYS, YEAR_DAYS, Season
from constellation.journeys.batch import Gatherer, JourneyBatch
from constellation.journeys.build import store_from_frame
from constellation.journeys.splits import Splits
from constellation.journeys.windows import Windows, parse_cutoff
from constellation.schema import EventSchema
from constellation.training.options import TrainingOptions
from constellation.training.seasons import SLOTS_OF_A_YEAR, belief, learn_season, log_ratios, yearly_drift
from constellation.training.study import fit_vocabulary
from tests.bundles import CUTOFF, ZONE, shop_attributes, shop_bundle, shop_events

UNTIL = 1_600_000_000_000_000
LEVELS = (0.05, 0.5, 0.95)


def season_of(log_ratio: dict[int, float], believed: float = 0.5, target: str = "value_30d") -> Season:
    season = Season(["value_91d", "value_30d", "purchases_30d"])
    log_ratio_T = torch.full((NUM_SLOTS,), float("nan"))
    for slot, value in log_ratio.items():
        log_ratio_T[slot] = value
    season.learn(UNTIL, target, log_ratio_T, believed)
    return season


def days_after(days: float) -> torch.Tensor:
    return torch.tensor([UNTIL + int(days * MICROSECONDS_PER_DAY)])


def test_the_factor_is_what_is_believed_of_last_years_log_ratio() -> None:
    season = season_of({SLOTS_OF_A_YEAR: 0.4, SLOTS_OF_A_YEAR - 1: 0.2})
    assert season.factor("value_30d", days_after(0)).item() == pytest.approx(np.exp(0.2))
    # Halfway between the two slots, a week after the last.
    assert season.factor("value_30d", days_after(STEP_DAYS / 2)).item() == pytest.approx(np.exp(0.5 * 0.3), rel=1e-5)
    assert season.factor("value_91d", days_after(0)).item() == 1.0  # nothing learned


def test_the_factor_averages_the_years_that_are_known() -> None:
    season = season_of({SLOTS_OF_A_YEAR: 0.4, 2 * SLOTS_OF_A_YEAR: 0.2, 3 * SLOTS_OF_A_YEAR: -0.3})
    assert season.factor("value_30d", days_after(0)).item() == pytest.approx(np.exp(0.5 * 0.1), rel=1e-5)
    # A year later only two of them are within three years.
    assert season.factor("value_30d", days_after(YEAR_DAYS)).item() == pytest.approx(np.exp(0.5 * 0.3), rel=1e-5)
    # A past cutoff reads only what lies a year before it.
    assert season.factor("value_30d", days_after(-YEAR_DAYS)).item() == pytest.approx(np.exp(0.5 * -0.05), rel=1e-5)
    assert season.factor("value_30d", days_after(-YEAR_DAYS * 3)).item() == 1.0


def answered(p_zero: float, positive: torch.Tensor, levels_A: torch.Tensor, target: str) -> dict[str, torch.Tensor]:
    """Zero, else one of equally likely values."""
    place_A = (((levels_A - p_zero) / max(1 - p_zero, 1e-9)) * len(positive)).ceil().long() - 1
    quantiles_A = torch.where(levels_A <= p_zero, 0.0, positive.double()[place_A.clamp(0, len(positive) - 1)])
    return {
        f"{target}_expected": torch.tensor([(1 - p_zero) * float(positive.mean())]),
        f"{target}_p_zero": torch.tensor([p_zero]),
        f"{target}_quantiles": quantiles_A.float().unsqueeze(0),
    }


@given(
    st.floats(0.0, 0.98),
    st.floats(-1.5, 1.5),
    st.lists(st.floats(0.5, 100.0), min_size=1, max_size=40),
)
def test_the_moved_distribution_has_the_moved_mean(p_zero: float, log_ratio: float, values: list[float]) -> None:
    season = season_of({SLOTS_OF_A_YEAR: log_ratio}, believed=1.0)
    members = (torch.arange(400) + 0.5) / 400
    asked = season.asked_levels(members, members)
    said = answered(p_zero, torch.tensor(sorted(values)), asked, "value_30d")
    moved = season(said, days_after(0), asked, members)
    factor = float(np.exp(log_ratio))
    assert moved["value_30d_expected"].item() == pytest.approx(said["value_30d_expected"].item() * factor, rel=1e-4)
    assert moved["value_30d_p_zero"].item() == pytest.approx(p_zero**factor, abs=1e-5)
    quantiles = moved["value_30d_quantiles"][0]
    assert quantiles.shape == (400,) and (quantiles.diff() >= -1e-6).all()
    # Four hundred members of a step function: each jump may fall on either side of a member.
    span = factor * max(values) * (1 - p_zero) / (1 - p_zero**factor + 1e-9)
    assert quantiles.mean().item() == pytest.approx(moved["value_30d_expected"].item(), rel=0.02, abs=0.01 * span)


def test_counts_stay_whole_and_levels_hang_on_nothing_else() -> None:
    season = season_of({SLOTS_OF_A_YEAR: 0.3}, believed=1.0, target="purchases_30d")
    positive = torch.tensor([1.0, 2.0, 3.0, 8.0])
    few = season.asked_levels(LEVELS, torch.zeros(1))
    moved = season(answered(0.5, positive, few, "purchases_30d"), days_after(0), few, LEVELS)["purchases_30d_quantiles"]
    assert (moved == moved.round()).all() and moved[0, 0] == 0
    many = season.asked_levels((0.05, 0.123, 0.5, 0.77, 0.95), torch.zeros(1))
    again = season(answered(0.5, positive, many, "purchases_30d"), days_after(0), many, LEVELS)
    assert torch.equal(again["purchases_30d_quantiles"], moved)


def test_without_a_season_nothing_changes() -> None:
    season = Season(["value_30d"])
    levels_L = season.asked_levels(LEVELS, torch.zeros(1))
    assert levels_L.tolist() == list(LEVELS)
    said = answered(0.4, torch.tensor([1.0, 2.0]), levels_L, "value_30d")
    assert all(torch.equal(part, said[name]) for name, part in season(said, days_after(0), levels_L, LEVELS).items())


def test_longer_horizons_never_fall_below_shorter_ones() -> None:
    season = season_of({SLOTS_OF_A_YEAR: 1.5}, believed=1.0)
    asked = season.asked_levels(LEVELS, torch.zeros(1))
    positive = torch.tensor([1.0, 2.0, 5.0])
    said = answered(0.5, positive, asked, "value_30d") | answered(0.45, positive, asked, "value_91d")
    moved = season(said, days_after(0), asked, LEVELS)
    assert moved["value_91d_expected"] >= moved["value_30d_expected"] > said["value_91d_expected"]
    assert moved["value_91d_p_zero"] <= moved["value_30d_p_zero"]
    assert (moved["value_91d_quantiles"] >= moved["value_30d_quantiles"]).all()


def test_what_was_learned_travels_with_the_weights_and_older_weights_have_none() -> None:
    season = season_of({SLOTS_OF_A_YEAR: 0.4})
    other = Season(season.targets)
    other.load_state_dict(season.state_dict())
    assert torch.equal(other.factor("value_30d", days_after(0)), season.factor("value_30d", days_after(0)))
    old = season_of({SLOTS_OF_A_YEAR: 0.4})
    old.load_state_dict({})
    assert not old.has_learned
    other.forget()
    assert not other.has_learned


def wave(years: float, amplitude: float, noise: float, seed: int = 0) -> np.ndarray:
    slots = np.arange(NUM_SLOTS)
    log_ratio_T = amplitude * np.sin(2 * np.pi * slots / SLOTS_OF_A_YEAR)
    log_ratio_T = log_ratio_T + noise * np.random.default_rng(seed).standard_normal(NUM_SLOTS)
    return np.where(slots < years * SLOTS_OF_A_YEAR, log_ratio_T, np.nan)


def test_a_season_is_believed_where_years_agree() -> None:
    assert belief(wave(4, 0.3, 0.02), 30) > 0.95
    assert 0.5 < belief(wave(2.5, 0.3, 0.02), 91) <= 1
    assert belief(wave(1.4, 0.3, 0.02), 91) == 0  # five months in two years: fewer than two windows
    # An opposite year is no season.
    upside_down = wave(2, 0.3, 0.02)
    upside_down[SLOTS_OF_A_YEAR:] *= -1
    assert belief(upside_down, 30) == 0


def test_noise_is_hardly_believed() -> None:
    assert np.mean([belief(wave(3, 0.0, 0.1, seed), 14) for seed in range(50)]) < 0.06


@pytest.mark.parametrize("years", [1.6, 2.5, 3.5])
def test_the_drift_is_found_whatever_the_season(years: float) -> None:
    ago = np.arange(NUM_SLOTS) / SLOTS_OF_A_YEAR
    for amplitude in (0.0, 0.5):
        assert yearly_drift(wave(years, amplitude, 0.0) - 0.3 * ago) == pytest.approx(0.3)
    assert yearly_drift(wave(0.9, 0.5, 0.0)) == 0.0  # nothing is a year apart


@pytest.mark.parametrize("years", [2.5, 3.5, 4.0])
@pytest.mark.parametrize("days", [30, 91])
def test_what_drifts_bends_or_steps_is_no_season(years: float, days: int) -> None:
    """Over two years and a half and more; on less, a step beside noise may be read as one."""
    ago, random = np.arange(NUM_SLOTS) / SLOTS_OF_A_YEAR, np.random.default_rng(0)
    for shape in (0.3 * ago, -0.3 * ago, 0.15 * (ago - 1.2) ** 2, 0.3 * (ago < 1.2)):
        log_ratio_T = shape + wave(years, 0.0, 0.02) + 0.02 * random.standard_normal(NUM_SLOTS)
        assert belief(log_ratio_T + yearly_drift(log_ratio_T) * ago, days) < 0.25


def test_log_ratios_are_about_the_total() -> None:
    found = log_ratios(np.array([2.0, 0.0, 8.0]), np.array([4.0, 3.0, 1.0]))
    assert found[[0, 2]] == pytest.approx([np.log(0.5 / 2), np.log(8 / 2)])  # 10 for 5 in all
    assert np.isnan(found[1])
    assert np.isnan(log_ratios(np.array([-1.0, 0.0]), np.ones(2))).all()


@given(st.lists(st.floats(-1.5, 1.5), min_size=1, max_size=30), st.floats(0.1, 10.0))
def test_a_season_leaves_the_total_of_the_past(log_season: list[float], level: float) -> None:
    # What was expected is the same of all times; moved in full, it is what came, at the level that was expected.
    realised_T, expected_T = np.exp(log_season), np.full(len(log_season), level)
    moved_T = expected_T * np.exp(log_ratios(realised_T, expected_T))
    assert moved_T.sum() == pytest.approx(expected_T.sum())
    assert moved_T / moved_T[0] == pytest.approx(realised_T / realised_T[0])


def seasonal_splits(
    years: float,
    amplitude: float,
    horizons_days: tuple[int, ...] = (30,),
    later: float = 1.0,
    yearly_growth: float = 0.0,
) -> Splits:
    """Customers who buy for a pound at a rate that swings with the year and may grow; nobody leaves.

    later: what they pay after the test cutoff.
    """
    random, days = np.random.default_rng(0), int(365 * years)
    rate_D = 0.05 * (1 + amplitude * np.sin(2 * np.pi * np.arange(days) / YEAR_DAYS))
    rate_D = rate_D * np.exp(yearly_growth * np.arange(days) / YEAR_DAYS)
    customer_P, day_P = np.nonzero(random.random((300, days)) < rate_D)
    # Everybody is there from the first day.
    customer_P, day_P = np.concatenate([np.arange(300), customer_P]), np.concatenate([np.zeros(300, int), day_P])
    longest = horizons_days[-1]
    events = pd.DataFrame(
        {
            "customer_id": customer_P,
            "event_time": pd.Timestamp("2015-01-01 12:00") + pd.to_timedelta(day_P, unit="D"),
            "event_type": "purchase",
            "amount": np.where(day_P > days - 2 * longest, later, 1.0),
        }
    )
    store = store_from_frame(events, EventSchema(timezone="UTC", currency="GBP"))
    last = pd.Timestamp("2015-01-01") + pd.Timedelta(days=days)
    val, test = ((last - pd.Timedelta(days=back * longest)).strftime("%Y-%m-%d") for back in (4, 2))
    return Splits(store, Windows(val, test, horizons_days, holdout_share=0.0))


class Flat(torch.nn.Module):
    """Says the same of everybody: the mean of the whole history."""

    def __init__(self, horizons_days: tuple[int, ...]) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.season = Season([f"{kind}_{days}d" for kind in ("value", "purchases") for days in horizons_days])

    def predict(self, batch: JourneyBatch, levels: Sequence[float] | torch.Tensor) -> dict[str, torch.Tensor]:
        said_Q = torch.full((len(batch.cutoff_Q),), 1.5)
        return self.season(
            {f"{target}_expected": said_Q for target in self.season.targets},
            batch.cutoff_Q,
            self.season.asked_levels(levels, said_Q),
            levels,
        )


def taught(splits: Splits) -> tuple[Season, dict[str, float]]:
    model, options = Flat(splits.windows.horizons_days), TrainingOptions()
    vocabulary = fit_vocabulary(splits, options, splits.select_panel, splits.select_until)
    facts = learn_season(model, Gatherer(splits.store, vocabulary), splits, splits.test_cutoff, seed=0)  # type: ignore[arg-type]
    return model.season, facts


def test_the_season_of_a_world_is_found_at_any_time_of_the_year() -> None:
    splits = seasonal_splits(3.5, 0.6)
    season, facts = taught(splits)
    assert min(facts["season_value_30d"], facts["season_purchases_30d"]) > 0.9
    for back in (0, 91, 182):
        cutoff = splits.test_cutoff - back * MICROSECONDS_PER_DAY
        day = (cutoff - splits.store.manifest.first_time) / MICROSECONDS_PER_DAY
        true = 1 + 0.6 * np.sin(2 * np.pi * (np.arange(1, 31) + day) / YEAR_DAYS).mean()
        found = season.factor("value_30d", torch.tensor([cutoff])).item()
        # Over three years and a half the rate is .03 above its mean, and 300 customers buy some 450 times in a window.
        assert np.log(found) == pytest.approx(np.log(true), abs=0.12)


def test_no_season_is_found_where_there_is_none_or_too_short_a_past() -> None:
    season, _ = taught(seasonal_splits(3.5, 0.0))
    cutoffs = torch.arange(26) * (STEP_DAYS * MICROSECONDS_PER_DAY) + int(season.until)
    assert (season.factor("value_30d", cutoffs).log().abs() < 0.05).all()
    assert taught(seasonal_splits(1.3, 0.6))[1] == {}


@pytest.mark.parametrize("years", [2.5, 3.5])
@pytest.mark.parametrize("yearly_growth", [0.3, -0.3])
def test_a_trend_passes_for_no_season(years: float, yearly_growth: float) -> None:
    splits = seasonal_splits(years, 0.0, (30, 91), yearly_growth=yearly_growth)
    season, _ = taught(splits)
    for target in season.targets:
        moved = season.factor(target, torch.tensor([splits.test_cutoff])).log().abs().item()
        assert moved < 0.03


def test_a_season_is_found_beside_a_trend() -> None:
    plain, growing = (seasonal_splits(3.5, 0.6, yearly_growth=growth) for growth in (0.0, 0.3))
    cutoffs = plain.test_cutoff - torch.arange(26) * (STEP_DAYS * MICROSECONDS_PER_DAY)
    found = [taught(splits)[0].factor("value_30d", cutoffs).log() for splits in (plain, growing)]
    assert (found[1] - found[0]).abs().mean() < 0.08 and found[0].abs().mean() > 0.3


def test_what_follows_the_cutoff_teaches_nothing() -> None:
    (plain, facts), (again, same) = (taught(seasonal_splits(2.5, 0.6, later=later)) for later in (1.0, 100.0))
    assert facts == same and all(torch.equal(part, again.get_buffer(name)) for name, part in plain.named_buffers())


def test_a_horizon_of_a_year_has_no_season() -> None:
    asked = seasonal_splits(6, 0.6, horizons_days=(30, 365))
    assert set(taught(asked)[1]) == {"season_value_30d", "season_purchases_30d"}


def test_a_bundle_carries_its_season(tmp_path: Path) -> None:
    bundle = shop_bundle()
    horizon = bundle.horizons_days[-1]
    target = f"value_{horizon}d"
    plain = bundle.predict(shop_events(), CUTOFF, attributes=shop_attributes())
    cutoff = parse_cutoff(CUTOFF, ZONE)
    bundle.model.season.learn(cutoff, target, torch.full((NUM_SLOTS,), -0.5), 1.0)
    moved = bundle.predict(shop_events(), CUTOFF, attributes=shop_attributes())
    shorter = plain[f"value_{bundle.horizons_days[0]}d_expected"]
    wanted = np.maximum(plain[f"{target}_expected"] * np.exp(-0.5), shorter)
    assert moved[f"{target}_expected"].to_numpy() == pytest.approx(wanted.to_numpy(), rel=1e-4)
    of_counts = [name for name in plain if name.startswith("purchases_")]
    pd.testing.assert_frame_equal(moved[of_counts], plain[of_counts])  # without a season of their own
    loaded = Bundle.load(bundle.save(tmp_path / "bundle"))
    pd.testing.assert_frame_equal(loaded.predict(shop_events(), CUTOFF, attributes=shop_attributes()), moved)
    explained = loaded.explain(shop_events(), CUTOFF, target, shop_attributes())
    said = explained.customers.set_index("customer_id")["prediction"]
    assert said.to_numpy() == pytest.approx(moved.set_index("customer_id")[f"{target}_expected"][said.index].to_numpy())
    assert explained.customers["is_complete"].all()
