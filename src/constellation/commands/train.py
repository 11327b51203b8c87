"""Train a model on a data set, beside the baselines it must beat, and write its bundle."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from constellation.errors import InputError
from constellation.tracking.settings import OF_THE_MACHINE, check_settings

if TYPE_CHECKING:
    from constellation.baselines.baseline import Baseline
    from constellation.beginning import Beginning
    from constellation.commands.engagement.options import EngagementOptions
    from constellation.journeys.dataset import DataSet
    from constellation.journeys.splits import Splits
    from constellation.journeys.vocabulary import Vocabulary
    from constellation.journeys.windows import Queries
    from constellation.model import JourneyModel
    from constellation.policies.outcomes import OutcomeModel
    from constellation.recalibration import Corrections, Recalibrator
    from constellation.tracking import Run
    from constellation.training.learner import OptimizerFactory
    from constellation.training.options import TrainingOptions
    from constellation.training.study import BuildModel, Study

COMPARED_KEYS = ("data", "encoder", "readout", "objective", "optimizer", "training", "seeds")
"""Settings that a resumed run must share with the run it goes on with."""

ENGAGEMENT = "engagement"
"""The objective that is learned from decisions instead of cutoffs."""


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
    resume: Path | None = None,
    num_resamples: int = 500,
    outcome: Mapping[str, OutcomeModel] | None = None,
    engagement: EngagementOptions | None = None,
    init: str | None = None,
    init_rate: float = 1.0,
    recalibration: Recalibrator | None = None,
) -> dict[str, float]:
    """Select at the validation cutoff, refit up to the test cutoff, evaluate everything there; returns the metrics.

    encoder, readout, objective are plain descriptions as in ``configs/``, so that the bundle can carry them as JSON.
    With one seed the model's bundle is ``bundle/``; with several each seed is a child run with its own, the table has a
    row ``model_seed_<seed>`` for each, and ``model`` in the metrics is their mean, with ``_sd`` beside it.
    ``checkpoints/seed_<seed>`` is what ``resume`` goes on from.

    ``init`` names a run (folder, MLflow run id, ``latest``) or bundle, of this data set or another, whose weights both
    phases start from; what it knows and this run asks for is taken by name. ``init_rate``: learning rate of what was
    taken whole, as a share of that of the rest.

    ``recalibration`` says how the refitted model's answers are corrected by what the slice between the validation and
    the test cutoff showed (null: not at all); the corrections are part of the bundle. Validation is as fitted.

    With ``objective=engagement``, alone, rewards of decisions are learned instead, cross-fitted over persons;
    ``outcome`` and ``engagement`` are read then only.
    """
    from constellation.assessment import Assessment
    from constellation.building import build_model, targets
    from constellation.journeys.prepare import prepare
    from constellation.journeys.splits import Splits
    from constellation.metrics import LEVELS
    from constellation.metrics.evaluate import Evaluation
    from constellation.reporting import Report
    from constellation.training.history import teach
    from constellation.training.study import fit_vocabulary, select_then_refit

    if not seeds:
        raise InputError("seeds is empty: write seeds=[0], or several such as seeds=[0,1,2].")
    model_config = {"encoder": dict(encoder), "readout": dict(readout), "objective": dict(objective or {})}
    if ENGAGEMENT in model_config["objective"]:
        from constellation.commands.engagement.learn import learn
        from constellation.commands.engagement.options import EngagementOptions

        if len(model_config["objective"]) > 1 or resume is not None:
            raise InputError("objective=engagement is learned alone, and from its start: it has folds of its own.")
        if init is not None:
            raise InputError(
                "objective=engagement takes no init: it is cross-fitted over persons, and an encoder that has read the "
                "events of all of them would know what followed the decisions it is judged by."
            )
        return learn(
            run,
            data=data,
            model_config=model_config,
            outcome=outcome or {},
            optimizer=optimizer,
            training=training,
            options=engagement or EngagementOptions(),
            seeds=seeds,
        )
    store = prepare(data)
    splits = Splits(store, data.windows)
    run.log_dataset(data.name, store.manifest.content, source=data.source.label, profile=store.manifest.profile)
    run.set_tag("seed", ",".join(str(seed) for seed in seeds))
    checkpoints = run.folder / "checkpoints"
    beginning = None
    if init is not None:
        from constellation.beginning import Beginning

        beginning = Beginning.of(init, run, model_config, init_rate)
    started = {} if beginning is None else beginning.facts()
    _check_resumable(run.config, checkpoints, resume is not None, store.manifest.content, started)
    report = Report(run, data.name, store, splits)
    report.opening(seeds)
    if beginning is not None:
        beginning.check_knowledge(splits, report.say)

    # Everybody answers the same questions, so the evaluation and the vocabularies are made once.
    evaluation = Evaluation(num_resamples=num_resamples)
    report.step("asking training questions, learning vocabulary and scales, until the validation cutoff")
    val_vocabulary = test_vocabulary = fit_vocabulary(splits, training, splits.select_panel, splits.select_until)
    if training.refit:
        report.step(f"of {len(splits.select_panel):,} questions; the same until the test cutoff")
        test_vocabulary = fit_vocabulary(splits, training, splits.refit_panel, splits.refit_until)
    report.step("asking the questions of validation and test")
    exclude_seen = splits.windows.exclude_seen
    everyone = np.ones(len(splits.test), dtype=bool)
    test_rows = {"test": everyone, "test_new": splits.test_is_new_Q}
    val_rows = {"val": np.ones(len(splits.val), dtype=bool)}
    val = Assessment(evaluation, store, val_vocabulary, splits.val, val_rows, exclude_seen)
    test = Assessment(evaluation, store, test_vocabulary, splits.test, test_rows, exclude_seen)

    def build(vocabulary: Vocabulary) -> JourneyModel:
        # The description is the user's own, so whatever it names is trusted.
        model = build_model(model_config, vocabulary, splits.windows.horizons_days, trusted=targets(model_config))
        teach(model, splits)
        return model

    of_seeds: list[dict[str, float]] = []
    for seed in seeds:
        system = "model" if len(seeds) == 1 else f"model_seed_{seed}"
        with nullcontext(run) if len(seeds) == 1 else run.child(f"seed_{seed}") as of_seed:
            place = checkpoints / f"seed_{seed}"
            report.step(f"training on {len(splits.train_journeys):,} customers, a line after each epoch")
            study = select_then_refit(
                splits,
                build,
                optimizer,
                training,
                place,
                seed=seed,
                report=partial(report.epoch, of_seed),
                initial=None if beginning is None else beginning.initial(of_seed, report.say),
                vocabularies=(val_vocabulary, test_vocabulary),
            )
            corrections = None
            report.step("learning corrections, answering and judging")
            if recalibration is not None:
                corrections = _corrections(
                    recalibration, study, splits, build, optimizer, training, place, seed, beginning
                )
                for line in corrections.describe():
                    report.say(f"recalibration: {line}")
            val.add(system, _predictor(study.selected.model, splits, study.selected_vocabulary, training))
            predict = _predictor(study.refitted.model, splits, study.vocabulary, training, corrections)
            test.add(system, predict, {} if corrections is None else corrections.shocks)
            metrics = _metrics_of(evaluation.flat() | test.total_metrics(), system) | study.facts()
            metrics |= {} if corrections is None else corrections.facts()
            of_seed.set_tag("seed", seed)
            of_seed.log_metrics(metrics)
            of_seed.log_figure("learning_curves", report.curves(study.selected.history, study.selected.best_epoch))
            _save_bundle(of_seed, study, data, splits, model_config, training, seed, metrics, started, corrections)
            of_seeds.append(metrics)
    if len(seeds) > 1:
        run.log_metrics(report.spread(of_seeds))

    for name, system_of in (baseline or {}).items():
        reason = system_of.left_out(store, splits.windows.horizons_days)
        if reason is not None:
            report.say(f"baseline {name} is left out: {reason}")
            continue
        report.say(f"baseline {name}")
        start = time.perf_counter()
        system_of.fit(store, val_vocabulary, splits.select_panel, until=splits.select_until, val=splits.val)
        val.add(name, partial(system_of.predict, store, levels=LEVELS))
        if training.refit:
            system_of.fit(store, test_vocabulary, splits.refit_panel, until=splits.refit_until, val=None)
        test.add(name, partial(system_of.predict, store, levels=LEVELS))
        run.log_metrics({f"baseline/{name}/seconds": time.perf_counter() - start})

    run.log_metrics(evaluation.flat() | test.total_metrics())
    report.tables(evaluation)
    for line in test.total_lines("model" if len(seeds) == 1 else f"model_seed_{seeds[0]}", "test"):
        report.say(line)
    if len(seeds) > 1:
        report.seeds_table(of_seeds)
    report.figures(evaluation, "test")
    evaluation.predictions().to_parquet(run.folder / "predictions.parquet")
    return dict(run.metrics)


def _predictor(
    model: JourneyModel,
    splits: Splits,
    vocabulary: Vocabulary,
    training: TrainingOptions,
    corrections: Corrections | None = None,
) -> Callable[[Queries], dict[str, np.ndarray]]:
    from constellation.answering import answer_all
    from constellation.journeys.batch import Gatherer
    from constellation.metrics import LEVELS

    gatherer = Gatherer(splits.store, vocabulary, training.max_events)
    return lambda queries: answer_all(model, gatherer, queries, LEVELS, corrections=corrections)


def _corrections(
    recalibration: Recalibrator,
    study: Study,
    splits: Splits,
    build: BuildModel,
    optimizer: OptimizerFactory,
    training: TrainingOptions,
    folder: Path,
    seed: int,
    beginning: Beginning | None,
) -> Corrections:
    from constellation.training.initial import Initial
    from constellation.training.recalibrating import learn_corrections, refit_without

    initial = None  # what it takes has been said when the study began
    if beginning is not None:
        initial = Initial(beginning.bundle.model, beginning.bundle.vocabulary, beginning.rate, lambda taken: None)

    def refit(train: np.ndarray) -> tuple[JourneyModel, Vocabulary]:
        place = folder / f"without_{train[0]}"
        return refit_without(study, splits, train, build, optimizer, training, place, seed, initial)

    return learn_corrections(study, splits, recalibration, training, folder, refit)


def _metrics_of(flat: Mapping[str, float], system: str) -> dict[str, float]:
    """The metrics of one system under the name ``model``."""
    middle = f"/{system}/"
    return {name.replace(middle, "/model/"): value for name, value in flat.items() if middle in name}


def _save_bundle(
    run: Run,
    study: Study,
    data: DataSet,
    splits: Splits,
    model_config: Mapping[str, Any],
    training: TrainingOptions,
    seed: int,
    metrics: Mapping[str, float],
    started: Mapping[str, Any],
    corrections: Corrections | None,
) -> None:
    from constellation.bundle import Bundle

    manifest = splits.store.manifest
    trained_on = {
        "data": data.name,
        "fingerprint": manifest.content,
        **splits.windows.facts(),
        "refit": training.refit,
        "num_customers": len(splits.train_journeys),
        "num_steps": study.refitted.num_steps,
        "seed": seed,
        "commit": run.environment.get("commit"),
        **started,
    }
    Bundle(
        model=study.refitted.model,
        vocabulary=study.vocabulary,
        schema=manifest.schema,
        model_config=dict(model_config),
        max_events=training.max_events,
        trained_on=trained_on,
        metrics={name: value for name, value in metrics.items() if name.startswith("test/")},
        corrections=corrections,
    ).save(run.folder / "bundle")
    run.log_file(run.folder / "bundle")


def _check_resumable(
    config: Mapping[str, Any], checkpoints: Path, resumed: bool, content: str, started: Mapping[str, Any]
) -> None:
    """A fresh run clears stale checkpoints; a resumed one must be the same experiment on the same data."""
    if not resumed:
        shutil.rmtree(checkpoints, ignore_errors=True)
    check_settings(
        checkpoints / "config.json",
        {key: config.get(key) for key in COMPARED_KEYS} | {"data_content": content} | dict(started),
        "The run to resume was started with",
        "Resume with the same, or start a new run.",
        leave_out=(*OF_THE_MACHINE, "init"),  # where the weights lay; what they are is compared
    )
