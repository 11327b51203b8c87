"""Export the bundle of a trained run: copied, loaded again, and compared before it says done."""

from __future__ import annotations

import datetime as dt
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from constellation.errors import InputError

if TYPE_CHECKING:
    import pandas as pd
    import polars as pl

    from constellation.bundle import Bundle
    from constellation.journeys.dataset import DataSet
    from constellation.journeys.store import Store
    from constellation.policies.policy import Policy
    from constellation.tracking import Run

PYFUNC = "mlflow_model"


def export(
    run: Run,
    *,
    trained: str | Path,
    to: str | None = None,
    data: DataSet | None = None,
    cutoff: str | None = None,
    num_customers: int = 500,
    trusted: Sequence[str] = (),
    policy: Mapping[str, Policy] | None = None,
) -> dict[str, float]:
    """Write the bundle of ``trained`` to ``to``, by default ``bundle`` in the run's folder; log it as an MLflow model.

    The trained model answers ``num_customers`` customers of ``data`` from its prepared store at ``cutoff`` (null: the
    test cutoff); the exported one reads the same events from a raw Parquet file. They must agree to 1e-5 relative.
    Without ``data`` the customers are made up. trusted: modules of your own that the model is made of. policy: of a run
    of objective=engagement, fitted on its decisions and put into the bundle; the first is the one it takes unasked.
    Raises InputError where the run has no bundle or ``data`` is not what it was trained on.
    """
    from constellation.bundle import Bundle, locate
    from constellation.bundle.bundle import TOLERANCE
    from constellation.bundle.files import is_engagement
    from constellation.bundle.table import largest_difference

    place = locate(trained)
    if is_engagement(place):
        from constellation.commands.engagement.exporting import export_engagement

        return export_engagement(
            run,
            trained=Path(trained),
            folder=place,
            to=to,
            data=data,
            cutoff=cutoff,
            num_customers=num_customers,
            policy=policy,
            trusted=trusted,
        )
    if policy:
        raise InputError(f"policy is for runs of objective=engagement; {place} is another bundle. Leave it out.")
    bundle = Bundle.load(place, trusted=tuple(trusted))
    if num_customers < 1:
        raise InputError(f"num_customers must be at least 1, found {num_customers}.")
    folder = bundle.save(Path(to) if to is not None else run.folder / "bundle")
    exported = Bundle.load(folder, trusted=tuple(trusted))
    if data is None:
        expected, found = _answers_to_made_up(bundle, exported, num_customers)
    else:
        expected, found = _answers_to_data(bundle, exported, _store(bundle, data), data, cutoff, num_customers)
    difference = largest_difference(expected, found)
    if not difference <= TOLERANCE:
        raise RuntimeError(
            f"The exported bundle in {folder} does not answer as the trained model does: the largest relative "
            f"difference is {difference:.2e}, over {TOLERANCE:.0e}. Do not use it."
        )
    metrics = {"export/largest_difference": difference, "export/num_customers_compared": float(len(found))}
    run.log_metrics(metrics)
    if run.mlflow_run_id is not None:
        from constellation.bundle.pyfunc import save_pyfunc

        save_pyfunc(exported, folder, run.folder / PYFUNC, trusted=tuple(trusted))
        run.log_file(run.folder / PYFUNC)
        print(f"MLflow model: runs:/{run.mlflow_run_id}/{PYFUNC}")
    print(
        f"Bundle: {folder}\nLoaded again and compared on {len(found):,} {'made-up ' if data is None else ''}customers: "
        f"largest relative difference {difference:.1e}."
    )
    return metrics


def _store(bundle: Bundle, data: DataSet) -> Store:
    from constellation.journeys.prepare import prepare

    store = prepare(data)
    trained_on = bundle.trained_on.get("fingerprint")
    if trained_on is not None and trained_on != store.manifest.content:
        raise InputError(
            f"The run was trained on the data set {bundle.trained_on.get('data')} with fingerprint {trained_on}; the "
            f"data set {data.name} here has {store.manifest.content}. Name that one, or leave data out."
        )
    return store


def _answers_to_data(
    bundle: Bundle, exported: Bundle, store: Store, data: DataSet, cutoff: str | None, num_customers: int
) -> tuple[pd.DataFrame, pd.DataFrame]:
    from constellation.bundle.raw import raw_attributes, raw_events
    from constellation.bundle.reading import cutoff_time
    from constellation.journeys.derived_windows import settle
    from constellation.journeys.windows import Windows, at_risk

    windows = settle(data.windows, store)
    if cutoff is None and isinstance(windows, Windows):
        cutoff = windows.test_cutoff
    if cutoff is None:  # customers have cutoffs of their own: all that is known
        cutoff = _moment(store)
    time = cutoff_time(cutoff, store.schema)
    risk = at_risk(store, time)
    chosen = np.sort(np.random.default_rng(0).permutation(risk)[:num_customers])
    expected = bundle.predict_customers(store, chosen, time)
    found = _from_file(exported, raw_events(store, chosen), cutoff, raw_attributes(store, chosen))
    return expected, found


def _moment(store: Store) -> str:
    """The end of what a store knows, to the microsecond, or its last rank."""
    from constellation.zones import EPOCH

    until = store.manifest.observed_until
    return (EPOCH + dt.timedelta(microseconds=until)).isoformat() if store.has_clock else str(until)


def _answers_to_made_up(bundle: Bundle, exported: Bundle, num_customers: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    from constellation.bundle.example import example_events
    from constellation.bundle.reading import as_polars

    events = example_events(bundle.vocabulary, bundle.schema, num_customers)
    return bundle.predict(events, None), _from_file(exported, as_polars(events, "events"), None, None)


def _from_file(bundle: Bundle, events: pl.DataFrame, cutoff: str | None, attributes: Any) -> pd.DataFrame:
    """Predictions by the way that a user's file takes."""
    from constellation.bundle.raw import read_events

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "events.parquet"
        events.write_parquet(path)
        return bundle.predict(read_events(path, bundle.schema, events.columns), cutoff, attributes)
