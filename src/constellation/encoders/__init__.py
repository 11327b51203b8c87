"""Encoders: a ragged batch of journeys to one causal state per event; and the readout, what a cutoff reads."""
