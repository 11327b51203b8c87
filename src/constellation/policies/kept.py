"""Policies and reward models as plain numbers: fitted once, written into a bundle, and made again from it."""

from __future__ import annotations

import copy
import importlib
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from constellation.errors import InputError
from constellation.policies import estimators
from constellation.policies.cross_fit import EVERYBODY, training_rows
from constellation.policies.evaluation import Experiment
from constellation.policies.policy import Policy

OWN_ROOM = "constellation.policies."

Kind = TypeVar("Kind")


def fitted_policies(experiment: Experiment, policy: Policy) -> dict[int, Policy]:
    """For each fold the policy as ``evaluate`` judges it, learned from the other customers; and one for everybody else.

    That one learns from all judged decisions by their cross-fitted predictions, so it has not seen the answers to its
    questions either.
    """
    fitted = {}
    for place, fold in enumerate(experiment.folds):
        learned = np.flatnonzero(training_rows(experiment.fold_Q, fold))
        inner_QA = experiment.predictions.inner_KQA[place, learned]
        fitted[fold] = _fit(experiment, policy, learned, inner_QA)
    fitted[EVERYBODY] = fitted_on_all(experiment, policy)
    return fitted


def fitted_on_all(experiment: Experiment, policy: Policy) -> Policy:
    """The one for everybody whom no fold answers; the policy itself where there is nothing to learn."""
    if not needs_fit(policy):
        return policy
    return _fit(experiment, policy, experiment.judged, experiment.model_QA)


def _fit(experiment: Experiment, policy: Policy, rows: np.ndarray, model_QA: np.ndarray) -> Policy:
    part, log = copy.deepcopy(policy), experiment.log.take(rows)
    part.fit(experiment.situation(rows, model_QA[None], len(rows)), estimators.scores(log, model_QA), log.customer_Q)
    return part


def needs_fit(policy: Policy) -> bool:
    """Whether a policy learns from a log; others can be chosen when a bundle is used."""
    return type(policy).fit is not Policy.fit


def to_numbers(policy: Policy) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Its class and plain attributes as JSON, and its arrays. Raises InputError for an attribute that is neither."""
    plain: dict[str, Any] = {}
    arrays: dict[str, np.ndarray] = {}
    for name, value in vars(policy).items():
        if isinstance(value, np.ndarray) and value.dtype.kind in "fiu":
            arrays[name] = value
        elif value is None or isinstance(value, bool | int | float | str):
            plain[name] = value
        elif isinstance(value, tuple | list) and all(isinstance(each, int | float | str) for each in value):
            plain[name] = list(value)
        else:
            raise InputError(
                f"The policy {policy.name} cannot be exported: its {name} is a {type(value).__name__}; numbers, texts, "
                "lists of them, and arrays can be kept."
            )
    return {"class": f"{type(policy).__module__}.{type(policy).__qualname__}", "plain": plain}, arrays


def from_numbers(words: Mapping[str, Any], arrays: Mapping[str, np.ndarray], trusted: Sequence[str] = ()) -> Policy:
    """The policy of :func:`to_numbers`."""
    policy = object.__new__(class_of(str(words["class"]), Policy, trusted))  # type: ignore[type-abstract]
    for name, value in words["plain"].items():
        setattr(policy, name, tuple(value) if isinstance(value, list) else value)
    for name, array in arrays.items():
        setattr(policy, name, array)
    return policy


def class_of(name: str, base: type[Kind], trusted: Sequence[str] = ()) -> type[Kind]:
    """A class by its dotted name: one of this room, or of a module that the caller trusts. Raises InputError."""
    places = (OWN_ROOM, *(place.rstrip(".") + "." for place in trusted))
    module_name, _, class_name = name.rpartition(".")
    if not any(name.startswith(place) for place in places) and name not in trusted:
        raise InputError(
            f"The bundle uses {name}, which lies outside {OWN_ROOM.rstrip('.')}. Loading it would run code of "
            f"{module_name or name!r}. If you trust that code, pass trusted=({module_name + '.'!r},)."
        )
    try:
        found = getattr(importlib.import_module(module_name), class_name)
    except (ImportError, AttributeError) as error:
        raise InputError(f"The bundle uses {name}, which is not to be found here: {error}.") from error
    if not (isinstance(found, type) and issubclass(found, base)):
        raise InputError(f"The bundle uses {name}, which is no {base.__name__}.")
    return found
