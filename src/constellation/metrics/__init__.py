"""Metrics: first a column per customer, then a weighted statistic, then an interval clustered by customer."""

import numpy as np

NUM_LEVELS = 100
LEVELS = (np.arange(NUM_LEVELS) + 0.5) / NUM_LEVELS
"""Quantile levels 0.005, 0.015, .., 0.995: midpoints, so the quantiles are 100 equally likely members."""
LEVELS.setflags(write=False)
