"""Search settings that answer the validation questions best; the test is never looked at.

Each trial trains a model up to the validation cutoff and is scored there. The search space is a file of
configs/search; the study lives in a database (SQLite or PostgreSQL), so that it can be stopped, taken up again, and
shared by any number of workers: num_workers=4, or the same command again with the same storage and study.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from constellation.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterator

    import optuna

    from constellation.journeys.dataset import DataSet
    from constellation.journeys.splits import Splits
    from constellation.tracking import Run
    from constellation.training.learner import OptimizerFactory
    from constellation.training.options import TrainingOptions
    from constellation.tuning.space import Search
    from constellation.tuning.trials import Goal

OF_WORKERS = ("output", "overwrite", "resume", "storage", "study", "num_workers", "worker", "tracking.uri", "debug")
"""Overrides that a worker gets anew, or by its environment."""


def tune(
    run: Run,
    *,
    data: DataSet,
    encoder: Mapping[str, Any],
    readout: Mapping[str, Any],
    objective: Mapping[str, Mapping[str, Any]],
    optimizer: OptimizerFactory,
    training: TrainingOptions,
    search: Search,
    build: Callable[[Sequence[str], Sequence[str]], dict[str, Any]],
    metrics: Sequence[str] | None = None,
    study: str | None = None,
    storage: str | None = None,
    num_trials: int = 30,
    num_workers: int = 1,
    worker: int = 0,
    timeout_minutes: float | None = None,
    as_configured: bool = True,
    seed: int = 0,
    resume: Path | None = None,
) -> dict[str, float]:
    """The metrics of the best trial; ``best.yaml`` holds its settings as an experiment for ``constellation train``.

    build(overrides, names): the arguments that those overrides would give. num_trials: of the whole study, by all
    workers and over all resumptions. as_configured: train the settings as they are first, to know what tuning won.
    """
    from constellation.journeys.prepare import prepare
    from constellation.journeys.splits import Splits
    from constellation.tuning.storage import check_goal, open_study, storage_url
    from constellation.tuning.trials import choose_goal

    if num_trials < 1 or num_workers < 1:
        raise InputError(f"num_trials and num_workers must be at least 1, found {num_trials} and {num_workers}.")
    store = prepare(data)
    splits = Splits(store, data.windows)
    goal = choose_goal(metrics, splits, training)
    url = storage_url(storage, run.folder)
    name = study or f"{data.name} {goal.metrics[0]}"
    sampler = search.sampler(seed=seed + 1009 * worker)
    opened = open_study(url, name, goal.directions, sampler, search.pruner)
    check_goal(opened, goal.metrics, f"{data.name} {store.manifest.content[:12]} seed {seed}")
    run.log_dataset(data.name, store.manifest.content, source=data.source.label, profile=store.manifest.profile)
    run.set_tag("study", name)
    if worker == 0:
        print(f"study {name!r}: {', '.join(goal.metrics)} on validation, {num_trials} trials", flush=True)
    base: dict[str, Any] = {"encoder": encoder, "readout": readout, "objective": objective}
    base |= {"optimizer": optimizer, "training": training}
    if as_configured and worker == 0 and "as_configured" not in opened.user_attrs:
        scores = _train(run, "as_configured", splits, base, goal, seed, lambda epoch, row: None)
        opened.set_user_attr("as_configured", list(goal.values(scores)))
        print(f"as configured: {_shown(goal, goal.values(scores))}", flush=True)

    with _workers(run, url, name, num_workers if worker == 0 else 1) as others:
        _optimise(run, opened, search, build, splits, goal, num_trials, timeout_minutes, seed)
        for other in others:
            if other.wait() != 0:
                raise RuntimeError(f"A worker ended with code {other.returncode}; see {run.folder}/worker_*.txt.")
    return _report(run, opened, goal) if worker == 0 else dict(run.metrics)


def _optimise(
    run: Run,
    study: optuna.Study,
    search: Search,
    build: Callable[[Sequence[str], Sequence[str]], dict[str, Any]],
    splits: Splits,
    goal: Goal,
    num_trials: int,
    timeout_minutes: float | None,
    seed: int,
) -> None:
    """Trials until the study has enough, or as many failed as were asked for."""
    import optuna

    from constellation.tuning.space import words
    from constellation.tuning.trials import SETTINGS, is_defined

    state = optuna.trial.TrialState

    def is_done() -> bool:
        states = [trial.state for trial in study.get_trials(deepcopy=False)]
        return states.count(state.COMPLETE) + states.count(state.PRUNED) >= num_trials or states.count(
            state.FAIL
        ) >= max(num_trials, 5)

    def objective(trial: optuna.Trial) -> tuple[float, ...]:
        values = search.suggest(trial)
        settings = build(words(values), SETTINGS)

        def epoch(number: int, row: dict[str, float]) -> None:
            if len(goal.metrics) > 1:
                return
            trial.report(goal.values(row)[0], number)
            if trial.should_prune():
                raise optuna.TrialPruned(f"after epoch {number}")

        scores = _train(run, f"trials/{trial.number:04d}", splits, settings, goal, seed, epoch, values)
        found = goal.values(scores)
        print(f"trial {trial.number}: {_shown(goal, found)}  {' '.join(words(values))}", flush=True)
        return found if is_defined(found) else (float("nan"),) * len(found)

    def stop(ended: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
        if trial.state == state.PRUNED:
            print(f"trial {trial.number}: pruned after {len(trial.intermediate_values)} epochs", flush=True)
        if is_done():
            ended.stop()

    if not is_done():
        timeout = None if timeout_minutes is None else 60 * timeout_minutes
        study.optimize(objective, n_trials=None, timeout=timeout, callbacks=[stop])


def _train(
    run: Run,
    name: str,
    splits: Splits,
    settings: Mapping[str, Any],
    goal: Goal,
    seed: int,
    epoch: Callable[[int, dict[str, float]], None],
    values: Mapping[str, Any] | None = None,
) -> dict[str, float]:
    """Train within a child run; one that is pruned is no failed run."""
    import math

    import optuna

    from constellation.tuning.trials import train_trial

    pruned: optuna.TrialPruned | None = None
    scores: dict[str, float] = {}
    with run.child(name) as child:
        child.log_params({f"trial/{key}": value for key, value in (values or {}).items()})

        def heard(number: int, row: dict[str, float]) -> None:
            child.log_metrics({key: value for key, value in row.items() if math.isfinite(value)}, step=number)
            epoch(number, row)

        try:
            scores = train_trial(splits, settings, goal, child.folder, seed=seed, epoch=heard)
            child.log_metrics({key: value for key, value in scores.items() if math.isfinite(value)})
        except optuna.TrialPruned as error:
            pruned = error
        child.set_tag("trial_state", "complete" if pruned is None else "pruned")
    if pruned is not None:
        raise pruned
    return scores


@contextmanager
def _workers(run: Run, url: str, study: str, num_workers: int) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Further processes on the same study, ended with this one."""
    from constellation.tuning.storage import STORAGE

    words = [word for word in run.overrides if word.partition("=")[0].lstrip("+~") not in OF_WORKERS]
    environment = dict(os.environ) | {STORAGE: url}
    environment.pop("CONSTELLATION_OUTPUT", None)
    if run.tracking_uri is not None:
        environment["MLFLOW_TRACKING_URI"] = run.tracking_uri
    others: list[subprocess.Popen[bytes]] = []
    try:
        for number in range(1, num_workers):
            folder = run.folder / f"worker_{number}"
            own = [f"output='{folder}'", "overwrite=true", f"worker={number}", f"study='{study}'"]
            with (run.folder / f"worker_{number}.txt").open("ab") as said:
                command = [sys.executable, "-m", "constellation.cli", "tune", *words, *own]
                others.append(subprocess.Popen(command, env=environment, stdout=said, stderr=subprocess.STDOUT))
        yield others
    finally:
        for other in others:
            if other.poll() is None:
                other.terminate()
        for other in others:
            other.wait()


