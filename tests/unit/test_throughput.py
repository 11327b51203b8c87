"""The benchmark of throughput: its data, its arithmetic, and its rounds, with peers made up on the spot."""

from __future__ import annotations

import json
import textwrap
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from constellation.commands.benchmarks import throughput
from constellation.commands.benchmarks.throughput import (
    CEILINGS,
    METRICS,
    RATIOS,
    benchmark_throughput,
    best_peer,
    make_task,
    metrics_of,
    print_rows,
)
from constellation.commands.benchmarks.throughput_ceiling import operations_per_event
from constellation.commands.benchmarks.throughput_meter import Meter, Task
from constellation.commands.benchmarks.throughput_ours import data_set, our_options
from constellation.commands.benchmarks.throughput_peers import (
    OURS,
    OURS_ITEMS,
    Failed,
    System,
    choose_peers,
    known_peers,
    measure,
    our_system,
)
from constellation.commands.benchmarks.throughput_shapes import (
    SHAPES,
    Events,
    Shape,
    _rarest,
    films,
    simulate_catalogue,
)
from constellation.errors import InputError
from constellation.journeys.prepare import prepare

NO_DATA: Any = None  # no shape of these tests reads the group `data`

PEER = """
    import time
    from throughput_meter import Meter, Task

    task = Task.read()
    meter = Meter(task)
    start_C, end_C = task.windows()
    while not meter.is_done:
        time.sleep(task.settings["seconds"])
        meter.step(int((end_C - start_C - 1).sum()))
"""


def tiny(num_journeys: int = 40, num_products: int = 12) -> Events:
    return simulate_catalogue(num_journeys=num_journeys, num_products=num_products, seed=1)


TINY = Shape("tiny", "made up", 8, 16, lambda _: tiny())


def task_of(folder: Path, events: Events) -> Task:
    return make_task(TINY, events, folder, warmup_steps=1, num_steps=2)


def add_peer(folder: Path, name: str, code: str, *, requirements: bool = False, **facts: Any) -> None:
    home = folder / name
    home.mkdir(parents=True)
    described = {name: {"loss": "full softmax", "about": "made up", **facts}}
    (home / "peer.json").write_text(json.dumps(described), encoding="utf-8")
    (home / "run.py").write_text(textwrap.dedent(code), encoding="utf-8")
    if requirements:
        (home / "requirements.txt").write_text("torch==2.13.0\n", encoding="utf-8")


# ---------------------------------------------------------------- data


def test_every_product_of_the_catalogue_occurs_and_journeys_are_in_order() -> None:
    events = tiny(300, 50)
    assert set(events.item_N) == set(range(1, 51)) and events.num_products == 50
    lengths = np.diff(events.offsets)
    assert lengths.min() >= 2 and 12 < np.median(lengths) < 18
    inner = np.ones(len(events.time_N) - 1, dtype=bool)
    inner[events.offsets[1:-1] - 1] = False  # from one journey to the next the clock starts again
    assert (np.diff(events.time_N)[inner] >= 0).all()
    counts = np.sort(np.bincount(events.item_N)[1:])[::-1]
    assert counts[0] > 5 * np.median(counts)
    assert np.array_equal(tiny(300, 50).item_N, events.item_N)


@given(st.lists(st.lists(st.integers(1, 6), max_size=4), min_size=1, max_size=12))
@settings(max_examples=60, deadline=None)
def test_the_main_product_is_the_rarest_of_its_list(lists: list[list[int]]) -> None:
    codes = np.array([code for one in lists for code in one], dtype=np.int64)
    offsets = np.cumsum([0, *map(len, lists)])
    count = np.bincount(codes, minlength=7)
    expected = [min(one, key=lambda code: (count[code], code)) if one else 0 for one in lists]
    assert _rarest(codes, offsets).tolist() == expected


