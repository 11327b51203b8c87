"""`score` and `recommend` of an engagement bundle or run: what each action would bring each customer now."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from constellation.bundle.engagement import EngagementBundle
from constellation.bundle.engagement_answers import Answers
from constellation.bundle.engagement_reading import read_questions
from constellation.errors import InputError
from constellation.policies.cross_fit import EVERYBODY
from constellation.policies.kept import fitted_on_all, fitted_policies
from constellation.policies.policy import NONE, Policy
from constellation.policies.saved import Saved, has_decisions

if TYPE_CHECKING:
    from constellation.journeys.dataset import DataSet
    from constellation.journeys.decision_questions import Asked
    from constellation.journeys.store import Store
    from constellation.tracking import Run

NOT_JUDGED = "close to the folds' models that `evaluate` judges, not the same"


@dataclass(frozen=True)
class Question:
    """What is asked, as on the command line. events, attributes, decisions: files; without events those of the run's
    own data set are taken. actions: descriptions of new ones; see ``EngagementBundle.predict`` for the rest."""

    events: str | None = None
    attributes: str | None = None
    decisions: str | None = None
    cutoff: str | int | None = None
    actions: Mapping[str, Mapping[str, Any]] | None = None
    costs: Mapping[str, float] | None = None
    policy: Mapping[str, Policy] | None = None
    system: str | None = None
    kappa: float = 1.0
    seed: int = 0
    trusted: Sequence[str] = ()


def answer_question(folder: Path, question: Question, *, trained: Path | None, data: DataSet | None) -> Answers:
    """Answers of the bundle in ``folder``.

    trained: the run that it belongs to, where one was named. Models that were refitted on the whole log answer
    everybody; else customers whom that run knows are answered by the models and policies of their fold, which have not
    seen them, with the numbers of ``evaluate``.
    """
    bundle = EngagementBundle.load(folder, trusted=tuple(question.trusted))
    policy = _one_policy(question.policy)
    store, asked, facts = _read(bundle, question, data if trained is not None else None)
    fold_Q = group_Q = None
    chosen: Policy | Mapping[int, Policy] | None = None
    if trained is not None and has_decisions(trained):
        saved = Saved.load(trained)
        fold_Q, group_Q = _places(saved, np.asarray(store.customer_id_C)[asked.journey_Q])
        facts["known_customers"] = int((fold_Q != EVERYBODY).sum())
        facts["refitted"] = bundle.refitted
        system = next(iter(bundle.systems)) if question.system is None else question.system
        if policy is not None:
            experiment = saved.experiment(system)
            chosen = fitted_on_all(experiment, policy) if bundle.refitted else fitted_policies(experiment, policy)
        if bundle.refitted:
            fold_Q = None
    else:
        chosen = bundle.policy(policy)
    answers = bundle.answer(
        store,
        asked,
        policy=chosen,
        system=question.system,
        further=question.actions,
        costs=question.costs,
        fold_Q=fold_Q,
        group_Q=group_Q,
        kappa=question.kappa,
        seed=question.seed,
    )
    answers.facts.update(facts)
    return answers


def score_engagement(
    run: Run, folder: Path, question: Question, *, trained: Path | None, data: DataSet | None, output_format: str
) -> dict[str, float]:
    """Write ``predictions.parquet``, one row per customer and action, and with a policy ``decisions.parquet``, one row
    per customer, to the run's folder; print what was found."""
    answers = answer_question(folder, question, trained=trained, data=data)
    tables = {"predictions": answers.frame()}
    if answers.choice_Q is not None:
        tables["decisions"] = answers.chosen()
    for name, table in tables.items():
        table.write_parquet(run.folder / f"{name}.parquet")
        if output_format == "csv":
            table.write_csv(run.folder / f"{name}.csv")
    metrics = metrics_of(answers)
    run.log_metrics(metrics)
    run.set_tag("cutoff", str(answers.facts["cutoff"]))
    tell(answers)
    for name in tables:
        print(f"{name.capitalize()}: {run.folder / name}.parquet")
    return metrics


