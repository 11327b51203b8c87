"""`train objective=engagement`: reward models of every action, cross-fitted over persons."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from constellation.commands.engagement.bundling import bundle_of
from constellation.commands.engagement.decided import FITTED, Decided, decided, usable
from constellation.commands.engagement.options import FOLDS, REFIT, EngagementOptions
from constellation.commands.engagement.seeds import over_seeds
from constellation.commands.engagement.steps import step_rewards
from constellation.errors import InputError
from constellation.policies.cross_fit import EVERYBODY, FoldModels, Predictions, cross_fit
from constellation.policies.saved import Saved, seed_folder

if TYPE_CHECKING:
    from constellation.journeys.dataset import DataSet
    from constellation.journeys.store import Store
    from constellation.policies.outcomes import OutcomeModel
    from constellation.tracking import Run
    from constellation.training.engagement_study import FoldSequence
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
    """Fit every system, say how well each predicts, and leave ``engagement/`` for ``evaluate policy=...``, and
    ``bundle/`` for ``score``, ``export`` and ``recommend``.

    seeds: each draws folds and models of its own; metrics are their means, with ``<name>_sd`` beside. The first is what
    is scored and exported; ``evaluate`` judges all, those beyond the first from ``seeds/<seed>/engagement/``.
    """
    from constellation.journeys.prepare import prepare

    if not seeds or len(set(seeds)) < len(seeds):
        raise InputError(f"seeds must be one or several different numbers, such as seeds=[0,1,2]; found {list(seeds)}.")
    if not outcome:
        raise InputError("objective=engagement needs at least one outcome model, such as outcome=[ridge].")
    if options.test_from is not None and len(seeds) > 1:
        print("engagement.test_from: the decisions judged are the same for all seeds, the models differ")
    store = prepare(data)
    run.log_dataset(data.name, store.manifest.content, source=data.source.label, profile=store.manifest.profile)
    run.set_tag("seed", ",".join(str(seed) for seed in seeds))
    if options.sequence_model and store.num_events == 0:
        print("no events: the sequence model has nothing to read and is left out")
    of_seeds = []
    for place, seed in enumerate(map(int, seeds)):
        ground = decided(data, store, options, seed)
        if place == 0:
            _opening(data.name, ground)
        if len(seeds) > 1:
            print(f"seed {seed}")
        kept: dict[str, list[FoldModels | FoldSequence]] = {}
        # Only the first seed's models act, so only they are fitted once more on the whole log.
        deploy = options.deploy if place == 0 else None
        systems, metrics = _fitted(
            store, ground, model_config, outcome, optimizer, training, options, seed, deploy, kept
        )
        saved = _saved(data, store, ground, systems, seed, options.deploy)
        saved.save(run.folder if place == 0 else seed_folder(run.folder, seed))
        del saved
        facts = {"engagement/num_decisions": len(ground.log), "engagement/num_immature": ground.num_immature}
        of_seeds.append(metrics | facts)
        if place == 0:
            costs_A = _costs(ground)
            bundle = bundle_of(data, store, ground, kept, costs_A, training.max_events, metrics, seed)
            if bundle is not None:
                bundle.save(run.folder / "bundle")
                run.log_file(run.folder / "bundle")
    run.log_metrics(over_seeds(of_seeds))
    print("To judge policies by these decisions:")
    print(
        f"  constellation evaluate run={run.folder} policy=[greedy,softmax,pessimistic,doubly_robust,thompson,uniform]"
    )
    return dict(run.metrics)


def _fitted(
    store: Store,
    ground: Decided,
    model_config: Mapping[str, Any],
    outcome: Mapping[str, OutcomeModel],
    optimizer: OptimizerFactory,
    training: TrainingOptions,
    options: EngagementOptions,
    seed: int,
    deploy: str | None,
    kept: dict[str, list[FoldModels | FoldSequence]],
) -> tuple[dict[str, Predictions], dict[str, float]]:
    """Predictions by system, the sequence model first, and how good they are; models that act are put into ``kept``."""
    systems: dict[str, Predictions] = {}
    metrics: dict[str, float] = {}
    with_sequences = options.sequence_model and store.num_events > 0

    def keep(name: str) -> Callable[[FoldModels | FoldSequence], None]:
        of_name = kept.setdefault(name, [])

        def of_those_who_act(found: FoldModels | FoldSequence) -> None:
            if deploy == FOLDS or found.fold == EVERYBODY:
                of_name.append(found)

        return of_those_who_act

    if with_sequences:
        kept[MODEL] = []
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
            refit=deploy == REFIT,
            ahead=ground.ahead,
            seed=seed,
            progress=_progress(),
            keep=keep(name),
        )
        metrics[f"outcome/{name}/seconds"] = time.perf_counter() - start
    if with_sequences:
        start = time.perf_counter()
        found = _sequences(
            store, ground, model_config, optimizer, training, options, systems, seed, deploy == REFIT, keep(MODEL)
        )
        systems = {MODEL: found, **systems}
        metrics[f"outcome/{MODEL}/seconds"] = time.perf_counter() - start
    for name, predictions in systems.items():
        metrics |= {f"outcome/{name}/{key}": value for key, value in fit_of(ground, predictions).items()}
        print(
            f"  {name:<20} R2 {metrics[f'outcome/{name}/r2']:.4f}, of which effects "
            f"{metrics[f'outcome/{name}/r2_effects']:.4f}; kept {metrics[f'outcome/{name}/kept_size']:.2f} of how "
            f"strongly customers respond, {metrics[f'outcome/{name}/kept']:.2f} of what suits whom"
        )
    return systems, metrics


def _saved(
    data: DataSet, store: Store, ground: Decided, systems: dict[str, Predictions], seed: int, deploy: str
) -> Saved:
    assert store.decisions is not None and data.decisions is not None
    of_steps_Q = step_rewards(store, data.decisions, store.decisions)
    return Saved(
        log=ground.log,
        fold_Q=ground.fold_Q,
        features_QX=ground.features.values_QX,
        feature_names=ground.features.names,
        time_Q=np.asarray(ground.decisions.time_Q),
        customer_ids_Q=store.customer_id_C[ground.decisions.journey_Q],
        cost_A=_costs(ground),
        systems=systems,
        step_reward_Q=None if of_steps_Q is None else of_steps_Q[usable(store.decisions)],
        action_AY=ground.action_AY,
        facts={
            "data": data.name,
            "fingerprint": store.manifest.content,
            "propensities": ground.propensities,
            "reward_days": data.decisions.reward_days,
            "num_immature": ground.num_immature,
            "seed": seed,
            "deploy": deploy,
            "lookahead": 0 if ground.ahead is None else ground.ahead.num_windows,
        },
    )


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
        "kept_size": float(predictions.kept_K2[:, 0].mean()),
        "kept": float(predictions.kept_K2[:, 1].mean()),
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
    refit: bool,
    keep: Callable[[FoldSequence], None],
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
        refit=refit,
        ahead=ground.ahead,
        seed=seed,
        progress=_progress(),
        keep=keep,
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
        left = (time.perf_counter() - start) / max(done, 1) * (total - done)
        said = f"  {name}: {done} of {total} fits, {left:.0f} s left"
        if sys.stderr.isatty():
            print(f"\r{said}   ", end="", file=sys.stderr, flush=True)
            if done >= total - 1:
                print(file=sys.stderr)
        elif done and done % max(total // 5, 1) == 0:
            print(said, flush=True)

    return show
