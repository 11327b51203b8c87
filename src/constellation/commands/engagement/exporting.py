"""`export` of a run of objective=engagement: policies fitted, bundle written, loaded again, and compared."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from constellation.bundle.bundle import TOLERANCE
from constellation.bundle.engagement import EngagementBundle
from constellation.bundle.engagement_answers import Answers
from constellation.errors import InputError
from constellation.journeys.decision_questions import ask_decisions, decisions_table
from constellation.policies.kept import fitted_on_all
from constellation.policies.policy import Policy
from constellation.policies.saved import Saved, has_decisions
from constellation.schema import CUSTOMER_ID

if TYPE_CHECKING:
    from constellation.journeys.dataset import DataSet
    from constellation.journeys.store import Store
    from constellation.tracking import Run

PYFUNC = "mlflow_model"


def export_engagement(
    run: Run,
    *,
    trained: Path,
    folder: Path,
    to: str | None,
    data: DataSet | None,
    cutoff: str | None,
    num_customers: int,
    policy: Mapping[str, Policy] | None,
    trusted: Sequence[str] = (),
) -> dict[str, float]:
    """Write the bundle in ``folder`` to ``to``, with ``policy`` fitted on the decisions of the run ``trained``.

    The bundle answers ``num_customers`` customers from the prepared store of ``data``, the written one from raw tables.
    They must agree to 1e-5 relative. Raises InputError where ``data`` is not what the run was trained on.
    """
    bundle = EngagementBundle.load(folder, trusted=tuple(trusted))
    if policy:
        if not has_decisions(trained):
            raise InputError(f"{trained} holds no decisions to fit policies on: export the run itself, not its bundle.")
        experiment = Saved.load(trained).experiment(next(iter(bundle.systems)))
        bundle.policies = {name: fitted_on_all(experiment, each) for name, each in policy.items()}
    written = bundle.save(Path(to) if to is not None else run.folder / "bundle")
    metrics = {"export/num_policies": float(len(bundle.policies))}
    if data is None:
        print(f"Bundle: {written}\nNot compared on customers: name the run's data set with data=... for that.")
    else:
        exported = EngagementBundle.load(written, trusted=tuple(trusted))
        difference, num = _compare(bundle, exported, _store(bundle, data), cutoff, num_customers)
        if not difference <= TOLERANCE:
            raise RuntimeError(
                f"The exported bundle in {written} does not answer as the trained models do: the largest difference is "
                f"{difference:.2e} of the spread of the answers, over {TOLERANCE:.0e}. Do not use it."
            )
        metrics |= {"export/largest_difference": difference, "export/num_customers_compared": float(num)}
        print(
            f"Bundle: {written}\nLoaded again and compared on {num:,} customers: largest difference {difference:.1e}."
        )
    run.log_metrics(metrics)
    if run.mlflow_run_id is not None:
        from constellation.bundle.engagement_pyfunc import save_engagement_pyfunc

        save_engagement_pyfunc(bundle, written, run.folder / PYFUNC, trusted=tuple(trusted))
        run.log_file(run.folder / PYFUNC)
        print(f"MLflow model: runs:/{run.mlflow_run_id}/{PYFUNC}")
    return metrics


def _store(bundle: EngagementBundle, data: DataSet) -> Store:
    from constellation.journeys.prepare import prepare

    store = prepare(data)
    trained_on = bundle.trained_on.get("fingerprint")
    if trained_on != store.manifest.content:
        raise InputError(
            f"The run was trained on the data set {bundle.trained_on.get('data')} with fingerprint {trained_on}; the "
            f"data set {data.name} here has {store.manifest.content}. Name that one."
        )
    return store


def _compare(
    bundle: EngagementBundle, exported: EngagementBundle, store: Store, cutoff: str | None, num_customers: int
) -> tuple[float, int]:
    """Largest difference between answers from a store and from raw files, by the spread of each action's answers."""
    import polars as pl

    from constellation.bundle.raw import raw_attributes, raw_events
    from constellation.bundle.reading import cutoff_time

    if num_customers < 1:
        raise InputError(f"num_customers must be at least 1, found {num_customers}.")
    time = store.manifest.observed_until if cutoff is None else cutoff_time(cutoff, store.schema)
    past = None if store.decisions is None else decisions_table(store)
    asked = ask_decisions(store, bundle.rule, bundle.actions, time, past, context=bundle.recipe.context)
    rows = np.sort(np.random.default_rng(0).permutation(len(asked))[:num_customers])
    asked = asked.take(rows)
    expected = bundle.answer(store, asked, policy=bundle.policy(None))
    customers = asked.journey_Q
    ids = store.customer_id_C[customers].tolist()
    events = raw_events(store, customers) if store.num_events else None
    # As a person writes it: open decisions without an action, after those that were made.
    open_ones = pl.DataFrame({CUSTOMER_ID: pl.Series(ids), "decision_time": asked.time_Q, "action": [None] * len(ids)})
    table = open_ones.with_columns(pl.col("action").cast(pl.String))
    if past is not None:
        table = pl.concat([past.filter(pl.col(CUSTOMER_ID).is_in(ids)), table], how="diagonal")
    if store.has_clock:
        table = table.with_columns(pl.col("decision_time").cast(pl.Datetime("us", "UTC")))
    with tempfile.TemporaryDirectory() as place:
        from constellation.bundle.raw import read_decisions, read_events

        table.write_parquet(Path(place) / "decisions.parquet")
        if events is not None:
            events.write_parquet(Path(place) / "events.parquet")
            events = read_events(Path(place) / "events.parquet", bundle.schema, events.columns)
        decisions = read_decisions(Path(place) / "decisions.parquet", None if events is None else events[CUSTOMER_ID])
        found = exported.predict(events, None, raw_attributes(store, customers), decisions=decisions)
    return _difference(expected, found), len(rows)


def _difference(expected: Answers, found: Answers) -> float:
    if expected.customer_id_Q.tolist() != found.customer_id_Q.tolist():
        return float("inf")
    largest = 0.0
    for name in ("expected_QA", "lower_QA", "propensity_QA"):
        one, two = getattr(expected, name), getattr(found, name)
        size_A = np.maximum(np.maximum(np.abs(one).mean(axis=0), one.std(axis=0)), 1e-12)
        largest = max(largest, float((np.abs(one - two) / size_A).max()))
    return largest