def metrics_of(answers: Answers) -> dict[str, float]:
    """Flat names to numbers, for ``metrics.json``."""
    best_Q = np.where(answers.eligible_QA, answers.expected_QA, -np.inf).max(axis=1)
    found = {
        "score/num_decisions": float(len(answers)),
        "score/num_customers": float(len(set(answers.customer_id_Q.tolist()))),
        "score/num_actions": float(len(answers.actions)),
        "score/expected_best_mean": float(best_Q.mean()),
    }
    found |= {
        f"score/{name}": float(answers.facts[key])
        for name, key in {
            "num_events": "events", "num_events_ignored": "events_ignored", "num_events_rejected": "events_rejected",
            "num_past_decisions": "past_decisions", "num_known_customers": "known_customers",
        }.items()
        if key in answers.facts
    }  # fmt: skip
    for place, name in enumerate(answers.actions):
        found[f"score/expected_mean/{name}"] = float(answers.expected_QA[:, place].mean())
    if answers.choice_Q is not None and answers.target_QA is not None:
        found["score/expected_of_policy_mean"] = float((answers.target_QA * answers.expected_QA).sum(axis=1).mean())
        for place, name in enumerate(answers.actions):
            found[f"score/num_chosen/{name}"] = float((answers.choice_Q == place).sum())
    return found


def tell(answers: Answers) -> None:
    """In words: who was asked about, what was left out, and what the actions would bring."""
    facts = answers.facts
    print(
        f"{len(answers):,} decisions of {len(answers.actions)} actions up to {facts['cutoff']}, from "
        f"{facts['events']:,} events and {facts['past_decisions']:,} earlier decisions"
    )
    if "known_customers" in facts:
        print(
            f"  {facts['known_customers']:,} are about customers whom the run knows: they are answered by models "
            + ("refitted on the whole log, " + NOT_JUDGED if facts["refitted"] else "that have not seen them")
        )
    if facts["events_ignored"]:
        print(f"  {facts['events_ignored']:,} events after the cutoff were ignored")
    if facts["events_rejected"]:
        print(f"  {facts['events_rejected']:,} events could not be read and were left out")
    if not facts["knows_past"]:
        print(
            "  earlier decisions are known from a table only, and none was given: all customers count as never decided "
            "about before. Give decisions=FILE with what was done, action included."
        )
    if facts["stale_context"]:
        print(
            f"  {facts['stale_context']:,} decisions come without their context (columns context_... of "
            "decisions=FILE): that of the customer's last decision is taken, where there was one"
        )
    if facts["unknown_actions"] > 0:
        print(
            f"  {facts['unknown_actions']:.1%} of the earlier decisions chose an action that the training did not know"
        )
    num_chosen = None if answers.choice_Q is None else np.bincount(answers.choice_Q, minlength=len(answers.actions))
    width = max(map(len, answers.actions))
    print(
        f"  {'action':<{width}}    expected       lower    eligible{'      chosen' if num_chosen is not None else ''}"
    )
    for place, name in enumerate(answers.actions):
        expected, lower = (float(found[:, place].mean()) for found in (answers.expected_QA, answers.lower_QA))
        num_eligible = int(answers.eligible_QA[:, place].sum())
        line = f"  {name:<{width}}  {expected:>10.4g}  {lower:>10.4g}  {num_eligible:>10,}"
        print(line if num_chosen is None else f"{line}  {int(num_chosen[place]):>10,}")
    if NONE not in answers.actions:
        print("  no action is `none`: nobody can be left alone by these predictions")


def _one_policy(given: Mapping[str, Policy] | None) -> Policy | None:
    if not given:
        return None
    if len(given) > 1:
        raise InputError(f"One policy acts at a time; found {', '.join(given)}. Write policy={next(iter(given))}.")
    return next(iter(given.values()))