def test_films_leave_out_the_last_two_ratings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONSTELLATION_DATA", str(tmp_path))
    with pytest.raises(InputError, match=r"ml-1m.*CONSTELLATION_DATA"):
        films(NO_DATA)
    (tmp_path / "ml-1m").mkdir()
    pl.DataFrame(
        {
            "sasrec_user": [2, 2, 2, 2, 1, 1, 1, 2, 1],
            "sasrec_item": [5, 6, 7, 8, 3, 1, 2, 9, None],
            "position": [3, 2, 1, 0, 0, 1, 2, 4, None],
        }
    ).write_parquet(tmp_path / "ml-1m" / "interactions.parquet")
    events = films(NO_DATA)
    assert events.offsets.tolist() == [0, 1, 4] and events.item_N.tolist() == [3, 8, 7, 6]
    assert (np.diff(events.time_N)[1:] > 0).all()


def test_all_systems_read_the_same_events(tmp_path: Path) -> None:
    events = replace(
        tiny(),
        products=(np.array([0, 1, 0]), np.r_[0, 2, 2, 3, np.full(len(tiny().item_N) - 3, 3)], ["a", "b"]),
        numbers={"amount": np.arange(len(tiny().item_N), dtype=np.float64)},
    )
    events.write(tmp_path)
    found = task_of(tmp_path, events).sequences()
    assert found["item"].tolist() == events.item_N.tolist() and set(found["field.event_type"]) == {1}
    frame = pl.read_parquet(tmp_path / "events.parquet")
    assert frame["product"].to_list()[:4] == [["a", "b"], [], ["a"], []]
    store = prepare(data_set(tmp_path, events.clock))
    assert store.first_event_C.tolist() == events.offsets.tolist()
    assert store.numeric["amount"].tolist() == events.numbers["amount"].tolist()
    start_C, end_C = task_of(tmp_path, events).windows()
    assert (end_C - start_C).max() == TINY.max_length + 1 == our_options(task_of(tmp_path, events)).max_events
    assert end_C.tolist() == events.offsets[1:].tolist()


# ---------------------------------------------------------------- arithmetic


def test_operations_of_an_event_by_hand(tmp_path: Path) -> None:
    """Forward at width 64 with 2 blocks and inner width 64: linear layers 98,304, softmax over 3,416 items 437,248."""
    events = replace(tiny(), offsets=np.array([0, 3, 4]), num_items=3416)
    task = replace(task_of(tmp_path, events), max_length=200)
    # One journey of three events: two targets, that attend to one and to two events; a single event teaches nothing.
    assert operations_per_event(events, task) == 3 * (98_304 + 2 * 4 * 1.5 * 64 + 437_248)
    assert operations_per_event(events, replace(task, max_length=1)) == 3 * (98_304 + 2 * 4 * 1.0 * 64 + 437_248)


def test_the_meter_counts_after_the_warm_up(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    meter = Meter(task_of(tmp_path, tiny()))
    for count in (1000, 10):
        meter.expect(count)
        meter.step()
    for count in (5, 7):
        meter.step(count)
    assert meter.is_done
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("throughput ")]
    result = json.loads(line.removeprefix("throughput "))
    assert result["num_events"] == 15
    assert 0 < result["seconds"] < 10 and 0 <= result["cpu_seconds"] < 10 and 0.01 < result["peak_memory_gib"] < 8


# ---------------------------------------------------------------- peers and rounds


def test_peers_are_found_and_named(tmp_path: Path) -> None:
    add_peer(tmp_path, "here", PEER, settings={"seconds": 0.1})
    add_peer(tmp_path, "away", PEER, requirements=True)
    ready, absent = known_peers(tmp_path)
    assert [system.name for system in ready] == ["here"] and list(absent) == ["away"]
    assert choose_peers("installed", tmp_path) == ready == choose_peers(["here"], tmp_path)
    assert choose_peers([], tmp_path) == choose_peers(None, tmp_path) == choose_peers("installed", None) == []
    with pytest.raises(InputError, match=r"away is not installed; `make peers`"):
        choose_peers(["away"], tmp_path)
    with pytest.raises(InputError, match=r"no peer 'nobody'.*away, here"):
        choose_peers("nobody", tmp_path)


