"""Gamma-Gamma with parameters of its own in every row, differentiable: money of future purchases given past ones.

Formulae as in ``gamma_gamma``; torch, float64. With the same parameters in all rows this is the classical model.
"""

from __future__ import annotations

import torch
from torch import Tensor

NORMAL_TAIL = 6.0
"""Standard normals beyond are cut: the cube below must not turn."""


class GammaGammaRows:
    """p_Q, q_Q (no unit) and v_Q (money): positive, all of one shape [Q]; promoted to float64.

    x_Q past purchases of known spend cost total_Q in all; without any, x and total are 0.
    """

    def __init__(self, p_Q: Tensor, q_Q: Tensor, v_Q: Tensor) -> None:
        self.p_Q, self.q_Q, self.v_Q = (each.double() for each in (p_Q, q_Q, v_Q))

    def log_likelihood(self, x_Q: Tensor, total_Q: Tensor, count_Q: Tensor, money_Q: Tensor) -> Tensor:
        """[Q], log density of the *mean* spend of ``count`` new purchases that cost ``money`` > 0 in all.

        With x = 0 this is eq. (1a) of Fader and Hardie's note; past purchases make q of it q + p x and v of it
        v + total. Rows without a new purchase of positive money give 0.
        """
        some_Q = (count_Q > 0) & (money_Q > 0)
        count_Q = torch.where(some_Q, count_Q, torch.ones_like(count_Q)).double()
        money_Q = torch.where(some_Q, money_Q, torch.ones_like(money_Q)).double()
        shape_Q, rest_Q = self.p_Q * count_Q, self.q_Q + self.p_Q * x_Q.double()
        scale_Q = self.v_Q + total_Q.double()
        log_sum_Q = (money_Q + scale_Q).log()
        log_density_Q = (
            torch.lgamma(shape_Q + rest_Q) - torch.lgamma(shape_Q) - torch.lgamma(rest_Q)
            + shape_Q * (money_Q.log() - log_sum_Q) - (money_Q / count_Q).log() + rest_Q * (scale_Q.log() - log_sum_Q)
        )  # fmt: skip
        return torch.where(some_Q, log_density_Q, torch.zeros_like(log_density_Q))

    def expected_spend(self, x_Q: Tensor, total_Q: Tensor) -> Tensor:
        """[Q], money per purchase, eq. (5) of the note; needs p x + q > 1."""
        return self.p_Q * (self.v_Q + total_Q.double()) / (self.p_Q * x_Q.double() + self.q_Q - 1)

    def totals(self, x_Q: Tensor, total_Q: Tensor, count_QS: Tensor, uniform_SU: Tensor) -> Tensor:
        """[Q, S], money of the given numbers (>= 1) of new purchases at the points ``uniform_SU`` of the unit cube.

        uniform_SU [S, 6]: three coordinates for each of the two gammas whose ratio the money is.
        """
        above_QS = gamma_at(self.p_Q.unsqueeze(-1) * count_QS, uniform_SU[:, :3])
        below_QS = gamma_at((self.q_Q + self.p_Q * x_Q.double()).unsqueeze(-1), uniform_SU[:, 3:])
        return (self.v_Q + total_Q.double()).unsqueeze(-1) * above_QS / below_QS.clamp(min=1e-12)


def gamma_at(shape: Tensor, uniform_S3: Tensor) -> Tensor:
    """Gamma(shape, 1) variates [.., S] at given uniforms, the same for the same uniforms.

    G(k) = G(k + 2) U^(1/k) V^(1/(k + 1)) in distribution, and G(k + 2) by the cube of Wilson and Hilferty (1931), which
    from k = 2 on is right to a hundredth: smooth in k, and no draw depends on its neighbours in a batch.
    """
    k = shape + 2
    normal_S = torch.special.ndtri(uniform_S3[:, 0]).clamp(-NORMAL_TAIL, NORMAL_TAIL)
    cube = 1 - 1 / (9 * k) + normal_S / (3 * k.sqrt())
    boost = uniform_S3[:, 1].log() / shape + uniform_S3[:, 2].log() / (shape + 1)
    return k * cube.clamp(min=0.05) ** 3 * boost.clamp(min=-600.0).exp()
