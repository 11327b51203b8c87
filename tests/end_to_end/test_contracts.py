"""Through the console: staying under contract is learned, better than Kaplan-Meier and than a regression on tenure.

Each training takes about half a minute of one core.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from constellation.bundle import Bundle
from constellation.cli import main
from constellation.journeys.store import Store
from constellation.journeys.waits import has_left, waits
from constellation.journeys.windows import Queries, ask, at_risk, parse_cutoff
from constellation.metrics import LEVELS
from constellation.metrics.survival import Followed, SurvivalStatistics
from constellation.worlds.contracts import ContractsWorld

pytestmark = pytest.mark.slow

DAYS, NUM_CUSTOMERS, VAL, TEST = 91, 2000, "2024-07-01", "2024-09-30"
SETTINGS = [
    "data=contracts", f"data.source.arguments.num_customers={NUM_CUSTOMERS}", "encoder=bag", "encoder.width=32",
    "readout.width=64", "objective=[time_to_event,value_hazard]", "baseline=[]", "training.max_epochs=8",
    "num_resamples=50", "tracking=none",
]  # fmt: skip


def trained(folder: Path, *more: str) -> tuple[Store, Bundle, dict[str, float]]:
    assert main(["train", *SETTINGS, *more, f"output={folder.name}_run"]) == 0
    run = folder / f"{folder.name}_run"
    (manifest,) = (folder / ".constellation").rglob("manifest.json")
    return Store.open(manifest.parent), Bundle.load(run / "bundle"), json.loads((run / "metrics.json").read_text())


def questions(store: Store, date: str) -> Queries:
    cutoff = parse_cutoff(date, store.schema.timezone)
    risk = at_risk(store, cutoff)
    queries = ask(store, risk, np.full(len(risk), cutoff), (30, DAYS), store.manifest.observed_until)
    return queries.take(~has_left(store, queries))


def followed(store: Store, queries: Queries) -> Followed:
    found = waits(store, queries)
    return Followed.of(found.churn_QR.min(axis=1), found.watched_Q + 0.1)


def judged(store: Store, queries: Queries, p_end_Q: np.ndarray) -> dict[str, float]:
    statistics = SurvivalStatistics(followed(store, queries), p_end_Q, DAYS)
    return {name: float(values[0]) for name, values in statistics(np.ones((1, len(queries)))).items()}


def regression(store: Store, queries: Queries) -> np.ndarray:
    """P(end) by a logistic regression on plan and log tenure, learned where the horizon ends by the test cutoff."""
    from sklearn.linear_model import LogisticRegression

    def features(asked: Queries) -> np.ndarray:
        first_Q = store.time_N[store.first_event_C[asked.journey_Q]]
        days_Q = (asked.cutoff_Q - first_Q) / 86_400_000_000
        return np.stack([store.attributes_categorical["plan"][asked.journey_Q], np.log1p(days_Q)], axis=1)

    past = questions(store, VAL)
    ended = followed(store, past)
    learned = LogisticRegression().fit(features(past), ended.seen_Q & (ended.time_Q <= DAYS))
    return learned.predict_proba(features(queries))[:, 1]


def best_possible(store: Store, queries: Queries, mirror: bool) -> np.ndarray:
    """P(end) of who knows how the world was made, and the history."""
    truth = ContractsWorld(mirror=mirror).simulate(NUM_CUSTOMERS, seed=0).truth
    table = truth.expected(int(queries.cutoff_Q[0]), DAYS)
    of_customer = dict(zip(table["customer_id"].to_list(), table["p_active_from_history"].to_list(), strict=True))
    ids = np.asarray(store.customer_id_C)[queries.journey_Q]
    return np.array([1 - of_customer[int(each)] for each in ids])


def test_staying_is_learned_and_the_money_that_comes_of_it(work_folder: Path) -> None:
    store, bundle, metrics = trained(work_folder)
    queries = questions(store, TEST)
    answers = bundle.predict_store(store, queries, LEVELS)
    model = judged(store, queries, 1 - answers[f"p_active_{DAYS}d"])
    tenure = judged(store, queries, regression(store, queries))
    best = judged(store, queries, best_possible(store, queries, mirror=False))
    # Brier skill is over Kaplan-Meier's share for everybody.
    assert model["brier_skill"] > 0.5 * best["brier_skill"] > 0
    assert model["brier"] < tenure["brier"]
    assert model["concordance"] > tenure["concordance"] + 0.05
    assert model["concordance"] > best["concordance"] - 0.05
    assert metrics[f"test/p_active_{DAYS}d/model/brier_skill"] == pytest.approx(model["brier_skill"], abs=0.02)
    # Payments follow from the hazards, without a head that learns horizons.
    realised = queries.purchases_QK[:, 1].mean()
    assert answers[f"purchases_{DAYS}d_expected"].mean() == pytest.approx(realised, rel=0.12)
    assert answers[f"value_{DAYS}d_expected"].mean() == pytest.approx(queries.value_QK[:, 1].mean(), rel=0.12)
    # Both causes: four in five ends and more are cancellations.
    cancels, lapses = (answers[f"p_end_{cause}_{DAYS}d"].mean() for cause in ("cancel", "lapse"))
    assert 0 < lapses < 0.3 * cancels
    everything = cancels + lapses + answers[f"p_active_{DAYS}d"].mean()
    assert everything == pytest.approx(1.0, abs=1e-3)


def test_in_the_mirror_there_is_little_to_learn(work_folder: Path) -> None:
    store, bundle, _ = trained(work_folder, "data.source.arguments.mirror=true")
    queries = questions(store, TEST)
    answers = bundle.predict_store(store, queries, LEVELS)
    model = judged(store, queries, 1 - answers[f"p_active_{DAYS}d"])
    best = judged(store, queries, best_possible(store, queries, mirror=True))
    assert model["brier_skill"] < best["brier_skill"] + 0.02
    assert model["brier_skill"] > -0.03  # and nothing is made up
