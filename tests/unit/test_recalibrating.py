"""What a study learns about its own answers: from which days, from whom, never from the test, and kept for resuming."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from constellation.building import build_model
from constellation.journeys.build import store_from_frame
from constellation.journeys.splits import Splits
from constellation.journeys.vocabulary import Vocabulary
from constellation.journeys.windows import Windows
from constellation.metrics import LEVELS
from constellation.model import JourneyModel
from constellation.recalibration import Corrections, Recalibration, Recalibrator, Shock
from constellation.training.fit import Fitted
from constellation.training.options import TrainingOptions
from constellation.training.recalibrating import CROSS_FITTED, TIME_SLICE, learn_corrections
from constellation.training.study import Study, fit_vocabulary
from tests.bundles import MODEL, SCHEMA, shop_attributes, shop_events

HORIZONS = (3, 10)
OPTIONS = TrainingOptions(windows_days=(2, 7, 30), max_events=50)


def splits_of(val_cutoff: str = "2017-04-01", later: float | None = None) -> Splits:
    """later: amounts after the test cutoff are multiplied by it."""
    events = shop_events(num_customers=60)
    if later is not None:
        events.loc[events["event_time"] > "2017-04-12", "amount"] *= later
    store = store_from_frame(events, SCHEMA, shop_attributes())
    return Splits(store, Windows(val_cutoff, "2017-04-11", HORIZONS, holdout_share=0.0))


def study_of(splits: Splits) -> Study:
    """Untrained: corrections do not ask how good a model is."""
    vocabulary = fit_vocabulary(splits, OPTIONS, splits.select_panel, splits.select_until)
    models = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        models.append(build_model(MODEL, vocabulary, HORIZONS))
    selected, refitted = (Fitted(model, 1, 0) for model in models)
    return Study(selected, vocabulary, refitted, vocabulary, "value_3d/crps")


def never(train: np.ndarray) -> tuple[JourneyModel, Vocabulary]:
    raise AssertionError("nothing needs to be fitted again")


def learned(splits: Splits, folder: Path, refit: Any = never, **settings: Any) -> Corrections:
    return learn_corrections(study_of(splits), splits, Recalibrator(**settings), OPTIONS, folder, refit)


def test_the_slice_before_the_test_teaches_both_horizons(tmp_path: Path) -> None:
    splits = splits_of()
    corrections = learned(splits, tmp_path)
    assert set(corrections.targets) == {"value_3d", "value_10d", "purchases_3d", "purchases_10d"}
    assert {each.method for each in corrections.targets.values()} == {TIME_SLICE}
    assert {each.num_rows for each in corrections.targets.values()} == {len(splits.val)}
    assert set(corrections.shocks) == {"value", "purchases"}
    # One window has come true, beside a prior worth four.
    assert {shock.num_windows for shock in corrections.shocks.values()} == {1.0}
    assert "value_3d" in corrections.describe()[0]
    assert corrections.facts()["train/recalibration_rows_value_3d"] == len(splits.val)


@pytest.mark.parametrize("later", [100.0, 0.0])
def test_nothing_after_the_test_cutoff_is_read(tmp_path: Path, later: float) -> None:
    one, two = learned(splits_of(), tmp_path / "one"), learned(splits_of(later=later), tmp_path / "two")
    assert one.to_json() == two.to_json()


def test_a_horizon_longer_than_the_slice_is_cross_fitted(tmp_path: Path) -> None:
    splits = splits_of("2017-04-06")
    study, folds = study_of(splits), []

    def refit(train: np.ndarray) -> tuple[JourneyModel, Vocabulary]:
        folds.append(train)
        return study.selected.model, study.selected_vocabulary

    corrections = learn_corrections(study, splits, Recalibrator(folds=3), OPTIONS, tmp_path, refit)
    methods = {target: each.method for target, each in corrections.targets.items()}
    assert methods["value_3d"] == methods["purchases_3d"] == TIME_SLICE
    assert methods["value_10d"] == methods["purchases_10d"] == CROSS_FITTED
    # Each fold leaves a third out, all others are learned from, and everybody is left out once.
    everybody = splits.train_journeys
    assert sum(len(everybody) - len(train) for train in folds) == len(everybody)
    assert sorted(np.concatenate([np.setdiff1d(everybody, train) for train in folds])) == sorted(everybody)


def test_without_a_refit_no_horizon_beyond_the_slice_is_learned(tmp_path: Path) -> None:
    splits = splits_of("2017-04-06")
    study = study_of(splits)
    study.refitted = study.selected
    corrections = learn_corrections(study, splits, Recalibrator(), OPTIONS, tmp_path, never)
    assert set(corrections.targets) == {"value_3d", "purchases_3d"}


def test_what_was_learned_is_kept_for_the_same_settings(tmp_path: Path) -> None:
    splits = splits_of()
    first = learned(splits, tmp_path)
    study = study_of(splits)
    study.selected.model = None  # type: ignore[assignment]  # asking it again would fail
    again = learn_corrections(study, splits, Recalibrator(), OPTIONS, tmp_path, never)
    assert again.to_json() == first.to_json()
    with pytest.raises(AttributeError):
        learn_corrections(study, splits, Recalibrator(mean="scale"), OPTIONS, tmp_path, never)


def said(num_rows: int = 40, asked: np.ndarray = LEVELS) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    quantiles = np.sort(rng.gamma(1.0, 10.0, (num_rows, len(asked))), axis=1)
    quantiles[:, asked < 0.2] = 0.0
    return {
        "value_91d_expected": quantiles.mean(axis=1),
        "value_91d_p_zero": np.full(num_rows, 0.2),
        "value_91d_quantiles": quantiles,
        "p_alive": rng.random(num_rows),
    }


def test_corrections_without_targets_only_choose_levels() -> None:
    corrections, answers = Corrections(), said()
    asked = corrections.asked_levels([0.3, 0.305, 0.9])
    np.testing.assert_array_equal(asked, LEVELS)
    new = corrections.apply(answers, asked, [0.305, 0.31])
    np.testing.assert_allclose(new["value_91d_quantiles"][:, 0], answers["value_91d_quantiles"][:, 30])
    between = answers["value_91d_quantiles"][:, 30:32].mean(axis=1)
    np.testing.assert_allclose(new["value_91d_quantiles"][:, 1], between)
    for name in ("value_91d_expected", "value_91d_p_zero", "p_alive"):
        np.testing.assert_array_equal(new[name], answers[name])


def test_a_quantile_does_not_hang_on_what_else_was_asked() -> None:
    answers = said(500)
    rng = np.random.default_rng(1)
    realised = rng.gamma(0.7, 20.0, 500) * (rng.random(500) > 0.4)
    learned = Recalibrator().learn("value_91d", realised, answers, TIME_SLICE)
    corrections = Corrections.from_json(Corrections({"value_91d": learned}, {"value": Shock(0.1, 5.0, 1.0)}).to_json())
    assert corrections.targets["value_91d"] == learned
    assert corrections.shocks["value"] == Shock(0.1, 5.0, 1.0)
    whole = corrections.apply(answers, LEVELS, LEVELS)["value_91d_quantiles"]
    some = corrections.apply(answers, LEVELS, LEVELS[[4, 50, 98]])["value_91d_quantiles"]
    np.testing.assert_allclose(whole[:, [4, 50, 98]], some)
    assert not np.allclose(whole, answers["value_91d_quantiles"])
    assert corrections.asked_levels([0.5, 0.999]).tolist() == [*LEVELS, 0.999]


def test_calibrated_answers_on_few_customers_lose_next_to_nothing() -> None:
    """What nothing is wrong with must stay right: the CRPS of calibrated answers, corrected by what 40 showed."""
    from constellation.metrics.value import crps

    rng = np.random.default_rng(2)
    worse = []
    for _ in range(60):
        scale = rng.gamma(1.0, 10.0, 440)
        shares = -np.log1p(-LEVELS)[None] * scale[:, None]
        answers = {"value_91d_expected": scale, "value_91d_quantiles": shares}
        realised = rng.exponential(scale)
        few = {name: values[:40] for name, values in answers.items()}
        learned = Recalibrator().learn("value_91d", realised[:40], few, TIME_SLICE)
        rest = {name: values[40:] for name, values in answers.items()}
        before = crps(realised[40:], rest["value_91d_quantiles"]).mean()
        worse.append(crps(realised[40:], learned.apply(rest)["value_91d_quantiles"]).mean() / before - 1)
    assert np.mean(worse) < 0.002
    assert np.max(worse) < 0.02


def test_old_bundles_know_no_outermost_level() -> None:
    old = {name: part for name, part in Recalibration("value_91d", TIME_SLICE).to_json().items() if name != "outermost"}
    assert Recalibration.from_json(old).outermost == 0.005
