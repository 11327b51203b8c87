"""BG/NBD and MBG/NBD with parameters of their own in every row, differentiable: for heads and for covariates.

Formulae as in ``bgnbd``; torch, float64. With the same parameters in all rows this is the classical model.
"""

from __future__ import annotations

import torch
from torch import Tensor

from constellation.distributions.count_tables import at_least, beta_survival, negative_binomial_pmf

NUM_NODES = 96


class BgNbdRows:
    """r_Q, alpha_Q (time units), a_Q, b_Q: positive, all of one shape [Q]; promoted to float64.

    flips_at_start: 1 lets a customer leave after the first purchase too (MBG/NBD).
    Records x, t_x, T and horizons h are [Q] tensors (h may be a number), in the time unit of alpha.
    """

    def __init__(self, r_Q: Tensor, alpha_Q: Tensor, a_Q: Tensor, b_Q: Tensor, *, flips_at_start: int = 0) -> None:
        self.r_Q, self.alpha_Q, self.a_Q, self.b_Q = (each.double() for each in (r_Q, alpha_Q, a_Q, b_Q))
        self.flips_at_start = flips_at_start

    def log_likelihood(self, x_Q: Tensor, t_x_Q: Tensor, T_Q: Tensor) -> Tensor:
        """[Q], natural log, eq. (6) of Fader, Hardie, Lee (2005)."""
        x_Q, t_x_Q, T_Q = x_Q.double(), t_x_Q.double(), T_Q.double()
        r, alpha, a, b = self.r_Q, self.alpha_Q, self.a_Q, self.b_Q
        flips_Q = x_Q + self.flips_at_start
        common_Q = (
            torch.lgamma(r + x_Q) - torch.lgamma(r) + r * alpha.log()
            + torch.lgamma(a + b) + torch.lgamma(b + flips_Q) - torch.lgamma(b) - torch.lgamma(a + b + flips_Q)
        )  # fmt: skip
        alive_Q = -(r + x_Q) * (alpha + T_Q).log()
        return common_Q + alive_Q + torch.nn.functional.softplus(self._log_odds_left(x_Q, t_x_Q, T_Q))

    def _log_odds_left(self, x_Q: Tensor, t_x_Q: Tensor, T_Q: Tensor) -> Tensor:
        """Log odds of having left, -inf-like where there was no chance to."""
        flips_Q = x_Q + self.flips_at_start
        log_odds_Q = (
            self.a_Q.log() - (self.b_Q + flips_Q.clamp(min=1) - 1).log()
            + (self.r_Q + x_Q) * ((self.alpha_Q + T_Q).log() - (self.alpha_Q + t_x_Q).log())
        )  # fmt: skip
        return torch.where(flips_Q > 0, log_odds_Q, torch.full_like(log_odds_Q, -700.0))

    def p_alive(self, x_Q: Tensor, t_x_Q: Tensor, T_Q: Tensor) -> Tensor:
        """[Q], P(has not left at T)."""
        return torch.sigmoid(-self._log_odds_left(x_Q.double(), t_x_Q.double(), T_Q.double()))

    def expected_purchases(self, x_Q: Tensor, t_x_Q: Tensor, T_Q: Tensor, h: Tensor | float) -> Tensor:
        """[Q], expected purchases in (T, T + h]: E[(1 - (1 + p h / (alpha + T))^-(r + x)) / p] over the posterior p."""
        x_Q, T_Q = x_Q.double(), T_Q.double()
        dropout_QM, weight_QM = beta_nodes(self.a_Q, self.b_Q + x_Q + self.flips_at_start)
        ratio_Q = h / (self.alpha_Q + T_Q)
        still_QM = -torch.expm1(-(self.r_Q + x_Q).unsqueeze(-1) * torch.log1p(dropout_QM * ratio_Q.unsqueeze(-1)))
        return self.p_alive(x_Q, t_x_Q, T_Q) * (weight_QM * still_QM / dropout_QM).sum(-1)

    def p_zero(self, x_Q: Tensor, t_x_Q: Tensor, T_Q: Tensor, h: Tensor | float) -> Tensor:
        """[Q], P(no purchase in (T, T + h])."""
        x_Q, T_Q = x_Q.double(), T_Q.double()
        silent_Q = torch.exp(-(self.r_Q + x_Q) * torch.log1p(h / (self.alpha_Q + T_Q)))
        alive_Q = self.p_alive(x_Q, t_x_Q, T_Q)
        return 1 - alive_Q + alive_Q * silent_Q

    def count_pmf(self, x_Q: Tensor, t_x_Q: Tensor, T_Q: Tensor, h: Tensor | float, num_counts: int) -> Tensor:
        """[Q, M], P(y purchases in (T, T + h]), y = 0 .. M - 1.

        Of W purchases wanted in the horizon, W ~ negative binomial, n happen where n chances to leave were survived, or
        where the n-th was not and W >= n: P(W = n) E(1-p)^n + P(W >= n) E[p (1-p)^(n-1)].
        """
        x_Q, T_Q = x_Q.double(), T_Q.double()
        wanted_QM = negative_binomial_pmf(self.r_Q + x_Q, h / (self.alpha_Q + T_Q), num_counts)
        stays_QM = beta_survival(self.a_Q, self.b_Q + x_Q + self.flips_at_start, num_counts)
        leaves_QM = stays_QM[:, :-1] - stays_QM[:, 1:]
        some_QM = wanted_QM[:, 1:] * stays_QM[:, 1:] + at_least(wanted_QM)[:, 1:] * leaves_QM
        alive_Q1 = self.p_alive(x_Q, t_x_Q, T_Q).unsqueeze(-1)
        return torch.cat([1 - alive_Q1 + alive_Q1 * wanted_QM[:, :1], alive_Q1 * some_QM], dim=-1)


def beta_nodes(a_Q: Tensor, b_Q: Tensor, num_nodes: int = NUM_NODES) -> tuple[Tensor, Tensor]:
    """Nodes in (0, 1) and weights [Q, M] for means over Beta(a, b); weights sum to 1.

    The trapezoid rule in t, where logit p = mode + spread sinh(t): tails of the logit fall exponentially at worst, so
    in t they fall doubly so, and the rule converges fast for any a and b. No eigenvalues, so a row costs 96 powers.
    """
    mode_Q1 = (a_Q.log() - b_Q.log()).unsqueeze(-1)
    deviation_Q = (1 / a_Q + 1 / b_Q).sqrt()
    # What is averaged bends within one unit of the logit, however wide the distribution is.
    spread_Q = deviation_Q.clamp(max=1.0)
    left_Q, right_Q = (torch.asinh((37 / side + 9 * spread_Q) / spread_Q) for side in (a_Q, b_Q))
    share_M = torch.linspace(0.0, 1.0, num_nodes, dtype=torch.float64, device=a_Q.device)
    t_QM = -left_Q.unsqueeze(-1) + (left_Q + right_Q).unsqueeze(-1) * share_M
    logit_QM = mode_Q1 + spread_Q.unsqueeze(-1) * t_QM.sinh()
    log_weight_QM = (
        a_Q.unsqueeze(-1) * torch.nn.functional.logsigmoid(logit_QM)
        + b_Q.unsqueeze(-1) * torch.nn.functional.logsigmoid(-logit_QM)
        + t_QM.cosh().log()
    )
    return torch.sigmoid(logit_QM).clamp(min=1e-300), torch.softmax(log_weight_QM, dim=-1)
