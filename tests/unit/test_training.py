"""Select, then refit, on a handful of journeys in memory; and the parts of the loop by hand."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from constellation.building import build_model
from constellation.errors import InputError
from constellation.journeys.batch import Gatherer
from constellation.journeys.splits import Splits
from constellation.journeys.store import Store
from constellation.journeys.vocabulary import Vocabulary
from constellation.journeys.windows import Windows
from constellation.model import JourneyModel
from constellation.objectives.base import Loss
from constellation.schema import AMOUNT, CUSTOMER_ID, EVENT_TIME, EVENT_TYPE, PRODUCT
from constellation.training import study as study_module
from constellation.training.checkpoints import LAST
from constellation.training.learner import Learner
from constellation.training.options import TrainingOptions
from constellation.training.study import Study, fit_vocabulary, select_then_refit, training_batches
from tests.helpers import at, built_store, events_frame, random_attributes, random_events

WINDOWS = Windows("2017-04-01", "2017-04-15", (3, 10), holdout_share=0.25)
OPTIONS = TrainingOptions(
    max_epochs=3,
    passes=1,
    max_journeys=8,
    cutoffs_per_journey=2,
    windows_days=(2, 7),
    patience=10,
    averaging=0.5,
    products="float32",  # not measured, so that the same comes out whatever else runs here
)
MODEL = {
    "encoder": {"_target_": "constellation.encoders.bag.Bag", "width": 4, "layers": 1},
    "readout": {"_target_": "constellation.encoders.readout.Readout", "width": 4, "layers": 1},
    "objective": {
        "value": {
            "_target_": "constellation.objectives.value.Value",
            "family": {"_target_": "constellation.objectives.families.Ziln"},
        }
    },
}
ADAM = partial(torch.optim.Adam, lr=0.003)


def store_of(events: pd.DataFrame) -> Store:
    return built_store(events, None, random_attributes(0), observed_until=at(60))


EVENTS = random_events(1, num_customers=30, num_events=350)
STORE = store_of(EVENTS)


def build(vocabulary: Vocabulary) -> JourneyModel:
    return build_model(MODEL, vocabulary, WINDOWS.horizons_days)


def train(
    folder: Path,
    *,
    store: Store = STORE,
    options: TrainingOptions = OPTIONS,
    seed: int = 0,
    optimizer: Any = ADAM,
    build: Callable[[Vocabulary], JourneyModel] = build,
    report: Callable[[str, dict[str, float]], None] = lambda phase, row: None,
) -> Study:
    return select_then_refit(Splits(store, WINDOWS), build, optimizer, options, folder, seed=seed, report=report)


def weights(study: Study) -> list[Tensor]:
    models = (study.selected.model, study.refitted.model)
    return [part.detach().clone() for model in models for part in model.state_dict().values()]


def same(left: Study, right: Study) -> bool:
    pairs = list(zip(weights(left), weights(right), strict=True))
    return all(one.shape == two.shape and torch.equal(one, two) for one, two in pairs)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    return train(tmp_path_factory.mktemp("study"))


# ---------------------------------------------------------------- two phases


@pytest.mark.parametrize("max_epochs", [1, 4])
def test_the_refit_takes_as_many_steps_as_the_best_epoch_had(tmp_path: Path, max_epochs: int) -> None:
    steps: list[int] = []

    class Counting(torch.optim.Adam):
        def __init__(self, parameters: Any) -> None:
            super().__init__(parameters, lr=0.5)  # so high that the first epochs are the best
            steps.append(0)

        def step(self, *given: Any, **named: Any) -> Any:
            steps[-1] += 1
            return super().step(*given, **named)

    rows: list[tuple[str, dict[str, float]]] = []
    found = train(
        tmp_path,
        options=TrainingOptions(**(vars(OPTIONS) | {"max_epochs": max_epochs})),
        optimizer=Counting,
        report=lambda phase, row: rows.append((phase, dict(row))),
    )
    selection = [row for phase, row in rows if phase == "select"]
    scores = [row[f"val/{found.monitor}"] for row in selection]
    best = int(np.argmin(scores))
    assert found.monitor == "value_10d/crps"
    assert found.selected.best_epoch == best
    assert found.selected.num_steps == selection[best]["step"] == found.refitted.num_steps == steps[1]
    assert steps[0] == selection[-1]["step"]
    assert [row["epoch"] for row in selection] == list(range(len(selection)))
    assert [row for phase, row in rows if phase == "refit"][-1]["step"] == steps[1]
    assert found.selected.history == selection


def test_few_customers_are_gone_over_more_often_and_the_refit_keeps_how_often(tmp_path: Path) -> None:
    options = replace(OPTIONS, max_epochs=1, passes="auto", max_journeys=2)
    splits = Splits(STORE, WINDOWS)
    splits.train_journeys = splits.train_journeys[:10]
    gatherer = Gatherer(STORE, fit_vocabulary(splits, options, splits.select_panel, splits.select_until))
    once = training_batches(gatherer, splits, splits.select_until, replace(options, passes=1), 0)
    assert len(once) == 5 and once.passes == 1
    found = select_then_refit(splits, build, ADAM, options, tmp_path, seed=0, report=lambda phase, row: None)
    assert found.passes == 13 and found.facts()["train/passes_per_epoch"] == 13.0  # 13 times 5 is the first over 64
    assert found.selected.num_steps == found.refitted.num_steps == 65


@pytest.mark.parametrize(("num_batches", "expected"), [(1, 16), (4, 16), (5, 13), (42, 2), (43, 1), (64, 1), (900, 1)])
def test_an_epoch_has_steps_enough(num_batches: int, expected: int) -> None:
    assert TrainingOptions().passes_of_an_epoch(num_batches) == expected
    assert TrainingOptions(passes=3).passes_of_an_epoch(num_batches) == 3
    assert TrainingOptions(cutoffs_per_journey=0).passes_of_an_epoch(num_batches) == 1  # it would ask the same again


def test_patience_ends_the_selection(tmp_path: Path) -> None:
    never_better = partial(torch.optim.SGD, lr=0.0)
    options = TrainingOptions(**(vars(OPTIONS) | {"max_epochs": 9, "patience": 2, "averaging": 0.0}))
    found = train(tmp_path, options=options, optimizer=never_better)
    # Nothing changes, so the first epoch stays the best, and two more are given their chance.
    assert [row["epoch"] for row in found.selected.history] == [0, 1, 2]
    assert found.selected.best_epoch == 0
    assert found.refitted.num_steps == found.selected.history[0]["step"]


def test_the_same_seed_gives_the_same_weights_and_another_one_others(study: Study, tmp_path: Path) -> None:
    assert same(study, train(tmp_path / "again"))
    assert not same(study, train(tmp_path / "other", seed=1))


def test_the_refit_reads_through_a_vocabulary_of_its_own(study: Study) -> None:
    """It was fitted up to the test cutoff; both know customers in training only."""
    select, refit = study.selected_vocabulary.to_json(), study.vocabulary.to_json()
    assert json.dumps(select, default=str) != json.dumps(refit, default=str)


def test_vocabularies_that_are_there_already_change_nothing(study: Study, tmp_path: Path) -> None:
    splits = Splits(STORE, WINDOWS)
    select = fit_vocabulary(splits, OPTIONS, splits.select_panel, splits.select_until)
    refit = fit_vocabulary(splits, OPTIONS, splits.refit_panel, splits.refit_until)
    found = select_then_refit(
        splits, build, ADAM, OPTIONS, tmp_path, seed=0, report=lambda phase, row: None, vocabularies=(select, refit)
    )
    assert found.selected_vocabulary is select and found.vocabulary is refit
    assert same(found, study)


def test_an_unknown_monitor_lists_what_there_is(tmp_path: Path) -> None:
    options = TrainingOptions(**(vars(OPTIONS) | {"monitor": "value_91d/crps"}))
    with pytest.raises(InputError, match=r"'value_91d/crps'.*value_10d/crps.*value_3d/gini_normalised"):
        train(tmp_path, options=options)
    assert not list(tmp_path.rglob(LAST))


@pytest.mark.parametrize(("metric", "ideal"), [("gini_normalised", 1.0), ("bias_total", 0.0), ("crps", 0.0)])
def test_the_monitor_is_read_by_its_distance_from_the_ideal(tmp_path: Path, metric: str, ideal: float) -> None:
    """A Gini is better when higher, and a bias of minus thirty per cent is no better than one of plus thirty."""
    options = TrainingOptions(**(vars(OPTIONS) | {"monitor": f"val/value_3d/{metric}", "max_epochs": 4}))
    found = train(tmp_path, options=options, optimizer=partial(torch.optim.Adam, lr=0.05))
    scores = np.array([row[f"val/value_3d/{metric}"] for row in found.selected.history])
    assert len(set(scores)) > 1
    assert found.selected.best_epoch == int(np.argmin(np.abs(scores - ideal)))


# ---------------------------------------------------------------- what must not matter


def changed_after_the_test_cutoff_and_for_the_held_out(events: pd.DataFrame) -> pd.DataFrame:
    """Other amounts, types and products, events gone and events more, wherever training must not look."""
    splits = Splits(STORE, WINDOWS)
    held_out = set(STORE.customer_id_C[splits.held_out_C])
    unseen = events[CUSTOMER_ID].isin(held_out) | (events[EVENT_TIME].astype("int64") > splits.test_cutoff)
    assert 50 < unseen.sum() < len(events) - 50
    kept, rest = events[~unseen], events[unseen]
    rest = rest.iloc[::2].copy()
    rest[AMOUNT] = 5000.0
    rest[EVENT_TYPE] = "windfall"
    rest[PRODUCT] = [["moon", "bread"]] * len(rest)
    return pd.concat([rest, kept, rest], ignore_index=True)


def test_nothing_of_the_held_out_nor_after_the_test_cutoff_enters(study: Study, tmp_path: Path) -> None:
    changed = store_of(changed_after_the_test_cutoff_and_for_the_held_out(EVENTS))
    assert changed.num_events != STORE.num_events
    again = train(tmp_path, store=changed)
    assert same(study, again)
    for mine, theirs in (
        (study.vocabulary, again.vocabulary),
        (study.selected_vocabulary, again.selected_vocabulary),
    ):
        assert json.dumps(mine.to_json(), default=str) == json.dumps(theirs.to_json(), default=str)
    scores = ("val/value_3d/crps", "val/value_10d/gini_normalised", "train/loss")
    for mine, theirs in zip(study.selected.history, again.selected.history, strict=True):
        assert [mine[name] for name in scores] == [theirs[name] for name in scores]


def test_selection_weights_know_nothing_after_the_validation_cutoff(study: Study, tmp_path: Path) -> None:
    """Only the choice of the epoch may: with one epoch there is none."""
    val_cutoff = Splits(STORE, WINDOWS).val_cutoff
    later = EVENTS[EVENT_TIME].astype("int64") > val_cutoff
    changed = EVENTS.copy()
    changed.loc[later & changed[AMOUNT].notna(), AMOUNT] = 777.0
    options = TrainingOptions(**(vars(OPTIONS) | {"max_epochs": 1}))
    one, two = (train(tmp_path / n, store=s, options=options) for n, s in (("a", STORE), ("b", store_of(changed))))
    first, second = (list(found.selected.model.state_dict().values()) for found in (one, two))
    assert all(torch.equal(left, right) for left, right in zip(first, second, strict=True))
    assert not same(one, two), "the refit does learn from what lies between the two cutoffs"


# ---------------------------------------------------------------- stopping and resuming


class Stopper:
    """Somebody who presses Ctrl-C at the end of one epoch of one phase, before its checkpoint is written."""

    def __init__(self, phase: str, epoch: int) -> None:
        self.phase, self.epoch = phase, epoch
        self.heard: list[tuple[str, int]] = []

    def __call__(self, phase: str, row: dict[str, float]) -> None:
        self.heard.append((phase, int(row["epoch"])))
        if (phase, row["epoch"]) == (self.phase, self.epoch):
            raise KeyboardInterrupt


class EverBetter:
    """In the place of the scores of the validation questions: each model is better than the one before."""

    asked = 0

    def __init__(self, gatherer: Any, queries: Any, *, exclude_seen: bool) -> None:
        self.queries = queries

    def __call__(self, model: nn.Module) -> dict[str, float]:
        EverBetter.asked += 1
        return {"value_10d/crps": 1 / EverBetter.asked}


def build_without_dropout(vocabulary: Vocabulary) -> JourneyModel:
    parts = {name: MODEL[name] | {"dropout": 0.0} for name in ("encoder", "readout")}
    return build_model(MODEL | parts, vocabulary, WINDOWS.horizons_days)


@pytest.mark.parametrize(("phase", "epoch"), [("select", 1), ("select", 2), ("refit", 1)])
def test_a_stopped_training_goes_on_where_its_checkpoint_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, phase: str, epoch: int
) -> None:
    """Without dropout, which would draw anew after resuming, the same weights come out as without a stop."""
    monkeypatch.setattr("constellation.training.study.Scorer", EverBetter)  # so that the refit has three epochs, too
    whole = train(tmp_path / "whole", build=build_without_dropout)
    folder = tmp_path / "parts"
    with pytest.raises(KeyboardInterrupt):
        train(folder, build=build_without_dropout, report=Stopper(phase, epoch))
    assert (folder / phase / LAST).is_file()
    assert not list(folder.rglob("*.partial"))
    assert (folder / "select" / "done.json").is_file() == (phase == "refit")
    heard = Stopper("nobody", 0)
    resumed = train(folder, build=build_without_dropout, report=heard)
    assert heard.heard[0] == (phase, epoch), "it goes on with the epoch after the checkpoint"
    for mine, theirs in ((whole.selected, resumed.selected), (whole.refitted, resumed.refitted)):
        for name in ("epoch", "step"):
            assert [row[name] for row in theirs.history] == [row[name] for row in mine.history]
        losses = [[row["train/loss"] for row in found.history] for found in (mine, theirs)]
        assert losses[1] == pytest.approx(losses[0], rel=1e-5)
        assert theirs.num_steps == mine.num_steps == mine.history[2]["step"]
    for mine, theirs in zip(weights(whole), weights(resumed), strict=True):
        torch.testing.assert_close(theirs, mine, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("phase", ["select", "refit"])
def test_a_training_killed_after_its_last_epoch_has_nothing_left_to_do(tmp_path: Path, phase: str) -> None:
    """The last checkpoint is there, the word that the phase is done is not."""
    options = TrainingOptions(**(vars(OPTIONS) | {"max_epochs": 6, "patience": 1}))
    optimizer = partial(torch.optim.Adam, lr=0.5)  # overshoots, so that patience ends the selection
    first = train(tmp_path, options=options, optimizer=optimizer)
    assert len(first.selected.history) < 6
    (tmp_path / phase / "done.json").unlink()
    stopper = Stopper("nobody", 0)
    again = train(tmp_path, options=options, optimizer=optimizer, report=stopper)
    assert stopper.heard == []
    assert same(first, again)
    assert again.selected.num_steps == again.refitted.num_steps == first.refitted.num_steps


def test_phases_that_are_done_are_not_run_again(tmp_path: Path) -> None:
    first = train(tmp_path)
    stopper = Stopper("nobody", 0)
    again = train(tmp_path, report=stopper)
    assert stopper.heard == []
    assert same(first, again)
    assert again.selected.history == first.selected.history
    assert (again.selected.num_steps, again.refitted.num_steps) == (first.selected.num_steps, first.refitted.num_steps)


# ---------------------------------------------------------------- the learner by hand


class OneWeight(nn.Module):
    """The least that a learner can train: a weight, and two objectives whose losses are told beforehand."""

    def __init__(self, losses: list[dict[str, tuple[float, float]]]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.objectives = {"value": SimpleNamespace(weight=1.0), "next_event": SimpleNamespace(weight=0.5)}
        self.losses = iter(losses)

    def loss(self, batch: Any) -> dict[str, Loss]:
        return {
            name: Loss(total=torch.tensor(total) + 0 * self.weight, count=torch.tensor(count), parts={})
            for name, (total, count) in next(self.losses).items()
        }


def learner_of(losses: list[dict[str, tuple[float, float]]] | None = None, **options: Any) -> Learner:
    named = {"total_steps": 20} | options
    return Learner(OneWeight(losses or []), partial(torch.optim.SGD, lr=1.0), **named)  # type: ignore[arg-type]


def test_the_moving_average() -> None:
    learner = learner_of(averaging=0.75)
    assert learner.averaged is not None and learner.result is learner.averaged
    assert not any(part.requires_grad for part in learner.averaged.parameters())
    expected = 0.0
    # After step t the decay is min(0.75, (1 + t) / (3 + t)): 2/4, 3/5, .., and three quarters from the fifth step on.
    for step, weight in enumerate((1.0, 2.0, -4.0, 8.0, 0.0, 3.0, 1.0, 5.0, 7.0, 7.0), start=1):
        learner.model.weight.data.fill_(weight)  # type: ignore[union-attr]
        learner.average(step)
        decay = min(0.75, (1 + step) / (3 + step))
        expected = decay * expected + (1 - decay) * weight
        assert float(learner.averaged.weight) == pytest.approx(expected)  # type: ignore[arg-type]
    assert (1 + 5) / (3 + 5) == 0.75
    assert float(learner.model.weight) == 7.0  # type: ignore[arg-type]


def test_without_averaging_the_last_weights_are_kept() -> None:
    learner = learner_of(averaging=0.0)
    assert learner.averaged is None and learner.result is learner.model


def test_means_are_sums_over_numbers_of_targets() -> None:
    learner = learner_of(
        [{"value": (10.0, 4.0), "next_event": (6.0, 2.0)}, {"value": (2.0, 1.0), "next_event": (0.0, 0.0)}]
    )
    first, second = (float(learner.training_step(None, place)) for place in (0, 1))  # type: ignore[arg-type]
    # Each batch: 10/4 + 0.5 * 6/2, then 2/1 + 0.5 * nothing.
    assert (first, second) == (4.0, 2.0)
    means = learner.take_means()
    assert means == pytest.approx({"value/loss": 12 / 5, "next_event/loss": 6 / 2, "loss": 3.0})
    assert learner.take_means() == {}, "what was taken is gone"


def test_the_learning_rate_rises_and_falls() -> None:
    learner = learner_of(total_steps=20, warmup_share=0.1, final_rate=0.1)
    made = learner.configure_optimizers()
    optimizer, schedule = made["optimizer"], made["lr_scheduler"]["scheduler"]
    assert made["lr_scheduler"]["interval"] == "step"
    rates = []
    for _ in range(26):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    # Two steps up; then a cosine over 18 steps from 1 to 0.1, half of the way after nine; level from there on.
    assert rates[:3] == pytest.approx([0.5, 1.0, 1.0])
    assert rates[11] == pytest.approx(0.55)
    assert rates[5] == pytest.approx(0.1 + 0.9 * 0.5 * (1 + np.cos(np.pi / 6)))
    assert rates[20:] == pytest.approx([0.1] * 6)
    assert all(later <= earlier for earlier, later in itertools.pairwise(rates[1:]))


def test_only_trained_weights_reach_the_optimizer() -> None:
    learner = learner_of(averaging=0.9)
    (group,) = learner.configure_optimizers()["optimizer"].param_groups
    assert [id(part) for part in group["params"]] == [id(learner.model.weight)]


# ---------------------------------------------------------------- options


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"max_epochs": 0}, r"training\.max_epochs must be a whole number, at least 1, found 0"),
        ({"patience": 0}, r"training\.patience"),
        ({"passes": 0}, r"training\.passes must be a whole number, at least 1, found 0"),
        ({"passes": 2.5}, r"training\.passes must be a whole number, at least 1, found 2\.5"),
        ({"passes": "many"}, r"training\.passes must be a number or auto, found 'many'"),
        ({"max_tokens": -1}, r"training\.max_tokens"),
        ({"max_journeys": 0}, r"training\.max_journeys"),
        ({"max_events": 0}, r"training\.max_events"),
        ({"cutoffs_per_journey": -1}, r"training\.cutoffs_per_journey"),
        ({"averaging": 1.0}, r"training\.averaging must lie in \[0, 1\), found 1"),
        ({"averaging": -0.1}, r"training\.averaging"),
        ({"warmup_share": 1.0}, r"training\.warmup_share"),
        ({"final_rate": 1.5}, r"training\.final_rate"),
    ],
)
def test_impossible_options_are_refused(changes: dict[str, Any], match: str) -> None:
    with pytest.raises(InputError, match=match):
        TrainingOptions(**changes)


def test_options_from_yaml_and_defaults_agree(repository: Path) -> None:
    import yaml

    written = yaml.safe_load((repository / "configs" / "training" / "default.yaml").read_text())
    assert written.pop("_target_") == "constellation.training.options.TrainingOptions"
    assert TrainingOptions(**written) == TrainingOptions()
    assert written.keys() == vars(TrainingOptions()).keys()
    assert TrainingOptions(windows_days=[7, 30]).windows_days == (7, 30)  # type: ignore[arg-type]


def test_events_frame_is_what_the_perturbation_thinks() -> None:
    """The perturbed table must be a valid one, or the test above would prove nothing."""
    changed = changed_after_the_test_cutoff_and_for_the_held_out(events_frame(EVENTS.to_dict("records")))
    store = store_of(changed)
    assert "windfall" in store.dictionaries[EVENT_TYPE] and "moon" in store.dictionaries[PRODUCT]


def test_every_epoch_trains_all_its_batches(tmp_path: Path) -> None:
    """Plans of two epochs may differ by a batch, and none may be cut to the length of the first."""
    options = replace(OPTIONS, max_epochs=4, patience=9, max_tokens=24)
    steps: list[int] = []
    train(
        tmp_path,
        options=options,
        report=lambda phase, row: steps.append(int(row["step"])) if phase == "select" else None,
    )
    splits = Splits(STORE, WINDOWS)
    vocabulary = fit_vocabulary(splits, options, splits.select_panel, splits.val_cutoff)
    batches = training_batches(Gatherer(STORE, vocabulary, options.max_events), splits, splits.val_cutoff, options, 0)
    planned = []
    for batches.epoch in range(4):
        planned.append(len(batches.plan()))
    assert len(set(planned)) > 1, "the case needs plans of different lengths"
    assert steps == np.cumsum(planned).tolist()


def test_callbacks_of_others_are_called_after_the_score_and_before_the_checkpoint(tmp_path: Path) -> None:
    import lightning as L

    from constellation.training.fit import fit

    splits = Splits(STORE, WINDOWS)
    vocabulary = fit_vocabulary(splits, OPTIONS, splits.select_panel, splits.val_cutoff)
    batches = training_batches(Gatherer(STORE, vocabulary), splits, splits.val_cutoff, OPTIONS, 0)
    heard: list[str] = []

    class Prune(L.Callback):
        def on_train_epoch_end(self, trainer: L.Trainer, learner: Any) -> None:
            heard.append(f"callback, checkpoint {(tmp_path / LAST).exists()}")
            trainer.should_stop = trainer.current_epoch == 1

    fitted = fit(
        build(vocabulary),
        batches,
        ADAM,
        OPTIONS,
        tmp_path,
        label="",
        report=lambda row: heard.append(f"row {row['epoch']}"),
        callbacks=[Prune()],
    )
    assert heard == ["row 0", "callback, checkpoint False", "row 1", "callback, checkpoint True"]
    assert len(fitted.history) == 2


# ---------------------------------------------------------------- what is asked


def test_without_a_refit_both_are_the_selected_model(tmp_path: Path, study: Study) -> None:
    found = train(tmp_path, options=replace(OPTIONS, refit=False))
    assert found.refitted is found.selected and found.vocabulary is found.selected_vocabulary
    assert not (tmp_path / "refit").exists()
    assert found.facts()["train/refit_steps"] == 0 < study.facts()["train/refit_steps"]
    for one, other in zip(found.selected.model.parameters(), study.selected.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_at_most_so_many_validation_questions_are_scored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[np.ndarray] = []

    class Watched(study_module.Scorer):
        def __call__(self, model: nn.Module) -> dict[str, float]:
            asked.append(self.queries.journey_Q)
            return super().__call__(model)

    monkeypatch.setattr(study_module, "Scorer", Watched)
    train(tmp_path, options=replace(OPTIONS, max_scored=5, refit=False))
    _, *epochs = asked
    assert len(epochs) == OPTIONS.max_epochs
    assert all(len(journeys) == 5 and journeys.tolist() == epochs[0].tolist() for journeys in epochs)
    assert len(set(epochs[0].tolist())) == 5


def test_money_learns_nothing_without_cutoffs(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="value answers from the readout of a cutoff"):
        train(tmp_path, options=replace(OPTIONS, cutoffs_per_journey=0))
    for wrong in ({"cutoffs_per_journey": -1}, {"max_scored": 0}):
        with pytest.raises(InputError, match=next(iter(wrong))):
            replace(OPTIONS, **wrong)


@pytest.mark.parametrize(("num_journeys", "wanted"), [(0, 32), (2_000, 32), (6_000, 40), (23_570, 157), (10**6, 256)])
def test_batches_grow_with_the_number_of_customers(num_journeys, wanted):
    assert TrainingOptions().journeys_of_a_batch(num_journeys) == wanted
    assert TrainingOptions(max_journeys=9).journeys_of_a_batch(num_journeys) == 9
    with pytest.raises(InputError, match="auto"):
        TrainingOptions(max_journeys="many")
