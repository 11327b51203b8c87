"""Pretrain, begin from it, explain: as a person runs them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from constellation.beginning import Beginning
from constellation.bundle import Bundle
from constellation.bundle.raw import raw_attributes, raw_events
from constellation.cli import main
from constellation.commands.train import _check_resumable
from constellation.errors import InputError
from constellation.journeys.splits import Splits
from constellation.journeys.store import Store
from constellation.journeys.windows import Windows
from tests.end_to_end import console

SMALL = [
    "data=spenders", "data.source.arguments.num_customers=60", "encoder=gru", "encoder.width=8", "encoder.layers=1",
    "readout.width=8", "readout.layers=1", "training.max_epochs=1", "num_resamples=20", "baseline=[always_zero]",
    "tracking=none", "recalibration=null",
]  # fmt: skip
NEXT = ["objective=[next_event]", "objective.next_event.width=8"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with a pretrained run and one that began from it."""
    folder = tmp_path_factory.mktemp("pretrained")
    console.said_in(folder, "train", *SMALL, *NEXT, "training.refit=false", "output=pre")
    tuned = ["objective=[value_quantiles]", "init=pre", "init_rate=0.5", "output=fine"]
    console.said_in(folder, "train", *SMALL, *tuned)
    return folder


@pytest.fixture
def inside(folder: Path) -> Iterator[Path]:
    with console.inside(folder):
        yield folder


def test_what_was_taken_is_recorded(inside: Path) -> None:
    known = json.loads((inside / "fine" / "init.json").read_text())
    pretrained, tuned = (Bundle.load(inside / name / "bundle") for name in ("pre", "fine"))
    assert known["init"] == "pre"
    assert known["init_data"] == "spenders"
    assert known["init_until"] == "2024-07-01"  # refit=false: nothing after the validation cutoff was learned
    assert known["init_rate"] == 0.5
    assert known["unused"] == ["objective next_event"]
    weights = known["weights"]
    assert 0.8 < weights["encoder"]["taken"] / weights["encoder"]["of"] <= 1
    assert weights["objective value"]["taken"] == 0
    total = sum(parameter.numel() for parameter in tuned.model.parameters())
    assert sum(part["of"] for part in weights.values()) == total
    assert known["share"] == pytest.approx(sum(part["taken"] for part in weights.values()) / total)
    metrics = json.loads((inside / "fine" / "metrics.json").read_text())
    assert metrics["init/share_taken"] == pytest.approx(known["share"])
    assert tuned.trained_on["init"] == "pre"
    assert tuned.trained_on["init_weights"] == known["init_weights"]
    card = (inside / "fine" / "bundle" / "README.md").read_text()
    assert "| init | pre |" in card
    assert "| init_objectives | next_event |" in card
    assert str(inside) not in card
    assert "init" not in pretrained.trained_on


def prepared(folder: Path) -> Store:
    """The store that the fixture's runs made."""
    (manifest,) = (folder / ".constellation").rglob("manifest.json")
    return Store.open(manifest.parent)


def test_what_the_initial_model_knows_is_said_or_refused(inside: Path) -> None:
    bundle = Bundle.load(inside / "pre" / "bundle")
    store, beginning = prepared(inside), Beginning(bundle, "pre", "1234", 1.0)
    said: list[str] = []

    def begin(val_cutoff: str, test_cutoff: str, holdout_share: float = 0.1, begun: Beginning = beginning) -> str:
        said.clear()
        begun.check_knowledge(Splits(store, Windows(val_cutoff, test_cutoff, (30, 91), holdout_share)), said.append)
        return "\n".join(said)

    assert begin("2024-07-01", "2024-09-30") == "begins from pre: next_event on spenders, trained up to 2024-07-01"
    assert "it knows what follows the validation cutoff 2024-06-30" in begin("2024-06-30", "2024-09-30")
    assert "test_new may not be new to it" in begin("2024-07-01", "2024-09-30", 0.5)
    with pytest.raises(InputError, match="up to 2024-07-01, after the test cutoff 2024-06-30"):
        begin("2024-05-01", "2024-06-30")
    elsewhere = replace(bundle, trained_on={**bundle.trained_on, "fingerprint": "other data"})
    assert "it knows" not in begin("2024-05-01", "2024-06-30", begun=Beginning(elsewhere, "pre", "1234", 1.0))


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (["encoder.width=16"], "init was trained with encoder.width=8 (here 16)"),
        (["encoder=bag", "~encoder.layers"], "init holds another encoder (constellation.encoders.gru.Gru)"),
        (["init_rate=2"], "init_rate must lie in (0, 1], found 2"),
        (["init=nowhere"], "There is no run 'nowhere'"),
        (["objective=engagement"], "objective=engagement takes no init"),
    ],
)
def test_a_beginning_that_cannot_be_is_refused(
    inside: Path, capsys: pytest.CaptureFixture[str], words: list[str], match: str
) -> None:
    chosen = [] if words[0].startswith("objective=") else ["objective=[value_quantiles]"]
    init = [] if words[0].startswith("init=") else ["init=pre"]
    small = [word for word in SMALL if word.split("=")[0] not in {word.split("=")[0].lstrip("~") for word in words}]
    assert main(["train", *small, *chosen, *init, *words, "output=refused", "overwrite=true"]) == 2
    assert match in capsys.readouterr().err


