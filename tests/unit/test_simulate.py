"""`constellation simulate`: the files it writes, and that they make a data set."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest
import yaml

from constellation.commands.simulate import simulate, truth_table
from constellation.journeys.dataset import DataSet
from constellation.journeys.prepare import prepare
from constellation.journeys.sources import SqlSource
from constellation.journeys.splits import Splits
from constellation.journeys.windows import Windows
from constellation.schema import CUSTOMER_ID, EventSchema
from constellation.tracking import Run
from constellation.worlds.order import OrderWorld
from constellation.worlds.simulated import World
from constellation.worlds.spenders import SpendersWorld


@pytest.mark.parametrize("world", [SpendersWorld(), OrderWorld()], ids=["spenders", "order"])
def test_what_it_writes_is_a_data_set_with_the_truth_beside(world: World, tmp_path: Path, capsys) -> None:
    folder = tmp_path / "draw"
    with Run.start(folder, "simulate") as run:
        simulated = simulate(run, world=world, num_customers=60, seed=4)
    said = capsys.readouterr().out
    assert "constellation train data=simulated" in said
    assert str(folder / "simulated.yaml") in said

    config = yaml.safe_load((folder / "simulated.yaml").read_text())
    parts = {
        name: {key: part for key, part in config[name].items() if key != "_target_"}
        for name in ("source", "schema", "windows")
    }
    data = DataSet(
        name=config["name"],
        source=SqlSource(**parts["source"]),
        schema=EventSchema(**parts["schema"]),
        windows=Windows(**parts["windows"]),
        observed_until=config["observed_until"],
        root=config["root"],
        cache=str(tmp_path / "cache"),
    )
    store = prepare(data)
    assert store.num_customers == 60
    assert store.num_events == simulated.events.height
    assert data.schema == simulated.schema
    assert set(store.attributes_categorical) | set(store.attributes_numeric) == set(simulated.attributes.columns[1:])

    # The truth answers the very questions that an evaluation asks, in the same order of customers.
    splits = Splits(store, data.windows)
    truth = pl.read_parquet(folder / "truth.parquet")
    assert truth.equals(truth_table(simulated))
    at_test = truth.filter(
        (pl.col("cutoff") == data.windows.test_cutoff) & (pl.col("horizon_days") == data.windows.horizons_days[-1])
    )
    assert at_test[CUSTOMER_ID].to_list() == store.customer_id_C[splits.test.journey_Q].tolist()
    assert splits.test.observed_QK.all()
    total, expected = splits.test.value_QK[:, -1].sum(), at_test["value_expected"].sum()
    assert 0.4 * expected < total < 2.5 * expected


def test_the_same_seed_writes_the_same_files(tmp_path: Path) -> None:
    for name in ("one", "two"):
        with Run.start(tmp_path / name, "simulate") as run:
            simulate(run, world=OrderWorld(mirror=True), num_customers=20, seed=9)
    for file in ("events.parquet", "attributes.parquet", "truth.parquet"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()