def _read(bundle: EngagementBundle, question: Question, data: DataSet | None) -> tuple[Store, Asked, dict[str, Any]]:
    further = tuple(question.actions or {})
    if question.events is None and question.attributes is None and question.decisions is None:
        if data is None:
            raise InputError("There is nothing to decide about: give events=FILE, attributes=FILE or decisions=FILE.")
        return _own_data(bundle, data, question.cutoff, further)
    from constellation.bundle.raw import read_attributes, read_decisions, read_events
    from constellation.schema import CUSTOMER_ID, EVENT_TIME

    wanted = [CUSTOMER_ID, EVENT_TIME, *bundle.kinds, *bundle.schema.order_by]
    events = None if question.events is None else read_events(question.events, bundle.schema, wanted)
    ids = None if events is None or CUSTOMER_ID not in events.columns else events[CUSTOMER_ID]
    decisions = None if question.decisions is None else read_decisions(question.decisions, ids)
    ids = decisions[CUSTOMER_ID] if ids is None and decisions is not None and CUSTOMER_ID in decisions.columns else ids
    attributes = None
    if question.attributes is not None:
        attributes = read_attributes(question.attributes, [CUSTOMER_ID, *bundle.recipe.attributes], ids)
    elif bundle.recipe.attributes:
        print(f"No attributes were given: {', '.join(bundle.recipe.attributes)} count as unknown.")
    return read_questions(bundle, events, question.cutoff, attributes, decisions, further)


def _own_data(
    bundle: EngagementBundle, data: DataSet, cutoff: str | int | None, further: Sequence[str]
) -> tuple[Store, Asked, dict[str, Any]]:
    """The next decision about every customer of a data set; its decisions so far are the past."""
    from constellation.bundle.reading import cutoff_time
    from constellation.journeys.decision_questions import ask_decisions, decisions_table
    from constellation.journeys.prepare import prepare
    from constellation.journeys.windows import format_time

    store = prepare(data)
    trained_on = bundle.trained_on.get("fingerprint")
    if trained_on != store.manifest.content:
        raise InputError(
            f"The run was trained on {bundle.trained_on.get('data')} with fingerprint {trained_on}; {data.name} here "
            f"has {store.manifest.content}. Name that one with data=..., or give events=FILE."
        )
    time = store.manifest.observed_until if cutoff is None else cutoff_time(cutoff, store.schema)
    past = None if store.decisions is None else decisions_table(store)
    asked = ask_decisions(
        store, bundle.rule, bundle.actions, time, past, further=further, context=bundle.recipe.context
    )
    return store, asked, {
        "cutoff": format_time(time, store.schema.timezone) if store.has_clock else str(time),
        "events": int(store.end_event(np.arange(store.num_customers), np.full(store.num_customers, time)).sum()
                      - store.first_event_C[:-1].sum()),
        "events_ignored": 0,
        "events_rejected": 0,
        "knows_past": True,
        "past_decisions": len(asked.decisions) - len(asked),
        "stale_context": asked.num_stale,
        "unknown_actions": 0.0,
    }  # fmt: skip


def _places(saved: Saved, customer_id_Q: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Fold of each customer of the run, and group of its fitted propensities; -1 for strangers.

    Split by time there is one fold, whose models answer everybody."""
    from constellation.policies.cross_fit import NUM_GROUPS, person_folds

    folds = sorted({int(fold) for fold in saved.fold_Q if fold >= 0})
    judged = saved.fold_Q >= 0
    fold_of = dict(zip(saved.customer_ids_Q[judged].tolist(), saved.fold_Q[judged].tolist(), strict=True))
    seed = int(str(saved.facts["seed"]))
    groups_Q = person_folds(saved.log.customer_Q, NUM_GROUPS, seed)
    group_of = dict(zip(saved.customer_ids_Q.tolist(), groups_Q.tolist(), strict=True))
    names = [str(customer) for customer in customer_id_Q.tolist()]
    otherwise = EVERYBODY if len(folds) > 1 else folds[0]
    fold_Q = np.array([fold_of.get(name, otherwise) for name in names], dtype=np.int64)
    return fold_Q, np.array([group_of.get(name, EVERYBODY) for name in names], dtype=np.int64)
