"""Sums of products of a regression: solved under any penalty and judged on other rows without going back to them."""

from __future__ import annotations

import numpy as np

MAX_TURNS = 30
SETTLED = 0.03
"""Of the logarithms of all precisions, in a turn."""
FIRST_WIDTH = 3.0
"""Of a coefficient to begin with, in its own standard errors."""
LEAST_WIDTH = 0.03
"""A coefficient whose prior is narrower, in its own standard errors, is none."""
FREE_WIDTH = 1e3


class Moments:
    """``square [Z, Z]`` and ``aim [Z]`` of a design and what it is to tell; num: rows."""

    def __init__(self) -> None:
        self.square: np.ndarray | float = 0.0
        self.aim: np.ndarray | float = 0.0
        self.num = 0

    def add(self, design_QZ: np.ndarray, aim_Q: np.ndarray) -> None:
        # Products of a block in float32, their sum in float64.
        self.square = self.square + (design_QZ.T @ design_QZ).astype(np.float64)
        self.aim = self.aim + (design_QZ.T @ aim_Q).astype(np.float64)
        self.num += len(aim_Q)

    def __add__(self, other: Moments) -> Moments:
        both = Moments()
        both.square, both.aim, both.num = self.square + other.square, self.aim + other.aim, self.num + other.num
        return both

    def solve(self, ridge: float, num_parts: int) -> np.ndarray:
        """Coefficients [Z]; each but the first of each of ``num_parts`` is penalised by a share of its information."""
        square = np.asarray(self.square)
        own_Z = np.diag(square)
        per_part = len(own_Z) // num_parts
        penalty_Z = ridge * own_Z + 1e-6 * max(float(own_Z.mean()), 1e-12)
        penalty_Z[::per_part] = 1e-4 * own_Z[::per_part] + 1e-6 * max(float(own_Z.mean()), 1e-12)
        return np.linalg.solve(square + np.diag(penalty_Z), np.asarray(self.aim))

    def relevant(self, noise: float, group_Z: np.ndarray) -> np.ndarray:
        """Coefficients [Z], each group of them normal around 0 with a width that the evidence is greatest at.

        Automatic relevance determination (MacKay 1994; Tipping 2001, eqs. 16 to 18, with one precision per group): what
        is not told from noise gets a width of 0 and is gone, what is stays nearly as it was. noise: variance of what
        the design is to tell, around what it tells. group_Z: numbers of the groups from 0, below 0 what is not drawn
        to 0.
        """
        square, aim = np.asarray(self.square), np.asarray(self.aim)
        unit_Z = np.sqrt(np.maximum(np.diag(square), 1e-300) / noise)
        # In these units a coefficient on its own has a standard error of 1.
        square, aim = square / np.outer(unit_Z, unit_Z) / noise, aim / unit_Z / noise
        drawn = group_Z >= 0
        num = int(group_Z.max()) + 1
        size_G = np.bincount(group_Z[drawn], minlength=num)
        precision_G = np.full(num, FIRST_WIDTH**-2.0)
        found_Z = np.zeros(len(aim))
        for _ in range(MAX_TURNS):
            precision_Z = np.where(drawn, precision_G[np.maximum(group_Z, 0)], FREE_WIDTH**-2.0)
            there = np.flatnonzero((precision_Z < LEAST_WIDTH**-2.0) & (np.diag(square) > 0))
            spread = np.linalg.inv(square[np.ix_(there, there)] + np.diag(precision_Z[there]))
            found_Z = np.zeros(len(aim))
            found_Z[there] = spread @ aim[there]
            told_Z = np.zeros(len(aim))
            told_Z[there] = 1.0 - precision_Z[there] * np.diag(spread)
            told_G = np.bincount(group_Z[drawn], weights=told_Z[drawn], minlength=num)
            square_G = np.bincount(group_Z[drawn], weights=found_Z[drawn] ** 2, minlength=num)
            gone_G = (square_G <= 0) | (size_G == 0)
            fresh_G = np.where(gone_G, 2 * LEAST_WIDTH**-2.0, np.maximum(told_G, 1e-12) / np.where(gone_G, 1, square_G))
            fresh_G = np.clip(fresh_G, FREE_WIDTH**-2.0, 2 * LEAST_WIDTH**-2.0)
            moved = float(np.abs(np.log(fresh_G) - np.log(precision_G)).max(initial=0.0))
            precision_G = fresh_G
            if moved < SETTLED:
                break
        return found_Z / unit_Z

    def loss(self, coefficient_Z: np.ndarray) -> float:
        """Sum of squares that the coefficients leave here, but for a constant."""
        return float(coefficient_Z @ self.square @ coefficient_Z - 2 * coefficient_Z @ self.aim)
