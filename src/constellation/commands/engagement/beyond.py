"""What `evaluate policy=...` says beyond the usual table: asked estimates, sequences of decisions, balance."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from constellation.errors import InputError
from constellation.policies.asked import BERNSTEIN, BOUNDED, Asked
from constellation.policies.diagnostics import balance
from constellation.policies.evaluation import LOGGED, Evaluated, Experiment, Refit
from constellation.policies.outcomes import OutcomeModel, RidgeOutcome
from constellation.policies.saved import Saved
from constellation.policies.sequence_values import DOUBLY_ROBUST, SequenceOptions, SequenceValue, evaluate_sequences

if TYPE_CHECKING:
    import pandas as pd

MAX_DIFFERENCE = 0.1
"""Standardised; beyond it propensities do not describe who got an action (Austin 2009)."""
SURE = 3.5
"""Standard errors of a difference that is said aloud; features and actions are many."""


def refit_of(saved: Saved, outcome: Mapping[str, OutcomeModel] | None) -> Refit:
    """Who is fitted anew for an estimate: the one of ``outcome``, ridge where none is named.

    Raises InputError where several are named.
    """
    named = dict(outcome or {})
    if len(named) > 1:
        raise InputError(
            f"outcome must be one model, the one that is fitted anew for estimates; found {', '.join(named)}. "
            f"Write outcome=[{next(iter(named))}]."
        )
    action_AY = np.zeros((len(saved.log.actions), 0)) if saved.action_AY is None else saved.action_AY
    return Refit(next(iter(named.values()), RidgeOutcome()), action_AY)


def print_asked(evaluated: Mapping[str, Evaluated], asked: Asked) -> None:
    if not asked.shown:
        return
    width = max(map(len, evaluated))
    intervals = ("bootstrap", *asked.further)
    print(f"  {'policy':<{width}}  estimator       value" + "".join(f"  {name:<22}" for name in intervals))
    for name, each in evaluated.items():
        for estimator, found in each.asked.items():
            cells = []
            for interval in intervals:
                bounds = found.interval if interval == "bootstrap" else found.further.get(interval)
                cells.append("-" if bounds is None else f"[{bounds.low:.4g}, {bounds.high:.4g}]")
            settings = "".join(f"  {key} {value:.3g}" for key, value in found.settings.items())
            print(
                f"  {name:<{width}}  {estimator:<9}  {found.interval.value:>10.4g}"
                + "".join(f"  {cell:<22}" for cell in cells)
                + settings
            )
    if BERNSTEIN in asked.further and not set(asked.shown) <= set(BOUNDED):
        print(
            f"  {BERNSTEIN} is a bound for {', '.join(BOUNDED)} alone: the others are ratios, or biased by what they "
            "leave out"
        )


def sequence_values(
    saved: Saved,
    experiment: Experiment,
    evaluated: Mapping[str, Evaluated],
    options: SequenceOptions,
    refit: Refit,
    *,
    num_resamples: int,
) -> dict[tuple[str, str], SequenceValue]:
    """Empty where nothing was asked. Raises InputError where rewards of single steps are not known."""
    if not options.estimators:
        return {}
    if saved.step_reward_Q is None:
        before = saved.action_AY is None
        raise InputError(
            "sequence.estimators needs what came between a decision and the customer's next one, and the run does not "
            "hold it: "
            + (
                "it was made before this was kept. Train again."
                if before
                else f"the rewards are a column of the table of decisions and run {saved.facts['reward_days']} days, "
                "over the next decision, so adding them up would count the same twice. Set decisions.reward_days to "
                "how long they run, where that is shorter, or leave the column out so that they are read off the "
                "events."
            )
        )
    return evaluate_sequences(
        experiment, evaluated, saved.time_Q, saved.step_reward_Q, options, refit=refit, num_resamples=num_resamples
    )


def learned_is_needed(options: SequenceOptions) -> bool:
    """Whether estimates are fitted with what policies do where they were learned."""
    return DOUBLY_ROBUST in options.estimators


def sequence_numbers(found: Mapping[tuple[str, str], SequenceValue]) -> dict[str, float]:
    return {
        f"policy/{policy}/sequence/{estimator}/{key}": number
        for (policy, estimator), each in found.items()
        for key, number in each.numbers().items()
    }


def sequence_table(found: Mapping[tuple[str, str], SequenceValue]) -> pd.DataFrame:
    """One row per policy and estimator, with the effective sequences by step and the verdict in words; pandas."""
    import pandas as pd

    return pd.DataFrame(
        [
            {"policy": policy, "estimator": estimator}
            | each.numbers()
            | {f"effective_at_step_{step + 1}": float(size) for step, size in enumerate(each.effective_T)}
            | {"over_logging": f"{each.over_logging.word}: {each.over_logging.reason}"}
            for (policy, estimator), each in found.items()
        ]
    )


def print_sequences(found: Mapping[tuple[str, str], SequenceValue], options: SequenceOptions) -> None:
    if not found:
        return
    steps = len(next(iter(found.values())).effective_T)
    told = "" if options.discount == 1 else f", discounted by {options.discount:g} a step"
    print(f"  whole sequences, {steps} decisions of a customer{told}; per customer, effective sequences by step")
    width = max(len(policy) for policy, _ in found)
    print(f"  {'policy':<{width}}  estimator             value  95 % interval          effective by step")
    for (policy, estimator), each in found.items():
        sizes = " ".join(f"{size:,.0f}" for size in each.effective_T)
        over = "" if policy == LOGGED else f"  {each.over_logging.word}: {each.over_logging.reason}"
        print(
            f"  {policy:<{width}}  {estimator:<15}  {each.value.value:>10.4g}  "
            f"{f'[{each.value.low:.4g}, {each.value.high:.4g}]':<22} {sizes}{over}"
        )


def balance_table(saved: Saved, experiment: Experiment) -> pd.DataFrame:
    """Per action and feature, the standardised difference between who got the action, weighted, and all; pandas."""
    import pandas as pd

    log, features_QX = experiment.judged_log, experiment.features_QX
    if len(experiment.judged) < len(features_QX):  # else a copy of a great table for nothing
        features_QX = features_QX[experiment.judged]
    frames = []
    for action, name in enumerate(log.actions):
        chosen_Q = log.action_Q == action
        if not chosen_Q.any() or not features_QX.shape[1]:
            continue
        weights_Q = 1.0 / log.propensity_Q[chosen_Q]
        error = float(np.sqrt((weights_Q**2).sum()) / weights_Q.sum())
        frames.append(
            pd.DataFrame(
                {"action": name, "feature": saved.feature_names, "difference": balance(log, features_QX, action),
                 "standard_error": error}
            )
        )  # fmt: skip
    columns = ["action", "feature", "difference", "standard_error"]
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=columns)


def print_balance(frame: pd.DataFrame) -> None:
    """The features by which weighted decisions of an action still differ from all, where there are any."""
    far = frame["difference"].abs()
    off = frame[(far > MAX_DIFFERENCE) & (far > SURE * frame["standard_error"])]
    if len(off):
        worst = off.iloc[int(off["difference"].abs().to_numpy().argmax())]
        print(
            f"  weighted by propensity, {len(off)} of {len(frame)} features by action are off balance, the most "
            f"{worst['feature']} of {worst['action']}, by {worst['difference']:+.2f} standard deviations: the "
            "propensities do not describe who got it"
        )


def balance_numbers(frame: pd.DataFrame) -> dict[str, float]:
    """``balance/<action>/largest``: the greatest standardised difference, of any feature, without its sign."""
    largest = frame.assign(difference=frame["difference"].abs()).groupby("action", sort=False)["difference"].max()
    return {f"balance/{name}/largest": float(value) for name, value in largest.items()}


def weights_off(evaluated: Mapping[str, Evaluated]) -> list[str]:
    """Lines about policies whose weights do not average to 1."""
    return [
        f"  {name}: weights average to {each.diagnosis.mean_weight:.3f} "
        f"[{each.diagnosis.mean_weight_low:.3f}, {each.diagnosis.mean_weight_high:.3f}], not to 1: the propensities "
        "are wrong"
        for name, each in evaluated.items()
        if not each.diagnosis.weights_fit
    ]
