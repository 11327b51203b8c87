"""What BG/NBD and Pareto/NBD share as baselines: the record of each customer, Gamma-Gamma for money, sampling."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import TYPE_CHECKING, Protocol

import numpy as np

from constellation.baselines.baseline import Baseline, Predictions, training_journeys
from constellation.baselines.recency import DAYS_PER_WEEK, PurchaseDays, purchase_days
from constellation.distributions.gamma_gamma import GammaGamma
from constellation.errors import InputError

if TYPE_CHECKING:
    from constellation.journeys.store import Store
    from constellation.journeys.vocabulary import Vocabulary
    from constellation.journeys.windows import Queries

CELLS = 1 << 21
"""Customers times samples held at once: 16 MiB an array."""


class PurchaseProcess(Protocol):
    """What ``BgNbd`` and ``ParetoNbd`` have in common; arrays [C], times in weeks."""

    def expected_purchases(self, x_C: np.ndarray, t_x_C: np.ndarray, T_C: np.ndarray, h: float) -> np.ndarray: ...

    def p_zero(self, x_C: np.ndarray, t_x_C: np.ndarray, T_C: np.ndarray, h: float) -> np.ndarray: ...

    def sample_purchases(
        self, x_C: np.ndarray, t_x_C: np.ndarray, T_C: np.ndarray, h: float, num_samples: int, rng: np.random.Generator
    ) -> np.ndarray: ...


class BuyTillYouDie(Baseline):
    """A purchase process for purchase days, Gamma-Gamma for the money of each; parameters by maximum likelihood.

    Fitted on the training customers' purchase days up to ``until``, one row a customer, in weeks. Gamma-Gamma is fitted
    in the classical way, on the mean of *repeat* purchase days of customers who have any. Then:

    - Customers with x = 0 get the population's mean spend; the first purchase is not used, as in the literature.
    - Customers known by other events only, without a purchase, are treated as x = 0 watched since their first event.
    - The process counts days. Purchases are days times the training customers' purchases per purchase day; in the
      predictive distribution each day brings one purchase and a Poisson number of further ones.
    - Money is that of purchases: refunds that are events of their own are not modelled.
    - Where times are unknown (``clock: order``) or nobody bought on two days, there is nothing to say; money is left
      out where no repeat purchase has any.

    Expected values and P(zero) are closed forms; quantiles come from ``num_samples`` draws of the posterior predictive
    with parameters fixed, so intervals of totals are too narrow by nature. The same seed gives the same quantiles.
    """

    def __init__(self, *, num_samples: int = 1000, seed: int = 0) -> None:
        if num_samples < 100:
            raise InputError(f"num_samples must be at least 100 for quantiles to mean something, found {num_samples}.")
        self.num_samples, self.seed = num_samples, seed

    @abstractmethod
    def _fit_process(self, x_C: np.ndarray, t_x_C: np.ndarray, T_C: np.ndarray) -> PurchaseProcess:
        """The purchase process of this baseline."""

    def fit(
        self, store: Store, vocabulary: Vocabulary, train: Queries, *, until: int, val: Queries | None = None
    ) -> None:
        """Maximum likelihood."""
        from constellation.journeys.windows import ask

        self.process: PurchaseProcess | None = None
        self.spend: GammaGamma | None = None
        if not store.has_clock:
            return
        journeys = training_journeys(train)
        record = purchase_days(store, ask(store, journeys, np.full(len(journeys), until), (), until))
        bought_C = record.days_Q > 0
        if not (record.x_Q > 0).any():
            return
        self.process = self._fit_process(record.x_Q[bought_C], record.t_x_Q[bought_C], record.T_Q[bought_C])
        self.purchases_per_day = float(record.purchases_Q.sum() / max(record.days_Q.sum(), 1))
        repeated_C = (record.x_Q > 0) & (record.mean_spend_Q > 0)
        if repeated_C.any():
            x_C, mean_C = record.x_Q[repeated_C], record.mean_spend_Q[repeated_C]
            self.spend = GammaGamma.fit(x_C, mean_C)
            self.mean_spend = float(np.average(mean_C, weights=x_C))

    def predict(self, store: Store, queries: Queries, levels: np.ndarray) -> Predictions:
        if self.process is None:
            return {}
        record = purchase_days(store, queries)
        # A mean that is not positive (free goods, net of coupons) tells Gamma-Gamma nothing: as if no repeat was seen.
        known_Q = (record.x_Q > 0) & (record.mean_spend_Q > 0)
        spend_x_Q = np.where(known_Q, record.x_Q, 0.0)
        spend_mean_Q = np.where(known_Q, record.mean_spend_Q, 0.0)
        predictions: Predictions = {}
        for days in queries.horizons_days:
            weeks = days / DAYS_PER_WEEK
            days_Q = self.process.expected_purchases(record.x_Q, record.t_x_Q, record.T_Q, weeks)
            p_zero_Q = self.process.p_zero(record.x_Q, record.t_x_Q, record.T_Q, weeks)
            predictions[f"purchases_{days}d_expected"] = days_Q * self.purchases_per_day
            predictions[f"purchases_{days}d_p_zero"] = p_zero_Q
            if self.spend is not None:
                per_day_Q = self.spend.expected_spend(spend_x_Q, spend_mean_Q)
                # With q <= 1 the model has no mean for newcomers; what the training customers spent stands in.
                per_day_Q = np.where(np.isfinite(per_day_Q), per_day_Q, self.mean_spend)
                predictions[f"value_{days}d_expected"] = days_Q * per_day_Q
                predictions[f"value_{days}d_p_zero"] = p_zero_Q
            predictions |= self._quantiles(record, spend_x_Q, spend_mean_Q, days, levels)
        return predictions

    def _quantiles(
        self, record: PurchaseDays, spend_x_Q: np.ndarray, spend_mean_Q: np.ndarray, days: int, levels: np.ndarray
    ) -> Predictions:
        """Quantiles [Q, L] of purchases and of money from the same draws, some customers at a time."""
        assert self.process is not None
        rng = np.random.default_rng([self.seed, days])
        num_queries, step = len(record.x_Q), max(1, CELLS // self.num_samples)
        places = [min(max(math.ceil(level * self.num_samples) - 1, 0), self.num_samples - 1) for level in levels]
        purchases_QL = np.empty((num_queries, len(places)))
        value_QL = np.empty((num_queries, len(places)))
        for start in range(0, num_queries, step):
            rows = slice(start, start + step)
            x, t_x, T = record.x_Q[rows], record.t_x_Q[rows], record.T_Q[rows]
            days_QS = self.process.sample_purchases(x, t_x, T, days / DAYS_PER_WEEK, self.num_samples, rng)
            if self.spend is not None:
                value_QS = self.spend.sample_total(spend_x_Q[rows], spend_mean_Q[rows], days_QS, rng)
                value_QL[rows] = np.sort(value_QS, axis=1)[:, places]
            purchases_QS = days_QS + rng.poisson(days_QS * (self.purchases_per_day - 1))
            purchases_QL[rows] = np.sort(purchases_QS, axis=1)[:, places]
        quantiles: Predictions = {f"purchases_{days}d_quantiles": purchases_QL}
        if self.spend is not None:
            quantiles[f"value_{days}d_quantiles"] = value_QL
        return quantiles
