"""One trial: a model trained up to the validation cutoff and scored there. The test is never looked at."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from constellation.errors import InputError
from constellation.metrics.names import higher_is_better, is_known

if TYPE_CHECKING:
    from constellation.journeys.splits import Splits
    from constellation.training.options import TrainingOptions

SETTINGS = ("encoder", "readout", "objective", "optimizer", "training")
"""What a trial is made of; anything else in the configuration is the same for all."""

Epoch = Callable[[int, dict[str, float]], None]


@dataclass(frozen=True)
class Goal:
    """Metrics of the validation, the first of which also chooses the epoch: ``value_91d/crps``.

    A bias is read by its distance from 0.
    """

    metrics: tuple[str, ...]

    def __post_init__(self) -> None:
        for metric in self.metrics:
            if "/" not in metric or not is_known(metric.rpartition("/")[2]):
                raise InputError(
                    f"metrics has {metric!r}; <target>/<metric> at the validation cutoff was expected, such as "
                    "value_91d/crps or next_product/ndcg_at_10."
                )

    @property
    def directions(self) -> list[Literal["minimize", "maximize"]]:
        """``minimize`` or ``maximize``, one per metric."""
        return ["maximize" if higher_is_better(metric.rpartition("/")[2]) else "minimize" for metric in self.metrics]

    def values(self, scores: Mapping[str, float]) -> tuple[float, ...]:
        """What the study is told of scores ``val/<target>/<metric>``. Raises InputError for one that is not there."""
        found = []
        for metric in self.metrics:
            if f"val/{metric}" not in scores:
                known = sorted(name.removeprefix("val/") for name in scores if name.startswith("val/"))
                raise InputError(f"This model is not scored by {metric!r}; it has {', '.join(known)}.")
            value = float(scores[f"val/{metric}"])
            found.append(abs(value) if metric.rpartition("/")[2].startswith("bias") else value)
        return tuple(found)


def choose_goal(metrics: Sequence[str] | None, splits: Splits, training: TrainingOptions) -> Goal:
    """The metrics asked for; else the one by which training selects its epochs."""
    from constellation.training.study import choose_monitor, fit_vocabulary

    if metrics:
        return Goal(tuple(metric.removeprefix("val/") for metric in metrics))
    vocabulary = fit_vocabulary(splits, training, splits.select_panel, splits.select_until)
    return Goal((choose_monitor(training.monitor, splits, vocabulary),))


def train_trial(
    splits: Splits, settings: Mapping[str, Any], goal: Goal, folder: Path, *, seed: int, epoch: Epoch
) -> dict[str, float]:
    """Scores ``val/<target>/<metric>`` of the best epoch by the goal's first metric, and ``epoch`` and ``step``.

    settings: as ``SETTINGS``. epoch: hears of every epoch, and may end the trial by an exception. Nothing stays in
    ``folder``: a trial that was killed is tried again.
    """
    import torch
    from lightning import seed_everything

    from constellation.building import build_model, targets
    from constellation.journeys.batch import Gatherer
    from constellation.training.fit import fit
    from constellation.training.history import teach
    from constellation.training.study import Scorer, check_questions, fit_vocabulary, training_batches

    options = settings["training"]
    if options.num_threads is not None:
        torch.set_num_threads(options.num_threads)
    vocabulary = fit_vocabulary(splits, options, splits.select_panel, splits.select_until)
    gatherer = Gatherer(splits.store, vocabulary, options.max_events)
    description = {name: dict(settings[name] or {}) for name in ("encoder", "readout", "objective")}
    seed_everything(seed, workers=True, verbose=False)
    model = build_model(description, vocabulary, splits.windows.horizons_days, trusted=targets(description))
    teach(model, splits)
    check_questions(model, options)
    scorer = Scorer(gatherer, splits.val, exclude_seen=splits.windows.exclude_seen)
    batches = training_batches(gatherer, splits, splits.select_until, options, seed)

    def score(trained: torch.nn.Module) -> dict[str, float]:
        scores = scorer(trained)
        goal.values({f"val/{name}": value for name, value in scores.items()})
        return scores

    def report(row: dict[str, float]) -> None:
        epoch(int(row["epoch"]), row)

    try:
        fitted = fit(
            model,
            batches,
            settings["optimizer"],
            options,
            folder / "training",
            label=folder.name,
            score=score,
            monitor=goal.metrics[0],
            report=report,
        )
    finally:
        shutil.rmtree(folder / "training", ignore_errors=True)
    best = next(row for row in fitted.history if row["epoch"] == fitted.best_epoch)
    return {name: value for name, value in best.items() if name in ("epoch", "step") or name.startswith("val/")}


def is_defined(values: Sequence[float]) -> bool:
    """Whether a trial has a score: one that diverged has none."""
    return all(math.isfinite(value) for value in values)
