"""What a practitioner would use instead: answers the same questions, through the same evaluation, as the model."""

from constellation.baselines.baseline import Baseline

__all__ = ["Baseline"]
