"""From a run of objective=engagement to answers and plans for customers to come, as a person asks for them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from constellation.bundle import Bundle, EngagementBundle
from constellation.cli import main
from constellation.errors import InputError
from constellation.policies.saved import Saved
from tests.end_to_end.console import metrics_of, without_pictures
from tests.end_to_end.contacts import write_data_set, write_world

SMALL = ["encoder=gru", "encoder.width=8", "readout.width=8", "optimizer.lr=0.02", "training.max_epochs=2"]


def run(*words: str) -> int:
    with without_pictures():
        return main([*words, "tracking=none", "overwrite=true"])


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A working folder with data, two runs with three systems, whose models act refitted and fold by fold, and all
    decisions but each customer's last judged one."""
    folder = tmp_path_factory.mktemp("contacts")
    write_world(folder, effect=6.0, num_customers=120)
    write_data_set(folder, described=True)
    before = Path.cwd()
    os.chdir(folder)
    try:
        words = ["train", "objective=engagement", "data=contacts", "engagement.num_folds=2", "output=trained"]
        assert run(*words, "outcome=[ridge,gradient_boosting]", *SMALL) == 0
        folds = ["engagement.deploy=folds", "output=trained_folds"]
        assert run(*words, "outcome=[ridge,gradient_boosting]", *SMALL, *folds) == 0
        _write_open_decisions(folder)
        yield folder
    finally:
        os.chdir(before)


def _write_open_decisions(folder: Path) -> None:
    """The world's decisions as a scorer has them: the last judged one of each customer is open."""
    saved = Saved.load(folder / "trained")
    judged = saved.fold_Q >= 0
    last = (
        pl.DataFrame({"customer": saved.customer_ids_Q[judged], "last": saved.time_Q[judged]})
        .group_by("customer")
        .agg(pl.col("last").max())
    )
    table = pl.read_parquet(folder / "decisions.parquet").with_columns(pl.col("customer_id").cast(pl.String).alias("k"))
    table = table.join(last, left_on="k", right_on="customer")
    is_open = pl.col("decision_time").dt.epoch("us") == pl.col("last")
    table = table.with_columns(pl.when(is_open).then(None).otherwise(pl.col("action")).alias("action"))
    table.select("customer_id", "decision_time", "action").write_parquet(folder / "open.parquet")


@pytest.mark.parametrize(
    ("system", "policy"), [("model", "pessimistic"), ("ridge", "thompson"), ("gradient_boosting", "doubly_robust")]
)
def test_score_by_folds_gives_the_numbers_of_evaluate(trained: Path, system: str, policy: str) -> None:
    words = [f"system={system}", "run=trained_folds"]
    assert run("evaluate", *words, f"policy=[{policy}]", "num_resamples=20", f"output=judged_{system}") == 0
    files = ["events=events.parquet", "decisions=open.parquet"]
    assert run("score", *words, *files, f"policy={policy}", f"output=scored_{system}") == 0
    name = pl.col("customer_id").cast(pl.String)
    judged = pl.read_parquet(trained / f"judged_{system}" / "predictions.parquet").with_columns(name)
    scored = pl.read_parquet(trained / f"scored_{system}" / "predictions.parquet").with_columns(name)
    assert scored.height == judged.height == 3 * 120
    both = judged.join(scored, on=["customer_id", "action"], suffix="_scored")
    assert both.height == judged.height
    for column in ("expected", "lower", "propensity", "cost"):  # kept predictions are float32
        np.testing.assert_allclose(both[f"{column}_scored"], both[column], atol=2e-6, err_msg=column)
    chosen = pl.read_parquet(trained / f"scored_{system}" / "decisions.parquet")
    assert chosen.height == 120 and (chosen["propensity"] > 0).all()
    drawn = scored.filter("chosen")
    assert drawn.height == 120
    np.testing.assert_allclose(drawn["propensity"], chosen["propensity"])
    found = metrics_of(trained / f"scored_{system}")
    assert found["score/num_known_customers"] == 120
    assert sum(found[f"score/num_chosen/{action}"] for action in ("call", "mail", "none")) == 120


