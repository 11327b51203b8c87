"""Worlds drawn from a wide prior: what a model is taught on that is to answer about data it has never seen."""
