"""Select, then refit: steps and settings come from the validation cutoff, the weights from the test cutoff."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from constellation.answering import answer
from constellation.errors import InputError
from constellation.journeys.baskets import next_products, next_types, seen_products, take
from constellation.journeys.batch import Gatherer
from constellation.journeys.purchases import has_money
from constellation.journeys.sampling import TrainingBatches
from constellation.journeys.splits import Splits
from constellation.journeys.vocabulary import Vocabulary
from constellation.journeys.windows import Queries, Until
from constellation.kernels.native import can_work
from constellation.kernels.products import FLOAT32, FUSED
from constellation.metrics import LEVELS, value
from constellation.metrics.ranking import product_columns
from constellation.model import JourneyModel
from constellation.training.fit import Fitted, fit
from constellation.training.history import nothing_selects
from constellation.training.initial import Initial
from constellation.training.learner import OptimizerFactory
from constellation.training.options import TrainingOptions
from constellation.training.seasons import learn_season
from constellation.training.settling import settle, settle_as

TRIED_QUESTIONS = 64
"""Questions put to the untrained model, to learn which metrics it has before hours are spent."""

BuildModel = Callable[[Vocabulary], JourneyModel]
Report = Callable[[str, dict[str, float]], None]


@dataclass
class Study:
    """A selected and a refitted model with the vocabularies they read through; one and the same without a refit.

    settled: what the validation cutoff said of pooled forecasts; see ``settling``. passes: of each epoch over the
    training journeys, in both phases.
    """

    selected: Fitted
    selected_vocabulary: Vocabulary
    refitted: Fitted
    vocabulary: Vocabulary
    monitor: str
    settled: dict[str, float] = field(default_factory=dict)
    passes: int = 1

    @property
    def is_refitted(self) -> bool:
        return self.refitted is not self.selected

    def facts(self) -> dict[str, float]:
        """Numbers of the training itself, named as in ``metrics.json``."""
        return {
            "train/select_steps": float(self.selected.num_steps),
            "train/select_best_epoch": float(self.selected.best_epoch),
            "train/passes_per_epoch": float(self.passes),
            "train/refit_steps": float(self.refitted.num_steps) if self.is_refitted else 0.0,
            "train/events_per_second": self.selected.events_per_second,
            "train/waiting_share": self.selected.waiting_share,
            "train/peak_memory_gib": max(self.selected.peak_memory_gib, self.refitted.peak_memory_gib),
            "train/predicted_memory_gib": max(self.selected.predicted_memory_gib, self.refitted.predicted_memory_gib),
            "train/bfloat16_products": float(self.refitted.products != FLOAT32),
            "train/fused_layers": float(self.refitted.products == FUSED and can_work()),
            "train/num_parameters": float(sum(part.numel() for part in self.refitted.model.parameters())),
            **{f"train/{name}": value for name, value in self.settled.items()},
        }


def select_then_refit(
    splits: Splits,
    build: BuildModel,
    optimizer: OptimizerFactory,
    options: TrainingOptions,
    folder: Path,
    *,
    seed: int,
    report: Report,
    initial: Initial | None = None,
    vocabularies: tuple[Vocabulary, Vocabulary] | None = None,
) -> Study:
    """Train twice, seeds first. ``report(phase, row)`` hears of every epoch; ``folder`` keeps what resuming needs.

    ``initial`` is a trained model that both phases start from. ``vocabularies``: of selection and refit, where they
    are there already; see :func:`fit_vocabulary`.

    With ``refit: false`` the selected model is also the refitted one. Raises InputError where the model cannot be
    scored by the monitor, or cannot learn from the questions that the options ask.
    """
    if options.num_threads is not None:
        torch.set_num_threads(options.num_threads)
    if vocabularies is None:
        select_vocabulary = fit_vocabulary(splits, options, splits.select_panel, splits.select_until)
    else:
        select_vocabulary = vocabularies[0]
    gatherer = Gatherer(splits.store, select_vocabulary, options.max_events)
    monitor = choose_monitor(options.monitor, splits, select_vocabulary)
    _seed(seed)
    model = build(select_vocabulary)
    select_optimizer = optimizer if initial is None else initial.begin(model, select_vocabulary, optimizer)
    check_questions(model, options)
    if len(splits.val) == 0:
        raise InputError("No customer can be scored on validation: nobody has an event at or before the cutoff.")
    exclude_seen = splits.windows.exclude_seen
    scorer = Scorer(gatherer, _some(splits.val, options.max_scored), exclude_seen=exclude_seen)
    few = splits.val.take(np.arange(min(TRIED_QUESTIONS, len(splits.val))))
    available = Scorer(gatherer, few, exclude_seen=exclude_seen)(model)
    if options.monitor is None:
        monitor = next((name for name in (monitor, *other_monitors(splits)) if name in available), monitor)
    if monitor not in available:
        raise InputError(f"training.monitor is {monitor!r}; this model has {', '.join(sorted(available))}.")
    batches = training_batches(gatherer, splits, splits.select_until, options, seed)
    selected = _once(
        folder / "select",
        model,
        lambda: fit(
            model,
            batches,
            select_optimizer,
            options,
            folder / "select",
            label=f"select (seed {seed})",
            score=scorer,
            monitor=monitor,
            report=lambda row: report("select", row),
        ),
    )
    seasons = learn_season(selected.model, gatherer, splits, splits.select_until, seed=seed) if options.season else {}
    settled = seasons | settle(selected.model, gatherer, scorer.queries)
    if not options.refit:
        return Study(selected, select_vocabulary, selected, select_vocabulary, monitor, settled, batches.passes)
    if vocabularies is None:
        vocabulary = fit_vocabulary(splits, options, splits.refit_panel, splits.refit_until)
    else:
        vocabulary = vocabularies[1]
    _seed(seed)
    refit_model = build(vocabulary)
    refit_optimizer = optimizer if initial is None else initial.begin(refit_model, vocabulary, optimizer)
    refit_batches = training_batches(
        Gatherer(splits.store, vocabulary, options.max_events),
        splits,
        splits.refit_until,
        options,
        seed,
        batches.passes,
    )
    refitted = _once(
        folder / "refit",
        refit_model,
        lambda: fit(
            refit_model,
            refit_batches,
            refit_optimizer,
            options,
            folder / "refit",
            label=f"refit (seed {seed})",
            num_steps=max(selected.num_steps, 1),
            schedule_steps=options.max_epochs * len(batches),
            report=lambda row: report("refit", row),
        ),
    )
    settle_as(refitted.model, selected.model)
    if options.season:
        settled |= learn_season(refitted.model, refit_batches.gatherer, splits, splits.refit_until, seed=seed)
    return Study(selected, select_vocabulary, refitted, vocabulary, monitor, settled, batches.passes)


def fit_vocabulary(splits: Splits, options: TrainingOptions, train: Queries, until: Until) -> Vocabulary:
    return Vocabulary.fit(
        splits.store,
        train,
        journeys=splits.train_journeys,
        until=until,
        windows_days=options.windows_days,
        min_count=options.min_count,
    )


def choose_monitor(monitor: str | None, splits: Splits, vocabulary: Vocabulary) -> str:
    """The metric that selects: what was asked for, else CRPS of money over the longest observed horizon.

    Where no event has an amount, money is zero and tells nothing: then it is that of purchases. Without horizons it is
    NDCG@10 of the next product.
    """
    if monitor is not None:
        return monitor.removeprefix("val/")
    if not splits.windows.horizons_days:
        return "next_product/ndcg_at_10"
    seen_QK = splits.val.observed_QK
    observed = [days for column, days in enumerate(splits.val.horizons_days) if seen_QK[:, column].all()]
    if not observed:
        raise InputError(nothing_selects(splits))
    return f"{'value' if has_money(splits.store) else 'purchases'}_{observed[-1]}d/crps"


def other_monitors(splits: Splits) -> list[str]:
    """What selects a model that says nothing about money, as in pretraining: products, times, types of events."""
    times = [f"p_purchase_{days}d/brier" for days in reversed(splits.windows.horizons_days)]
    return ["next_product/ndcg_at_10", *times, "next_type/log_loss"]


def check_questions(model: JourneyModel, options: TrainingOptions) -> None:
    """Raise InputError where no cutoffs are drawn and an objective learns from cutoffs alone."""
    if options.cutoffs_per_journey > 0:
        return
    asking = [name for name, objective in model.objectives.items() if getattr(objective, "needs_cutoffs", True)]
    if asking:
        raise InputError(
            f"training.cutoffs_per_journey is 0, but {' and '.join(asking)} answers from the readout of a cutoff, "
            "which would then learn nothing. Draw cutoffs, such as training.cutoffs_per_journey=8, or let it answer "
            "from the state of the last event where it can."
        )


def _some(queries: Queries, most: int | None) -> Queries:
    """At most so many of the questions, the same ones whatever the seed of the training."""
    if most is None or len(queries) <= most:
        return queries
    return queries.take(np.sort(np.random.default_rng(0).choice(len(queries), most, replace=False)))


class Scorer:
    """Point estimates on the validation questions, ``<target>/<metric>``; quick enough for every epoch.

    exclude_seen: rank only products that the customer does not have. Product scores are ranked batch by batch, so that
    no more of them than one batch are held.
    """

    def __init__(self, gatherer: Gatherer, queries: Queries, *, exclude_seen: bool = False) -> None:
        self.gatherer, self.queries = gatherer, queries
        self.products = next_products(gatherer.store, gatherer.vocabulary, queries)
        self.seen = seen_products(gatherer.store, gatherer.vocabulary, queries) if exclude_seen else None
        self.types_Q = next_types(gatherer.store, gatherer.vocabulary, queries)

    def __call__(self, model: torch.nn.Module) -> dict[str, float]:
        assert isinstance(model, JourneyModel)
        answers: dict[str, np.ndarray] = {}
        columns: dict[str, np.ndarray] = {}
        losses: dict[str, np.ndarray] = {}
        for rows, said in answer(model, self.gatherer, self.queries, LEVELS):
            scores_QV = said.pop("next_product_scores", None)
            types_QV = said.pop("next_type_scores", None)
            self._place(answers, rows, said)
            if types_QV is not None and types_QV.shape[1]:
                self._place(losses, rows, {"log_loss": _log_losses(types_QV, self.types_Q[rows])})
            if scores_QV is not None and scores_QV.shape[1]:
                seen = None if self.seen is None else take(self.seen, rows)
                self._place(columns, rows, product_columns(scores_QV, take(self.products, rows), excluded=seen))
        metrics: dict[str, float] = {}
        realised = {"value": self.queries.value_QK, "purchases": self.queries.purchases_QK}
        for name, realised_QK in realised.items():
            for column, days in enumerate(self.queries.horizons_days):
                target, observed = f"{name}_{days}d", self.queries.observed_QK[:, column]
                if f"{target}_quantiles" not in answers or not observed.any():
                    continue
                truth = realised_QK[observed, column].astype(np.float64)
                expected = answers[f"{target}_expected"][observed]
                metrics[f"{target}/crps"] = float(value.crps(truth, answers[f"{target}_quantiles"][observed]).mean())
                metrics[f"{target}/gini_normalised"] = value.gini_normalised(truth, expected)
                metrics[f"{target}/bias_total"] = float(expected.sum() / max(truth.sum(), 1e-9) - 1)
        for column, days in enumerate(self.queries.horizons_days):
            observed, p_Q = self.queries.observed_QK[:, column], answers.get(f"p_purchase_{days}d")
            if p_Q is not None and observed.any():
                bought = self.queries.purchases_QK[observed, column] > 0
                metrics[f"p_purchase_{days}d/brier"] = float(((p_Q[observed] - bought) ** 2).mean())
        for target, found in (("next_product", columns), ("next_type", losses)):
            for name, column_Q in found.items():
                asked = column_Q[np.isfinite(column_Q)]
                metrics[f"{target}/{name}"] = float(asked.mean()) if len(asked) else float("nan")
        return metrics

    def _place(self, whole: dict[str, np.ndarray], rows: np.ndarray, parts: Mapping[str, np.ndarray]) -> None:
        for name, values in parts.items():
            if name not in whole:
                whole[name] = np.empty((len(self.queries), *values.shape[1:]), dtype=values.dtype)
            whole[name][rows] = values


def _log_losses(scores_QV: np.ndarray, place_Q: np.ndarray) -> np.ndarray:
    """-log softmax at the given columns; NaN where the column is -1."""
    scores_QV = scores_QV.astype(np.float64) - scores_QV.max(axis=1, keepdims=True, initial=-np.inf)
    own_Q = np.take_along_axis(scores_QV, np.maximum(place_Q, 0)[:, None], axis=1)[:, 0]
    return np.where(place_Q >= 0, np.log(np.exp(scores_QV).sum(axis=1)) - own_Q, np.nan)


def training_batches(
    gatherer: Gatherer, splits: Splits, until: Until, options: TrainingOptions, seed: int, passes: int | None = None
) -> TrainingBatches:
    """passes: of an epoch, as another phase has them; null: as the options say."""
    batches = TrainingBatches(
        gatherer,
        splits.train_journeys,
        until,
        splits.windows.horizons_days,
        cutoffs_per_journey=options.cutoffs_per_journey,
        max_tokens=options.max_tokens,
        max_journeys=options.journeys_of_a_batch(len(splits.train_journeys)),
        earliest=splits.windows.earliest(splits.store),
        seed=seed,
        before_first_share=options.before_first_share,
        room_days=splits.windows.room_days,
        long_journeys=options.long_journeys,
    )
    batches.passes = options.passes_of_an_epoch(len(batches)) if passes is None else passes
    return batches


def _seed(seed: int) -> None:
    from lightning import seed_everything

    seed_everything(seed, workers=True, verbose=False)


def _once(folder: Path, model: JourneyModel, run: Callable[[], Fitted]) -> Fitted:
    """Run a phase, or take up its result where an interrupted run had finished it."""
    from safetensors.torch import load_model, save_model

    done, weights = folder / "done.json", folder / "weights.safetensors"
    if done.exists():
        load_model(model, str(weights))
        return Fitted(model=model, **json.loads(done.read_text()))
    fitted = run()
    folder.mkdir(parents=True, exist_ok=True)
    save_model(fitted.model, str(weights))
    facts = {name: part for name, part in vars(fitted).items() if name != "model"}
    partial = folder / "done.json.partial"
    partial.write_text(json.dumps(facts))
    os.replace(partial, done)
    return fitted
