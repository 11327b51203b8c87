"""The bundle of a run of ``objective=engagement``: events in, what each action would bring each customer out.

::

    bundle = EngagementBundle.load("bundle")
    answers = bundle.predict(events, "2018-08-20", attributes, policy="pessimistic")   # customer_id x action
    answers.chosen()                                                                  # one row per customer

Its models were refitted on the whole log and answer everybody, or are those of the cross-fit: then a customer that the
run has not seen is answered by all of them together; one whose fold is named, by those that have not seen her, with the
numbers of ``evaluate``.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from constellation.bundle import files
from constellation.bundle.engagement_answers import Answers
from constellation.bundle.engagement_card import engagement_card
from constellation.bundle.engagement_content import classes_in, content_of
from constellation.bundle.engagement_parts import FoldPart, below, read_fold, shrunk_members
from constellation.bundle.engagement_reading import read_questions
from constellation.errors import InputError
from constellation.journeys.action_descriptions import Likeness, likeness
from constellation.journeys.decision_features import FeatureRecipe
from constellation.journeys.decision_questions import Asked
from constellation.journeys.decisions import DecisionRule
from constellation.policies.cross_fit import EVERYBODY
from constellation.policies.greedy import Greedy
from constellation.policies.kept import from_numbers, needs_fit, to_numbers
from constellation.policies.logged import LoggedPolicy
from constellation.policies.pessimistic import Pessimistic
from constellation.policies.policy import NONE, Policy, Situation, draw
from constellation.policies.propensities import KeptPropensities
from constellation.policies.thompson import Thompson
from constellation.policies.uniform import Uniform
from constellation.schema import EventSchema

if TYPE_CHECKING:
    from constellation.journeys.store import Store

CHUNK = 65_536
"""Decisions answered at once."""
COST = "cost"
UNFITTED: dict[str, type[Policy]] = {each.name: each for each in (Greedy, LoggedPolicy, Pessimistic, Thompson, Uniform)}
"""Policies that learn from no log, by name, with their own settings."""


@dataclass
class EngagementBundle:
    """actions: in the order of all arrays. kinds: columns of the events and what they hold; empty where there were no
    events. recipe: of the features. systems: by name, one part of the fold ``EVERYBODY`` that learned from the whole
    log, or a part per fold; the first system is the default. propensities: of the
    logging policy, None where the rule tells them. cost_A: mean cost of each action in training; rewards are net of it.
    chance_A: mean probability of each under the logging policy, where neither table nor rule nor fit tells more.
    noise: standard deviation of a reward. num_training: decisions learned from, by fold. channels: by action, as the
    events of the training name them most. policies: fitted, by name.
    """

    schema: EventSchema
    rule: DecisionRule
    actions: tuple[str, ...]
    kinds: Mapping[str, str]
    recipe: FeatureRecipe
    systems: dict[str, tuple[FoldPart, ...]]
    propensities: KeptPropensities | None
    cost_A: np.ndarray
    chance_A: np.ndarray
    noise: float
    num_training: Mapping[int, int]
    channels: Mapping[str, str] = field(default_factory=dict)
    policies: dict[str, Policy] = field(default_factory=dict)
    trained_on: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def load(cls, folder: str | Path, trusted: Sequence[str] = ()) -> EngagementBundle:
        """Read a bundle from its folder. Raises InputError as ``Bundle.load`` does."""
        folder = Path(folder)
        content = files.read_content(folder, files.ENGAGEMENT)
        words = content[files.ENGAGEMENT]
        arrays = files.read_arrays(folder)
        systems: dict[str, tuple[FoldPart, ...]] = {
            name: tuple(read_fold(each, below(arrays, f"systems.{name}.{each['fold']}"), trusted) for each in folds)
            for name, folds in words["systems"].items()
        }
        chances = below(arrays, "propensities")
        return cls(
            schema=files.part(content, "schema", lambda found: EventSchema(**found)),
            rule=files.part(words, "rule", lambda found: DecisionRule(**found)),
            actions=tuple(words["actions"]),
            kinds=words["kinds"],
            recipe=files.part(words, "recipe", FeatureRecipe.from_json),
            systems=systems,
            propensities=KeptPropensities.from_arrays(chances) if chances else None,
            cost_A=arrays["cost_A"],
            chance_A=arrays["chance_A"],
            noise=float(words["noise"]),
            num_training={int(fold): int(num) for fold, num in words["num_training"].items()},
            channels=dict(words["channels"]),
            policies={
                name: from_numbers(each, below(arrays, f"policies.{name}"), trusted)
                for name, each in words["policies"].items()
            },
            trained_on=content["trained_on"],
            metrics=content["metrics"],
        )

    def save(self, folder: str | Path) -> Path:
        """Write the folder, load it again, compare every array, and only then put it in its place."""
        folder = Path(folder).expanduser().absolute()
        files.check_replaceable(folder)
        partial = files.partial_folder(folder)
        words, arrays = content_of(self)
        try:
            files.write_arrays(partial, arrays)
            files.write_content(partial, words)
            (partial / files.CARD).write_text(engagement_card(self), encoding="utf-8")
            classes = [str(name) for name in classes_in(words)]
            again = content_of(EngagementBundle.load(partial, trusted=tuple(classes)))[1]
            assert again.keys() == arrays.keys(), "the bundle does not hold what was written"
            assert all(np.array_equal(again[name], array, equal_nan=True) for name, array in arrays.items())
            files.put_in_place(partial, folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        return folder

    def predict(
        self,
        events: Any = None,
        cutoff: Any = None,
        attributes: Any = None,
        *,
        decisions: Any = None,
        policy: str | Policy | None = None,
        system: str | None = None,
        further: Mapping[str, Mapping[str, Any]] | None = None,
        costs: Mapping[str, float] | None = None,
        kappa: float = 1.0,
        seed: int = 0,
    ) -> Answers:
        """What each action would bring each customer, from raw tables (pandas, polars or Arrow).

        events: as for ``Bundle.predict``; None where the bundle reads none. decisions: ``customer_id, decision_time``
        and, as known, ``action`` (empty where it is open, else the past), ``eligible`` (true, false, or a list of
        actions) and ``propensity_<action>``; None asks about everybody at the cutoff. further: descriptions of actions
        that the training did not know, by name, with the keys of ``decisions.action_features`` and perhaps ``cost``.
        costs: by action, where they have changed. policy: by name, of the bundle or of those that need no fit, or one
        of these itself; None takes the first of the bundle, if there is one. kappa: standard deviations by which
        ``lower`` is below the mean. seed: of the draw. Raises InputError for tables that do not fit, nobody to ask
        about, and policies or systems that are not there.
        """
        store, asked, facts = read_questions(self, events, cutoff, attributes, decisions, tuple(further or {}))
        answers = self.answer(
            store,
            asked,
            policy=self.policy(policy),
            system=system,
            further=further,
            costs=costs,
            kappa=kappa,
            seed=seed,
        )
        answers.facts.update(facts)
        return answers

    def policy(self, wanted: str | Policy | None) -> Policy | None:
        """A fitted policy of the bundle, or one that needs no fit. Raises InputError for any other."""
        if wanted is None:
            return next(iter(self.policies.values()), None)
        if isinstance(wanted, Policy):
            if not needs_fit(wanted):
                return wanted
            wanted = wanted.name
        if wanted not in self.policies and wanted in UNFITTED:
            return UNFITTED[wanted]()
        if wanted not in self.policies:
            raise InputError(
                f"The bundle has no fitted policy {wanted!r}; it has {', '.join(self.policies) or 'none'}. Policies "
                f"that learn from a log come with the bundle: constellation export run=... policy=[{wanted}]."
            )
        return self.policies[wanted]

    def answer(
        self,
        store: Store,
        asked: Asked,
        *,
        policy: Policy | Mapping[int, Policy] | None = None,
        system: str | None = None,
        further: Mapping[str, Mapping[str, Any]] | None = None,
        costs: Mapping[str, float] | None = None,
        fold_Q: np.ndarray | None = None,
        group_Q: np.ndarray | None = None,
        kappa: float = 1.0,
        seed: int = 0,
    ) -> Answers:
        """The same for open decisions of a store.

        fold_Q, group_Q: fold of each customer, and group of the fitted propensities, -1 for strangers; who has a fold
        is answered by its models alone, unless the models were refitted on the whole log. policy: one, or one per fold
        (-1 for strangers).
        """
        further = dict(further or {})
        actions = (*self.actions, *further)
        cost_B, like = self._costs(actions, further, costs or {}), self._likeness(system, further)
        shape = (len(asked), len(actions))
        expected_QA, sd_QA, logging_QA = np.empty(shape), np.empty(shape), np.zeros(shape)
        none = actions.index(NONE) if NONE in actions else None
        gain_lower_QA = None if none is None else np.empty(shape)
        target_QA = None if policy is None else np.empty(shape)
        fold_Q = np.full(len(asked), EVERYBODY) if fold_Q is None else fold_Q
        group_Q = np.full(len(asked), EVERYBODY) if group_Q is None else group_Q
        features_QX = self.recipe.compute(store, asked.decisions).values_QX[asked.rows]
        for fold, rows in _chunks(fold_Q):
            part, known_QX = asked.take(rows), features_QX[rows]
            chance_QA = self._logging(part, known_QX, group_Q[rows])
            situation = self._situation(store, part, fold, known_QX, chance_QA, actions, cost_B, like, system)
            expected_QA[rows], logging_QA[rows] = situation.expected_QA, situation.logging_QA
            sd_QA[rows] = situation.members_MQA.std(axis=0)
            if none is not None and gain_lower_QA is not None:
                gain_MQA = situation.members_MQA - situation.members_MQA[:, :, none, None]
                gain_lower_QA[rows] = gain_MQA.mean(axis=0) - kappa * gain_MQA.std(axis=0)
            chosen = policy[fold] if isinstance(policy, Mapping) else policy
            if target_QA is not None and chosen is not None:
                if further and to_numbers(chosen)[1]:
                    raise InputError(
                        f"The policy {chosen.name} was fitted on the actions {', '.join(self.actions)} and cannot take "
                        "a new one. Choose greedy, softmax, thompson or uniform."
                    )
                target_QA[rows] = chosen.probabilities(situation)
        return Answers(
            actions=actions,
            customer_id_Q=np.asarray(store.customer_id_C)[asked.journey_Q],
            time_Q=asked.time_Q,
            expected_QA=expected_QA,
            lower_QA=expected_QA - kappa * sd_QA,
            eligible_QA=asked.eligible_QA,
            cost_A=cost_B,
            logging_QA=logging_QA,
            target_QA=target_QA,
            choice_Q=None if target_QA is None else draw(target_QA, seed)[0],
            gain_lower_QA=gain_lower_QA,
            past=asked.contacts(store),
            channels=dict(self.channels),
        )

    def _situation(
        self,
        store: Store,
        asked: Asked,
        fold: int,
        features_QX: np.ndarray,
        logging_QA: np.ndarray,
        actions: tuple[str, ...],
        cost_B: np.ndarray,
        like: Likeness | None,
        system: str | None,
    ) -> Situation:
        """What a policy may read; actions beyond those of the training are the last."""
        parts = [part for part in self._parts(system) if self.refitted or fold in (EVERYBODY, part.fold)]
        members = [shrunk_members(part, store, asked, features_QX, logging_QA) for part in parts]
        gross_MQA = np.concatenate(members) + self.cost_A
        if like is not None:
            new_MQA = gross_MQA @ like.weight_NA.T
            # What a description leaves open is spread over the members, so that bounds and draws know of it.
            place_M = np.linspace(-1.0, 1.0, len(new_MQA)) if len(new_MQA) > 1 else np.zeros(1)
            place_M = place_M / max(float(place_M.std()), 1e-12)
            gross_MQA = np.concatenate([gross_MQA, new_MQA + place_M[:, None, None] * like.error_N], axis=2)
        members_MQA = gross_MQA - cost_B
        unlogged_QN = np.zeros((len(asked), len(actions) - len(self.actions)))
        return Situation(
            actions,
            members_MQA.mean(axis=0),
            members_MQA,
            self.noise,
            asked.eligible_QA,
            np.concatenate([logging_QA, unlogged_QN], axis=1),
            features_QX,
            self.num_training[EVERYBODY if self.refitted else fold],
        )

    def _logging(self, asked: Asked, features_QX: np.ndarray, group_Q: np.ndarray) -> np.ndarray:
        """Probabilities of the logging policy over the known actions: given, fitted, by rule, or their mean."""
        eligible_QA = asked.eligible_QA[:, : len(self.actions)]
        if asked.logging_QA is not None:
            return asked.logging_QA
        if self.propensities is not None:
            return self.propensities.probabilities(features_QX, group_Q, eligible_QA)
        chance_A = self.chance_A
        if self.rule.propensity is not None:
            chance_A = np.array([self.rule.chance_of(name) for name in self.actions])
        chance_QA = np.where(eligible_QA, chance_A, 0.0)
        return np.asarray(chance_QA / np.maximum(chance_QA.sum(axis=1, keepdims=True), 1e-300))

    @property
    def refitted(self) -> bool:
        """Whether its models learned from the whole log, and so answer everybody alike."""
        return all(part.fold == EVERYBODY for parts in self.systems.values() for part in parts)

    def _parts(self, system: str | None) -> tuple[FoldPart, ...]:
        name = next(iter(self.systems)) if system is None else system
        if name not in self.systems:
            raise InputError(f"The bundle has no predictions of {name!r}; it has {', '.join(self.systems)}.")
        return self.systems[name]

    def _costs(
        self, actions: tuple[str, ...], further: Mapping[str, Mapping[str, Any]], costs: Mapping[str, float]
    ) -> np.ndarray:
        stray = sorted(set(costs) - set(actions))
        known = sorted(set(further) & set(self.actions))
        if stray or known:
            raise InputError(
                f"{stray[0]} is no action: {', '.join(actions)}." if stray else f"The action {known[0]} is not new."
            )
        of_new = [float(further[name].get(COST, 0.0)) for name in further]
        cost_B = np.concatenate([self.cost_A, of_new])
        for name, cost in costs.items():
            cost_B[actions.index(name)] = float(cost)
        if not (np.isfinite(cost_B) & (cost_B >= 0)).all():
            raise InputError(f"Costs must be numbers of 0 or more, found {cost_B.tolist()}.")
        return cost_B

    def _likeness(self, system: str | None, further: Mapping[str, Mapping[str, Any]]) -> Likeness | None:
        if not further:
            return None
        effects = [part.shrinkage.mean_A for part in self._parts(system)]
        described = {
            name: {key: value for key, value in features.items() if key != COST} for name, features in further.items()
        }
        # Of what they bring before their cost: a cost of its own is taken off at the end.
        return likeness(self.actions, np.mean(effects, axis=0) + self.cost_A, self.rule.action_features, described)


def _chunks(fold_Q: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    for fold in np.unique(fold_Q):
        rows = np.flatnonzero(fold_Q == fold)
        for start in range(0, len(rows), CHUNK):
            yield int(fold), rows[start : start + CHUNK]
