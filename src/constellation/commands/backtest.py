"""Try systems at many origins, refitted at each, and put them into one league table.

At every origin each system learns from what lies before and answers over every horizon that ends inside the data.
The table shows the mean over origins, the worst one and the spread, and names a winner only where there is one.
A run that was stopped goes on with resume=DIR: finished cells are kept. A horizon whose labels the history before an
origin cannot teach is not trainable there: purchase processes answer it, models do not.
"""

from __future__ import annotations

import importlib
import shutil
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from constellation.errors import InputError

if TYPE_CHECKING:
    from constellation.backtesting.cells import Cell
    from constellation.backtesting.origins import Origin
    from constellation.backtesting.scoring import Resamples
    from constellation.backtesting.systems import System, Task
    from constellation.baselines.baseline import Baseline
    from constellation.journeys.dataset import DataSet
    from constellation.journeys.store import Store
    from constellation.journeys.vocabulary import Vocabulary
    from constellation.journeys.windows import Queries
    from constellation.model import JourneyModel
    from constellation.recalibration import Recalibrator, Shock
    from constellation.tracking import Run
    from constellation.training.learner import OptimizerFactory
    from constellation.training.options import TrainingOptions

COMPARED_KEYS = (
    "data", "encoder", "readout", "objective", "optimizer", "training", "recalibration", "holdout_share",
    "recalibrate_baselines", "num_resamples", "max_customers", "max_learned",
)  # fmt: skip
"""Settings that finished cells share with the run that keeps them; origins, horizons, seeds and systems may grow."""

MODEL, RAW, RECALIBRATED = "model", "_raw", "_recalibrated"


def backtest(
    run: Run,
    *,
    data: DataSet,
    encoder: Mapping[str, Any] | None,
    readout: Mapping[str, Any],
    objective: Mapping[str, Mapping[str, Any]] | None,
    baseline: Mapping[str, Baseline] | None,
    optimizer: OptimizerFactory,
    training: TrainingOptions,
    recalibration: Recalibrator | None,
    origins: Sequence[str] | None = None,
    horizons_days: Sequence[int] | None = None,
    seeds: Sequence[int] = (0,),
    max_origins: int = 10,
    max_customers: int = 100_000,
    max_learned: int = 50_000,
    holdout_share: float = 0.0,
    recalibrate_baselines: bool = False,
    num_resamples: int = 200,
    resume: Path | None = None,
) -> dict[str, float]:
    """The metrics of the league, as in ``metrics.json``; all cells are in ``cells.parquet`` beside it.

    encoder: null leaves the model out. With recalibration ``model`` is the recalibrated model and ``model_raw`` the one
    as fitted; baselines stay as practitioners use them, and have a twin ``<name>_recalibrated`` where asked for.
    """
    from constellation.backtesting.cells import check_same
    from constellation.backtesting.figures import figures
    from constellation.backtesting.league import League
    from constellation.backtesting.origins import plan
    from constellation.backtesting.printing import Progress, plan_lines, print_league
    from constellation.backtesting.scoring import Resamples
    from constellation.journeys.prepare import prepare
    from constellation.journeys.purchases import NO_MONEY, check_purchases, has_money
    from constellation.journeys.splits import time_windows

    if not seeds:
        raise InputError("seeds is empty: write seeds=[0], or several such as seeds=[0,1,2].")
    windows, store = time_windows(data.windows), prepare(data)
    check_purchases(store)
    planned = plan(store, windows, origins=origins, horizons_days=horizons_days, max_origins=max_origins)
    horizons = sorted({days for origin in planned for days in origin.horizons_days})
    speaking = {}
    for name, part in (baseline or {}).items():
        reason = part.left_out(store, horizons)
        if reason is None:
            speaking[name] = part
        else:
            print(f"baseline {name} is left out: {reason}", flush=True)
    systems = _systems(encoder, readout, objective, speaking, optimizer, training, seeds, max_learned)
    run.log_dataset(data.name, store.manifest.content, source=data.source.label, profile=store.manifest.profile)
    compared = {name: run.config.get(name) for name in COMPARED_KEYS}
    check_same(run.folder, compared | {"data_content": store.manifest.content})
    for line in plan_lines(planned, systems):
        print(line, flush=True)

    resamples = Resamples(store.num_customers, num_resamples)
    progress = Progress({system.name: len(system.seeds) * len(planned) for system in systems})
    cells: list[Cell] = []
    for origin in planned:
        queries = _questions(store, origin, max_customers)
        for system in systems:
            twins = _twins(system.name, recalibration, recalibrate_baselines)
            for seed in system.seeds:
                kept = _finished(run.folder, origin, twins, seed)
                if kept is None:
                    task = _task(run.folder, store, windows, origin, queries, holdout_share, system.name, seed)
                    task.folds = recalibration.folds if recalibration is not None and len(twins) > 1 else 0
                    found = _fit(run, system, task, seed, twins, cells, recalibration, resamples)
                else:
                    found = kept
                cells += found
                shown = [cell for cell in found if cell.key.system == system.name]
                print(progress.line(shown, kept=kept is not None), flush=True)

    league = League(cells)
    run.log_metrics(league.flat())
    table = league.cells_frame()
    table.to_parquet(run.folder / "cells.parquet", index=False)
    run.log_file(run.folder / "cells.parquet")
    run.log_table("league", league.frame())
    for name, figure in figures(league, run.folder).items():
        run.log_figure(name, figure)
    told = league.targets
    if not has_money(store):
        print(f"\n{NO_MONEY}")
        told = [target for target in told if not target.startswith("value_")]
    print_league(league, told)
    return dict(run.metrics)


