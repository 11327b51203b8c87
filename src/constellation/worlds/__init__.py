"""Simulated customers with known truth: what a model should find, and a mirror in which there is nothing to find."""
