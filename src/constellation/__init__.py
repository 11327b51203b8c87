"""Constellation: sequence models on customer journeys that predict value and the next-best engagement."""

__version__ = "0.1.0"