def _systems(
    encoder: Mapping[str, Any] | None,
    readout: Mapping[str, Any],
    objective: Mapping[str, Mapping[str, Any]] | None,
    baseline: Mapping[str, Baseline] | None,
    optimizer: OptimizerFactory,
    training: TrainingOptions,
    seeds: Sequence[int],
    max_learned: int,
) -> list[System]:
    """Baselines first: they are quick, and a mistake in the data shows at once."""
    from constellation.backtesting.baseline_system import BaselineSystem
    from constellation.backtesting.model_system import ModelSystem
    from constellation.building import build_model, targets

    names = sorted(set(baseline or {}) & {MODEL, MODEL + RAW, "realised"})
    if names:
        raise InputError(f"A baseline cannot be called {names[0]!r}: the league table uses that name. Rename it.")
    systems: list[System] = [BaselineSystem(name, part, training) for name, part in (baseline or {}).items()]
    if encoder is not None:
        config = {"encoder": dict(encoder), "readout": dict(readout), "objective": dict(objective or {})}

        def build(vocabulary: Vocabulary, horizons_days: tuple[int, ...]) -> JourneyModel:
            return build_model(config, vocabulary, horizons_days, trusted=targets(config))

        of_seeds = tuple(int(seed) for seed in seeds)
        any_history = _needs_no_labels(config["objective"])
        systems.append(ModelSystem(build, optimizer, training, of_seeds, _epoch, any_history, max_learned))
    if not systems:
        raise InputError("There is nothing to try: choose an encoder, baselines, or both.")
    return systems


def _needs_no_labels(objective: Mapping[str, Mapping[str, Any]]) -> bool:
    """Whether every objective learns from any history, so that the model answers horizons nobody has seen whole."""
    parts = [str(part["_target_"]).rpartition(".") for part in objective.values()]
    classes = [getattr(importlib.import_module(module), name) for module, _, name in parts]
    return bool(classes) and not any(getattr(found, "needs_horizon_labels", True) for found in classes)


def _epoch(origin: str, seed: int, phase: str, row: Mapping[str, float]) -> None:
    if phase == "select":
        scores = [f"{name.removeprefix('val/')} {row[name]:.4f}" for name in row if name.endswith("/crps")]
        print(f"  {origin} seed {seed} epoch {int(row['epoch'])}: {', '.join(scores)}", flush=True)


