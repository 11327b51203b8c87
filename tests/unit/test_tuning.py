"""The search space, and what a trial is told."""

from __future__ import annotations

from typing import Any

import optuna
import pytest
import yaml

from constellation.commands.tune import _experiment
from constellation.errors import InputError
from constellation.tuning.space import Parameter, Search, words
from constellation.tuning.storage import STORAGE, open_study, storage_url
from constellation.tuning.trials import Goal


def search(*parameters: dict[str, Any]) -> Search:
    return Search(parameters, optuna.samplers.RandomSampler, optuna.pruners.NopPruner())


def test_whole_numbers_give_whole_numbers_and_choices_stay_what_they_are() -> None:
    space = search(
        {"name": "encoder.layers", "low": 1, "high": 3},
        {"name": "optimizer.lr", "low": 1e-4, "high": 1e-2, "log": True},
        {"name": "encoder", "choices": ["bag", "gru"]},
        {"name": "encoder.heads", "choices": [1, 2], "where": {"encoder": "gru"}},
    )
    found = [
        space.suggest(optuna.trial.FixedTrial({"encoder.layers": 2, "optimizer.lr": 0.003, "encoder": name,
                                               "encoder.heads": 2}))
        for name in ("bag", "gru")
    ]  # fmt: skip
    assert found[0] == {"encoder.layers": 2, "optimizer.lr": 0.003, "encoder": "bag"}
    assert found[1] == found[0] | {"encoder": "gru", "encoder.heads": 2}
    assert isinstance(found[0]["encoder.layers"], int)


def test_overrides_keep_every_digit() -> None:
    said = words({"a.b": 0.1 + 0.2, "c": True, "d": None, "e": "gru", "f": 3})
    assert said == ["a.b=0.30000000000000004", "c=true", "d=null", "e=gru", "f=3"]


@pytest.mark.parametrize(
    ("parameter", "said"),
    [
        ({"name": "a.b"}, "found neither"),
        ({"name": "a.b", "low": 1, "high": 2, "choices": [1]}, "found both"),
        ({"name": "a.b", "low": 3, "high": 2}, "above high"),
        ({"name": "a.b", "low": 0.0, "high": 2.0, "log": True}, "logarithmic"),
        ({"name": "a.b", "choices": [["x"]]}, "Write a list as text"),
        ({"name": "data.windows.holdout_share", "low": 0.0, "high": 0.5}, "cannot be tuned"),
        ({"name": "a.b", "choices": [1], "where": {"c": 1}}, "no parameter of this search space"),
        ({"name": "a.b", "lo": 1, "high": 2}, "A search parameter has"),
        ({"low": 1, "high": 2}, "A search parameter has"),
    ],
)
def test_a_space_that_makes_no_sense_is_explained(parameter: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        search(parameter)


def test_an_empty_space_is_refused() -> None:
    with pytest.raises(InputError, match="nothing to tune"):
        search()
    assert Parameter("a.b", low=1, high=1).suggest(optuna.trial.FixedTrial({"a.b": 1})) == 1


def test_errors_are_minimised_scores_maximised_and_bias_read_from_zero() -> None:
    goal = Goal(("value_91d/crps", "value_91d/gini_normalised", "value_91d/bias_total", "next_product/ndcg_at_10"))
    assert goal.directions == ["minimize", "maximize", "minimize", "maximize"]
    scores = {f"val/{name}": value for name, value in zip(goal.metrics, (5.0, 0.4, -0.2, 0.1), strict=True)}
    assert goal.values(scores) == (5.0, 0.4, 0.2, 0.1)
    with pytest.raises(InputError, match="not scored by"):
        goal.values({"val/value_91d/crps": 1.0})
    with pytest.raises(InputError, match="was expected"):
        Goal(("value_91d/beauty",))


def test_the_address_of_a_study(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.delenv(STORAGE, raising=False)
    assert storage_url(None, tmp_path) == f"sqlite:///{tmp_path}/study.db"
    monkeypatch.setenv(STORAGE, "postgresql://user:word@host/db")
    assert storage_url(None, tmp_path) == "postgresql://user:word@host/db"
    assert storage_url("sqlite:///x.db", tmp_path) == "sqlite:///x.db"


def test_a_study_is_opened_again_and_refuses_other_goals(tmp_path: Any) -> None:
    url = storage_url(f"sqlite:///{tmp_path / 'study.db'}", tmp_path)
    parts = optuna.samplers.RandomSampler(), optuna.pruners.NopPruner()
    study = open_study(url, "s", ["minimize"], *parts)
    study.add_trial(optuna.trial.create_trial(value=1.0))
    assert len(open_study(url, "s", ["minimize"], *parts).trials) == 1
    with pytest.raises(InputError, match="another study=NAME"):
        open_study(url, "s", ["maximize"], *parts)
    with pytest.raises(InputError, match="cannot be used") as caught:
        open_study(f"sqlite:///{tmp_path}/nowhere/study.db", "s", ["minimize"], *parts)
    assert "Traceback" not in str(caught.value)


def test_the_best_trial_is_an_experiment_with_what_the_command_line_had_changed() -> None:
    text = _experiment(
        {"encoder": "gru", "encoder.width": 32, "optimizer.lr": 0.002},
        ["data=cdnow", "encoder=bag", "training.max_epochs=3", "num_trials=9", "objective=[value]"],
    )
    assert text.startswith("# @package _global_\n")
    assert yaml.safe_load(text) == {
        "defaults": [{"override /data": "cdnow"}, {"override /encoder": "gru"}, {"override /objective": ["value"]}],
        "training": {"max_epochs": 3},
        "encoder": {"width": 32},
        "optimizer": {"lr": 0.002},
    }
