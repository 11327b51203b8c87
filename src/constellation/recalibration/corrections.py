"""All that recalibration learned for one model: what goes with its weights wherever they go."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from constellation.metrics import LEVELS
from constellation.recalibration.learned import Recalibration
from constellation.recalibration.totals import Shock

QUANTILES = "_quantiles"


@dataclass
class Corrections:
    """By target (``value_91d``) what was learned, and by kind (``value``) the shock that totals share.

    A target without an entry stays as the model says it; plain numbers, ``to_json`` and ``from_json``.
    """

    targets: dict[str, Recalibration] = field(default_factory=dict)
    shocks: dict[str, Shock] = field(default_factory=dict)

    def asked_levels(self, levels: Sequence[float] | np.ndarray) -> np.ndarray:
        """What to ask of the model so that ``levels`` can be answered: always the same members, and what lies beyond
        them, so that a quantile does not hang on what else was asked for."""
        given = np.asarray(levels, dtype=np.float64)
        beyond = given[(given < LEVELS[0]) | (given > LEVELS[-1])]
        return np.unique(np.concatenate([np.asarray(LEVELS, dtype=np.float64), beyond]))

    def apply(
        self, answers: Mapping[str, np.ndarray], asked: np.ndarray, levels: Sequence[float] | np.ndarray
    ) -> dict[str, np.ndarray]:
        """Answers at ``levels``, from those with quantiles at ``asked``; the rest as it was. Arrays are not changed."""
        new = dict(answers)
        named = {name.removesuffix(QUANTILES) for name in answers if name.endswith(QUANTILES)}
        for target in sorted(named | {target for target in self.targets if f"{target}_expected" in answers}):
            new |= self.targets.get(target, Recalibration(target, "none")).apply(answers, asked, levels)
        return new

    def describe(self) -> list[str]:
        """A line for each way in which targets were recalibrated, and for each shock: for reports and model cards."""
        of_method: dict[tuple[str, int, bool, bool], list[str]] = {}
        for target, learned in self.targets.items():
            key = (learned.method, learned.num_rows, bool(learned.mean_from), bool(learned.transform_GP))
            of_method.setdefault(key, []).append(target)
        lines = []
        for (method, num_rows, has_mean, has_distribution), targets in of_method.items():
            changed = [word for word, there in (("mean", has_mean), ("distribution", has_distribution)) if there]
            what = f"{' and '.join(changed)} recalibrated" if changed else "nothing to recalibrate"
            lines.append(f"{', '.join(targets)}: {what}, {method}, {num_rows:,} answers")
        for kind, shock in self.shocks.items():
            lines.append(
                f"totals of {kind} share a shock of {shock.sd:.1%} (a prior, and {shock.num_windows:g} earlier windows)"
            )
        return lines

    def facts(self) -> dict[str, float]:
        """Numbers for ``metrics.json``."""
        rows = {f"train/recalibration_rows_{target}": float(part.num_rows) for target, part in self.targets.items()}
        return rows | {f"train/recalibration_shock_{kind}": shock.sd for kind, shock in self.shocks.items()}

    def to_json(self) -> dict[str, Any]:
        return {
            "targets": {target: learned.to_json() for target, learned in self.targets.items()},
            "shocks": {kind: asdict(shock) for kind, shock in self.shocks.items()},
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Corrections:
        return cls(
            {target: Recalibration.from_json(part) for target, part in data["targets"].items()},
            {kind: Shock(**part) for kind, part in data["shocks"].items()},
        )