def _twins(name: str, recalibration: Recalibrator | None, baselines_too: bool) -> dict[str, bool]:
    """The names under which one fit is scored, and whether each is recalibrated; the one that is shown comes first."""
    if recalibration is None or (name != MODEL and not baselines_too):
        return {name: False}
    return {name: True, name + RAW: False} if name == MODEL else {name: False, name + RECALIBRATED: True}


def _questions(store: Store, origin: Origin, max_customers: int) -> Queries:
    """Everybody at risk, or so many of them, the same at every origin as far as they are at risk there."""
    from constellation.journeys.windows import ask, at_risk

    asked = np.arange(store.num_customers)
    if max_customers and store.num_customers > max_customers:
        asked = np.sort(np.random.default_rng(0).permutation(store.num_customers)[:max_customers])
    risk = at_risk(store, origin.cutoff, asked)
    if not len(risk):
        raise InputError(f"No customer has an event at or before the origin {origin.name}. Choose later origins.")
    return ask(store, risk, np.full(len(risk), origin.cutoff), origin.horizons_days, store.manifest.observed_until)


def _task(
    folder: Path,
    store: Store,
    windows: Any,
    origin: Origin,
    queries: Queries,
    holdout_share: float,
    name: str,
    seed: int,
) -> Task:
    from constellation.backtesting.cells import Key
    from constellation.backtesting.systems import Task

    place = (folder / Key(origin.name, name, seed, origin.horizons_days[0]).path).parent
    return Task(store, windows, origin, queries, holdout_share, 0, place)


def _finished(folder: Path, origin: Origin, twins: Mapping[str, bool], seed: int) -> list[Cell] | None:
    """All cells of a fit from disk; None where one is missing."""
    from constellation.backtesting.cells import Cell, Key

    found = [Cell.load(folder, Key(origin.name, name, seed, days)) for name in twins for days in origin.horizons_days]
    return [cell for cell in found if cell is not None] if all(cell is not None for cell in found) else None


def _fit(
    run: Run,
    system: System,
    task: Task,
    seed: int,
    twins: Mapping[str, bool],
    earlier: Sequence[Cell],
    recalibration: Recalibrator | None,
    resamples: Resamples,
) -> list[Cell]:
    """Fit, score under each name, and leave every cell on disk and in MLflow."""
    from constellation.backtesting.cells import Cell
    from constellation.backtesting.scoring import learned_shocks, recalibrated, score_cells

    fit = system.fit(task, seed)
    cells: list[Cell] = []
    for name, is_recalibrated in twins.items():
        answers = fit.answers
        methods: dict[str, str] = {}
        shocks: dict[str, Shock] = {}
        if is_recalibrated and recalibration is not None:
            answers, methods = recalibrated(fit, recalibration, seed)
            shocks = learned_shocks(recalibration, earlier, name, seed, task)
        score = partial(score_cells, task.origin, task.queries, answers, system=name, seed=seed, seconds=fit.seconds)
        cells += score(methods=methods, shocks=shocks, resamples=resamples)
    for place, cell in enumerate(cells):
        finished = Cell.load(run.folder, cell.key)
        if finished is not None:  # the run was killed among the cells of this fit
            cells[place] = finished
            continue
        with run.child(cell.key.path) as child:
            child.set_tag("origin", cell.key.origin)
            child.set_tag("system", cell.key.system)
            child.set_tag("horizon_days", cell.key.horizon_days)
            child.set_tag("seed", cell.key.seed)
            child.set_tag("cell_status", cell.status)
            metrics = {
                f"backtest/{target}/{cell.key.system}/{name}": value
                for target, score_of in cell.targets.items()
                for name, value in score_of.metrics.items()
                if np.isfinite(value)
            }
            child.log_metrics(metrics | {"seconds": cell.seconds})
        cell.save(run.folder)  # last: from now on the cell is finished
    shutil.rmtree(task.training_folder, ignore_errors=True)
    return cells
