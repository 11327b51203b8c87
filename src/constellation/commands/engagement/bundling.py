"""From cross-fitted models to a bundle that answers about customers to come."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from constellation.bundle.engagement import EngagementBundle
from constellation.bundle.engagement_parts import FoldPart, OutcomeFold, SequenceFold
from constellation.bundle.engagement_reading import UNTIL
from constellation.commands.engagement.decided import Decided
from constellation.errors import InputError
from constellation.policies.cross_fit import EVERYBODY, LEFT_OUT, FoldModels, training_rows
from constellation.policies.propensities import KeptPropensities
from constellation.schema import ACTION, CHANNEL

if TYPE_CHECKING:
    from constellation.journeys.dataset import DataSet
    from constellation.journeys.store import Store
    from constellation.training.engagement_study import FoldSequence


def bundle_of(
    data: DataSet,
    store: Store,
    ground: Decided,
    kept: Mapping[str, Sequence[FoldModels | FoldSequence]],
    cost_A: np.ndarray,
    max_events: int,
    metrics: Mapping[str, float],
    seed: int,
) -> EngagementBundle | None:
    """The bundle of a run, of the models in ``kept``: those refitted on the whole log where there are some, else those
    of the folds. A system whose models cannot be written as arrays is left out, and said to be. None where
    nothing is left."""
    assert data.decisions is not None
    systems = {}
    for name, fitted in kept.items():
        whole = [found for found in fitted if found.fold == EVERYBODY]
        parts = tuple(_part(found, ground, max_events) for found in whole or fitted)
        try:
            for part in parts:
                part.to_parts()
        except InputError as error:
            print(f"  {name} is left out of the bundle: {error}")
            continue
        systems[name] = parts
    if not systems:
        return None
    folds = [int(fold) for fold in np.unique(ground.fold_Q) if fold >= 0]
    log, refitted = ground.log, any(part.fold == EVERYBODY for part in next(iter(systems.values())))
    return EngagementBundle(
        schema=store.schema,
        rule=data.decisions,
        actions=log.actions,
        kinds=store.manifest.kinds if store.num_events else {},
        recipe=ground.recipe,
        systems=systems,
        propensities=KeptPropensities.of(ground.propensity_models, len(log.actions))
        if ground.propensity_models
        else None,
        cost_A=cost_A,
        chance_A=log.logging_QA.mean(axis=0),
        channels=_channels(store, log.actions),
        noise=float(log.reward_Q[ground.fold_Q != LEFT_OUT].std()),
        num_training={fold: int(training_rows(ground.fold_Q, fold).sum()) for fold in folds}
        | {EVERYBODY: len(log) if refitted else int((ground.fold_Q >= 0).sum())},
        trained_on={
            "data": data.name,
            "fingerprint": store.manifest.content,
            "propensities": ground.propensities,
            "reward_days": data.decisions.reward_days,
            "lookahead": 0 if ground.ahead is None else ground.ahead.num_windows,
            "num_decisions": len(log),
            "deployed": "models refitted on the whole log" if refitted else "the folds' models together",
            UNTIL: int(ground.decisions.time_Q.max()),
            "seed": seed,
        },
        metrics=dict(metrics),
    )


def _channels(store: Store, actions: Sequence[str]) -> dict[str, str]:
    """The channel that the events name most for each action, where they name both."""
    if ACTION not in store.categorical or CHANNEL not in store.categorical:
        return {}
    names, channels = store.dictionaries[ACTION], store.dictionaries[CHANNEL]
    pair_N = store.categorical[ACTION].astype(np.int64) * len(channels) + store.categorical[CHANNEL]
    count_AC = np.bincount(pair_N, minlength=len(names) * len(channels)).reshape(len(names), -1)[:, 1:]
    found = {}
    for code, name in enumerate(names):
        if name in actions and count_AC.shape[1] and count_AC[code].any():
            found[str(name)] = str(channels[int(count_AC[code].argmax()) + 1])
    return found


def _part(found: FoldModels | FoldSequence, ground: Decided, max_events: int) -> FoldPart:
    if isinstance(found, FoldModels):
        return OutcomeFold(found.fold, found.members, found.shrinkage, ground.action_AY)
    return SequenceFold(found.fold, found.model, found.vocabulary, found.model_config, found.shrinkage, max_events)
