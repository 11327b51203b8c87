"""`evaluate run=... policy=...`: what policies are worth on the decisions of a run, and whether that is shown."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from constellation.commands.engagement import beyond
from constellation.commands.engagement.options import REFIT
from constellation.commands.engagement.seeds import over_seeds
from constellation.policies.asked import Asked
from constellation.policies.evaluation import (
    CONSTANT,
    LOGGED,
    NOMINAL_MISS,
    Evaluated,
    Experiment,
    evaluate_policies,
    table,
)
from constellation.policies.intervals import numbered
from constellation.policies.saved import Saved, load_seeds
from constellation.policies.sequence_values import SequenceOptions
from constellation.policies.verdict import MAX_EXCESS

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from constellation.policies.budget import BudgetCurve
    from constellation.policies.outcomes import OutcomeModel
    from constellation.policies.policy import Policy
    from constellation.tracking import Run

KAPPAS = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0)


def judge_policies(
    run: Run,
    *,
    trained: Path,
    policy: Mapping[str, Policy],
    system: str | None = None,
    num_resamples: int = 500,
    asked: Asked | None = None,
    sequence: SequenceOptions | None = None,
    outcome: Mapping[str, OutcomeModel] | None = None,
) -> dict[str, float]:
    """Write ``policy/<name>/...`` for each policy beside the logging policy and the best constant one.

    system: whose predictions the policies read; by default the first of the run (the sequence model, where there is
    one). Of several seeds the means are written, the spreads beside them, and the verdicts in which all agree; tables,
    figures and predictions are those of the first. asked, sequence: estimates beyond the usual ones. outcome: the model
    that is fitted anew for MRDR and for the value to go of sequences; ridge where none is named.
    """
    of_seeds = []
    asked, sequence = asked or Asked(), sequence or SequenceOptions()
    saved_of = load_seeds(trained)
    for place, saved in enumerate(saved_of):
        experiment = saved.experiment(system)
        log = experiment.judged_log
        if place == 0:
            name = system or next(iter(saved.systems))
            run.set_tag("trained", trained.name)
            run.set_tag("system", name)
            print(
                f"{saved.facts['data']}: {len(log):,} decisions judged, predictions of {name}, "
                f"propensities {saved.facts['propensities']}; a claim may be wrong with 5 chances in 100, shared by "
                f"{max(1, len(policy.keys() - {LOGGED, CONSTANT}))} policies"
            )
            if saved.facts.get("deploy") == REFIT:
                print(
                    "  judged: the folds' models, each for customers it has not seen; what acts, scores and plans is "
                    "refitted on the whole log, so close to it, not the same"
                )
            further = saved.facts.get("lookahead")
            if further:
                print(
                    f"  judged: the reward of its own window, {saved.facts['reward_days']} days; the models learned "
                    f"rewards that look {further} window{'' if further == 1 else 's'} further, so value_direct, "
                    "which is their word alone, is not of that reward"
                )
        if len(saved_of) > 1:
            print(f"seed {saved.facts['seed']}")
        refit = beyond.refit_of(saved, outcome)
        evaluated = evaluate_policies(
            experiment, policy, num_resamples=num_resamples, asked=asked, refit=refit,
            keep_learned=beyond.learned_is_needed(sequence),
        )  # fmt: skip
        _print(evaluated)
        beyond.print_asked(evaluated, asked)
        of_sequences = beyond.sequence_values(
            saved, experiment, evaluated, sequence, refit, num_resamples=num_resamples
        )
        beyond.print_sequences(of_sequences, sequence)
        balanced = beyond.balance_table(saved, experiment)
        beyond.print_balance(balanced)
        uplift, scores = _uplift(experiment)
        risk = _risk(experiment)
        numbers = {
            f"policy/{policy_name}/{key}": value
            for policy_name, each in evaluated.items()
            for key, value in each.numbers().items()
        }
        numbers |= beyond.sequence_numbers(of_sequences) | beyond.balance_numbers(balanced)
        of_seeds.append(numbers | uplift | _abstentions(risk))
        if place == 0:
            _leave(run, saved, experiment, evaluated, scores, risk)
            run.log_table("balance", balanced)
            if of_sequences:
                run.log_table("sequences", beyond.sequence_table(of_sequences))
    together = over_seeds(of_seeds)
    run.log_metrics(together)
    if len(of_seeds) > 1:
        _print_seeds(together, len(of_seeds))
    return dict(run.metrics)


def _leave(
    run: Run,
    saved: Saved,
    experiment: Experiment,
    evaluated: Mapping[str, Evaluated],
    uplift: _Uplift,
    risk: pd.DataFrame,
) -> None:
    """Tables, figures and predictions of one seed."""
    frame = table(evaluated)
    run.log_table("policies", frame)
    frame.to_parquet(run.folder / "policies.parquet")
    if len(evaluated) > 1:
        from constellation.policies.diagnostics import overlap_figure

        targets = {key: each.target_QA for key, each in evaluated.items()}
        run.log_figure("overlap", overlap_figure(experiment.judged_log, targets))
    if uplift.targeting is not None:
        uplift.targeting.to_parquet(run.folder / "toc.parquet")
    if uplift.budget is not None:
        import pandas as pd

        pd.DataFrame(vars(uplift.budget)).to_parquet(run.folder / "budget_curve.parquet")
        run.log_figure("budget_curve", _budget_figure(uplift.budget))
    run.log_table("risk_coverage", risk)
    _predictions(run, saved, experiment, evaluated)


def _print_seeds(together: Mapping[str, float], num_seeds: int) -> None:
    print(f"means over {num_seeds} seeds, +- their standard deviation")
    for key, value in together.items():
        head, _, last = key.rpartition("/")
        if last in ("value_dr", "gain_over_best_constant") and head != f"policy/{LOGGED}":
            print(f"  {head.removeprefix('policy/'):<16} {last:<26} {value:>+10.4g} +- {together[f'{key}_sd']:.2g}")
        if last == "gain_over_random":
            print(
                f"  {head.removeprefix('uplift/'):<16} {last:<26} {value:>+10.4g} +- {together[f'{key}_sd']:.2g} "
                f"(se {together[f'{key}_se']:.2g})"
            )


def _print(evaluated: Mapping[str, Evaluated]) -> None:
    width = max(map(len, evaluated))
    print(
        f"  {'policy':<{width}}  value (DR)  95 % interval       SNIPS    effective  none    verdict (logging / "
        f"best constant)"
    )
    for name, each in evaluated.items():
        value = each.value_dr
        print(
            f"  {name:<{width}}  {value.value:>10.4g}  [{value.low:>8.4g}, {value.high:>8.4g}]  "
            f"{each.value_snips.value:>7.4g}  {each.diagnosis.effective_sample_size:>9,.0f}  {each.abstention:>5.1%}  "
            f"{each.over_logging.word} / {each.over_constant.word}"
        )
    for name, each in evaluated.items():
        worst = max(each.misses)
        if worst > MAX_EXCESS * NOMINAL_MISS:
            side = "above" if each.misses[1] == worst else "below"
            print(
                f"  {name}: few great rewards carry this value; the truth lies {side} the interval in about "
                f"{worst:.0%} of such logs, not {NOMINAL_MISS:.1%}"
            )
    for line in beyond.weights_off(evaluated):
        print(line)
    for name, each in evaluated.items():
        if name not in (LOGGED, CONSTANT):
            over = each.over_constant
            print(
                f"  {name}: against the best constant action {over.gain:+.4g}, {over.reason}; a gain of "
                f"{over.detectable:.3g} would have been shown in four of five such logs"
            )


@dataclass(frozen=True)
class _Uplift:
    """targeting: curves by action; budget: the value against what is spent. None where ``none`` is no action."""

    targeting: pd.DataFrame | None = None
    budget: BudgetCurve | None = None


def _uplift(experiment: Experiment) -> tuple[dict[str, float], _Uplift]:
    """Where ``none`` is an action: Qini and RATE of the best other action, gains over random contact, budget curve."""
    import pandas as pd

    from constellation.policies.budget import budget_curve, gain_over_random
    from constellation.policies.policy import NONE
    from constellation.policies.uplift import qini, rate, targeting

    log = experiment.judged_log
    if NONE not in log.actions or len(log.actions) < 2:
        return {}, _Uplift()
    none = log.actions.index(NONE)
    scores_QA, model_QA = experiment.scores(), experiment.model_QA
    means_A = scores_QA.mean(axis=0)
    means_A[none] = -np.inf
    random_action = int(means_A.argmax())
    metrics: dict[str, float] = {}
    rows = []
    for action, action_name in enumerate(log.actions):
        if action == none or len(log.actions) > 21:
            continue
        priority_Q = model_QA[:, action] - model_QA[:, none]
        gain_Q = scores_QA[:, action] - scores_QA[:, none]
        curve = qini(priority_Q, gain_Q, log.customer_Q, num_resamples=100)
        ranked = rate(priority_Q, gain_Q, log.customer_Q, num_resamples=100)
        prefix = f"uplift/{action_name}"
        metrics |= {
            f"{prefix}/effect": float(gain_Q.mean()),
            f"{prefix}/qini": curve.area,
            f"{prefix}/qini_low": curve.low,
            f"{prefix}/qini_high": curve.high,
            f"{prefix}/qini_null_low": curve.null_low,
            f"{prefix}/qini_null_high": curve.null_high,
            f"{prefix}/qini_p_value": curve.p_value,
            f"{prefix}/auuc": curve.auuc,
            f"{prefix}/autoc": ranked.value,
            f"{prefix}/autoc_low": ranked.low,
            f"{prefix}/autoc_high": ranked.high,
            f"{prefix}/shown": float(curve.shown),
        }
        shares_P, toc_P = targeting(priority_Q, gain_Q)
        rows.append(pd.DataFrame({"action": action_name, "share": shares_P, "toc": toc_P}))
    for found in gain_over_random(model_QA, scores_QA, none, random_action=random_action, customer_Q=log.customer_Q):
        prefix = f"uplift/budget_{round(100 * found.share)}"
        metrics |= {
            f"{prefix}/gain": found.gain,
            f"{prefix}/gain_over_random": found.over_random,
            f"{prefix}/gain_over_random_se": found.error,
        }
        print(
            f"  contacting {found.share:.0%} by predicted gain: {found.gain:+.4g} per decision, over random "
            f"contact with "
            f"{log.actions[random_action]} {found.over_random:+.4g} (se {found.error:.2g})"
        )
    cost_QA = np.ones(model_QA.shape)
    cost_QA[:, none] = 0.0
    curve_P = budget_curve(
        model_QA, scores_QA, cost_QA, none, random_action=random_action, customer_Q=log.customer_Q,
        eligible_QA=log.eligible_QA,
    )  # fmt: skip
    return metrics, _Uplift(pd.concat(rows) if rows else None, curve_P)


def _budget_figure(curve: BudgetCurve) -> Figure:
    import matplotlib.pyplot as plt

    spend_P, gain_P = curve.spend_P, curve.gain_P
    figure, axis = plt.subplots(figsize=(6, 4))
    axis.fill_between(spend_P, curve.low_P, curve.high_P, alpha=0.25, lw=0)
    axis.plot(spend_P, gain_P, label="by predicted gain")
    axis.plot(spend_P, curve.random_P, ls="--", color="grey", label="random contact")
    axis.set_xlabel("contacts per decision")
    axis.set_ylabel("doubly-robust gain over none, per decision")
    axis.legend()
    figure.tight_layout()
    return figure


def _risk(experiment: Experiment) -> pd.DataFrame:
    """Abstention and value of the pessimistic policy at each kappa (METHODS 3.7)."""
    import pandas as pd

    from constellation.policies.intervals import student
    from constellation.policies.pessimistic import Pessimistic
    from constellation.policies.policy import abstention

    rows, log = [], experiment.judged_log
    for kappa in KAPPAS:
        target_QA = experiment.target(Pessimistic(kappa=kappa))
        value = student(experiment.doubly_robust(target_QA), log.customer_Q)
        rows.append(
            {"kappa": kappa, "abstention": abstention(target_QA, log.actions), "value_dr": value.value,
             "value_dr_low": value.low, "value_dr_high": value.high}
        )  # fmt: skip
    return pd.DataFrame(rows)


def _abstentions(risk: pd.DataFrame) -> dict[str, float]:
    return {
        f"risk_coverage/kappa_{kappa:g}/abstention": float(share)
        for kappa, share in zip(risk["kappa"], risk["abstention"], strict=True)
    }


def _predictions(run: Run, saved: Saved, experiment: Experiment, evaluated: Mapping[str, Evaluated]) -> None:
    """``predictions.parquet``: the last judged decision of each customer, what allocation reads."""
    from constellation.policies.policy import predictions_frame

    judged = experiment.judged
    order = np.lexsort((saved.time_Q[judged], saved.log.customer_Q[judged]))
    customers = numbered(saved.log.customer_Q[judged])[order]
    last = order[np.flatnonzero(np.append(customers[1:] != customers[:-1], True))]
    rows = judged[last]
    situation = experiment.situation(rows, experiment.predictions.members_MQA[:, rows], len(saved.log))
    chosen = next((each for name, each in evaluated.items() if name not in (LOGGED, CONSTANT)), evaluated[LOGGED])
    frame = predictions_frame(saved.customer_ids_Q[rows].tolist(), situation, propensity_QA=chosen.target_QA[last])
    frame["cost"] = np.tile(saved.cost_A, len(rows))
    frame.to_parquet(run.folder / "predictions.parquet")
