"""What several seeds say together: means, spreads, and verdicts in which they agree."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

VERDICTS = ("verdict", "verdict_over_logging", "verdict_over_best_constant", "shown")


def over_seeds(of_seeds: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Mean over seeds under each name, and the standard deviation under ``<name>_sd``; of one seed, its own numbers.

    A verdict stands where all seeds give it, else it is 0, not shown: folds drawn again must not change a claim. The
    mean of the bounds ``_low`` and ``_high`` is no narrower than the bound of one seed; it has no spread of its own.
    """
    if len(of_seeds) == 1:
        return dict(of_seeds[0])
    found: dict[str, float] = {}
    for name in of_seeds[0]:
        values = [float(metrics[name]) for metrics in of_seeds if name in metrics]
        if name.rpartition("/")[2] in VERDICTS:
            found[name] = values[0] if len(set(values)) == 1 else 0.0
            continue
        found[name] = statistics.fmean(values)
        if not name.endswith(("_low", "_high")):
            found[f"{name}_sd"] = statistics.stdev(values) if len(values) > 1 else 0.0
    return found
