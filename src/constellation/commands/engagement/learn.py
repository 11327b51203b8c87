"""`train objective=engagement`: reward models of every action, cross-fitted over persons."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from constellation.commands.engagement.decided import FITTED, Decided, decided
from constellation.commands.engagement.options import EngagementOptions
from constellation.errors import InputError
from constellation.policies.cross_fit import Predictions, cross_fit
from constellation.policies.saved import Saved

if TYPE_CHECKING:
    from constellation.journeys.dataset import DataSet
    from constellation.journeys.store import Store
    from constellation.policies.outcomes import OutcomeModel
    from constellation.tracking import Run
    from constellation.training.learner import OptimizerFactory
    from constellation.training.options import TrainingOptions

MODEL = "model"
"""The name of the sequence model among the systems."""


def learn(
    run: Run,
    *,
    data: DataSet,
    model_config: Mapping[str, Any],
    outcome: Mapping[str, OutcomeModel],
    optimizer: OptimizerFactory,
    training: TrainingOptions,
    options: EngagementOptions,
    seeds: Sequence[int],
) -> dict[str, float]:
    """Fit every system, say how well each predicts, and leave ``engagement/`` for ``evaluate policy=...``."""
    from constellation.journeys.prepare import prepare

    if len(seeds) != 1:
        raise InputError("objective=engagement takes one seed at a time: write seeds=[0].")
    seed = int(seeds[0])
    store = prepare(data)
    run.log_dataset(data.name, store.manifest.content, source=data.source.label, profile=store.manifest.profile)
    run.set_tag("seed", seed)
    ground = decided(data, store, options, seed)
    _opening(data.name, ground)
    systems: dict[str, Predictions] = {}
    metrics: dict[str, float] = {}
    with_sequences = options.sequence_model and store.num_events > 0
    if options.sequence_model and not with_sequences:
        print("no events: the sequence model has nothing to read and is left out")
    if not outcome:
        raise InputError("objective=engagement needs at least one outcome model, such as outcome=[ridge].")
    for name, model in outcome.items():
        start = time.perf_counter()
        systems[name] = cross_fit(
            model,
            ground.features.values_QX,
            ground.log.action_Q,
            ground.log.reward_Q,
            ground.action_AY,
            ground.log.customer_Q,
            ground.fold_Q,
            ground.log.logging_QA,
            num_members=options.num_members,
            num_inner=options.num_inner,
            clip_quantile=options.clip_quantile,
            seed=seed,
            progress=_progress(),
        )
        metrics[f"outcome/{name}/seconds"] = time.perf_counter() - start
    if with_sequences:
        start = time.perf_counter()
        found = _sequences(store, ground, model_config, optimizer, training, options, systems, seed)
        systems = {MODEL: found, **systems}
        metrics[f"outcome/{MODEL}/seconds"] = time.perf_counter() - start
    for name, predictions in systems.items():
        metrics |= {f"outcome/{name}/{key}": value for key, value in fit_of(ground, predictions).items()}
        print(
            f"  {name:<20} R2 {metrics[f'outcome/{name}/r2']:.4f}, of which effects "
            f"{metrics[f'outcome/{name}/r2_effects']:.4f}; kept {metrics[f'outcome/{name}/kept']:.2f} of the "
            f"differences"
        )
    costs_A = _costs(ground)
    Saved(
        log=ground.log,
        fold_Q=ground.fold_Q,
        features_QX=ground.features.values_QX,
        feature_names=ground.features.names,
        time_Q=np.asarray(ground.decisions.time_Q),
        customer_ids_Q=store.customer_id_C[ground.decisions.journey_Q],
        cost_A=costs_A,
        systems=systems,
        facts={
            "data": data.name,
            "fingerprint": store.manifest.content,
            "propensities": ground.propensities,
            "reward_days": data.decisions.reward_days if data.decisions else None,
            "num_immature": ground.num_immature,
            "seed": seed,
        },
    ).save(run.folder)
    run.log_metrics(
        metrics | {"engagement/num_decisions": len(ground.log), "engagement/num_immature": ground.num_immature}
    )
    print("To judge policies by these decisions:")
    print(
        f"  constellation evaluate run={run.folder} policy=[greedy,softmax,pessimistic,doubly_robust,thompson,uniform]"
    )
    return dict(run.metrics)


def fit_of(ground: Decided, predictions: Predictions) -> dict[str, float]:
    """How well judged rows are predicted. r2: of the rewards; r2_effects: what the action adds to r2, beyond the mean
    of the customer under the logging policy."""
    judged = ground.fold_Q >= 0
    log, model_QA = ground.log, predictions.expected_QA
    chosen_Q = model_QA[np.arange(len(log)), log.action_Q]
    customer_Q = np.where(log.logging_QA > 0, log.logging_QA * model_QA, 0.0).sum(axis=1)
    reward_Q = log.reward_Q
    total = float(((reward_Q - reward_Q[judged].mean())[judged] ** 2).sum())
    r2 = 1 - float(((reward_Q - chosen_Q)[judged] ** 2).sum()) / total if total > 0 else 0.0
    without = 1 - float(((reward_Q - customer_Q)[judged] ** 2).sum()) / total if total > 0 else 0.0
    return {
        "r2": r2,
        "r2_effects": r2 - without,
        "kept": float(predictions.kept_K.mean()),
        "bias": float((chosen_Q - reward_Q)[judged].mean()),
    }


def _sequences(
    store: Store,
    ground: Decided,
    model_config: Mapping[str, Any],
    optimizer: OptimizerFactory,
    training: TrainingOptions,
    options: EngagementOptions,
    systems: Mapping[str, Predictions],
    seed: int,
) -> Predictions:
    from constellation.training.engagement_study import cross_fit_sequences

    inner = next(iter(systems.values()))
    return cross_fit_sequences(
        store,
        ground.decisions,
        ground.log,
        ground.fold_Q,
        ground.action_AY,
        model_config,
        optimizer,
        training,
        inner=inner,
        clip_quantile=options.clip_quantile,
        seed=seed,
        progress=_progress(),
    )


def _opening(name: str, ground: Decided) -> None:
    log = ground.log
    num_customers = len(np.unique(log.customer_Q))
    print(
        f"{name}: {len(log):,} decisions of {num_customers:,} customers, {len(log.actions)} actions, "
        f"mean reward {log.reward_Q.mean():.4g} (sd {log.reward_Q.std():.4g}), propensities {ground.propensities}"
    )
    if ground.num_immature:
        print(f"  {ground.num_immature:,} decisions whose reward is not known yet are left out, never counted as zero")
    if ground.propensities == FITTED:
        print(
            "  no propensities were logged: they are fitted from the features, and every claim holds only as "
            "far as the "
            "choice followed nothing else"
        )


def _costs(ground: Decided) -> np.ndarray:
    """Mean cost of each action where it was chosen, in units of the currency."""
    num = len(ground.log.actions)
    count_A = np.bincount(ground.log.action_Q, minlength=num)
    return np.bincount(ground.log.action_Q, weights=ground.decisions.cost_Q, minlength=num) / np.maximum(count_A, 1)


def _progress() -> Callable[[str, int, int], None]:
    import sys

    start = time.perf_counter()

    def show(name: str, done: int, total: int) -> None:
        if sys.stderr.isatty():
            left = (time.perf_counter() - start) / max(done, 1) * (total - done)
            print(f"\r  {name}: {done} of {total} fits, {left:.0f} s left   ", end="", file=sys.stderr, flush=True)
            if done >= total - 1:
                print(file=sys.stderr)

    return show
