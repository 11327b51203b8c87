"""Objectives: one question each, with its head, its loss and its prediction."""
