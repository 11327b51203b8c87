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
