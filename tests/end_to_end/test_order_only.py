"""Data of which only the order is known, through the console: prepare, train by leave-one-out, evaluate, export, score.

Customers walk a ring of films, each once, now and then leaping one: what comes next hangs on the last film alone, and
popularity knows nothing of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

from constellation.cli import main
from constellation.schema import CUSTOMER_ID, EVENT_TIME, EVENT_TYPE, PRODUCT
from tests.end_to_end import console
from tests.end_to_end.console import metrics_of

NUM_FILMS, NUM_CUSTOMERS = 24, 120
SMALL = [
    "data=ring", "objective=[next_event]", "encoder=gru", "encoder.width=16", "encoder.layers=1", "readout=state",
    "objective.next_event.shared=true", "objective.next_event.width=16", "objective.next_event.max_repeat_products=0",
    "optimizer.lr=0.03", "training.cutoffs_per_journey=0", "training.max_epochs=12", "training.patience=12",
    "training.averaging=0", "training.accelerator=cpu", "training.max_journeys=16", "num_resamples=20", "tracking=none",
]  # fmt: skip


def walks(seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    rows: list[dict[str, Any]] = []
    for customer in range(NUM_CUSTOMERS):
        film = int(rng.integers(NUM_FILMS))
        for rank in range(int(rng.integers(5, 12))):
            rows.append(
                {CUSTOMER_ID: customer, EVENT_TIME: rank, EVENT_TYPE: "seen", PRODUCT: f"film {film % NUM_FILMS:02d}"}
            )
            film += 1 + int(rng.random() < 0.1)
    rows.append({CUSTOMER_ID: NUM_CUSTOMERS, EVENT_TIME: 0, EVENT_TYPE: "seen", PRODUCT: "film 00"})  # only trains
    return pd.DataFrame(rows)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("order_only")
    (folder / "data").mkdir()
    walks().to_parquet(folder / "data" / "walks.parquet")
    config = {
        "_target_": "constellation.journeys.dataset.DataSet",
        "name": "ring",
        "root": None,
        "cache": None,
        "observed_until": None,
        "source": {
            "_target_": "constellation.journeys.sources.SqlSource",
            "sql": "SELECT * FROM '{root}/walks.parquet'",
        },
        "schema": {"_target_": "constellation.schema.EventSchema", "clock": "order"},
        "windows": {"_target_": "constellation.journeys.last_events.LastEvents", "exclude_seen": True},
        "decisions": None,
    }
    (folder / "configs" / "data").mkdir(parents=True)
    (folder / "configs" / "data" / "ring.yaml").write_text(yaml.safe_dump(config))
    return folder


@pytest.fixture(autouse=True)
def inside(folder: Path) -> Iterator[None]:
    with console.inside(folder), console.without_pictures():
        yield


@pytest.fixture(scope="module")
def printed(folder: Path) -> str:
    """What one training says, with the default list of baselines, most of which have nothing to say here."""
    return console.said_in(folder, "train", *SMALL, "output=trained", pictures=True)


@pytest.fixture(scope="module")
def trained(folder: Path, printed: str) -> Path:
    return folder / "trained"


def test_the_model_learns_the_order_and_popularity_does_not(trained: Path) -> None:
    metrics = metrics_of(trained)
    assert metrics["val/next_product/realised/num_customers"] == NUM_CUSTOMERS
    assert metrics["test/next_product/realised/num_customers"] == NUM_CUSTOMERS
    for split in ("val", "test"):
        # The next film on the ring is right nine times in ten, and the one after it else: 0.9 + 0.1 / log2(3) = 0.96.
        assert metrics[f"{split}/next_product/model/ndcg_at_10"] > 0.8
        assert metrics[f"{split}/next_product/most_popular/ndcg_at_10"] < 0.5
    assert metrics["train/refit_steps"] == metrics["train/select_steps"] > 0
    assert not [name for name in metrics if "value_" in name or "purchases_" in name]
    assert not [name for name in metrics if "recently_popular" in name or "recall_new" in name]


def test_what_is_said_names_the_protocol_and_the_baselines_left_out(printed: str) -> None:
    said = " ".join(printed.split())
    assert "only their order is known" in said
    assert f"the last event of {NUM_CUSTOMERS} customers is the test" in said
    assert "1 with too few events only train" in said
    assert "all products ranked but those a customer already has" in said
    assert "bgnbd is left out: it speaks of money over horizons" in said
    assert "recently_popular is left out: only the order" in said


def test_without_a_refit_the_selected_weights_are_tested(trained: Path, folder: Path) -> None:
    options = ["training.refit=false", "baseline=[most_popular]"]
    console.said_in(folder, "train", *SMALL, *options, "output=published")
    published, refitted = metrics_of("published"), metrics_of(trained)
    assert published["train/refit_steps"] == 0
    name = "val/next_product/model/ndcg_at_10"
    assert published[name] == refitted[name], "the selection is the same"
    assert published["test/next_product/model/ndcg_at_10"] > 0.8


def test_films_already_seen_in_the_ranking_cost_places(trained: Path, folder: Path) -> None:
    kept = ["data.windows.exclude_seen=false", "baseline=[most_popular]", "training.max_epochs=1"]
    said = console.said_in(folder, "train", *SMALL, *kept, "output=kept")
    name = "test/next_product/most_popular/hit_rate_at_10"
    assert metrics_of("kept")[name] < metrics_of(trained)[name]
    assert "those a customer already has among them" in " ".join(said.split())


def test_evaluate_repeats_the_test_and_slices_by_history(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["evaluate", f"run={trained}", "slices=[tenure,history]", "num_resamples=20", "tracking=none"]
    assert main([*command, "output=evaluated"]) == 0
    name = "test/next_product/model/ndcg_at_10"
    assert metrics_of("evaluated")[name] == metrics_of(trained)[name]
    said = capsys.readouterr().out
    assert "slice tenure is left out: only the order of events is known" in said
    assert "history" in said and "000-005 events" in said
    assert main([*command, "cutoff=3", "output=dated"]) == 2
    assert "split by the last events of each customer" in capsys.readouterr().err


def test_the_bundle_scores_a_table_of_ranks(trained: Path) -> None:
    assert main(["export", f"run={trained}", "data=ring", "output=exported", "tracking=none"]) == 0
    assert metrics_of("exported")["export/largest_difference"] <= 1e-5
    events = "data/walks.parquet"
    assert main(["score", f"bundle={trained}", f"events={events}", "output=scored", "tracking=none"]) == 0
    table = pd.read_parquet("scored/predictions.parquet").set_index(CUSTOMER_ID)
    assert len(table) == NUM_CUSTOMERS + 1
    assert not [name for name in table.columns if name.startswith(("value_", "purchases_"))]
    last = walks().groupby(CUSTOMER_ID)[PRODUCT].last().str[-2:].astype(int)
    following = table["next_product_1"].str[-2:].astype(int)
    assert ((following - last) % NUM_FILMS == 1).mean() > 0.8
    # A rank cuts the table: at rank 0 everybody has one film.
    assert main(["score", f"bundle={trained}", f"events={events}", "cutoff=0", "output=first", "tracking=none"]) == 0
    assert metrics_of("first")["score/num_events"] == NUM_CUSTOMERS + 1


def test_money_cannot_be_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "data=ring", "tracking=none", "output=money"]) == 2
    assert "objective=[next_event]" in capsys.readouterr().err


def test_without_cutoffs_the_readout_would_learn_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    wrong = ["readout=full", "objective.next_event.shared=false", "output=untaught"]
    assert main(["train", *[word for word in SMALL if not word.startswith("readout")], *wrong]) == 2
    assert "answers from the readout of a cutoff" in capsys.readouterr().err


def test_dates_cannot_split_an_order(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = yaml.safe_load((folder / "configs" / "data" / "ring.yaml").read_text())
    config["name"] = "dated"
    config["windows"] = {
        "_target_": "constellation.journeys.windows.Windows",
        "val_cutoff": "2024-01-01",
        "test_cutoff": "2024-03-01",
    }
    (folder / "configs" / "data" / "dated.yaml").write_text(yaml.safe_dump(config))
    assert main(["train", "data=dated", "objective=[next_event]", "tracking=none", "output=dates"]) == 2
    assert "LastEvents" in capsys.readouterr().err
