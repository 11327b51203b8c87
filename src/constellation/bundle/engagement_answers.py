"""Answers about actions: arrays, and the two tables that people want of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from constellation.journeys.decisions import DECISION_TIME
from constellation.schema import ACTION, CUSTOMER_ID

if TYPE_CHECKING:
    import polars as pl

COLUMNS = {
    CUSTOMER_ID: ("", "the key, as in the events"),
    DECISION_TIME: ("time, UTC", "what is known ends here"),
    ACTION: ("", "what could be done; `none` is to do nothing"),
    "expected": ("reward", "expected reward if it is done, net of its cost"),
    "lower": ("reward", "`expected` less `kappa` standard deviations of the ensemble's members: how sure it is"),
    "eligible": ("yes or no", "whether it may be chosen"),
    "cost": ("cost", "of doing it; taken off `expected` and `lower`"),
    "propensity": ("probability", "with which the policy takes it (without one: the logging policy)"),
    "chosen": ("yes or no", "whether the policy's draw fell on it; there with a policy only"),
}


@dataclass
class Answers:
    """``Q`` decisions of ``A`` actions. expected_QA, lower_QA: in units of the reward, net of cost_A. logging_QA,
    target_QA: probabilities of the logging policy and of the chosen one (None where there is none). choice_Q: place of
    the drawn action. gain_lower_QA: lower bound of what each action adds to ``none``, None without that action. time_Q:
    microseconds UTC. past: earlier contacts, ``customer_id, event_time, action``, None where they are not known.
    channels: by action, as the training saw them. facts: what was read, and what was left out of it."""

    actions: tuple[str, ...]
    customer_id_Q: np.ndarray
    time_Q: np.ndarray
    expected_QA: np.ndarray
    lower_QA: np.ndarray
    eligible_QA: np.ndarray
    cost_A: np.ndarray
    logging_QA: np.ndarray
    target_QA: np.ndarray | None = None
    choice_Q: np.ndarray | None = None
    gain_lower_QA: np.ndarray | None = None
    past: pl.DataFrame | None = None
    channels: dict[str, str] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.customer_id_Q)

    @property
    def propensity_QA(self) -> np.ndarray:
        return self.logging_QA if self.target_QA is None else self.target_QA

    def frame(self) -> pl.DataFrame:
        """polars, long: one row per decision and action, columns as in ``COLUMNS``."""
        import polars as pl

        num, num_actions = self.expected_QA.shape
        columns = {
            CUSTOMER_ID: self._ids().gather(np.repeat(np.arange(num), num_actions)),
            DECISION_TIME: self._times(np.repeat(self.time_Q, num_actions)),
            ACTION: self._names(self.actions, np.tile(np.arange(num_actions), num)),
            "expected": self.expected_QA.ravel(),
            "lower": self.lower_QA.ravel(),
            "eligible": self.eligible_QA.ravel(),
            "cost": np.tile(self.cost_A, num),
            "propensity": self.propensity_QA.ravel(),
        }
        if self.choice_Q is not None:
            columns["chosen"] = (self.choice_Q[:, None] == np.arange(num_actions)).ravel()
        return pl.DataFrame(columns)

    def chosen(self) -> pl.DataFrame:
        """polars, one row per decision: what the policy does, the propensity to log with what comes of it, what it
        should bring. Only with a policy."""
        import polars as pl

        assert self.choice_Q is not None, "no policy was asked"
        at = np.arange(len(self))
        return pl.DataFrame(
            {
                CUSTOMER_ID: self._ids(),
                DECISION_TIME: self._times(self.time_Q),
                ACTION: self._names(self.actions, self.choice_Q),
                "propensity": self.propensity_QA[at, self.choice_Q],
                "expected": self.expected_QA[at, self.choice_Q],
                "lower": self.lower_QA[at, self.choice_Q],
                "cost": self.cost_A[self.choice_Q],
            }
        )

    def last_of_each(self) -> Answers:
        """The last decision of each customer, in the order in which customers first occur."""
        order = np.argsort(self.time_Q, kind="stable")
        last = {self.customer_id_Q[row]: int(row) for row in order}
        first_seen = dict.fromkeys(self.customer_id_Q.tolist())
        rows = np.array([last[customer] for customer in first_seen], dtype=np.int64)
        if len(rows) == len(self):
            return self
        taken: dict[str, Any] = {
            name: value[rows]
            for name, value in vars(self).items()
            if isinstance(value, np.ndarray) and name not in ("cost_A",)
        }
        return replace(self, **taken)

    def _ids(self) -> pl.Series:
        import polars as pl

        return pl.Series(self.customer_id_Q.tolist())

    @staticmethod
    def _names(names: Sequence[str], place_N: np.ndarray) -> pl.Series:
        import polars as pl

        return pl.Series(list(names), dtype=pl.String).gather(place_N)

    @staticmethod
    def _times(time_N: np.ndarray) -> pl.Series:
        import polars as pl

        return pl.Series(np.asarray(time_N, dtype=np.int64)).cast(pl.Datetime("us", "UTC"))
