"""A table of decisions that says how likely each action was, and what was known: both reach the learner as they are."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from constellation.commands.engagement.decided import LOGGED, decided
from constellation.commands.engagement.options import EngagementOptions
from constellation.errors import InputError
from constellation.journeys.dataset import DataSet
from constellation.journeys.decision_features import FeatureRecipe
from constellation.journeys.decisions import DecisionRule
from constellation.journeys.prepare import prepare
from constellation.journeys.sources import SqlSource
from constellation.journeys.store import Store
from constellation.journeys.windows import Windows
from constellation.policies.cross_fit import TRAIN_ONLY
from constellation.schema import EventSchema

DAY = 86_400_000_000


def table(num: int = 200) -> pl.DataFrame:
    rng = np.random.default_rng(0)
    customer = np.repeat(np.arange(num // 2), 2)
    chance = rng.dirichlet([2.0, 1.0], num)
    action = (rng.random(num) < chance[:, 1]).astype(int)
    return pl.DataFrame(
        {
            "customer_id": customer,
            "decision_time": pl.Series(1_700_000_000_000_000 + DAY * np.tile([0, 7], num // 2)).cast(
                pl.Datetime("us", "UTC")
            ),
            "action": pl.Series(["none", "mail"]).gather(action),
            "reward": rng.normal(size=num),
            "propensity_none": chance[:, 0],
            "propensity_mail": chance[:, 1],
            "context_visits": rng.integers(0, 9, num),
            "context_mood": rng.normal(size=num),
        }
    )


def data_of(folder: Path, frame: pl.DataFrame) -> DataSet:
    frame.write_parquet(folder / "decisions.parquet")
    return DataSet(
        name="logged",
        root=str(folder),
        cache=str(folder / "cache"),
        source=SqlSource(decisions_sql="SELECT * FROM '{root}/decisions.parquet'"),
        schema=EventSchema(),
        windows=Windows("2023-12-01", "2023-12-10", (3,)),
        decisions=DecisionRule(kind="table", reward_days=3),
    )


def test_propensities_and_context_survive_the_store(tmp_path: Path) -> None:
    frame = table().sort("customer_id", "decision_time")
    data = data_of(tmp_path, frame.sample(fraction=1.0, shuffle=True, seed=1))
    store = prepare(data)
    decisions = Store.open(next((tmp_path / "cache" / "stores").iterdir())).decisions
    assert decisions is not None and decisions.context_names == ("visits", "mood")
    names = [str(name) for name in decisions.actions[1:]]
    np.testing.assert_allclose(decisions.propensity_QA, frame.select(f"propensity_{name}" for name in names).to_numpy())
    np.testing.assert_allclose(decisions.context_QX[:, 1], frame["context_mood"], rtol=1e-6)
    ground = decided(data, store, EngagementOptions(num_folds=2), seed=0)
    assert ground.propensities == LOGGED
    np.testing.assert_allclose(ground.log.logging_QA, decisions.propensity_QA)
    chosen = np.where(frame["action"] == "mail", frame["propensity_mail"], frame["propensity_none"])
    np.testing.assert_allclose(ground.log.propensity_Q, chosen)
    assert {"context_visits", "context_mood", "past_mail"} <= set(ground.features.names)
    alone = decided(data, store, EngagementOptions(num_folds=2, context_alone=True), seed=0)
    assert alone.features.names == ("context_visits", "context_mood")
    np.testing.assert_array_equal(alone.features.values_QX[:, 0], frame["context_visits"])
    recipe = FeatureRecipe.from_json(alone.recipe.to_json())
    assert recipe == alone.recipe
    with pytest.raises(InputError, match="context_visits"):
        recipe.compute(store, replace(decisions, context_QX=None, context_names=()))


def test_an_action_that_nobody_happened_to_choose_is_still_one(tmp_path: Path) -> None:
    frame = table().with_columns(
        propensity_none=pl.col("propensity_none") * 0.9,
        propensity_mail=pl.col("propensity_mail") * 0.9,
        propensity_call=pl.lit(0.1),
    )
    decisions = prepare(data_of(tmp_path, frame)).decisions
    assert decisions is not None and set(decisions.actions[1:]) == {"none", "mail", "call"}
    np.testing.assert_allclose(decisions.propensity_QA.sum(axis=1), 1.0)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"propensity_mail": pl.lit(0.9)}, "add up to 1"),
        ({"propensity": pl.lit(0.5)}, "disagree about the chosen action"),
    ],
)
def test_tables_that_contradict_themselves_are_refused(tmp_path: Path, change: dict[str, pl.Expr], said: str) -> None:
    with pytest.raises(InputError, match=said):
        prepare(data_of(tmp_path, table().with_columns(**change)))
    with pytest.raises(InputError, match="give all or none"):
        prepare(data_of(tmp_path, table().drop("propensity_mail")))


def test_context_alone_needs_context(tmp_path: Path) -> None:
    bare = table().select(pl.exclude("context_visits", "context_mood"))
    data = data_of(tmp_path, bare)
    with pytest.raises(InputError, match="no context to read alone"):
        decided(data, prepare(data), EngagementOptions(num_folds=2, context_alone=True), seed=0)


def rounds_of(rounds: int) -> pl.DataFrame:
    """So many rounds of 60 customers, four days apart, and a last one whose rewards are not known."""
    parts = [
        table()
        .head(60)
        .with_columns(
            customer_id=pl.int_range(60),
            decision_time=pl.lit(1_700_000_000_000_000 + DAY * 4 * place).cast(pl.Datetime("us", "UTC")),
            context_visits=pl.int_range(60) + 100 * place,
            matured=pl.lit(place < rounds),
        )
        for place in range(rounds + 1)
    ]
    return pl.concat(parts)


def test_a_look_ahead_finds_the_next_decision_even_where_its_reward_is_not_known(tmp_path: Path) -> None:
    data = data_of(tmp_path, rounds_of(3))
    options = EngagementOptions(num_folds=2, context_alone=True, lookahead=2)
    ground = decided(data, prepare(data), options, seed=0)
    ahead = ground.ahead
    assert ahead is not None and ahead.num_windows == 2 and len(ground.log) == 180
    visits_E = np.concatenate([ahead.features_QX, ahead.late_SX])[:, 0]
    np.testing.assert_array_equal(visits_E[ahead.next_Q], ground.features.values_QX[:, 0] + 100)
    np.testing.assert_array_equal(np.sort(ahead.late_SX[:, 0]), 300 + np.arange(60))
    assert decided(data, prepare(data), replace(options, lookahead=0), seed=0).ahead is None
    # Two rounds are learned from, known by the end of that day; what is decided after it is not seen by the second.
    split = decided(data, prepare(data), replace(options, test_from="2023-11-21"), seed=0)
    assert split.ahead is not None and (split.fold_Q == TRAIN_ONLY).sum() == 120
    np.testing.assert_array_equal(split.ahead.next_Q < 0, split.features.values_QX[:, 0] // 100 == 1)
    # After the first round alone nobody who is learned from is followed, whatever comes later.
    with pytest.raises(InputError, match=r"60 of 60 decisions have none by engagement\.test_from=2023-11-17"):
        decided(data, prepare(data), replace(options, test_from="2023-11-17"), seed=0)


def test_customers_who_are_not_decided_about_again_cannot_be_looked_ahead_at(tmp_path: Path) -> None:
    data = data_of(tmp_path, rounds_of(1).filter("matured").vstack(rounds_of(2).filter("matured").tail(60)).head(115))
    with pytest.raises(InputError, match=r"lookahead=1 .* 60 of 115 decisions have none"):
        decided(data, prepare(data), EngagementOptions(num_folds=2, context_alone=True, lookahead=1), seed=0)