@pytest.mark.parametrize("system", ["model", "ridge"])
def test_what_acts_is_refitted_on_the_whole_log_and_said_to_be(
    trained: Path, system: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [f"system={system}", "policy=greedy", "events=events.parquet", "decisions=open.parquet"]
    assert run("score", "run=trained", *words, f"output=acts_{system}") == 0
    assert "answered by models refitted on the whole log" in capsys.readouterr().out
    # The bundle on its own says the same: there is one model per system, whoever asks.
    assert run("score", "bundle=trained/bundle", *words, f"output=bundled_{system}") == 0
    acts, bundled = (pl.read_parquet(f"{name}_{system}/predictions.parquet") for name in ("acts", "bundled"))
    assert acts.equals(bundled)
    bundle = EngagementBundle.load("trained/bundle")
    assert [[part.fold for part in parts] for parts in bundle.systems.values()] == [[-1]] * 3
    assert bundle.num_training[-1] == len(Saved.load(trained / "trained").log) > 5 * 120
    card = (trained / "trained" / "bundle" / "README.md").read_text()
    assert "model (refitted on the whole log)" in card and "What `evaluate` judges are the folds' models" in card
    assert "2 folds together" in (trained / "trained_folds" / "bundle" / "README.md").read_text()
    # The judged predictions are still the folds': the same in both runs, and not those that act.
    saved, of_folds = (Saved.load(trained / name) for name in ("trained", "trained_folds"))
    np.testing.assert_array_equal(saved.systems[system].members_MQA, of_folds.systems[system].members_MQA)
    assert run("score", "run=trained_folds", *words, f"output=fold_{system}") == 0
    fold = pl.read_parquet(f"fold_{system}/predictions.parquet")
    assert not np.allclose(fold["expected"], acts["expected"])
    assert np.corrcoef(fold["expected"], acts["expected"])[0, 1] > 0.5
    capsys.readouterr()
    assert run("evaluate", "run=trained", "policy=[greedy]", f"system={system}", "num_resamples=5", "output=said") == 0
    assert "refitted on the whole log, so close to it, not the same" in capsys.readouterr().out


def test_strangers_are_answered_by_all_models_and_csv_reads_alike(trained: Path) -> None:
    late = pl.col("customer_id") + 10_000
    events = pl.read_parquet(trained / "events.parquet").with_columns(late)
    decisions = pl.read_parquet(trained / "open.parquet").with_columns(late)
    for name, table in (("strangers", events), ("open_strangers", decisions)):
        table.write_parquet(trained / f"{name}.parquet")
        table.with_columns(pl.selectors.datetime().dt.strftime("%Y-%m-%d %H:%M:%S%.6f")).write_csv(
            trained / f"{name}.csv"
        )
    for kind in ("parquet", "csv"):
        words = ["run=trained", f"events=strangers.{kind}", f"decisions=open_strangers.{kind}", "policy=greedy"]
        assert run("score", *words, f"output=as_{kind}", "system=ridge") == 0
    first, second = (pl.read_parquet(trained / f"as_{kind}" / "predictions.parquet") for kind in ("parquet", "csv"))
    assert first.equals(second)
    assert metrics_of(trained / "as_csv")["score/num_known_customers"] == 0
    bundle = EngagementBundle.load(trained / "trained" / "bundle")
    answers = bundle.predict(events, decisions=decisions, system="ridge", policy="greedy")
    np.testing.assert_array_equal(answers.frame()["expected"], first["expected"])
    assert (answers.chosen()["propensity"] == 1).all()
    # An ensemble by bootstrap: the bound lies below the mean, and the right action wins for most.
    assert (answers.lower_QA < answers.expected_QA).all()
    likes_mail = (
        events.filter(pl.col("event_type").str.starts_with("browse"))
        .group_by("customer_id")
        .agg((pl.col("event_type") == "browse_a").all())
        .sort("customer_id")["event_type"]
    )
    right = np.where(likes_mail, "mail", "call") == answers.chosen().sort("customer_id")["action"].to_numpy()
    assert right.mean() > 0.9


def test_what_does_not_fit_is_said_in_one_paragraph(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words, match in (
        (["run=trained", "bundle=trained/bundle"], "one of them"),
        (["bundle=trained/bundle"], "nothing to decide about"),
        (["run=trained", "policy=[greedy,softmax]"], "One policy acts at a time"),
        (["run=trained", "system=oracle"], "it has model, ridge, gradient_boosting"),
        (["bundle=trained/bundle", "events=events.parquet", "policy=softmax"], "no fitted policy 'softmax'"),
        (["run=trained", "costs={fax: 1}"], "fax is no action"),
        (["run=trained", "actions={shout: {volume: 3}}"], "must be described by loud"),
        (["run=trained", "actions={mail: {loud: 3}}"], "mail is not new"),
        (["run=trained", "cutoff=2001-01-01"], "Nobody is to be decided about"),
    ):
        assert run("score", *words, "output=never") == 2, words
        assert match in capsys.readouterr().err
    with pytest.raises(InputError, match=r"read it with EngagementBundle\.load"):
        Bundle.load(trained / "trained" / "bundle")


def test_export_keeps_fitted_policies_and_answers_alike(trained: Path) -> None:
    assert run("export", "run=trained", "policy=[softmax,best_constant]", "to=sent", "output=exported") == 0
    found = metrics_of(trained / "exported")
    assert found["export/largest_difference"] < 1e-6 and found["export/num_customers_compared"] == 120
    assert not list((trained / "sent").rglob("*.pkl"))
    bundle = EngagementBundle.load(trained / "sent")
    assert list(bundle.policies) == ["softmax", "best_constant"]
    assert bundle.policies["softmax"].scale > 0 and bundle.policies["softmax"].scale != 1.0
    events, decisions = (pl.read_parquet(trained / f"{name}.parquet") for name in ("events", "open"))
    answers = bundle.predict(events, decisions=decisions)  # the first policy is taken unasked
    assert ((answers.target_QA > 0) & (answers.target_QA < 1)).all()
    constant = bundle.predict(events, decisions=decisions, policy="best_constant").chosen()
    assert constant["action"].n_unique() == 1
    card = (trained / "sent" / "README.md").read_text()
    assert "softmax, best_constant" in card and "| `mail` | 0 | loud 1 |" in card


def test_the_mlflow_model_answers_as_the_bundle(trained: Path) -> None:
    import mlflow.pyfunc

    from constellation.bundle.engagement_pyfunc import save_engagement_pyfunc

    folder = trained / "trained" / "bundle"
    save_engagement_pyfunc(EngagementBundle.load(folder), folder, trained / "mlflow_model")
    assert not list((trained / "mlflow_model").rglob("*.pkl")), "nothing is pickled"
    model = mlflow.pyfunc.load_model(str(trained / "mlflow_model"))
    times = pl.col("event_time").dt.replace_time_zone(None)
    events = pl.read_parquet(trained / "events.parquet").with_columns(times).to_pandas()
    params = {"cutoff": "2023-12-10", "policy": "greedy", "system": "ridge"}
    found = model.predict(events, params=params)
    expected = EngagementBundle.load(folder).predict(events, "2023-12-10", policy="greedy", system="ridge").frame()
    np.testing.assert_allclose(found["expected"], expected["expected"], atol=1e-12)
    assert found["chosen"].tolist() == expected["chosen"].to_list()


def test_recommend_scores_and_plans_in_one_command(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    limits = ["constraints.budget=60", "constraints.costs={mail: 1, call: 2}", "constraints.capacity={call: 5}"]
    assert run("recommend", "run=trained", "system=ridge", *limits, "output=planned") == 0
    plan = pl.read_parquet(trained / "planned" / "plan.parquet")
    assert {
        "action",
        "channel",
        "time_window",
        "expected",
        "lower",
        "propensity",
        "action_without_limits",
        "reason",
    } <= set(plan.columns)
    assert plan.height == 120
    cost = (
        plan["action"].cast(pl.String).replace_strict({"none": 0.0, "mail": 1.0, "call": 2.0}, return_dtype=pl.Float64)
    )
    assert cost.sum() <= 60 and (plan["action"].cast(pl.String) == "call").sum() <= 5
    assert {"none", "mail"} <= set(plan["action"].cast(pl.String))
    found = metrics_of(trained / "planned")
    assert found["recommend/num_violations"] == 0 and found["recommend/lower"] > found["recommend/lower_of_none"]
    assert "is worth" in capsys.readouterr().out
    # What is planned is what was scored, net of the costs given now.
    scored = pl.read_parquet(trained / "planned" / "predictions.parquet")
    joined = plan.with_columns(pl.col("action").cast(pl.String)).join(
        scored, on=["customer_id", "action"], suffix="_said"
    )
    np.testing.assert_allclose(joined["expected"], joined["expected_said"], rtol=1e-5)
    assert run("score", "run=trained", "system=ridge", "output=plain") == 0
    before = pl.read_parquet(trained / "plain" / "predictions.parquet").filter(pl.col("action") == "call")
    np.testing.assert_allclose(
        scored.filter(pl.col("action") == "call")["expected"], before["expected"] - 2.0, atol=1e-9
    )
    # Contacts of the past are the decisions of the past: nobody contacted of late is contacted again.
    caps = "constraints.caps=[{contacts: 1, days: 30}]"
    assert run("recommend", "run=trained", "system=ridge", caps, "output=rested") == 0
    rested = pl.read_parquet(trained / "rested" / "plan.parquet")
    decisions = pl.read_parquet(trained / "decisions.parquet").filter(pl.col("action") != "none")
    late = decisions.filter(pl.col("decision_time") > pl.col("decision_time").max() - pl.duration(days=20))[
        "customer_id"
    ]
    assert len(late) > 50
    assert (rested.filter(pl.col("customer_id").is_in(late.implode()))["action"].cast(pl.String) == "none").all()
    assert run("recommend", "run=trained", "predictions=example", "output=never") == 2
    assert "one of predictions=FILE" in capsys.readouterr().err


def test_a_new_action_is_scored_from_its_description(trained: Path) -> None:
    """``mail`` (loud 1) lies between ``none`` (0) and ``call`` (2); a description between two actions says as much."""
    words = ["run=trained", "system=ridge", "policy=greedy"]
    assert run("score", *words, "actions={card: {loud: 1, cost: 0.5}}", "output=new") == 0
    found = pl.read_parquet(trained / "new" / "predictions.parquet")
    new = found.filter(pl.col("action") == "card").sort("customer_id")
    known = {name: found.filter(pl.col("action") == name).sort("customer_id") for name in ("none", "mail", "call")}
    # Weights of the known actions add up to 1, so it lies within what they span, less its own cost.
    mean = sum(frame["expected"] for frame in known.values()) / 3
    np.testing.assert_allclose(new["expected"] + 0.5, mean, atol=1e-6)  # loud 1 is the mean of the descriptions
    assert (new["cost"] == 0.5).all()
    # What the description leaves open is in its bound.
    width = {name: (frame["expected"] - frame["lower"]).mean() for name, frame in known.items()}
    assert (new["expected"] - new["lower"]).mean() > min(width.values())


def test_experiments_without_journeys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A table of attributes and one of decisions, as Hillstrom has them."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    num = 600
    old = rng.random(num) < 0.5
    action = rng.choice(["none", "mail", "call"], num, p=[0.5, 0.25, 0.25])
    reward = 1.0 * (action == "mail") * old + 1.0 * (action == "call") * ~old + 0.1 * rng.normal(size=num)
    customer = pl.Series("customer_id", [f"c{place:03d}" for place in range(num)])
    kind = np.where(old, "old", "young")
    people = pl.DataFrame({"customer_id": customer, "kind": kind, "age": rng.integers(20, 80, num).astype(float)})
    people.write_parquet("people.parquet")
    pl.DataFrame(
        {"customer_id": customer, "decision_time": "2023-12-01", "action": action, "reward": reward}
    ).write_parquet("decisions.parquet")
    people_sql = "SELECT * FROM '{root}/people.parquet'"
    write_data_set(tmp_path, "trial", sql=None, attributes_sql=people_sql, described=True)
    words = ["train", "objective=engagement", "data=trial", "engagement.num_folds=2", "outcome=[gradient_boosting]"]
    assert run(*words, "output=trained") == 0
    people.write_csv("people.csv")
    assert run("score", "bundle=trained/bundle", "attributes=people.csv", "policy=greedy", "output=scored") == 0
    chosen = pl.read_parquet("scored/decisions.parquet").sort("customer_id")
    assert (chosen["action"].to_numpy() == np.where(old, "mail", "call")).mean() > 0.95
    # Who may be done what is a column of the decisions.
    some = (
        people.head(4)
        .select("customer_id")
        .with_columns(
            decision_time=pl.lit("2023-12-20"), eligible=pl.Series([["none"], ["none", "mail"], None, ["call"]])
        )
    )
    some.write_parquet("open.parquet")
    words = ["bundle=trained/bundle", "attributes=people.csv", "decisions=open.parquet", "policy=uniform"]
    assert run("score", *words, "output=few") == 0
    few = pl.read_parquet("few/predictions.parquet")
    assert few.group_by("customer_id").agg(pl.col("eligible").sum()).sort("customer_id")["eligible"].to_list() == [
        1,
        2,
        3,
        1,
    ]
    np.testing.assert_allclose(few.filter(~pl.col("eligible"))["propensity"], 0.0)
    assert (
        run(
            "recommend",
            "bundle=trained/bundle",
            "attributes=people.csv",
            "constraints.capacity={mail: 10}",
            "output=plan",
        )
        == 0
    )
    plan = pl.read_parquet("plan/plan.parquet")
    assert (plan["action"].cast(pl.String) == "mail").sum() == 10
    with pytest.raises(InputError, match="reads no events"):
        EngagementBundle.load("trained/bundle").predict()


@pytest.mark.slow
def test_the_loyalty_world_from_raw_events_to_a_plan(work_folder: Path) -> None:
    """Simulate a club, train on its log, and plan its next week within budget, capacity and caps."""
    small = ["engagement.sequence_model=false", "engagement.num_folds=2", "outcome=[ridge]"]
    world = ["data=loyalty", "data.source.arguments.num_customers=150"]
    assert run("train", "objective=engagement", *world, *small, "output=trained") == 0
    bundle = EngagementBundle.load("trained/bundle")
    assert bundle.channels["call"] == "phone" and set(bundle.actions) >= {"none", "voucher", "newsletter"}
    limits = ["constraints.budget=40", "constraints.capacity={phone: 3}", "constraints.caps=[{contacts: 2, days: 14}]"]
    explore = ["constraints.exploration=0.1", "policy=thompson", "seed=1"]
    assert run("recommend", "run=trained", *limits, *explore, "output=planned") == 0
    plan = pl.read_parquet("planned/plan.parquet")
    found = metrics_of(work_folder / "planned")
    assert found["recommend/num_violations"] == 0
    assert found["recommend/cost"] <= 40 + 1e-9 and (plan["channel"].cast(pl.String) == "phone").sum() <= 3
    assert plan["reason"].null_count() == 0 and plan["propensity"].is_between(0, 1).all()
    assert plan["explored"].sum() > 5 and (plan.filter("explored")["propensity"] < 0.5).any()
    for table in ("funnel", "shadow_prices", "optionality"):
        assert (work_folder / "planned" / "tables" / f"{table}.parquet").exists()
    # Who got two contacts in the last fortnight gets none: the log's own decisions are the past.
    from constellation.worlds.loyalty.world import loyalty

    decisions = loyalty(num_customers=150, seed=0)["decisions"].filter(pl.col("action") != "none")
    last = pl.datetime(2025, 6, 30, time_zone="UTC")
    recent = decisions.filter(pl.col("decision_time") > last - pl.duration(days=14)).group_by("customer_id").len()
    tired = recent.filter(pl.col("len") >= 2)["customer_id"]
    assert len(tired) > 10
    assert (plan.filter(pl.col("customer_id").is_in(tired.implode()))["action"].cast(pl.String) == "none").all()
    # The same from files, as another system would ask: raw events in, a plan out.
    tables = loyalty(num_customers=150, seed=0)
    for name, table in tables.items():
        table.write_parquet(f"{name}.parquet")
    files = ["events=events.parquet", "attributes=attributes.parquet", "decisions=decisions.parquet"]
    words = ["bundle=trained/bundle", *files, "cutoff=2025-06-29", *limits]
    assert run("recommend", *words, "output=from_files") == 0
    again = pl.read_parquet("from_files/plan.parquet")
    assert set(again["customer_id"]) == set(plan["customer_id"])
    assert metrics_of(work_folder / "from_files")["recommend/num_violations"] == 0


def test_the_context_of_open_decisions_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Mail helps those whose context says so at the decision; in score and recommend, in pieces or at once."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    num = 400
    likes = rng.random(num) < 0.5
    action = rng.choice(["none", "mail", "call"], num, p=[0.5, 0.25, 0.25])
    reward = 2.0 * ((action == "mail") & likes) + 2.0 * ((action == "call") & ~likes) + 0.1 * rng.normal(size=num)
    customer = np.arange(num)
    pl.DataFrame({"customer_id": customer, "city": "here"}).write_parquet("people.parquet")
    past = pl.DataFrame(
        {"customer_id": customer, "decision_time": "2023-12-01", "action": action, "reward": reward,
         "context_likes": likes.astype(float)}
    )  # fmt: skip
    past.write_parquet("decisions.parquet")
    write_data_set(tmp_path, "known", sql=None, attributes_sql="SELECT * FROM '{root}/people.parquet'")
    words = ["outcome=[ridge]", "engagement.num_folds=2", "engagement.num_members=1", "engagement.context_alone=true"]
    assert run("train", "objective=engagement", "data=known", *words, "output=trained") == 0
    later = past.select("customer_id", "context_likes").with_columns(
        context_likes=1.0 - pl.col("context_likes"),
        decision_time=pl.lit("2024-01-01"),
        action=pl.lit(None, dtype=pl.String),
    )
    both = pl.concat([past.drop("reward"), later.select(past.drop("reward").columns)])
    both.write_parquet("open.parquet")
    both.drop("context_likes").write_parquet("blind.parquet")
    people = "attributes=people.parquet"
    found = {}
    for chunk in (65_536, 64):
        monkeypatch.setattr("constellation.bundle.engagement.CHUNK", chunk)
        assert run("score", "run=trained", "decisions=open.parquet", people, "policy=greedy", "output=scored") == 0
        found[chunk] = pl.read_parquet("scored/predictions.parquet")
        chosen = pl.read_parquet("scored/decisions.parquet").sort("customer_id")["action"].to_list()
        assert chosen == ["call" if now else "mail" for now in likes]  # what was liked is not liked any more
    assert found[64].equals(found[65_536])
    plan = ["decisions=open.parquet", people, "constraints.costs={mail: 0.1, call: 0.1}", "constraints.budget=10"]
    assert run("recommend", "run=trained", *plan, "output=planned") == 0
    taken = pl.read_parquet("planned/plan.parquet").sort("customer_id")["action"].cast(pl.String).to_list()
    right = [action in ("none", "call" if now else "mail") for action, now in zip(taken, likes, strict=True)]
    assert all(right) and taken.count("none") == num - 100
    # Without the columns the last decision's context goes on, and that is said.
    capsys.readouterr()
    assert run("score", "run=trained", "decisions=blind.parquet", people, "policy=greedy", "output=blind") == 0
    assert "400 decisions come without their context" in capsys.readouterr().out
