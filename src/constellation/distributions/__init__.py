"""Families that heads and baselines share: log-likelihood, mean, quantile, sample.

``ziln`` and ``negative_binomial`` are torch, for heads. ``bgnbd``, ``pareto_nbd`` and ``gamma_gamma`` are the classical
buy-till-you-die models in numpy float64, for baselines.
"""