def test_a_run_goes_on_only_with_the_weights_it_began_from(tmp_path: Path) -> None:
    config = {"data": {"name": "d"}, "seeds": [0]}
    _check_resumable(config, tmp_path / "c", False, "abc", {"init": "pre", "init_weights": "1234"})
    _check_resumable(config, tmp_path / "c", True, "abc", {"init": "moved", "init_weights": "1234"})
    with pytest.raises(InputError, match=r"init_weights: \"1234\" then, \"5678\" now"):
        _check_resumable(config, tmp_path / "c", True, "abc", {"init": "pre", "init_weights": "5678"})


# ---------------------------------------------------------------- explain


def test_explain_a_run(inside: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["run=fine", "answer=value_91d", "num_customers=12", "num_shown=2", "tracking=none", "output=why"]
    assert main(["explain", *words]) == 0
    said = capsys.readouterr().out
    customers = pd.read_parquet("why/customers.parquet")
    contributions = pd.read_parquet("why/contributions.parquet")
    assert len(customers) == contributions["customer_id"].nunique() == 12
    assert customers["is_complete"].all()
    sums = contributions.groupby("customer_id")["contribution"].sum()[customers["customer_id"]].to_numpy()
    missed = (customers["prediction"] - customers["baseline"] - sums).abs()
    assert (missed <= 0.01 * np.maximum((customers["prediction"] - customers["baseline"]).abs(), 1e-2) + 1e-4).all()
    assert f"Customer {customers['customer_id'][0]}: {customers['prediction'][0]:.4g} EUR" in said
    assert "Customer" in said
    assert "aggregates" in said
    metrics = json.loads(Path("why/metrics.json").read_text())
    assert metrics["explain/share_complete"] == 1.0
    assert metrics["explain/num_customers"] == 12
    pictures = {path.name for path in Path("why/figures").iterdir()}
    assert {"fields.png", "customer_1.png", "customer_2.png"} <= pictures
    assert "customer_3.png" not in pictures
    fields = pd.read_parquet(next(Path("why").rglob("fields.parquet")))
    assert fields["share"].sum() == pytest.approx(1.0)
    assert "customer_id" not in fields.columns


def test_explain_a_bundle_on_a_file_and_on_data(inside: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = prepared(inside)
    everybody = np.arange(store.num_customers)
    raw_events(store, everybody).write_parquet("events.parquet")
    raw_attributes(store, everybody).write_parquet("people.parquet")
    ids = np.asarray(store.customer_id_C)[:2].tolist()
    asked = ["answer=value_30d_p_zero", f"customers=[{ids[0]},{ids[1]}]", "tracking=none", "num_shown=0"]
    file = ["events=events.parquet", "attributes=people.parquet", "cutoff=2024-09-30"]
    data = [word for word in SMALL if word.startswith("data")]
    with console.without_pictures():
        assert main(["explain", "run=fine/bundle", *file, *asked, "output=by_file"]) == 0
        assert main(["explain", "run=fine/bundle", *data, *asked, "output=by_data"]) == 0
    tables = [pd.read_parquet(f"{name}/customers.parquet") for name in ("by_file", "by_data")]
    assert tables[0]["customer_id"].tolist() == tables[1]["customer_id"].tolist() == ids
    np.testing.assert_allclose(tables[0]["prediction"], tables[1]["prediction"], rtol=1e-4)
    np.testing.assert_allclose(tables[0]["baseline"], tables[1]["baseline"], rtol=1e-4)
    capsys.readouterr()
    assert main(["explain", "run=fine/bundle", "answer=value_30d", "tracking=none", "output=none"]) == 2
    assert "does not say which data set it was trained on" in capsys.readouterr().err
    assert main(["explain", "run=fine", "answer=value_30d", "customers=[ghost]", "tracking=none", "output=none2"]) == 2
    assert "'ghost' is none of them" in capsys.readouterr().err
