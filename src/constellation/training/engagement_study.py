"""Cross-fit the sequence model on decisions: each fold's customers are answered by a model of the others."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from constellation.answering import answer_decisions
from constellation.building import build_model, targets
from constellation.journeys.batch import Gatherer
from constellation.journeys.decision_batches import DecisionBatches
from constellation.journeys.decisions import Decisions
from constellation.journeys.store import Store
from constellation.journeys.vocabulary import Vocabulary
from constellation.journeys.windows import ask
from constellation.model import JourneyModel
from constellation.policies.cross_fit import (
    EVERYBODY,
    EffectShrinkage,
    Predictions,
    check_actions,
    learned_rewards,
    training_rows,
)
from constellation.policies.log import Log
from constellation.policies.lookahead import Lookahead
from constellation.training.learner import OptimizerFactory
from constellation.training.options import TrainingOptions

VALIDATION_SHARE = 0.15
"""Of the training customers: they choose the epoch, and say how much of the differences to keep."""
OBJECTIVE = "engagement"


@dataclass(frozen=True)
class FoldSequence:
    """What answers the customers of one fold: a model of the others, how it is built, and the shrinkage of what it
    says. The fold ``EVERYBODY``: a model of the whole log."""

    fold: int
    model: JourneyModel
    vocabulary: Vocabulary
    model_config: Mapping[str, Any]
    shrinkage: EffectShrinkage


def cross_fit_sequences(
    store: Store,
    decisions: Decisions,
    log: Log,
    fold_Q: np.ndarray,
    action_AY: np.ndarray,
    model_config: Mapping[str, Any],
    optimizer: OptimizerFactory,
    options: TrainingOptions,
    *,
    inner: Predictions,
    clip_quantile: float,
    refit: bool = False,
    ahead: Lookahead | None = None,
    seed: int,
    progress: Callable[[str, int, int], None] | None = None,
    report: Callable[[dict[str, float]], None] = lambda row: None,
    keep: Callable[[FoldSequence], None] = lambda fitted: None,
) -> Predictions:
    """Predictions of encoder x ``engagement`` for every judged decision.

    inner: predictions for the training rows of each fold, by a cheap model: what policies are learned from. The epoch
    of each fold is chosen on validation customers among its training customers. options.accelerator: auto, cpu or gpu.
    ahead: as in ``cross_fit``, told from the cheap models' features.
    keep: is handed the model of each fold, which is forgotten otherwise. refit: last of all, a model is fitted on the
    whole log, for as many epochs as the folds chose (their median), and handed to ``keep`` as the fold ``EVERYBODY``.
    """
    folds = [int(fold) for fold in np.unique(fold_Q) if fold >= 0]
    device = _device(options)
    if options.num_threads is not None:
        torch.set_num_threads(options.num_threads)
    settings = dict(model_config["objective"][OBJECTIVE])
    num_members = int(settings.get("num_members", 4))
    members_MQA = np.full((num_members, *log.logging_QA.shape), np.nan)
    kept_K2 = np.ones((len(folds), 2))
    apart_QA = np.zeros(log.logging_QA.shape) if refit else None
    chosen_epochs: list[int] = []
    done, steps = 0, (len(folds) + refit) * options.max_epochs

    def batches(rows: np.ndarray, gatherer: Gatherer, cut_Q: np.ndarray, weight_CM: np.ndarray) -> DecisionBatches:
        at = np.flatnonzero(rows)
        return DecisionBatches(
            gatherer,
            decisions.journey_Q[at],
            decisions.time_Q[at],
            decisions.last_event_Q[at],
            log.action_Q[at],
            cut_Q[at],
            weight_CM[log.customer_Q[at]],
            max_tokens=options.max_tokens,
            max_journeys=options.journeys_of_a_batch(len(np.unique(log.customer_Q[at]))),
            seed=seed,
        )

    def built(fitted: np.ndarray, cut_Q: np.ndarray) -> tuple[JourneyModel, Vocabulary, dict[str, Any]]:
        vocabulary = _vocabulary(store, decisions, fitted, options)
        told = settings | {
            "num_actions": len(log.actions),
            "action_features": action_AY.tolist(),
            "reward_mean": float(cut_Q[fitted].mean()),
            "reward_std": float(cut_Q[fitted].std()),
        }
        torch.manual_seed(seed)
        config = {**model_config, "objective": {OBJECTIVE: told}}
        model = build_model(config, vocabulary, vocabulary.horizons_days, trusted=targets(config)).to(device)
        return model, vocabulary, config

    def told_of(fold: int) -> Callable[[int, dict[str, float]], None]:
        def say(epoch: int, row: dict[str, float]) -> None:
            nonlocal done
            done += 1
            if progress is not None:
                progress("model", done, steps)
            report({"fold": fold, "epoch": epoch} | row)

        return say

    for place, fold in enumerate(folds):
        judged, learned = fold_Q == fold, training_rows(fold_Q, fold)
        check_actions(log.action_Q, judged, learned, len(log.actions))
        cut_Q = learned_rewards(log.reward_Q, learned, clip_quantile, ahead, seed)
        rng = np.random.default_rng([seed, fold])
        held_C = rng.random(store.num_customers) < VALIDATION_SHARE
        weight_CM = rng.poisson(1.0, (store.num_customers, num_members))
        val = learned & held_C[log.customer_Q]
        fitted = learned & ~val
        model, vocabulary, config = built(fitted, cut_Q)
        gatherer = Gatherer(store, vocabulary, options.max_events)
        parts = {name: batches(rows, gatherer, cut_Q, weight_CM) for name, rows in (("fitted", fitted), ("val", val))}
        best, epoch = _fit(model, parts["fitted"], parts["val"], optimizer, options, device, told_of(fold))
        chosen_epochs.append(epoch)
        val_QAM = answer_decisions(best, parts["val"], device)
        shrinkage = EffectShrinkage.learn(val_QAM.mean(axis=2), log.action_Q[val], cut_Q[val], log.logging_QA[val])
        kept_K2[place] = shrinkage.kept_size, shrinkage.kept
        found_QAM = answer_decisions(best, batches(judged, gatherer, cut_Q, weight_CM), device)
        for member in range(num_members):
            members_MQA[member, judged] = shrinkage(found_QAM[:, :, member], log.logging_QA[judged])
        if apart_QA is not None:
            apart_QA[judged] = found_QAM.mean(axis=2)
        keep(FoldSequence(fold, best, vocabulary, config, shrinkage))
    if apart_QA is not None:
        everything, judged = np.ones(len(log), dtype=bool), fold_Q >= 0
        cut_Q = learned_rewards(log.reward_Q, everything, clip_quantile, ahead, seed)
        shrinkage = EffectShrinkage.learn(apart_QA[judged], log.action_Q[judged], cut_Q[judged], log.logging_QA[judged])
        weight_CM = np.random.default_rng([seed, len(folds)]).poisson(1.0, (store.num_customers, num_members))
        model, vocabulary, config = built(everything, cut_Q)
        whole = batches(everything, Gatherer(store, vocabulary, options.max_events), cut_Q, weight_CM)
        num_epochs = max(1, round(float(np.median(chosen_epochs))) + 1)
        best, _ = _fit(model, whole, None, optimizer, options, device, told_of(EVERYBODY), num_epochs=num_epochs)
        keep(FoldSequence(EVERYBODY, best, vocabulary, config, shrinkage))
    return Predictions(members_MQA, inner.inner_KQA, kept_K2)


def _fit(
    model: JourneyModel,
    train: DecisionBatches,
    val: DecisionBatches | None,
    optimizer: OptimizerFactory,
    options: TrainingOptions,
    device: torch.device,
    report: Callable[[int, dict[str, float]], None],
    *,
    num_epochs: int | None = None,
) -> tuple[JourneyModel, int]:
    """Trains in place; returns the averaged weights of the epoch that predicts the validation customers best, and that
    epoch. Without ``val``: of the last of ``num_epochs``, on the schedule of a training that might have gone on."""
    steps = optimizer(parameter for parameter in model.parameters() if parameter.requires_grad)
    total = options.max_epochs * max(len(train), 1)
    warmup = max(1, round(options.warmup_share * total))

    def rate(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        share = min(1.0, (step - warmup) / max(1, total - warmup))
        return options.final_rate + (1 - options.final_rate) * 0.5 * (1 + math.cos(math.pi * share))

    schedule = torch.optim.lr_scheduler.LambdaLR(steps, rate)
    averaged = copy.deepcopy(model).requires_grad_(False)
    best, best_loss, best_epoch, step = copy.deepcopy(averaged), float("inf"), -1, 0
    for epoch in range(options.max_epochs if num_epochs is None else num_epochs):
        train.epoch = epoch
        model.train()
        for batch in train:
            loss = model.loss(batch.to(device))[OBJECTIVE].mean
            steps.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            if options.gradient_clip:
                torch.nn.utils.clip_grad_norm_(model.parameters(), options.gradient_clip)
            steps.step()
            schedule.step()
            step += 1
            decay = min(options.averaging, (1 + step) / (10 + step)) if options.averaging else 0.0
            with torch.no_grad():
                torch._foreach_lerp_(list(averaged.parameters()), list(model.parameters()), 1 - decay)
        if val is None:
            report(epoch, {})
            best, best_epoch = averaged, epoch
            continue
        score = _mean_loss(averaged, val, device)
        report(epoch, {"val/loss": score})
        if score < best_loss:
            best, best_loss, best_epoch = copy.deepcopy(averaged), score, epoch
        elif epoch - best_epoch >= options.patience:
            break
    return best, best_epoch


def _mean_loss(model: JourneyModel, batches: DecisionBatches, device: torch.device) -> float:
    """Squared error of the mean of the members, in units of the reward."""
    members_QAM = answer_decisions(model, batches, device)
    chosen_Q = members_QAM.mean(axis=2)[np.arange(len(batches.action_Q)), batches.action_Q]
    return float(((chosen_Q - batches.reward_Q) ** 2).mean())


def _vocabulary(store: Store, decisions: Decisions, rows: np.ndarray, options: TrainingOptions) -> Vocabulary:
    """Fitted on the training customers' events up to their last training decision."""
    at = np.flatnonzero(rows)
    latest = int(decisions.time_Q[at].max())
    with_past = at[decisions.last_event_Q[at] >= 0]
    queries = ask(store, decisions.journey_Q[with_past], decisions.time_Q[with_past], (1,), latest)
    return Vocabulary.fit(
        store,
        queries,
        journeys=np.unique(decisions.journey_Q[at]),
        until=latest,
        windows_days=options.windows_days,
        min_count=options.min_count,
    )


def _device(options: TrainingOptions) -> torch.device:
    wants_gpu = options.accelerator in ("gpu", "cuda") or (options.accelerator == "auto" and torch.cuda.is_available())
    return torch.device("cuda" if wants_gpu else "cpu")
