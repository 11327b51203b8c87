"""Train a model on a data set, beside the baselines it must beat, and write its bundle."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from constellation.errors import InputError

if TYPE_CHECKING:
    from constellation.baselines.baseline import Baseline
    from constellation.journeys.dataset import DataSet
    from constellation.journeys.splits import Splits
    from constellation.tracking import Run
    from constellation.training.learner import OptimizerFactory
    from constellation.training.options import TrainingOptions
    from constellation.training.study import Study

COMPARED_KEYS = ("data", "encoder", "readout", "objective", "optimizer", "training", "seeds")


def train(
    run: Run,
    *,
    data: DataSet,
    encoder: Mapping[str, Any],
    readout: Mapping[str, Any],
    objective: Mapping[str, Mapping[str, Any]],
    baseline: Mapping[str, Baseline] | None,
    optimizer: OptimizerFactory,
    training: TrainingOptions,
    seeds: Sequence[int] = (0,),
    resume: str | None = None,
    num_resamples: int = 500,
) -> dict[str, float]:
    """Select at the validation cutoff, refit up to the test cutoff, evaluate everything there; returns the metrics.

    encoder, readout, objective are configs as in ``configs/``, so that the bundle can carry them as JSON. A seed's
    checkpoints stand in ``checkpoints/seed_<seed>``; a resumed run takes up what it finds there.
    """
    from constellation.assessment import Assessment, level_grid
    from constellation.reporting import Report, history_of
    from constellation.journeys.prepare import prepare
    from constellation.journeys.splits import Splits
    from constellation.metrics.evaluate import Evaluation
    from constellation.training.callbacks import peak_memory_gib
    from constellation.training.study import fit_vocabulary

    model_config = {"encoder": dict(encoder), "readout": dict(readout), "objective": dict(objective)}
    if not seeds:
        raise InputError("seeds is empty: write seeds=[0], or several such as seeds=[0,1,2].")
    store = prepare(data)
    splits = Splits(store, data.windows)
    run.log_dataset(data.name, store.manifest.fingerprint, profile=store.manifest.profile)
    run.set_tag("seed", ",".join(str(seed) for seed in seeds))
    checkpoints = run.folder / "checkpoints"
    _check_resumable(run, checkpoints, resume, store.manifest.content or store.manifest.fingerprint)
    report = Report(run, data, store, splits)
    report.opening(seeds)

    vocabulary = fit_vocabulary(splits, training, splits.refit_panel, splits.test_cutoff)
    parts = {"test": np.ones(len(splits.test), dtype=bool), "test_new": splits.test_is_new_Q}
    evaluation = Evaluation(num_resamples=num_resamples)
    test = Assessment(evaluation, store, vocabulary, splits.test, parts)
    val_vocabulary = fit_vocabulary(splits, training, splits.select_panel, splits.val_cutoff)
    val = Assessment(evaluation, store, val_vocabulary, splits.val, {"val": np.ones(len(splits.val), dtype=bool)})

    studies: list[Study] = []
    per_seed: list[dict[str, float]] = []
    for seed in seeds:
        child = run.child(f"seed_{seed}") if len(seeds) > 1 else run
        try:
            study = _study(child, splits, model_config, optimizer, training, checkpoints / f"seed_{seed}", seed, report)
            studies.append(study)
            system = "model" if len(seeds) == 1 else f"model_seed_{seed}"
            val.add(system, _predictor(study.selected.model, store, study.selected_vocabulary, training))
            test.add(system, _predictor(study.refitted.model, store, study.vocabulary, training))
            facts = {
                "train/select_steps": float(study.selected.num_steps),
                "train/select_best_epoch": float(study.selected.best_epoch),
                "train/refit_steps": float(study.refitted.num_steps),
                "train/events_per_second": study.selected.events_per_second,
                "train/waiting_share": study.selected.waiting_share,
                "train/peak_memory_gib": peak_memory_gib(),
                "train/num_parameters": float(sum(p.numel() for p in study.refitted.model.parameters())),
            }
            mine = {
                name.replace(f"/{system}/", "/model/"): number
                for name, number in evaluation.flat().items()
                if f"/{system}/" in name
            }
            per_seed.append(facts | mine)
            child.log_metrics(per_seed[-1])
            _save_bundle(child.folder / "bundle", study, data, store, splits, model_config, training, seed, mine, run)
            report.curves(child, history_of(study))
        except BaseException as error:
            if child is not run:
                child.__exit__(type(error), error, error.__traceback__)
            raise
        if child is not run:
            child.close()
    if len(seeds) > 1:
        spread = report.spread(per_seed)
        run.log_metrics(spread)
        shutil.copytree(run.folder / f"seed_{seeds[0]}" / "bundle", run.folder / "bundle", dirs_exist_ok=True)

    levels = level_grid()
    for name, system in (baseline or {}).items():
        start = time.perf_counter()
        report.say(f"baseline {name}")
        system.fit(store, val_vocabulary, splits.select_panel, until=splits.val_cutoff, val=splits.val)
        val.add(name, partial(system.predict, store, levels=levels))
        system.fit(store, vocabulary, splits.refit_panel, until=splits.test_cutoff, val=None)
        test.add(name, partial(system.predict, store, levels=levels))
        run.log_metrics({f"baseline/{name}/seconds": time.perf_counter() - start})

    run.log_metrics(evaluation.flat())
    report.tables(evaluation)
    if len(seeds) > 1:
        report.seeds_table(spread, len(seeds))
    report.figures(evaluation, "test")
    evaluation.predictions().to_parquet(run.folder / "predictions.parquet")
    return dict(run.metrics)


def _study(
    run: Run,
    splits: Splits,
    model_config: Mapping[str, Any],
    optimizer: OptimizerFactory,
    training: TrainingOptions,
    folder: Path,
    seed: int,
    report: Any,
) -> Study:
    from constellation.building import build_model, targets
    from constellation.training.study import select_then_refit

    return select_then_refit(
        splits,
        lambda vocabulary: build_model(
            model_config, vocabulary, splits.windows.horizons_days, trusted=targets(model_config)
        ),
        optimizer,
        training,
        folder,
        seed=seed,
        report=lambda phase, row: report.epoch(run, phase, row),
    )


def _predictor(model: Any, store: Any, vocabulary: Any, training: TrainingOptions) -> Any:
    from constellation.answering import answer_all
    from constellation.assessment import level_grid
    from constellation.journeys.batch import Gatherer

    gatherer = Gatherer(store, vocabulary, training.max_events)
    return lambda queries: answer_all(model, gatherer, queries, level_grid())


def _save_bundle(
    folder: Path,
    study: Study,
    data: DataSet,
    store: Any,
    splits: Splits,
    model_config: Mapping[str, Any],
    training: TrainingOptions,
    seed: int,
    metrics: Mapping[str, float],
    run: Run,
) -> None:
    from constellation.bundle import Bundle

    trained_on = {
        "data": data.name,
        "fingerprint": store.manifest.fingerprint,
        "val_cutoff": data.windows.val_cutoff,
        "test_cutoff": data.windows.test_cutoff,
        "num_customers": int(len(splits.train_journeys)),
        "num_steps": study.refitted.num_steps,
        "seed": seed,
        "commit": run.environment.get("commit"),
    }
    Bundle(
        model=study.refitted.model,
        vocabulary=study.vocabulary,
        schema=store.schema,
        model_config=dict(model_config),
        max_events=training.max_events,
        trained_on=trained_on,
        metrics={name: value for name, value in metrics.items() if name.startswith("test/")},
    ).save(folder)


def _check_resumable(run: Run, checkpoints: Path, resume: str | None, fingerprint: str) -> None:
    """A fresh run clears stale checkpoints; a resumed one must mean the same experiment on the same data."""
    mine = {key: run.config.get(key) for key in COMPARED_KEYS} | {"data_fingerprint": fingerprint}
    path = checkpoints / "config.json"
    if resume is None:
        shutil.rmtree(checkpoints, ignore_errors=True)
    elif path.exists():
        theirs = json.loads(path.read_text())
        mine_flat, theirs_flat = _flatten(json.loads(json.dumps(mine, default=str))), _flatten(theirs)
        different = sorted(key for key in mine_flat | theirs_flat if mine_flat.get(key) != theirs_flat.get(key))
        if different:
            listed = "; ".join(f"{key}: {theirs_flat.get(key)!r} then, {mine_flat.get(key)!r} now" for key in different[:8])
            raise InputError(
                f"The run to resume was started with other settings ({listed}). "
                "Resume with the same ones, or start a new run."
            )
    checkpoints.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(mine, default=str, indent=1))


def _flatten(thing: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(thing, dict):
        return {key: value for name, part in thing.items() for key, value in _flatten(part, f"{prefix}.{name}").items()}
    return {prefix.lstrip("."): thing}
