"""From a table of contacts to verdicts through the command line, on a world whose best policy is known."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from constellation.cli import main
from constellation.errors import InputError
from constellation.policies.cross_fit import (
    EVERYBODY,
    EffectShrinkage,
    FoldModels,
    cross_fit,
    fitted_propensities,
    person_folds,
)
from constellation.policies.evaluation import evaluate_policies
from constellation.policies.greedy import Greedy
from constellation.policies.outcomes import BoostedOutcome, RidgeOutcome
from constellation.policies.saved import Saved
from tests.end_to_end.console import metrics_of, without_pictures
from tests.end_to_end.contacts import write_data_set, write_world


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_data_set(tmp_path)
    return tmp_path


def run(*words: str, pictures: bool = False) -> int:
    with nullcontext() if pictures else without_pictures():
        return main([*words, "tracking=none"])


TRAIN = ("train", "objective=engagement", "data=contacts", "engagement.num_folds=2", "outcome=[ridge]")
EVALUATE = ("evaluate", "policy=[greedy,pessimistic]", "num_resamples=50")


def test_a_policy_that_is_better_is_found_better(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_world(world, effect=6.0)
    small = ["encoder=gru", "encoder.width=8", "readout.width=8", "optimizer.lr=0.02", "training.max_epochs=6"]
    assert run(*TRAIN, *small, "output=trained") == 0
    fitted = metrics_of("trained")
    assert fitted["outcome/model/r2_effects"] > 0.2
    assert fitted["outcome/ridge/r2_effects"] > 0.2
    assert run(*EVALUATE, "run=trained", "output=judged", pictures=True) == 0
    assert (world / "judged" / "figures" / "overlap.png").stat().st_size > 5000
    found = metrics_of("judged")
    for key in (
        "value_dr", "value_dr_low", "value_dr_high", "value_snips", "effective_sample_size", "gain_over_logging_low",
        "gain_over_best_constant_low", "verdict",
    ):  # fmt: skip
        assert f"policy/greedy/{key}" in found
    # Mean reward 2 without effect; the right action adds 6, the best constant one 3 on average, the log 1.5.
    assert found["policy/logged/value_dr"] == pytest.approx(3.5, abs=0.3)
    assert found["policy/best_constant/value_dr"] == pytest.approx(5.0, abs=0.6)
    assert found["policy/greedy/value_dr"] == pytest.approx(8.0, abs=0.8)
    assert found["policy/greedy/verdict"] == 1
    assert found["policy/greedy/gain_over_best_constant_low"] > 0
    assert found["policy/logged/verdict"] <= 0
    assert found["policy/logged/effective_sample_size"] == pytest.approx(fitted["engagement/num_decisions"])
    assert found["uplift/mail/shown"] == 1
    frame = pl.read_parquet("judged/predictions.parquet")
    assert frame.columns == ["customer_id", "action", "expected", "lower", "eligible", "propensity", "cost"]
    assert frame.height == 3 * frame["customer_id"].n_unique()
    assert "better / better" in capsys.readouterr().out
    # The other system of the same run, and one that is not there.
    assert run(*EVALUATE, "run=trained", "system=ridge", "output=judged_ridge") == 0
    assert metrics_of("judged_ridge")["policy/greedy/verdict"] == 1
    assert run(*EVALUATE, "run=trained", "system=oracle", "output=judged_none") == 2
    assert "it has model, ridge" in capsys.readouterr().err


def test_several_seeds_are_judged_together(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_world(world, effect=6.0, num_customers=120)
    fast = ["engagement.sequence_model=false", "engagement.num_members=1", "seeds=[3,1]"]
    assert run(*TRAIN, *fast, "output=trained") == 0
    assert "outcome/ridge/r2_sd" in metrics_of("trained")
    assert (world / "trained" / "seeds" / "1" / "engagement").exists()
    assert run("evaluate", "policy=[greedy]", "num_resamples=20", "run=trained", "output=judged") == 0
    found = metrics_of("judged")
    of_seeds = [Saved.load(world / "trained"), Saved.load(world / "trained" / "seeds" / "1")]
    assert [saved.facts["seed"] for saved in of_seeds] == [3, 1]
    values = [
        evaluate_policies(saved.experiment(), {"greedy": Greedy()}, num_resamples=20)["greedy"].value_dr.value
        for saved in of_seeds
    ]
    assert values[0] != values[1]
    assert found["policy/greedy/value_dr"] == pytest.approx(np.mean(values))
    assert found["policy/greedy/value_dr_sd"] == pytest.approx(np.std(values, ddof=1))
    assert found["policy/greedy/verdict"] == 1
    assert "means over 2 seeds" in capsys.readouterr().out
    assert run(*TRAIN, "seeds=[1,1]", "output=never") == 2
    assert "different numbers" in capsys.readouterr().err


@pytest.mark.slow
def test_nothing_is_claimed_in_the_mirror_world(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_world(world, effect=0.0)
    late = ["engagement.sequence_model=false", "engagement.test_from=2023-12-03"]
    assert run(*TRAIN, *late, "output=trained") == 0
    assert run(*EVALUATE, "run=trained", "output=judged") == 0
    found = metrics_of("judged")
    assert all(found[f"policy/{name}/verdict"] <= 0 for name in ("greedy", "pessimistic"))
    assert all(found[f"policy/{name}/verdict_over_logging"] == 0 for name in ("greedy", "pessimistic"))
    assert "not shown" in capsys.readouterr().out
    assert run(*TRAIN, "engagement.test_from=2030-01-01", "output=never") == 2
    assert "no decision after then" in capsys.readouterr().err
    assert run("train", "objective=[engagement,next_event]", "data=contacts", "output=both") == 2
    assert "learned alone" in capsys.readouterr().err


def test_cross_fitting_does_not_see_the_fold() -> None:
    rng = np.random.default_rng(1)
    num, logging_QA = 900, np.full((900, 3), 1 / 3)
    features_QX, action_Q = rng.normal(size=(num, 4)), rng.integers(0, 3, num)
    reward_Q = features_QX[:, 0] * (action_Q == 1) + rng.normal(size=num)
    customer_Q = rng.integers(0, 150, num)
    fold_Q = person_folds(customer_Q, 3, 0)
    assert all(len(np.unique(fold_Q[customer_Q == customer])) == 1 for customer in np.unique(customer_Q))
    for model in (RidgeOutcome(), BoostedOutcome(num_trees=5, effect_trees=5, min_samples_leaf=20)):

        def fitted(rewards, model=model):
            return cross_fit(
                model,
                features_QX,
                action_Q,
                rewards,
                np.zeros((3, 0)),
                customer_Q,
                fold_Q,
                logging_QA,
                clip_quantile=0.99,
            )

        spoiled_Q = np.where(fold_Q == 0, 1e6, reward_Q)
        before, after = fitted(reward_Q), fitted(spoiled_Q)
        np.testing.assert_array_equal(before.members_MQA[:, fold_Q == 0], after.members_MQA[:, fold_Q == 0])
        np.testing.assert_array_equal(before.inner_KQA[0], after.inner_KQA[0])
        assert not np.allclose(before.members_MQA[:, fold_Q == 1], after.members_MQA[:, fold_Q == 1])
        assert np.isfinite(before.members_MQA).all()
    only = np.where(fold_Q == 0, 2, action_Q % 2)
    with pytest.raises(InputError, match="seen in the test part alone"):
        cross_fit(RidgeOutcome(), features_QX, only, reward_Q, np.zeros((3, 0)), customer_Q, fold_Q, logging_QA)
    chance_QA = fitted_propensities(features_QX, (features_QX[:, 0] > 0).astype(int), 2, fold_Q, customer_Q)
    assert chance_QA[features_QX[:, 0] > 0.5, 1].mean() > 0.9
    np.testing.assert_allclose(chance_QA.sum(axis=1), 1.0)


def test_the_refit_learns_from_the_whole_log() -> None:
    """One member, nothing cut: the very model that one fits on all rows; and the folds know nothing of it."""
    rng = np.random.default_rng(2)
    num, logging_QA = 600, np.full((600, 3), 1 / 3)
    features_QX, action_Q = rng.normal(size=(num, 4)), rng.integers(0, 3, num)
    reward_Q = 2 * features_QX[:, 0] * (action_Q == 1) + rng.normal(size=num)
    customer_Q = rng.integers(0, 150, num)
    fold_Q, none_AY = person_folds(customer_Q, 3, 0), np.zeros((3, 0))
    given = (features_QX, action_Q, reward_Q, none_AY, customer_Q, fold_Q, logging_QA)
    kept: list[FoldModels] = []
    found = cross_fit(RidgeOutcome(), *given, num_members=1, refit=True, keep=kept.append)
    plain = cross_fit(RidgeOutcome(), *given, num_members=1)
    np.testing.assert_array_equal(found.members_MQA, plain.members_MQA)
    assert [fitted.fold for fitted in kept] == [0, 1, 2, EVERYBODY]
    whole = RidgeOutcome()
    whole.fit(features_QX, action_Q, reward_Q, none_AY, 3)
    asked = rng.normal(size=(50, 4))
    (member,) = kept[-1].members
    np.testing.assert_allclose(member.predict(asked, none_AY), whole.predict(asked, none_AY), rtol=1e-12)
    # Its shrinkage is what predictions for customers not seen deserve: each row's by the model of the other folds.
    apart_QA = np.zeros((num, 3))
    for fitted in kept[:-1]:
        apart_QA[fold_Q == fitted.fold] = fitted.members[0].predict(features_QX[fold_Q == fitted.fold], none_AY)
    deserved = EffectShrinkage.learn(apart_QA, action_Q, reward_Q, logging_QA)
    assert (kept[-1].shrinkage.kept, kept[-1].shrinkage.kept_size) == (deserved.kept, deserved.kept_size)
    assert 0.5 < deserved.kept <= 1
