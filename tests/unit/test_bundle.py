"""The bundle: files, errors, columns, and what each customer gets."""

from __future__ import annotations

import datetime as dt
import json
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import torch
from torch import nn

from constellation.building import build, build_model, targets
from constellation.bundle import Bundle, locate
from constellation.bundle.example import example_events
from constellation.bundle.raw import raw_attributes, raw_events, read_attributes, read_events
from constellation.bundle.table import check_levels, largest_difference, level_name
from constellation.encoders.base import Encoder
from constellation.errors import InputError
from constellation.journeys.build import store_from_frame
from constellation.journeys.store import MICROSECONDS_PER_DAY
from constellation.journeys.windows import ask, parse_cutoff
from constellation.schema import AMOUNT, CUSTOMER_ID, EVENT_TIME, EVENT_TYPE, EventSchema
from tests.bundles import CUTOFF, MODEL, SCHEMA, ZONE, people, shop_attributes, shop_bundle, shop_events
from tests.helpers import fit_vocabulary


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return shop_bundle()


@pytest.fixture(scope="module")
def folder(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bundle.save(tmp_path_factory.mktemp("bundle") / "shop")


# ---------------------------------------------------------------- files


def test_a_loaded_bundle_answers_as_the_saved_one(bundle: Bundle, folder: Path) -> None:
    assert {path.name for path in folder.iterdir()} == {"weights.safetensors", "bundle.json", "README.md"}
    loaded = Bundle.load(folder)
    events, attributes = shop_events(), shop_attributes()
    first, second = bundle.predict(events, CUTOFF, attributes), loaded.predict(events, CUTOFF, attributes)
    pd.testing.assert_frame_equal(first, second, rtol=1e-6)
    assert loaded.schema == bundle.schema
    assert loaded.horizons_days == (3, 10)
    assert loaded.max_events == 50
    assert loaded.trained_on == {"data": "shop", "test_cutoff": "2017-04-15", "seed": 0, "commit": None}


def test_saving_replaces_a_bundle_and_nothing_else(bundle: Bundle, tmp_path: Path) -> None:
    place = tmp_path / "deep" / "bundle"
    bundle.save(place)
    replace(bundle, metrics={"test/mae": 2.0}).save(place)
    assert Bundle.load(place).metrics == {"test/mae": 2.0}
    assert [path.name for path in place.parent.iterdir()] == ["bundle"], "nothing half-written stays behind"
    (place / "thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match=r"thesis\.tex"):
        bundle.save(place)
    assert (place / "thesis.tex").exists()


def test_a_failed_save_leaves_the_old_bundle(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle.save(tmp_path / "bundle")
    before = (tmp_path / "bundle" / "bundle.json").read_bytes()
    monkeypatch.setattr("constellation.bundle.card.model_card", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        replace(bundle, max_events=3).save(tmp_path / "bundle")
    assert (tmp_path / "bundle" / "bundle.json").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_saving_notices_weights_that_are_not_in_the_config(bundle: Bundle, tmp_path: Path) -> None:
    wider = {**MODEL, "encoder": {**MODEL["encoder"], "width": 4}}
    with pytest.raises(InputError, match="does not fit"):
        replace(bundle, model_config=wider).save(tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


def test_the_card_names_columns_units_and_limits(folder: Path) -> None:
    card = (folder / "README.md").read_text()
    assert "| `value_10d_expected` | EUR |" in card
    assert "| `purchases_3d_q95` | purchases | quantile 0.95" in card
    assert "| `test/value_10d/model/mae` | 12.35 |" in card
    assert "crps" not in card, "what is not a number is no result"
    assert "| `tags` | list | may be empty; 2 values known" in card
    assert "last 50 events" in card
    assert "c01" not in card + (folder / "bundle.json").read_text(), "no customer ids travel"


def _damaged(folder: Path, to: Path, name: str, change: Any) -> Path:
    to.mkdir()
    for path in folder.iterdir():
        content = path.read_bytes()
        if path.name == name:
            content = change(content)
        if content is not None:
            (to / path.name).write_bytes(content)
    return to


def _edited(**changes: Any) -> Any:
    return lambda content: json.dumps({**json.loads(content), **changes}).encode()


@pytest.mark.parametrize(
    ("name", "change", "match"),
    [
        ("bundle.json", lambda _: None, "bundle.json is missing"),
        ("weights.safetensors", lambda _: None, "weights.safetensors is missing"),
        ("weights.safetensors", lambda content: content[: len(content) // 2], "damaged or cut short"),
        ("weights.safetensors", lambda _: b"", "damaged or cut short"),
        ("bundle.json", lambda content: content[:100], "is damaged"),
        ("bundle.json", _edited(format="other"), "does not describe a bundle"),
        ("bundle.json", _edited(format_version=3, package_version="9.9"), r"format version 3.*9\.9.*update"),
        ("bundle.json", _edited(format_version=1), r"format version 1.*[Tt]rain again"),
        ("bundle.json", _edited(vocabulary={}), "part 'vocabulary'"),
        ("bundle.json", _edited(schema={"colour": "red"}), "part 'schema'"),
        ("bundle.json", _edited(model=None), "part 'model'"),
        ("bundle.json", _edited(model={**MODEL, "objective": {"value": MODEL["objective"]["value"]}}), "does not fit"),
    ],
)
def test_a_damaged_bundle_says_what_is_wrong(folder: Path, tmp_path: Path, name: str, change: Any, match: str) -> None:
    with pytest.raises(InputError, match=match):
        Bundle.load(_damaged(folder, tmp_path / "copy", name, change))


def test_loading_and_predicting_need_no_training_libraries(folder: Path, tmp_path: Path) -> None:
    shop_events().to_parquet(tmp_path / "events.parquet")
    code = f"""
        import sys
        import pandas as pd
        from constellation.bundle import Bundle
        frame = Bundle.load({str(folder)!r}).predict(pd.read_parquet({str(tmp_path / "events.parquet")!r}), {CUTOFF!r})
        assert len(frame) > 10
        print([name for name in ("hydra", "omegaconf", "lightning", "mlflow", "sklearn") if name in sys.modules])
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


def test_locate_finds_the_bundle_of_a_run(folder: Path, tmp_path: Path, work_folder: Path) -> None:
    assert locate(folder) == folder
    (tmp_path / "run").mkdir()
    folder_of_run = _damaged(folder, tmp_path / "run" / "bundle", "", None)
    assert locate(tmp_path / "run") == folder_of_run
    with pytest.raises(InputError, match="is no bundle"):
        locate(work_folder)
    (tmp_path / "several" / "seed_7").mkdir(parents=True)
    _damaged(folder, tmp_path / "several" / "seed_7" / "bundle", "", None)
    with pytest.raises(InputError, match=r"several seeds.*seed_7"):
        locate(tmp_path / "several")
    with pytest.raises(InputError, match="latest"):
        locate("latest")


# ---------------------------------------------------------------- building


class LastAmount(Encoder):
    """A stand-in for somebody's own encoder."""

    def __init__(self, vocabulary: Any, *, width: int, scales: tuple[float, ...] = (1.0,), inner: Any = None) -> None:
        super().__init__()
        self.width, self.scales, self.inner = width, scales, inner
        self.enter = nn.Linear(1, width)

    def forward(self, batch: Any) -> torch.Tensor:
        return self.enter(torch.nan_to_num(batch.numeric[AMOUNT]).unsqueeze(1) * self.scales[0])


OWN = {**MODEL, "encoder": {"_target_": f"{__name__}.LastAmount", "width": 4}}


def test_code_of_others_runs_only_when_trusted(tmp_path: Path) -> None:
    saved = shop_bundle(OWN, trusted=targets(OWN)).save(tmp_path / "own")
    with pytest.raises(InputError, match=rf"LastAmount.*trusted=\('{__name__}\.',\)"):
        Bundle.load(saved)
    with pytest.raises(InputError, match="trusted"):
        Bundle.load(saved, trusted=(__name__[:-1],))  # a prefix of the letters is not a parent
    assert len(Bundle.load(saved, trusted=("tests.",)).predict(shop_events(), CUTOFF))


@pytest.mark.parametrize(
    "name",
    [
        "os.system",
        "subprocess.Popen",
        "constellation.tracking.Run",
        "constellation.bundle.Bundle",
        "constellation.encoders.base.Tensor",
        "constellation.encoders.bag.running_mean",
        "constellation_evil.encoders.Gru",
        "constellation.encoders",
        "print",
    ],
)
def test_a_name_in_a_bundle_reaches_no_further_than_a_model(name: str) -> None:
    with pytest.raises(InputError):
        build({"_target_": name})


def test_settings_are_checked_by_name(bundle: Bundle) -> None:
    def encoder(**settings: Any) -> dict[str, Any]:
        return {**MODEL, "encoder": {**MODEL["encoder"], **settings}}

    with pytest.raises(InputError, match=r"Gru cannot be built.*'depth'.*settings are width, layers, dropout"):
        build_model(encoder(depth=3), bundle.vocabulary, (3, 10))
    with pytest.raises(InputError, match="is not installed here"):
        build_model(encoder(_target_="constellation.encoders.perceiver.Perceiver"), bundle.vocabulary, (3, 10))
    with pytest.raises(InputError, match="has no GRU"):
        build_model(encoder(_target_="constellation.encoders.gru.GRU"), bundle.vocabulary, (3, 10))
    with pytest.raises(InputError, match="encoder, readout, objective"):
        build_model({"encoder": MODEL["encoder"]}, bundle.vocabulary, (3, 10))


def test_nested_parts_are_built_and_partials_kept() -> None:
    linear = {"_target_": "torch.nn.Linear", "_partial_": True, "out_features": 3}
    config = {"_target_": f"{__name__}.LastAmount", "_partial_": True, "width": 2, "scales": [2.0], "inner": linear}
    built = build(config, None, trusted=("tests.", "torch.nn"))
    assert built.scales == [2.0]
    assert built.inner(5).weight.shape == (3, 5)
    assert targets(config) == (f"{__name__}.LastAmount", "torch.nn.Linear")


# ---------------------------------------------------------------- predicting


def test_one_row_per_customer_at_risk_or_with_attributes(bundle: Bundle) -> None:
    events, attributes = shop_events(), shop_attributes()
    end = pd.Timestamp(CUTOFF) + pd.Timedelta(days=1)
    at_risk = set(events.loc[events[EVENT_TIME] < end, CUSTOMER_ID])
    assert people(bundle.predict(events, CUTOFF)) == sorted(at_risk)
    everybody = bundle.predict(events, CUTOFF, attributes)
    assert people(everybody) == sorted(at_risk | set(attributes[CUSTOMER_ID]))
    assert np.isfinite(everybody.select_dtypes("number")).all(axis=None)


def test_columns_levels_and_order(bundle: Bundle) -> None:
    frame = bundle.predict(shop_events(), CUTOFF, levels=[0.025, 0.5], top_products=2)
    horizons = [f"{target}_{days}d" for target in ("value", "purchases") for days in (3, 10)]
    kinds = ("expected", "p_zero", "q025", "q50")
    answers = [f"{horizon}_{kind}" for horizon in horizons for kind in kinds]
    ranked = [f"next_{what}_{rank}{end}" for what, top in (("type", 3), ("product", 2)) for rank in range(1, top + 1)
              for end in ("", "_score")]  # fmt: skip
    assert list(frame.columns[: 1 + len(answers)]) == [CUSTOMER_ID, *answers]
    assert sorted(frame.columns[1 + len(answers) :]) == sorted(ranked)
    assert (frame["value_3d_q025"] <= frame["value_3d_q50"]).all()
    assert (frame["value_3d_expected"] <= frame["value_10d_expected"]).all()


def test_scores_are_probabilities_of_the_best_in_order(bundle: Bundle) -> None:
    frame = bundle.predict(shop_events(), CUTOFF, top_products=10)
    names = [f"next_product_{rank}" for rank in range(1, 5)]
    assert "next_product_5" not in frame, "there are four products"
    assert all(set(row) == {"bread", "milk", "soap", "tea"} for row in frame[names].to_numpy())
    scores = frame[[f"{name}_score" for name in names]].to_numpy()
    assert np.allclose(scores.sum(axis=1), 1)
    assert (np.diff(scores, axis=1) <= 0).all()


def test_a_store_and_a_table_give_the_same_answers(bundle: Bundle) -> None:
    events, attributes = shop_events(), shop_attributes()
    store = store_from_frame(events, SCHEMA, attributes)
    cutoff = parse_cutoff(CUTOFF, ZONE)
    everybody = np.arange(store.num_customers)
    queries = ask(store, everybody, np.full(len(everybody), cutoff), bundle.horizons_days, cutoff)
    answers = bundle.predict_store(store, queries, (0.05, 0.5))
    frame = bundle.predict(events, CUTOFF, attributes, levels=(0.05, 0.5))
    assert list(frame[CUSTOMER_ID]) == list(store.customer_id_C)
    np.testing.assert_allclose(frame["value_10d_expected"], answers["value_10d_expected"], rtol=1e-5)
    np.testing.assert_allclose(frame["value_3d_q50"], answers["value_3d_quantiles"][:, 1], rtol=1e-4, atol=1e-4)
    best = answers["next_product_scores"].argmax(axis=1)
    assert list(frame["next_product_1"]) == [bundle.vocabulary.products[place] for place in best]


def test_pandas_polars_and_arrow_are_one(bundle: Bundle) -> None:
    events, attributes = shop_events(), shop_attributes()
    pandas = bundle.predict(events, CUTOFF, attributes)
    table = pa.Table.from_pandas(events, preserve_index=False)
    arrow = bundle.predict(table, CUTOFF, pa.Table.from_pandas(attributes))
    polars = bundle.predict(pl.from_pandas(events).lazy(), CUTOFF, pl.from_pandas(attributes))
    pd.testing.assert_frame_equal(pandas, arrow)
    pd.testing.assert_frame_equal(pandas, polars)
    with pytest.raises(InputError, match=r"events: .*dict"):
        bundle.predict({"customer_id": [1]}, CUTOFF)


@pytest.mark.parametrize(
    "cutoff",
    [
        dt.date(2017, 4, 10),
        np.datetime64("2017-04-10"),
        dt.datetime(2017, 4, 10, 23, 59, 59, 999_999),
        pd.Timestamp("2017-04-10 21:59:59.999999", tz="UTC"),
        "2017-04-10T23:59:59.999999+02:00",
    ],
)
def test_a_cutoff_is_a_date_or_a_moment(bundle: Bundle, cutoff: Any) -> None:
    events = shop_events()
    expected = bundle.predict(events, CUTOFF)
    pd.testing.assert_frame_equal(bundle.predict(events, cutoff), expected)


def test_the_last_microsecond_of_the_day_is_seen_and_the_next_is_not(bundle: Bundle) -> None:
    events = shop_events().head(3)
    times = pd.to_datetime(["2017-04-10T23:59:59.999999", "2017-04-11", "2017-04-09"], format="ISO8601")
    events = events.assign(**{CUSTOMER_ID: ["last", "late", "early"], EVENT_TIME: times})
    frame = bundle.predict(events, CUTOFF)
    assert people(frame) == ["early", "last"]
    assert frame.attrs["events_ignored"] == 1
    assert frame.attrs["events"] == 2
    assert frame.attrs["cutoff"] == "2017-04-10 23:59"


def test_without_a_cutoff_the_last_day_ends_it(bundle: Bundle) -> None:
    events = shop_events()
    frame = bundle.predict(events, None)
    assert frame.attrs["cutoff"] == f"{events[EVENT_TIME].max():%Y-%m-%d} 23:59"
    assert frame.attrs["events_ignored"] == 0


def test_silence_counts(bundle: Bundle) -> None:
    events = shop_events()
    soon, late = bundle.predict(events, "2017-05-01"), bundle.predict(events, "2017-08-01")
    assert largest_difference(soon, late) > 0.01


def test_customers_with_one_event_or_only_attributes_are_scored(bundle: Bundle) -> None:
    one = pd.DataFrame({CUSTOMER_ID: ["x"], EVENT_TIME: ["2017-04-01"], EVENT_TYPE: ["visit"]})
    one = one.assign(amount=None, product=None, channel=None, score=None, action=None, tags=None)
    only = pd.DataFrame({CUSTOMER_ID: ["y", "z"], "segment": ["gold", None], "age": [30.0, None]})
    frame = bundle.predict(one, CUTOFF, only)
    assert people(frame) == ["x", "y", "z"]
    assert np.isfinite(frame.select_dtypes("number")).all(axis=None)
    nobody_came = bundle.predict(one.head(0), CUTOFF, only)
    assert people(nobody_came) == ["y", "z"]
    late = bundle.predict(one, "2017-03-01", only)
    assert people(late) == ["y", "z"]
    pd.testing.assert_frame_equal(late, nobody_came)


def test_what_cannot_be_read_is_counted_or_refused(bundle: Bundle) -> None:
    events = shop_events().astype({EVENT_TIME: str})
    events.loc[7, EVENT_TIME] = "yesterday"
    assert bundle.predict(events, CUTOFF).attrs["events_rejected"] == 1
    events[EVENT_TIME] = "yesterday"
    with pytest.raises(InputError, match="is not a time"):
        bundle.predict(events, CUTOFF)
    with pytest.raises(InputError, match="lack amount, tags"):
        bundle.predict(shop_events().drop(columns=["amount", "tags"]), CUTOFF)
    with pytest.raises(InputError, match="attributes lack age"):
        bundle.predict(shop_events(), CUTOFF, shop_attributes().drop(columns="age"))
    with pytest.raises(InputError, match="age is a number, found 'old'"):
        bundle.predict(shop_events(), CUTOFF, shop_attributes().assign(age="old"))
    with pytest.raises(InputError, match="Nobody can be scored"):
        bundle.predict(shop_events(), "2016-01-01")
    with pytest.raises(InputError, match="not a time"):
        bundle.predict(shop_events(), "soon")
    with pytest.raises(InputError, match="no events"):
        bundle.predict(shop_events().head(0), None)


def test_unknown_values_are_counted(bundle: Bundle) -> None:
    events = shop_events()
    known = bundle.predict(events, CUTOFF).attrs["unknown_share"]
    assert set(known) == {EVENT_TYPE, "product", "channel", "action", "tags"}
    assert set(known.values()) == {0.0}
    seen = events[EVENT_TIME] < pd.Timestamp("2017-04-11")
    changed = events.assign(channel=events["channel"].replace("web", "mars"))
    share = bundle.predict(changed, CUTOFF).attrs["unknown_share"]["channel"]
    assert share == pytest.approx(
        (changed["channel"][seen] == "mars").sum() / changed["channel"][seen].count(), abs=1e-5
    )


def test_attributes_have_the_kind_they_had_in_training(bundle: Bundle) -> None:
    events, attributes = shop_events(), shop_attributes()
    as_text = attributes.assign(age=attributes["age"].astype(str).replace("nan", None))
    pd.testing.assert_frame_equal(
        bundle.predict(events, CUTOFF, attributes), bundle.predict(events, CUTOFF, as_text.assign(more=1))
    )


def test_only_the_order_is_known(tmp_path: Path) -> None:
    events = shop_events()
    ranked = events.assign(**{EVENT_TIME: events[EVENT_TIME].rank(method="dense").astype(int)})
    schema = EventSchema(clock="order", lists=("tags",))
    in_days = events.assign(**{EVENT_TIME: ranked[EVENT_TIME] * MICROSECONDS_PER_DAY})
    store = store_from_frame(in_days, schema)
    vocabulary = fit_vocabulary(store, int(in_days[EVENT_TIME].max()))
    bundle = Bundle(build_model(MODEL, vocabulary, (3, 10)), vocabulary, schema, MODEL)
    middle = int(ranked[EVENT_TIME].median())
    frame = bundle.predict(ranked, middle)
    assert people(frame) == sorted(set(ranked.loc[ranked[EVENT_TIME] <= middle, CUSTOMER_ID]))
    assert frame.attrs["cutoff"] == str(middle)
    assert bundle.predict(ranked, None).attrs["events_ignored"] == 0
    with pytest.raises(InputError, match="no rank"):
        bundle.predict(ranked, "2017-04-10")
    again = Bundle.load(bundle.save(tmp_path / "ordered"))
    pd.testing.assert_frame_equal(again.predict(ranked, middle), frame)


def test_batches_do_not_change_the_answers(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    events = shop_events()
    whole = bundle.predict(events, CUTOFF)
    monkeypatch.setattr("constellation.bundle.bundle.MAX_SCORES", 1)
    assert bundle._limits() == {"max_journeys": 16}
    assert largest_difference(whole, bundle.predict(events, CUTOFF)) < 1e-5


def test_the_mode_of_the_model_is_left_as_it_was(bundle: Bundle) -> None:
    bundle.model.train()
    first, second = (bundle.predict(shop_events(), CUTOFF) for _ in range(2))
    assert bundle.model.training
    pd.testing.assert_frame_equal(first, second)  # dropout would show


# ---------------------------------------------------------------- parts


def test_level_names() -> None:
    names = [level_name(level) for level in (0.05, 0.5, 0.95, 0.975, 0.005, 0.1)]
    assert names == ["q05", "q50", "q95", "q975", "q005", "q10"]
    for wrong in ([], [0.5, 0.5], [0.9, 0.1], [0.0], [1.0], [float("nan")]):
        with pytest.raises(InputError, match="levels"):
            check_levels(wrong)


def test_largest_difference_by_hand() -> None:
    one = pd.DataFrame({CUSTOMER_ID: [1, 2], "a_expected": [100.0, 1e-9], "next": ["x", "y"]})
    shuffled = pd.DataFrame({CUSTOMER_ID: [2, 1], "a_expected": [2e-9, 101.0], "next": ["y", "x"]})
    assert largest_difference(one, shuffled) == pytest.approx(1 / 101)
    assert largest_difference(one, one.assign(a_expected=[100.0, float("nan")])) == float("inf")
    assert largest_difference(one, one.head(1)) == float("inf")
    assert largest_difference(one, one.rename(columns={"next": "after"})) == float("inf")


def test_example_events_are_valid_and_cover_the_columns(bundle: Bundle) -> None:
    events = example_events(bundle.vocabulary, bundle.schema, num_customers=20)
    assert list(events[CUSTOMER_ID].value_counts().sort_index()) == list(range(1, 21))
    assert set(bundle.vocabulary.kinds) <= set(events.columns)
    frame = bundle.predict(events, None)
    assert frame.attrs["events_rejected"] == 0
    assert set(frame.attrs["unknown_share"].values()) == {0.0}


def test_a_store_turns_back_into_its_table() -> None:
    events, attributes = shop_events(), shop_attributes()
    store = store_from_frame(events, SCHEMA, attributes)
    everybody = np.arange(store.num_customers)
    again = store_from_frame(raw_events(store, everybody), SCHEMA, raw_attributes(store, everybody))
    assert again.manifest.content == store.manifest.content


def test_csv_keeps_texts_and_makes_ids_numbers_only_when_they_are(tmp_path: Path) -> None:
    path = tmp_path / "events.csv"
    path.write_text(
        "customer_id,event_time,event_type,product,extra\n12,2017-01-01,buy,007|8,x\n13,2017-01-02,buy,,y\n"
    )
    schema = EventSchema()
    frame = read_events(path, schema, [CUSTOMER_ID, EVENT_TIME, EVENT_TYPE, "product"])
    assert frame[CUSTOMER_ID].to_list() == [12, 13]
    assert frame["product"].to_list() == [["007", "8"], None]
    assert "extra" not in frame.columns
    path.write_text("customer_id,event_time,event_type\n012,2017-01-01,buy\n13,2017-01-02,buy\n")
    frame = read_events(path, schema, [CUSTOMER_ID, EVENT_TIME, EVENT_TYPE])
    assert frame[CUSTOMER_ID].to_list() == ["012", "13"]
    customers = tmp_path / "customers.csv"
    customers.write_text("customer_id,age\n12,30\n13,\n")
    assert read_attributes(customers, [CUSTOMER_ID, "age"], frame[CUSTOMER_ID])[CUSTOMER_ID].dtype == pl.String
    assert read_attributes(customers, [CUSTOMER_ID], pl.Series([1]))[CUSTOMER_ID].to_list() == [12, 13]
    customers.write_text("customer_id,age\nA1,30\n")
    with pytest.raises(InputError, match="Write the ids alike"):
        read_attributes(customers, [CUSTOMER_ID], pl.Series([1]))


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no file"):
        read_events(tmp_path / "events.parquet", SCHEMA, [])
    with pytest.raises(InputError, match="Parquet file"):
        read_events(tmp_path / "events.xlsx", SCHEMA, [])
    (tmp_path / "events.parquet").write_bytes(b"not parquet")
    with pytest.raises(InputError, match="cannot be read as Parquet"):
        read_events(tmp_path / "events.parquet", SCHEMA, [])
    (tmp_path / "empty.csv").write_bytes(b"")
    with pytest.raises(InputError, match="cannot be read as CSV"):
        read_events(tmp_path / "empty.csv", SCHEMA, [])
