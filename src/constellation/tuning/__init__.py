"""Tuning: a search space, trials that train on the selection half of a study, and what came of them."""
