"""What the buy-till-you-die models share as baselines: each customer's record, Gamma-Gamma, covariates, quantiles."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from constellation.baselines.baseline import Baseline, Predictions, training_journeys
from constellation.baselines.covariates import Covariates
from constellation.baselines.recency import DAYS_PER_WEEK, PurchaseDays, purchase_days
from constellation.distributions.count_tables import quantile, wide_enough
from constellation.distributions.gamma_gamma import GammaGamma
from constellation.distributions.likelihood_search import maximise_rows
from constellation.distributions.maximum_likelihood import as_rows, grouped
from constellation.errors import InputError

if TYPE_CHECKING:
    from constellation.journeys.store import Store
    from constellation.journeys.vocabulary import Vocabulary
    from constellation.journeys.windows import Queries, Until

ROWS_AT_ONCE = 1 << 14
"""Closed forms are sums over up to 96 nodes per row."""


class ProcessRows(Protocol):
    """What ``BgNbdRows`` and ``ParetoNbdRows`` have in common; tensors [G], times in weeks."""

    def log_likelihood(self, x_Q: Tensor, t_x_Q: Tensor, T_Q: Tensor) -> Tensor: ...

    def expected_purchases(self, x_Q: Tensor, t_x_Q: Tensor, T_Q: Tensor, h: Tensor | float) -> Tensor: ...

    def p_zero(self, x_Q: Tensor, t_x_Q: Tensor, T_Q: Tensor, h: Tensor | float) -> Tensor: ...

    def count_pmf(self, x_Q: Tensor, t_x_Q: Tensor, T_Q: Tensor, h: Tensor | float, num_counts: int) -> Tensor: ...


@dataclass(frozen=True)
class _Distinct:
    """Distinct questions: columns x, t_x, T; purchases of known spend; log parameters [G, 4]; which one [Q]."""

    record_G: list[Tensor]
    spend_x_G: np.ndarray
    log_parameters_GP: Tensor
    which_Q: np.ndarray


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

    Everything is closed form or quadrature, with parameters fixed, so intervals of totals are too narrow by nature.
    Customers with equal records are answered once: the quantiles of money differ between them by a factor only.

    covariates: attributes that move the scales of purchasing and of leaving, time-invariant, log-linear, as in Fader
    and Hardie (2007), "Incorporating time-invariant covariates into the Pareto/NBD and BG/NBD models"; the columns are
    standardised. penalty: ridge on their coefficients, in units of customers' log-likelihood.
    """

    effects: tuple[tuple[int, float], ...]
    """Which of the four log parameters a covariate moves, and with which sign: purchasing first, then leaving."""

    def __init__(self, *, covariates: Sequence[str] = (), penalty: float = 1.0) -> None:
        if penalty < 0:
            raise InputError(f"penalty must not be negative, found {penalty}.")
        self.covariates, self.penalty = tuple(covariates), penalty

    @abstractmethod
    def _fit_process(self, x_C: np.ndarray, t_x_C: np.ndarray, T_C: np.ndarray) -> Sequence[float]:
        """The four parameters of this baseline's purchase process, without covariates."""

    @abstractmethod
    def _rows(self, parameters_GP: Tensor) -> ProcessRows:
        """The purchase process with parameters of its own in each row."""

    def fit(
        self, store: Store, vocabulary: Vocabulary, train: Queries, *, until: Until, val: Queries | None = None
    ) -> None:
        """Maximum likelihood."""
        from constellation.journeys.questions import ask, until_of

        self.log_parameters: np.ndarray | None = None
        self.spend: GammaGamma | None = None
        if not store.has_clock:
            return
        journeys = training_journeys(train)
        record = purchase_days(store, ask(store, journeys, until_of(until, journeys), (), until))
        bought_C = record.days_Q > 0
        if not (record.x_Q > 0).any():
            return
        columns = [record.x_Q[bought_C], record.t_x_Q[bought_C], record.T_Q[bought_C]]
        self.log_parameters = np.log(np.asarray(self._fit_process(*columns)))
        self.design = Covariates.fit(store, vocabulary, journeys, self.covariates)
        self.effects_KF = np.zeros((len(self.effects), self.design.num_columns))
        if self.design.num_columns:
            self._fit_effects(columns, self.design.matrix(store, journeys[bought_C]))
        self.purchases_per_day = float(record.purchases_Q.sum() / max(record.days_Q.sum(), 1))
        repeated_C = (record.x_Q > 0) & (record.mean_spend_Q > 0)
        if repeated_C.any():
            x_C, mean_C = record.x_Q[repeated_C], record.mean_spend_Q[repeated_C]
            self.spend = GammaGamma.fit(x_C, mean_C)
            self.mean_spend = float(np.average(mean_C, weights=x_C))

    def _fit_effects(self, columns: Sequence[np.ndarray], design_CF: np.ndarray) -> None:
        """Base parameters and coefficients together, from the optimum without covariates."""
        assert self.log_parameters is not None
        found, weight_G = grouped(*columns, *design_CF.T)
        record_G, (design_GF, weight_G1) = as_rows(*found[:3]), as_rows(np.stack(found[3:], axis=1), weight_G)
        num_base, shape = len(self.log_parameters), self.effects_KF.shape

        def log_likelihood(vector: Tensor) -> Tensor:
            parameters_GP = self._parameters(vector[:num_base], vector[num_base:].reshape(shape), design_GF)
            return weight_G1 @ self._rows(parameters_GP.exp()).log_likelihood(*record_G)

        vector = maximise_rows(log_likelihood, self.log_parameters.tolist(), self.effects_KF.size, penalty=self.penalty)
        self.log_parameters, self.effects_KF = vector[:num_base], vector[num_base:].reshape(shape)

    def _parameters(self, log_base_P: Tensor, effects_KF: Tensor, design_GF: Tensor) -> Tensor:
        """Log parameters [G, P]."""
        moved_GK = design_GF @ effects_KF.T
        columns = list(log_base_P.expand(len(design_GF), -1).unbind(1))
        for place, (parameter, sign) in enumerate(self.effects):
            columns[parameter] = columns[parameter] + sign * moved_GK[:, place]
        return torch.stack(columns, dim=1)

    def predict(self, store: Store, queries: Queries, levels: np.ndarray) -> Predictions:
        if self.log_parameters is None:
            return {}
        record = purchase_days(store, queries)
        # A mean that is not positive (free goods, net of coupons) tells Gamma-Gamma nothing: as if no repeat was seen.
        known_Q = (record.x_Q > 0) & (record.mean_spend_Q > 0)
        spend_x_Q = np.where(known_Q, record.x_Q, 0.0)
        spend_mean_Q = np.where(known_Q, record.mean_spend_Q, 0.0)
        distinct = self._distinct(record, spend_x_Q, self.design.matrix(store, queries.journey_Q))
        predictions: Predictions = {}
        for days in queries.horizons_days:
            weeks = days / DAYS_PER_WEEK
            days_Q, p_zero_Q = self._answers(distinct, weeks)
            purchases_GL, ratio_GL = self._quantiles(distinct, weeks, levels)
            predictions[f"purchases_{days}d_expected"] = days_Q * self.purchases_per_day
            predictions[f"purchases_{days}d_p_zero"] = p_zero_Q
            predictions[f"purchases_{days}d_quantiles"] = purchases_GL[distinct.which_Q]
            if self.spend is not None:
                per_day_Q = self.spend.expected_spend(spend_x_Q, spend_mean_Q)
                # With q <= 1 the model has no mean for newcomers; what the training customers spent stands in.
                per_day_Q = np.where(np.isfinite(per_day_Q), per_day_Q, self.mean_spend)
                scale_Q1 = (self.spend.v + spend_x_Q * spend_mean_Q)[:, None]
                predictions[f"value_{days}d_expected"] = days_Q * per_day_Q
                predictions[f"value_{days}d_p_zero"] = p_zero_Q
                predictions[f"value_{days}d_quantiles"] = ratio_GL[distinct.which_Q] * scale_Q1
        return predictions

    def _distinct(self, record: PurchaseDays, spend_x_Q: np.ndarray, design_QF: np.ndarray) -> _Distinct:
        assert self.log_parameters is not None
        rows_QK = np.column_stack([record.x_Q, record.t_x_Q, record.T_Q, spend_x_Q, design_QF])
        order_Q = np.lexsort(rows_QK.T)
        rows_QK = rows_QK[order_Q]
        new_Q = np.ones(len(rows_QK), dtype=bool)
        new_Q[1:] = (rows_QK[1:] != rows_QK[:-1]).any(axis=1)
        which_Q = np.empty(len(rows_QK), dtype=np.int64)
        which_Q[order_Q] = np.cumsum(new_Q) - 1
        rows_GK = rows_QK[new_Q]
        base_P, effects_KF, design_GF = as_rows(self.log_parameters, self.effects_KF, rows_GK[:, 4:])
        return _Distinct(
            record_G=as_rows(*rows_GK[:, :3].T),
            spend_x_G=rows_GK[:, 3],
            log_parameters_GP=self._parameters(base_P, effects_KF, design_GF),
            which_Q=which_Q,
        )

    def _answers(self, distinct: _Distinct, weeks: float) -> tuple[np.ndarray, np.ndarray]:
        """Expected purchase days and P(zero) of each question [Q], from the distinct ones, some at a time."""
        expected, p_zero = [np.empty(0)], [np.empty(0)]
        for start in range(0, len(distinct.spend_x_G), ROWS_AT_ONCE):
            rows = slice(start, start + ROWS_AT_ONCE)
            process = self._rows(distinct.log_parameters_GP[rows].exp())
            x, t_x, T = (column[rows] for column in distinct.record_G)
            expected.append(process.expected_purchases(x, t_x, T, weeks).numpy())
            p_zero.append(process.p_zero(x, t_x, T, weeks).numpy())
        return np.concatenate(expected)[distinct.which_Q], np.concatenate(p_zero)[distinct.which_Q]

    def _quantiles(self, distinct: _Distinct, weeks: float, levels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Of the distinct questions: quantiles of purchases, and of money over Gamma-Gamma's scale, [G, L] each."""

        def days_pmf(rows: Tensor, width: int) -> Tensor:
            process = self._rows(distinct.log_parameters_GP[rows].exp())
            x, t_x, T = (column[rows] for column in distinct.record_G)
            return process.count_pmf(x, t_x, T, weeks, width)

        num_rows, levels_L = len(distinct.spend_x_G), torch.as_tensor(np.array(levels, dtype=np.float64))
        purchases_GL, ratio_GL = np.zeros((num_rows, len(levels))), np.zeros((num_rows, len(levels)))
        for rows, pmf_RM in wide_enough(days_pmf, num_rows):
            purchases_GL[rows.numpy()] = quantile(self._purchases_pmf(pmf_RM), levels_L).numpy()
            if self.spend is not None:
                ratio_GL[rows.numpy()] = self.spend.total_ratio_quantiles(
                    distinct.spend_x_G[rows.numpy()], pmf_RM.numpy(), levels
                )
        return purchases_GL, ratio_GL

    def _purchases_pmf(self, days_RM: Tensor) -> Tensor:
        """Of purchases, from that of purchase days: each brings one, and a Poisson number of further ones."""
        extra = self.purchases_per_day - 1
        if extra <= 1e-9:
            return days_RM
        days_M = np.arange(days_RM.shape[1])
        most = days_M[-1] + extra * days_M[-1]
        counts = np.arange(int(most + 8 * np.sqrt(most + 1)) + 10)
        table = stats.poisson.pmf(counts[None, :] - days_M[:, None], extra * days_M[:, None])
        return days_RM @ torch.as_tensor(table)
