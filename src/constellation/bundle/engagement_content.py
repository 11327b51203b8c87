"""What stands in the files of an engagement bundle."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from constellation.bundle import files
from constellation.bundle.engagement_parts import write_fold
from constellation.policies.kept import to_numbers

if TYPE_CHECKING:
    from constellation.bundle.engagement import EngagementBundle


def content_of(bundle: EngagementBundle) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """A bundle as JSON and arrays."""
    known = {"cost_A": bundle.cost_A, "chance_A": bundle.chance_A}
    arrays = {name: np.asarray(array, dtype=np.float64) for name, array in known.items()}
    systems: dict[str, list[dict[str, Any]]] = {}
    for name, parts in bundle.systems.items():
        systems[name] = []
        for part in parts:
            words, found = write_fold(part)
            systems[name].append(words)
            arrays |= {f"systems.{name}.{part.fold}.{key}": array for key, array in found.items()}
    if bundle.propensities is not None:
        arrays |= {f"propensities.{key}": array for key, array in bundle.propensities.arrays().items()}
    policies = {}
    for name, policy in bundle.policies.items():
        policies[name], found = to_numbers(policy)
        arrays |= {f"policies.{name}.{key}": array for key, array in found.items()}
    content = {
        "schema": bundle.schema,
        "trained_on": dict(bundle.trained_on),
        "metrics": dict(bundle.metrics),
        files.ENGAGEMENT: {
            "rule": asdict(bundle.rule),
            "actions": bundle.actions,
            "kinds": dict(bundle.kinds),
            "recipe": bundle.recipe.to_json(),
            "systems": systems,
            "noise": bundle.noise,
            "num_training": {str(fold): num for fold, num in bundle.num_training.items()},
            "channels": dict(bundle.channels),
            "policies": policies,
        },
    }
    return content, arrays


def classes_in(words: Any) -> Iterator[str]:
    """Dotted names of classes anywhere in the content: one's own are trusted."""
    if isinstance(words, Mapping):
        for key, value in words.items():
            if key in ("class", "_target_") and isinstance(value, str):
                yield value
            else:
                yield from classes_in(value)
    elif isinstance(words, list | tuple):
        for value in words:
            yield from classes_in(value)
