"""Sources: SQL files and inline SQL, where data are looked for, and errors a person can act on."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import polars as pl
import pytest

from constellation.errors import InputError
from constellation.journeys.sources import FunctionSource, SqlSource
from constellation.paths import config_directories, package_folder

CSV = "customer_id,event_time,event_type,amount\nann,2024-01-02,purchase,3.5\nbob,2024-01-03,visit,\n"


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "shop").mkdir()
    (tmp_path / "shop" / "log.csv").write_text(CSV)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def read(source: SqlSource | FunctionSource, root: Path) -> pl.DataFrame:
    return pl.concat(list(source.open(root).events))


def test_inline_sql_with_root(root: Path) -> None:
    frame = read(SqlSource(sql="SELECT * FROM '{root}/shop/log.csv';"), root)
    assert sorted(frame["customer_id"]) == ["ann", "bob"] and frame["amount"].null_count() == 1


def test_sql_file_is_found_in_the_working_directory_and_in_configs(root: Path) -> None:
    (root / "here.sql").write_text("SELECT * FROM '{root}/log.csv'")
    (root / "configs" / "data").mkdir(parents=True)
    (root / "configs" / "data" / "there.sql").write_text("SELECT * FROM '{root}/log.csv' WHERE amount > 0")
    assert read(SqlSource(sql="here.sql", locate=["shop"]), root).height == 2
    assert read(SqlSource(sql="there.sql", locate=["shop"]), root).height == 1
    assert config_directories()[0] == root / "configs"
    with pytest.raises(InputError, match=r"nowhere\.sql was not found. Looked in"):
        read(SqlSource(sql="nowhere.sql", locate=["shop"]), root)


def test_candidates_are_tried_in_order_and_may_bring_their_own_sql(root: Path) -> None:
    locate = [
        "absent",
        {"folder": "shop", "needs": "log.parquet", "sql": "SELECT 1"},
        {"folder": "shop", "needs": ["log.csv"], "sql": "SELECT customer_id FROM '{root}/log.csv'"},
    ]
    assert read(SqlSource(sql="SELECT 2", locate=locate), root).columns == ["customer_id"]


def test_data_inside_a_package_are_found_without_importing_it(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = root / "site" / "shipped_log"
    (package / "data").mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    (package / "data" / "log.csv").write_text(CSV)
    monkeypatch.syspath_prepend(str(root / "site"))
    assert package_folder("shipped_log/data") == package / "data"
    assert read(SqlSource(sql="SELECT * FROM '{root}/log.csv'", locate=["package:shipped_log/data"]), root).height == 2
    assert "shipped_log" not in sys.modules


def test_absent_data_name_the_places_and_the_public_source(root: Path) -> None:
    source = SqlSource(sql="SELECT 1", locate=["nothing", "package:no_such_package/data"], origin="pip install it")
    with pytest.raises(InputError, match=r"nothing; the installed package no_such_package\. pip install it"):
        source.open(root)


@pytest.mark.parametrize(
    ("sql", "said"),
    [
        ("SELECT price FROM '{root}/shop/log.csv'", "price"),
        ("SELECT * FROM '{root}/shop/other.csv'", r"other\.csv"),
        ("SELEC 1", "SELEC"),
        ("SELECT event_type::INTEGER FROM '{root}/shop/log.csv'", "Could not convert"),
    ],
)
def test_wrong_sql_is_an_input_error_in_one_paragraph(root: Path, sql: str, said: str) -> None:
    with pytest.raises(InputError, match=said) as caught:
        read(SqlSource(sql=sql), root)
    assert "\n" not in str(caught.value) and "^" not in str(caught.value)


def test_table_names_never_find_python_variables(root: Path) -> None:
    events = pl.DataFrame({"customer_id": [1]})
    assert events.height == 1
    with pytest.raises(InputError, match="events"):
        read(SqlSource(sql="SELECT * FROM events"), root)


def test_identity_changes_with_the_text_and_with_the_files(root: Path) -> None:
    source = SqlSource(sql="SELECT * FROM '{root}/shop/*.csv'")
    first = source.identity(root)
    assert first == source.identity(root) and len(first["files"]) == 1
    assert SqlSource(sql="SELECT customer_id FROM '{root}/shop/*.csv'").identity(root) != first
    path = root / "shop" / "log.csv"
    os.utime(path, ns=(1, 1))
    touched = source.identity(root)
    assert touched != first
    (root / "shop" / "more.csv").write_text(CSV)
    assert len(source.identity(root)["files"]) == 2


MODULE = """
import polars as pl

def chunks(root, times):
    for index in range(times):
        yield pl.DataFrame({"customer_id": [index], "event_time": ["2024-01-01"], "event_type": ["visit"]})

def tables(root):
    import pandas as pd
    return {"events": next(chunks(root, 1)), "attributes": pd.DataFrame({"customer_id": [0], "age": [None]})}

def wrong(root):
    return {"evnts": None}
"""


def test_function_source(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (root / "my_source.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(root))
    source = FunctionSource("my_source:chunks", {"times": 3})
    assert read(source, root)["customer_id"].to_list() == [0, 1, 2]
    assert source.identity(root) != FunctionSource("my_source:chunks", {"times": 4}).identity(root)
    tables = FunctionSource("my_source:tables").open(root)
    assert tables.attributes is not None and tables.attributes.columns == ["customer_id", "age"]
    with pytest.raises(InputError, match="evnts"):
        FunctionSource("my_source:wrong").open(root)
    with pytest.raises(InputError, match="my_source:absent"):
        FunctionSource("my_source:absent").open(root)


def test_a_root_that_is_not_there_is_said(root: Path) -> None:
    with pytest.raises(InputError, match=r"data\.root is .*nowhere, but there is no such folder"):
        SqlSource(sql="SELECT 1", locate=["shop"]).open(root / "nowhere")