def _report(run: Run, study: optuna.Study, goal: Goal) -> dict[str, float]:
    """Tables, pictures, ``best.yaml`` and ``tune.html``; the metrics of the best."""
    from constellation.tuning import findings
    from constellation.tuning.space import words

    reference = study.user_attrs.get("as_configured")
    table = findings.table(study, goal.metrics)
    run.log_table("trials", table)
    states = list(table["state"]) if len(table) else []
    facts = {f"tune/num_{state}": float(states.count(state)) for state in ("complete", "pruned", "fail")}
    drawn = findings.figures(study, goal.metrics, reference)
    for name, figure in drawn.items():
        run.log_figure(name, figure)
    lines = [f"{int(facts['tune/num_complete'])} trials finished, {int(facts['tune/num_pruned'])} were pruned."]
    if reference is not None:
        lines.append(f"As configured: {_shown(goal, reference)}.")
        facts |= {f"tune/as_configured/{name}": value for name, value in zip(goal.metrics, reference, strict=True)}
    unbeaten = findings.best(study)
    for trial in unbeaten[:5]:
        lines.append(f"Trial {trial.number}: {_shown(goal, trial.values)}: {' '.join(words(trial.params))}")
    if unbeaten:
        chosen = unbeaten[0]
        facts |= {f"tune/best/{name}": value for name, value in zip(goal.metrics, chosen.values, strict=True)}
        path = run.folder / "best.yaml"
        path.write_text(_experiment(chosen.params, run.overrides), encoding="utf-8")
        run.log_file(path)
        lines.append(
            f"{path.name} holds trial {chosen.number}: copy it to ./configs/experiment/NAME.yaml and run "
            "`constellation train experiment=NAME`."
        )
    if len(unbeaten) > 1:
        lines.append(
            f"{len(unbeaten)} trials are beaten by no other in all metrics; the first of them is in best.yaml."
        )
    for name, shares in zip(goal.metrics, findings.importances(study, len(goal.metrics)), strict=True):
        facts |= {f"tune/importance/{name}/{parameter}": share for parameter, share in shares.items()}
    run.log_metrics(facts)
    page = run.folder / "tune.html"
    page.write_text(findings.page(f"Study {study.study_name}", drawn, table, lines), encoding="utf-8")
    run.log_file(page)
    print("\n".join(["", *lines]), flush=True)
    return dict(run.metrics)


def _experiment(params: Mapping[str, Any], overrides: Sequence[str]) -> str:
    """The settings of a trial as a file of ``configs/experiment``, what the command line had changed among them."""
    import yaml

    from constellation.tuning.trials import SETTINGS

    settings: dict[str, Any] = {}
    for word in overrides:
        name, _, text = word.lstrip("+").partition("=")
        if name.partition(".")[0] in ("data", *SETTINGS):
            settings[name] = yaml.safe_load(text)
    settings |= params
    tree: dict[str, Any] = {}
    for name, value in settings.items():
        *path, last = name.split(".")
        place = tree
        for part in path:
            place = place.setdefault(part, {})
        if path:
            place[last] = value
    groups: list[Any] = [{f"override /{name}": value} for name, value in settings.items() if "." not in name]
    document = ({"defaults": groups} if groups else {}) | tree
    return f"# @package _global_\n{yaml.safe_dump(document, sort_keys=False)}"


def _shown(goal: Goal, values: Sequence[float]) -> str:
    return ", ".join(f"{name} {value:.5g}" for name, value in zip(goal.metrics, values, strict=True))
