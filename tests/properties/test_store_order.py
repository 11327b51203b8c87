"""The order of rows, and the way they are cut into chunks and runs, never matter to one bit of a store."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import polars as pl
from hypothesis import given, settings
from hypothesis import strategies as st

from constellation.journeys import layout
from constellation.journeys.build import first_pass, store_from_frame, write_store
from constellation.journeys.rejects import Rejects
from constellation.journeys.spool import Spool
from constellation.schema import EventSchema

SCHEMA = EventSchema(
    timezone="Europe/Berlin", categorical=("shop",), lists=("tags",), numeric=("points",), purchase_types=("purchase",)
)

rows = st.fixed_dictionaries(
    {
        # Few distinct values, so that customers, times and whole rows collide.
        "customer_id": st.sampled_from(["a", "b", "ab", "ä", "c"]),
        "event_time": st.sampled_from(["2024-03-31", "2024-03-31 02:30:00", "2024-01-01", "2024-10-27 02:30:00"]),
        "event_type": st.sampled_from(["purchase", "visit"]),
        "amount": st.sampled_from([None, 0.0, -0.0, 1.1, -2.2, float("nan")]),
        "shop": st.sampled_from([None, "10", "9", ""]),
        "tags": st.sampled_from([None, [], ["x"], ["y", "x"], ["x", "y"], ["x", None]]),
        "points": st.sampled_from([None, 1.0, 2.0]),
    }
)
TYPES = {
    "customer_id": pl.String,
    "event_time": pl.String,
    "event_type": pl.String,
    "amount": pl.Float64,
    "shop": pl.String,
    "tags": pl.List(pl.String),
    "points": pl.Float64,
}


@settings(max_examples=60)
@given(events=st.lists(rows, min_size=1, max_size=40), data=st.data())
def test_shuffled_rows_give_the_same_store(events: list[dict[str, object]], data: st.DataObject) -> None:
    shuffled = data.draw(st.permutations(events))
    one = store_from_frame(pl.DataFrame(events, schema=TYPES), SCHEMA)
    two = store_from_frame(pl.DataFrame(shuffled, schema=TYPES), SCHEMA)
    assert one.manifest == two.manifest
    np.testing.assert_array_equal(one.time_N, two.time_N)
    np.testing.assert_array_equal(one.numeric["amount"].view(np.int64), two.numeric["amount"].view(np.int64))
    np.testing.assert_array_equal(one.categorical["shop"], two.categorical["shop"])
    np.testing.assert_array_equal(one.lists["tags"][0], two.lists["tags"][0])
    np.testing.assert_array_equal(one.amount_sum_N, two.amount_sum_N)


@settings(max_examples=20)
@given(
    seed=st.integers(0, 2**32 - 1),
    num_events=st.integers(1, 400),
    chunk=st.integers(1, 100),
    run_bytes=st.sampled_from([1, 500, 5_000]),
    text_ids=st.booleans(),
)
def test_chunks_and_runs_on_disk_give_the_store_of_memory(
    seed: int, num_events: int, chunk: int, run_bytes: int, text_ids: bool
) -> None:
    generator = np.random.default_rng(seed)
    ids = pl.Series(generator.geometric(0.1, num_events))  # skewed: some customers are longer than a range
    frame = pl.DataFrame(
        {
            "customer_id": "c" + ids.cast(pl.String) if text_ids else ids,
            "event_time": pl.Series(generator.integers(0, 50, num_events)).cast(pl.Date),
            "event_type": pl.Series(["purchase", "visit"]).gather(generator.integers(0, 2, num_events)),
            "amount": np.round(generator.normal(size=num_events), 1),
            "shop": pl.Series(["s", "t", None]).gather(generator.integers(0, 3, num_events)),
            "tags": pl.Series([["x"], ["y", "x"], [], None]).gather(generator.integers(0, 4, num_events)),
            "points": generator.integers(0, 3, num_events),
            "product": pl.Series(["p", "q", None]).gather(generator.integers(0, 3, num_events)),
        }
    )
    some = frame["customer_id"].unique().sort()[:3]
    attributes = pl.DataFrame({"customer_id": some, "age": [1.0, 2.0, 3.0][: len(some)]})
    expected = store_from_frame(frame, SCHEMA, attributes)
    shuffled = frame.sample(fraction=1.0, shuffle=True, seed=seed)
    with tempfile.TemporaryDirectory() as folder:
        chunks = [shuffled[start : start + chunk] for start in range(0, num_events, chunk)]
        (Path(folder) / "runs").mkdir()
        ordered = first_pass(
            chunks, SCHEMA, attributes, spool=Spool(Path(folder) / "runs", run_bytes), rejects=Rejects(None)
        )
        content = write_store(ordered, attributes, Path(folder), None)
        assert content == expected.manifest.content
        assert ordered.num_duplicates == expected.manifest.profile["num_duplicates"]
        arrays = layout.read(folder)
        np.testing.assert_array_equal(arrays["amount_sum_N"], expected.amount_sum_N)
        np.testing.assert_array_equal(arrays["purchase_sum_N"], expected.purchase_sum_N)
        np.testing.assert_array_equal(arrays["first_event_C"], expected.first_event_C)
        np.testing.assert_array_equal(arrays["lists"]["tags"][1], expected.lists["tags"][1])
        journeys = pl.read_ipc(Path(folder) / layout.EVENTS)[layout.JOURNEY].to_numpy()
        lengths = np.diff(expected.first_event_C)
        np.testing.assert_array_equal(journeys, np.repeat(np.arange(expected.num_customers), lengths))
