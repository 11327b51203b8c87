"""The truth about spenders: expectations given the hidden state, and given only the history, in closed form."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from constellation.schema import CUSTOMER_ID
from constellation.worlds.simulated import MICROSECONDS_PER_DAY

if TYPE_CHECKING:
    import polars

NUM_NODES = 48
"""Of the Gauss-Legendre rule over the horizon for refunds; the integrand is smooth, its error is far below a cent."""


@dataclass(frozen=True)
class SpendersTruth:
    """Hyper-parameters as in ``SpendersWorld``, hidden state of ``C`` customers, and all ``P`` purchases.

    rate_C, dropout_C: per day. log_amount_C: mean of the logarithm of amounts. joined_C, left_C, time_P, refund_time_P:
    microseconds UTC. returned_P: whether a purchase is ever sent back; where not, ``refund_time_P`` means nothing.
    """

    rate_shape: float
    rate_days: float
    dropout_shape: float
    dropout_days: float
    log_amount_mean: float
    customer_sigma: float
    amount_sigma: float
    refund_share: float
    refund_days: float
    rate_C: np.ndarray
    dropout_C: np.ndarray
    log_amount_C: np.ndarray
    joined_C: np.ndarray
    left_C: np.ndarray
    customer_P: np.ndarray
    time_P: np.ndarray
    amount_P: np.ndarray
    returned_P: np.ndarray
    refund_time_P: np.ndarray

    def expected(self, cutoff: int, horizon_days: float) -> polars.DataFrame:
        """Columns and rows as :class:`~constellation.worlds.simulated.Truth` says, up to rounding of amounts to cents.

        Also ``is_active`` (hidden) and ``p_active_from_history``. The hidden state holds rate, dropout rate, mean
        log amount, whether the customer is still active, and which purchases will be sent back, but not the moments
        at which the customer will leave or the goods will return.
        """
        import polars as pl

        known_C = self.joined_C <= cutoff
        hidden_purchases_C, hidden_value_C = self._from_hidden_state(cutoff, horizon_days)
        purchases_C, value_C, active_C = self._from_history(cutoff, horizon_days)
        return pl.DataFrame(
            {
                CUSTOMER_ID: np.flatnonzero(known_C) + 1,
                "value_expected": hidden_value_C[known_C],
                "purchases_expected": hidden_purchases_C[known_C],
                "value_from_history": value_C[known_C],
                "purchases_from_history": purchases_C[known_C],
                "is_active": (self.left_C > cutoff)[known_C],
                "p_active_from_history": active_C[known_C],
            }
        )

    def _from_hidden_state(self, cutoff: int, horizon_days: float) -> tuple[np.ndarray, np.ndarray]:
        """Expected purchases and value [C]: the integral over u in (0, h) of lambda exp(-mu u), while active."""
        from scipy.special import exprel

        h, return_rate = horizon_days, 1.0 / self.refund_days
        pace_C = (self.left_C > cutoff) * self.rate_C * h
        purchases_C = pace_C * exprel(-self.dropout_C * h)
        # What is bought at u is not back by h with probability exp(-return_rate (h - u)). That integral, factored so
        # that the smaller of the two rates decays outside and nothing overflows:
        late_C = np.exp(-np.minimum(return_rate, self.dropout_C) * h) * exprel(
            -np.abs(return_rate - self.dropout_C) * h
        )
        kept_C = purchases_C - self.refund_share * (purchases_C - pace_C * late_C)
        amount_C = np.exp(self.log_amount_C + self.amount_sigma**2 / 2)
        return purchases_C, amount_C * kept_C - self._coming_refunds(cutoff, h, self.returned_P.astype(float))

    def _from_history(self, cutoff: int, horizon_days: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Posterior expected purchases and value, and probability of being active, [C] each."""
        frequency_C, recency_days_C, tenure_days_C, log_sum_C = self._history(cutoff)
        active_C = p_active(
            self.rate_shape,
            self.rate_days,
            self.dropout_shape,
            self.dropout_days,
            frequency_C,
            recency_days_C,
            tenure_days_C,
        )
        # Given active at T: lambda ~ Gamma(r + x, alpha + T), mu ~ Gamma(s, beta + T), so purchases u days later come
        # at the rate (r + x) / (alpha + T) ((beta + T) / (beta + T + u))^s.
        pace_C = active_C * (self.rate_shape + frequency_C) / (self.rate_days + tenure_days_C)
        patience_days_C = self.dropout_days + tenure_days_C
        nodes, weights = np.polynomial.legendre.leggauss(NUM_NODES)
        u_J, weight_J = (nodes + 1) / 2 * horizon_days, weights / 2 * horizon_days
        pace_CJ = pace_C[:, None] * (patience_days_C[:, None] / (patience_days_C[:, None] + u_J)) ** self.dropout_shape
        purchases_C = pace_CJ @ weight_J
        kept_C = pace_CJ @ (weight_J * (1 - self.refund_share * -np.expm1(-(horizon_days - u_J) / self.refund_days)))

        # Normal prior and normal likelihood of log amounts: precisions add. The first purchase counts too.
        precision_C = 1 / self.customer_sigma**2 + (frequency_C + 1) / self.amount_sigma**2
        mean_C = (self.log_amount_mean / self.customer_sigma**2 + log_sum_C / self.amount_sigma**2) / precision_C
        amount_C = np.exp(mean_C + 1 / precision_C / 2 + self.amount_sigma**2 / 2)

        # A purchase that has not come back for a while is less likely to do so.
        age_days_P = np.maximum(cutoff - self.time_P, 0) / MICROSECONDS_PER_DAY
        silent_P = self.refund_share * np.exp(-age_days_P / self.refund_days)
        will_return_P = silent_P / np.maximum(1 - self.refund_share + silent_P, 1e-300)
        return purchases_C, amount_C * kept_C - self._coming_refunds(cutoff, horizon_days, will_return_P), active_C

    def _coming_refunds(self, cutoff: int, horizon_days: float, will_return_P: np.ndarray) -> np.ndarray:
        """Expected money [C] that goes back in the horizon for purchases made, and not sent back, by the cutoff."""
        open_P = (self.time_P <= cutoff) & ~(self.returned_P & (self.refund_time_P <= cutoff))
        in_time = -np.expm1(-horizon_days / self.refund_days)
        return np.bincount(
            self.customer_P[open_P],
            weights=(will_return_P * self.amount_P)[open_P] * in_time,
            minlength=len(self.rate_C),
        )

    def _history(self, cutoff: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Repeat purchases x, days from first to last purchase t_x, days observed T, sum of log amounts, [C] each."""
        num_customers, seen_P = len(self.rate_C), self.time_P <= cutoff
        customer_P = self.customer_P[seen_P]
        frequency_C = np.maximum(np.bincount(customer_P, minlength=num_customers) - 1, 0)
        last_C = self.joined_C.copy()
        np.maximum.at(last_C, customer_P, self.time_P[seen_P])
        log_sum_C = np.bincount(customer_P, weights=np.log(self.amount_P[seen_P]), minlength=num_customers)
        recency_days_C = (last_C - self.joined_C) / MICROSECONDS_PER_DAY
        return frequency_C, recency_days_C, np.maximum(cutoff - self.joined_C, 0) / MICROSECONDS_PER_DAY, log_sum_C


def p_active(
    r: float, alpha: float, s: float, beta: float, frequency: np.ndarray, recency: np.ndarray, tenure: np.ndarray
) -> np.ndarray:
    """Probability of being active under Pareto/NBD with known parameters (METHODS 3.2), any unit of time.

    The odds of having left are ``s / (r+s+x) (alpha+T)^(r+x) (beta+T)^s (A0(t_x) - A0(T))``, in logarithms.
    """
    from scipy.special import expit, hyp2f1

    exponent = r + s + frequency
    larger = max(alpha, beta)
    numerator = np.broadcast_to(np.asarray(s + 1 if alpha >= beta else r + frequency, dtype=float), np.shape(frequency))
    steep = numerator > 1

    def log_a0(moment: np.ndarray) -> np.ndarray:
        # Euler: F(a, b; a+1; z) = (1 - z)^(1-b) F(1, a+1-b; a+1; z). For b > 1 the left side overflows near z = 1,
        # where one of the two time scales is much the longer; the right side stays near 1.
        ratio, rest = abs(alpha - beta) / (larger + moment), (min(alpha, beta) + moment) / (larger + moment)
        series = hyp2f1(
            np.where(steep, 1.0, exponent), np.where(steep, exponent + 1 - numerator, numerator), exponent + 1, ratio
        )
        return (
            np.log(series) + np.where(steep, (1 - numerator) * np.log(rest), 0.0) - exponent * np.log(larger + moment)
        )

    log_recent, log_now = log_a0(recency), log_a0(tenure)
    with np.errstate(divide="ignore"):  # bought this very moment: the difference is 0, the customer active for sure
        log_difference = log_recent + np.log(-np.expm1(np.minimum(log_now - log_recent, 0.0)))
    log_odds_left = (
        np.log(s / exponent) + (r + frequency) * np.log(alpha + tenure) + s * np.log(beta + tenure) + log_difference
    )
    return expit(-log_odds_left)
