"""Plan the next engagement of every customer, or none, within budget, capacity, caps and the rest.

Reads stored predictions, one row per customer and action, or asks a run of objective=engagement (or its bundle) what
each action would bring now; and constraints. Writes ``plan.parquet``, one row per
customer with a reason in words, ``next_contacts.parquet`` (to be added to the contacts before the next plan), the
decision funnel, how many actions are left per customer, and what one more of each limit is worth. Values are those of
the predictions; whether acting on them is better than what was done is for off-policy evaluation to say.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from constellation.errors import InputError

if TYPE_CHECKING:
    import polars as pl

    from constellation.allocation.constraints import Constraints
    from constellation.allocation.offers import Offers
    from constellation.allocation.plan import Plan
    from constellation.journeys.dataset import DataSet
    from constellation.policies.policy import Policy
    from constellation.tracking import Run

EXAMPLE = "example"


def recommend(
    run: Run,
    *,
    constraints: Constraints,
    predictions: str | None = None,
    trained: Path | None = None,
    bundle: str | None = None,
    data: DataSet | None = None,
    contacts: str | None = None,
    utility: str = "lower",
    expected_is_net: bool = True,
    solver: str = "auto",
    exact_up_to: int = 1_000_000,
    num_customers: int = 20_000,
    seed: int = 0,
    events: str | None = None,
    attributes: str | None = None,
    decisions: str | None = None,
    cutoff: str | int | None = None,
    actions: Mapping[str, Mapping[str, Any]] | None = None,
    system: str | None = None,
    policy: Mapping[str, Policy] | None = None,
    kappa: float = 1.0,
    trusted: Sequence[str] = (),
) -> Plan:
    """Write the plan and what explains it to the run's folder; docs/recommend.md names tables and metrics.

    predictions: a Parquet file, or ``example`` for simulated ones of ``num_customers`` with past contacts of their own.
    trained, bundle: of objective=engagement, instead; what follows ``seed`` is read then only, as by ``score``, and the
    plan begins where the open decisions lie. ``constraints.costs`` then replace those of the training.
    Raises InputError for inputs that do not fit, and for constraints that contradict each other, naming them.
    """
    given = {"predictions": predictions, "run": trained, "bundle": bundle}
    if sum(value is not None for value in given.values()) != 1:
        raise InputError("recommend needs one of predictions=FILE, run=... and bundle=... (of objective=engagement).")
    source: Any = predictions
    past: Any = contacts
    if predictions == EXAMPLE:
        source, past = _draw_example(run, num_customers, seed, contacts)
        past = past if constraints.start is not None or contacts is not None else None
    started = time.perf_counter()
    if predictions is None:
        from constellation.bundle.files import is_engagement, locate
        from constellation.commands.engagement.planning import score_for_plan
        from constellation.commands.engagement.scoring import Question

        folder = locate(trained if bundle is None else bundle)  # type: ignore[arg-type]
        if not is_engagement(folder):
            raise InputError(f"{folder} is no bundle of objective=engagement: it says nothing about actions.")
        question = Question(
            events=events,
            attributes=attributes,
            decisions=decisions,
            cutoff=cutoff,
            actions=actions,
            costs=constraints.costs,
            policy=policy,
            system=system,
            kappa=kappa,
            seed=seed,
            trusted=trusted,
        )
        scored = score_for_plan(
            run, folder, question, constraints, trained=trained, data=data, contacts=contacts is not None
        )
        constraints, source = scored.constraints, scored.predictions
        past = contacts if contacts is not None else scored.contacts
        expected_is_net = True
    from constellation.allocation.offers import read_offers

    offers = read_offers(source, costs=constraints.costs, channels=constraints.channels, is_net=expected_is_net)
    plan = plan_offers(
        run,
        offers,
        constraints,
        contacts=past,
        utility=utility,
        solver=solver,
        exact_up_to=exact_up_to,
        seed=seed,
        started=started,
    )
    return plan


def plan_offers(
    run: Run,
    offers: Offers,
    constraints: Constraints,
    *,
    contacts: str | pl.DataFrame | None = None,
    utility: str = "lower",
    solver: str = "auto",
    exact_up_to: int = 1_000_000,
    seed: int = 0,
    started: float | None = None,
) -> Plan:
    """Plan, explain, write, print: the part that does not care where the offers come from.

    started: ``time.perf_counter()`` from which ``recommend/seconds`` is counted.
    """
    from constellation.allocation.contacts import moment, read_contacts
    from constellation.allocation.explain import (
        budget_curve,
        funnel,
        next_contacts,
        optionality,
        plan_table,
        shadow_prices,
        wishes,
    )
    from constellation.allocation.pictures import budget_picture, funnel_picture
    from constellation.allocation.plan import make_plan
    from constellation.memory import peak_memory_gib

    started = time.perf_counter() if started is None else started
    start = None if constraints.start is None else moment(constraints.start)
    past = None
    if contacts is not None:
        if start is None:
            raise InputError("Past contacts need constraints.start=DATE: the moment from which caps look back.")
        past = read_contacts(
            contacts, offers.customer_id_C, start, dict(zip(offers.action, offers.channel, strict=True))
        )
    plan = make_plan(
        offers,
        constraints,
        contacts=past,
        start=start,
        utility=utility,
        solver=solver,
        exact_up_to=exact_up_to,
        seed=seed,
    )
    stages, left_C = funnel(plan)
    table = plan_table(plan, left_C)
    table.write_parquet(run.folder / "plan.parquet")  # with customer ids, so it stays in the folder
    made = next_contacts(plan, table)
    if made is not None:
        made.write_parquet(run.folder / "next_contacts.parquet")
    seconds = time.perf_counter() - started
    prices, options = shadow_prices(plan), optionality(left_C)
    curve = budget_curve(plan, seed)
    for name, frame in (("funnel", stages), ("shadow_prices", prices), ("optionality", options)):
        run.log_table(name, frame)
    run.log_figure("funnel", funnel_picture(stages))
    metrics = _metrics(plan, wishes(plan), options, prices)
    if curve is not None:
        run.log_table("value_against_budget", curve)
        gain = metrics[f"recommend/{utility}"] - metrics[f"recommend/{utility}_of_none"]
        run.log_figure(
            "value_against_budget",
            budget_picture(curve, plan.used.cost, gain, plan.problem.budget, len(offers)),
        )
    metrics |= {
        "recommend/seconds": seconds,
        "recommend/customers_per_second": len(offers) / seconds,
        "recommend/peak_memory_gib": peak_memory_gib(),
    }
    run.log_metrics(metrics)
    run.set_tag("method", plan.solution.method)
    _print(plan, metrics, stages, prices, table)
    print(f"\nPlan: {run.folder / 'plan.parquet'}")
    return plan


def _draw_example(run: Run, num_customers: int, seed: int, contacts: str | None) -> tuple[Any, Any]:
    from constellation.allocation.example import example

    if num_customers < 1:
        raise InputError(f"num_customers must be 1 or more, found {num_customers}.")
    drawn = example(num_customers, seed)
    drawn.predictions.write_parquet(run.folder / "predictions.parquet")
    if contacts is None:
        drawn.contacts.write_parquet(run.folder / "contacts.parquet")
    return run.folder / "predictions.parquet", drawn.contacts if contacts is None else contacts


def _metrics(plan: Plan, wish_C: Any, options: pl.DataFrame, prices: pl.DataFrame) -> dict[str, float]:
    import numpy as np

    offers, used, num = plan.offers, plan.used, len(plan.offers)
    nothing_C = np.full(num, -1, dtype=np.int16)
    found: dict[str, float] = {"recommend/num_customers": num}
    for which in ("expected", "lower"):
        of_plan = float(plan.value_of(plan.choice_C, which).sum())
        if np.isfinite(of_plan):
            found[f"recommend/{which}"] = of_plan
            found[f"recommend/{which}_of_none"] = float(plan.value_of(nothing_C, which).sum())
            found[f"recommend/{which}_without_limits"] = float(plan.value_of(wish_C, which).sum())
    solution = plan.solution
    found |= {
        "recommend/cost": used.cost,
        "recommend/num_contacts": float((plan.choice_C >= 0).sum()),
        "recommend/abstention": float((plan.choice_C < 0).mean()),
        "recommend/exploration": plan.exploration.share if plan.exploration else 0.0,
        "recommend/num_exploration_withdrawn": plan.exploration.num_withdrawn if plan.exploration else 0.0,
        "recommend/optimality_gap": (solution.bound - solution.value) / max(abs(solution.bound), 1e-12),
        "recommend/is_exact": float(solution.method == "exact"),
        "recommend/num_violations": float(bool(plan.problem.excess(used))),
        "recommend/actions_left_mean": float((options["num_actions_left"] * options["share"]).sum()),
        "recommend/actions_left_none": float(options["share"][0]),
    }
    for row in prices.iter_rows(named=True):
        found[f"recommend/price/{row['limit']}"] = row["price"]
        found[f"recommend/used/{row['limit']}"] = row["used"]
    action_C = plan.action_of(plan.choice_C)
    for place, (action, channel) in enumerate(zip(offers.action, offers.channel, strict=True)):
        name = action if offers.action.count(action) == 1 else f"{action}/{channel}"
        found[f"recommend/num/{name}"] = float((action_C == place).sum())
    return found


def _print(
    plan: Plan, metrics: dict[str, float], stages: pl.DataFrame, prices: pl.DataFrame, table: pl.DataFrame
) -> None:
    import polars as pl

    which = plan.utility
    value, none = metrics[f"recommend/{which}"], metrics[f"recommend/{which}_of_none"]
    free = metrics[f"recommend/{which}_without_limits"]
    how = "exactly, by HiGHS" if plan.solution.method == "exact" else "by dual prices"
    print(
        f"{len(plan.offers):,} customers, {plan.num_actions} actions, solved {how} in "
        f"{metrics['recommend/seconds']:.1f} s, "
        f"at most {metrics['recommend/optimality_gap']:.3%} below the best gain possible"
    )
    print(
        f"  {which} value {value:,.2f}: {value - none:+,.2f} over contacting nobody, of {free - none:+,.2f} "
        "there would be without limits (by the predictions)"
    )
    print(
        f"  {int(metrics['recommend/num_contacts']):,} contacts for {metrics['recommend/cost']:,.2f}; "
        f"{metrics['recommend/abstention']:.1%} of customers get none; "
        f"{metrics['recommend/exploration']:.1%} were drawn to learn"
    )
    print("\ndecision funnel          engagements      customers")
    for row in stages.filter(pl.col("action") == "all").iter_rows(named=True):
        print(f"  {row['stage']:<20} {row['num_options']:>13,} {row['num_customers']:>14,}")
    if len(prices):
        print("\nlimit                       allowed          used")
        for row in prices.iter_rows(named=True):
            print(f"  {row['limit']:<20} {row['allowed']:>13,.6g} {row['used']:>13,.6g}  {row['words']}")
    print("\nreasons")
    for row in table["reason"].value_counts(sort=True).head(12).iter_rows(named=True):
        print(f"  {row['count']:>12,}  {row['reason']}")