def test_the_repository_s_peers_are_described(repository: Path) -> None:
    ready, absent = known_peers(repository / "benchmarks" / "peers")
    names = {system.name for system in ready} | set(absent)
    assert {"rectools", "replay", "replay_buckets", "pmixer", "lifestream"} <= names
    assert "pmixer" in {system.name for system in ready}  # needs no environment of its own


def test_rounds_give_medians_and_ratios(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    add_peer(tmp_path, "slow", PEER, settings={"seconds": 0.2})
    add_peer(tmp_path, "cheap", PEER, settings={"seconds": 0.02}, loss="one negative")
    add_peer(tmp_path, "broken", "raise SystemExit('no such thing')")
    ours = known_peers(tmp_path)[0][-1]
    assert ours.name == "slow"
    seconds = {OURS: 0.04, OURS_ITEMS: 0.02}
    monkeypatch.setattr(
        throughput, "our_system", lambda _, name=OURS: replace(ours, name=name, settings={"seconds": seconds[name]})
    )
    monkeypatch.setattr(throughput, "SHAPES", {"tiny": TINY})
    monkeypatch.setattr(throughput, "matrix_rates", lambda _: {"fp32": 2e9, "bf16": 4e9})
    # The stand-in for ours reads the meter beside the data, as a peer does.
    measured: list[str] = []

    def listen(system: System, task: Task) -> dict[str, float]:
        measured.append(system.name)
        return measure(replace(system, name="stand-in") if system.name in seconds else system, task)

    monkeypatch.setattr(throughput, "measure", listen)
    rows = benchmark_throughput(
        NO_DATA,
        shapes=["tiny"],
        peers="installed",
        num_threads=[1, 2],
        num_repeats=2,
        warmup_steps=1,
        num_steps=2,
        folder=tmp_path,
    )
    assert measured[:6] == [OURS, OURS_ITEMS, "broken", OURS, OURS_ITEMS, "cheap"] and measured.count("broken") == 1
    assert measured.count("slow") == 4 and measured.count(OURS) == measured.count(OURS_ITEMS) == 9
    assert [(row["system"], row["num_threads"]) for row in rows] == [
        (name, threads) for threads in (1, 2) for name in (OURS, OURS_ITEMS, "cheap", "slow")
    ]
    items, rows = rows[1], [row for row in rows if row["system"] != OURS_ITEMS]
    num_targets = int(np.minimum(np.diff(tiny().offsets) - 1, 8).sum())
    assert num_targets / 0.2 / 10 < rows[2]["events_per_second"] < num_targets / 0.2  # a sleep may last longer
    assert rows[1]["ratio"] < 1 < rows[2]["ratio"]
    assert best_peer(rows[:3], same_loss=True) is rows[2] and best_peer(rows[:3], same_loss=False) is rows[1]
    assert rows[2]["items_ratio"] > rows[2]["ratio"]
    # The items alone stand beside, and are nobody's peer.
    assert best_peer([rows[0], items, rows[2]], same_loss=True) is rows[2]

    metrics = metrics_of([items, *rows])
    assert metrics["throughput/tiny/items_ratio_same_loss"] == rows[2]["items_ratio"]
    assert metrics[f"throughput/tiny/{OURS_ITEMS}/peak_memory_gib"] == items["peak_memory_gib"]
    assert metrics["throughput/tiny/ratio_same_loss"] == rows[2]["ratio"]
    assert metrics["throughput/tiny/ratio_fastest_2_threads"] == rows[4]["ratio"]
    assert metrics["throughput/tiny/memory_ratio_same_loss"] == rows[2]["memory_ratio"]
    assert metrics["throughput/tiny/cpu_ratio_fastest"] == rows[1]["cpu_ratio"]
    assert metrics["throughput/tiny/slow/events_per_second"] == rows[2]["events_per_second"]
    assert {f"throughput/tiny/{OURS}/{name}" for name in (*METRICS, *CEILINGS)} <= set(metrics)
    share = metrics[f"throughput/tiny/{OURS}/share_of_ceiling_fp32"]
    assert share == pytest.approx(rows[0]["events_per_second"] / metrics[f"throughput/tiny/{OURS}/ceiling_fp32"])
    print_rows(rows)
    printed = capsys.readouterr().out
    assert "same loss, best peer" in printed and "tiny, 2 threads" in printed
    assert "same loss on the items alone" in printed


def test_the_items_alone_are_what_peers_read() -> None:
    events = simulate_catalogue(num_journeys=30, num_products=12, seed=3)
    assert events.says_more_than_items
    alone = events.items_alone()
    assert not alone.says_more_than_items and alone.clock == "order"
    assert alone.item_N.tolist() == events.item_N.tolist() and alone.offsets.tolist() == events.offsets.tolist()
    assert alone.num_products == events.num_items and alone.products is None and not alone.numbers
    for first, end in zip(events.offsets[:-1], events.offsets[1:], strict=True):
        assert alone.time_N[first:end].tolist() == list(range(end - first))


def test_our_side_trains_and_counts_as_peers_do(tmp_path: Path) -> None:
    """An epoch of the real loop learns from just the targets that the common input holds."""
    events = simulate_catalogue(num_journeys=32, num_products=12, seed=2)
    events.write(tmp_path)
    start_C, end_C = (task := task_of(tmp_path, events)).windows()
    prepare(data_set(tmp_path, events.clock))
    system = our_system(events.clock)
    counted = tmp_path / "counted.py"
    counted.write_text(
        "import sys\n"
        "from constellation.commands.benchmarks import throughput_ours as ours\n"
        "from constellation.commands.benchmarks.throughput_meter import Meter, Task\n"
        "task = Task.read()\n"
        "expected = []\n"
        "class Heard(Meter):\n"
        "    def expect(self, num_targets):\n"
        "        expected.append(num_targets)\n"
        "        super().expect(num_targets)\n"
        "ours.Meter = Heard\n"
        "ours.train(task, ours.data_set(ours.Path(task.folder), 'time'))\n"
        "first, second, _ = expected[-3:]\n"  # before them the memory of a step is tried out
        "print(first + second, file=open('targets', 'w'))\n",
        encoding="utf-8",
    )
    result = measure(replace(system, command=(system.command[0], str(counted))), replace(task, batch=16))
    assert result["events_per_second"] > 0 and 0.1 < result["peak_memory_gib"] < 4
    assert int((tmp_path / "targets").read_text()) == int((end_C - start_C - 1).sum())


def test_a_system_without_a_result_says_why(tmp_path: Path) -> None:
    tiny().write(tmp_path)
    script = tmp_path / "silent.py"
    script.write_text("import sys; print('the reason', file=sys.stderr)", encoding="utf-8")
    with pytest.raises(Failed, match="ended with 0: the reason"):
        measure(System("silent", "none", "", ("python3", str(script))), task_of(tmp_path, tiny()))


# ---------------------------------------------------------------- what is refused, and the words for it


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"shapes": ["wide"]}, r"\[films_200,films_50,short,catalogue\], found 'wide'"),
        ({"shapes": []}, "found none"),
        ({"num_steps": 0}, "from 1 on"),
        ({"num_threads": []}, "from 1 on"),
        ({"shapes": ["films_50"]}, "MovieLens-1M"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], match: str
) -> None:
    monkeypatch.setenv("CONSTELLATION_DATA", str(tmp_path))
    given = {"shapes": ["catalogue"], "peers": [], "num_threads": [1], "num_repeats": 1}
    with pytest.raises(InputError, match=match):
        benchmark_throughput(NO_DATA, **({"warmup_steps": 1, "num_steps": 1} | given | changes))


def test_the_benchmark_may_be_named_by_a_bare_word() -> None:
    from constellation.cli.diagnosing import with_positionals

    assert with_positionals("benchmark", ["throughput", "num_steps=3"]) == ["what='throughput'", "num_steps=3"]
    assert with_positionals("benchmark", ["what=training"]) == ["what=training"]
    with pytest.raises(InputError, match="'prepare' is not key=value"):
        with_positionals("benchmark", ["prepare", "training"])


def test_metric_names_and_shapes_are_in_the_docs(repository: Path) -> None:
    text = (repository / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    assert all(f"`{name}`" in text for name in (*METRICS, *RATIOS, *CEILINGS, *SHAPES))
