"""Close the loop in a simulated world: learn from the log, act, log what was done and how likely it was, learn again.

Writes ``decisions.parquet``, every decision with the propensities and the context that it had, and a table of rounds.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from constellation.errors import InputError

if TYPE_CHECKING:
    from constellation.policies.outcomes import OutcomeModel
    from constellation.policies.policy import Policy
    from constellation.tracking import Run
    from constellation.worlds.simulated import World


def loop(
    run: Run,
    *,
    world: World,
    outcome: Mapping[str, OutcomeModel] | None,
    policy: Mapping[str, Policy] | None,
    num_customers: int = 2000,
    num_rounds: int = 3,
    habit_weeks: int = 16,
    round_weeks: int = 8,
    reward_weeks: int = 8,
    num_folds: int = 2,
    num_members: int = 4,
    seed: int = 0,
) -> dict[str, float]:
    """Let one policy act for ``num_rounds`` rounds of ``round_weeks``, learned anew before each from all that is known.

    The first log is the habit's, of ``habit_weeks``. A reward is that of ``reward_weeks`` from the decision on, and not
    known earlier. Beside it the same customers, with the same luck, live under the habit and under the near-oracle:
    ``loop/round_<r>/share`` is how much of the gap between these two was gained in that round's weeks.
    Raises InputError for a world in which nobody can act, and for a habit too short to learn from.
    """
    import pandas as pd

    from constellation.commands.engagement.rounds import Diary, learned
    from constellation.worlds.loyalty.oracle import Oracle
    from constellation.worlds.loyalty.value import started
    from constellation.worlds.loyalty.world import LoyaltyWorld

    if not isinstance(world, LoyaltyWorld):
        raise InputError("loop needs a world in which policies can act: world=loyalty.")
    model, acting_policy = _only("outcome", outcome), _only("policy", policy)
    if min(num_rounds, round_weeks, reward_weeks) < 1 or habit_weeks < reward_weeks:
        raise InputError(
            "loop needs num_rounds, round_weeks and reward_weeks of 1 or more, and habit_weeks of at least "
            f"reward_weeks ({reward_weeks}), found num_rounds={num_rounds}, round_weeks={round_weeks}, "
            f"habit_weeks={habit_weeks}."
        )
    acted = started(world, num_customers, seed)
    habit, best = acted.copy(), acted.copy()
    weeks = num_rounds * round_weeks
    oracle = Oracle(world, weeks)
    diary = Diary(world, reward_weeks, acted.week)
    for _ in range(habit_weeks):
        diary.live(acted, None)
        habit.step(habit.logging())
        best.step(best.logging())
    rows: list[dict[str, Any]] = []
    print(
        f"{num_customers:,} customers, {habit_weeks} weeks of habit, then {num_rounds} rounds of {round_weeks} weeks "
        f"by {acting_policy.name} on {model.name}; net money per customer and week"
    )
    print("  round  decisions  verdict over what was done      habit  policy  oracle   share    none  least propensity")
    for number in range(1, num_rounds + 1):
        lesson = learned(diary, model, acting_policy, num_folds=num_folds, num_members=num_members, seed=seed + number)
        net = {"policy": 0.0, "habit": 0.0, "oracle": 0.0}
        for week in range(round_weeks):
            net["policy"] += diary.live(acted, lesson.choose)
            net["habit"] += float(habit.step(habit.logging()).net_C.sum())
            left = weeks - (number - 1) * round_weeks - week
            net["oracle"] += float(best.step(oracle.probabilities(best, left)).net_C.sum())
        per = {name: total / num_customers / round_weeks for name, total in net.items()}
        gap = per["oracle"] - per["habit"]
        acts = [diary.actions[-1 - back] for back in range(round_weeks)]
        chances = [diary.chances[-1 - back] for back in range(round_weeks)]
        judged = lesson.judged.over_logging
        row = {
            "round": number,
            "decisions": lesson.num_decisions,
            "verdict": judged.answer,
            "gain_over_logging": judged.gain,
            "gain_over_logging_low": judged.low,
            "effective_sample_share": lesson.judged.diagnosis.effective_sample_share,
            **per,
            "share": (per["policy"] - per["habit"]) / gap if gap > 0 else float("nan"),
            "none": sum(int((each == 0).sum()) for each in acts) / max(sum(map(len, acts)), 1),
            "least_propensity": float(min(each.min() for each in chances)),
        }
        rows.append(row)
        said = f"{judged.word} ({judged.gain:+.2f}, at least {judged.low:+.2f})"
        print(
            f"  {number:>5}  {row['decisions']:>9,}  {said:<30}{per['habit']:>7.3f} {per['policy']:>7.3f} "
            f"{per['oracle']:>7.3f}  {row['share']:>6.1%}  {row['none']:>6.1%}  {row['least_propensity']:>16.4f}"
        )
    run.log_table("rounds", pd.DataFrame(rows))
    diary.frame().write_parquet(run.folder / "decisions.parquet")
    metrics = {
        f"loop/round_{row['round']}/{name}": float(value)
        for row in rows
        for name, value in row.items()
        if name != "round"
    }
    run.log_metrics(metrics)
    return metrics


def _only(group: str, chosen: Mapping[str, Any] | None) -> Any:
    if not chosen or len(chosen) != 1:
        named = ", ".join(chosen or {}) or "none"
        raise InputError(f"loop takes one {group} at a time, such as {group}=[{_EXAMPLE[group]}], found {named}.")
    return next(iter(chosen.values()))


_EXAMPLE = {"outcome": "proportional", "policy": "thompson"}
