"""How good the taught network is in worlds it has not seen, beside predictors that know or fit the world's own law."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from constellation.distributions.bgnbd import BgNbd
from constellation.distributions.log_normal_mixture import LogNormalMixture
from constellation.distributions.pareto_nbd import ParetoNbd
from constellation.metrics import LEVELS
from constellation.metrics.value import crps
from constellation.prior.network import PriorNetwork
from constellation.prior.teaching import HELD_OUT_SEED, answer, lesson
from constellation.worlds.prior.hyperparameters import FAMILIES, LONG_THERE, PLAIN_FAMILIES, Hyperparameters, draw
from constellation.worlds.prior.populations import Populations, simulate
from constellation.worlds.prior.widening import draw_wide

DAYS_PER_WEEK = 7.0
COVERED = 0.9
REGULAR = 10
ROWS_AT_ONCE = 2048


@dataclass(frozen=True)
class WorldScore:
    """One world: mean CRPS of purchase days by predictor, bias of the total by predictor, and whether the network's
    90 % interval of the total, common shock included, held it (and without the shock). Of the network alone: mean CRPS
    of money in the population's median purchase day, slope of purchase days on their expectation, and share of the
    customers whose purchase days, and whose money, lay in their own 90 % intervals (randomised), also of those with at
    least ``REGULAR`` repeat purchase days, NaN where nobody has so many.
    """

    family: str
    num_customers: int
    crps: dict[str, float]
    bias: dict[str, float]
    covered: bool
    covered_without_shock: bool
    crps_money: float
    slope: float
    coverage_days: float
    coverage_money: float
    coverage_days_regular: float
    coverage_money_regular: float


def crps_of_pmf(pmf_CM: np.ndarray, count_C: np.ndarray) -> np.ndarray:
    """[C], the exact CRPS of distributions on 0 .. M - 1: sum over k of (F(k) - 1[y <= k])^2."""
    cdf_CM = np.minimum(np.cumsum(pmf_CM, axis=1), 1.0)
    k_M = np.arange(pmf_CM.shape[1])
    beyond_C = np.maximum(count_C - pmf_CM.shape[1], 0)
    return np.square(cdf_CM - (count_C[:, None] <= k_M)).sum(axis=1) + beyond_C


def score_world(network: PriorNetwork, worlds: Hyperparameters, populations: Populations) -> WorldScore:
    """A batch of one world: the network against fitted BG/NBD and Pareto/NBD, and the truth where it has that form."""
    assert populations.num_worlds == 1
    family = FAMILIES[int(populations.family_W[0])]
    next_C = populations.next_days_C
    width = int(max(next_C.max() * 2 + 20, 40))
    horizon = float(populations.horizon_days_W[0]) / DAYS_PER_WEEK
    count_C = np.diff(populations.start_C)
    x_C = np.maximum(count_C - 1, 0).astype(np.float64)
    T_C = populations.age_C / DAYS_PER_WEEK
    last_C = np.where(count_C > 0, populations.day_P[np.maximum(populations.start_C[1:] - 1, 0)], 0) / DAYS_PER_WEEK
    t_x_C = np.where(x_C > 0, T_C - last_C, 0.0)

    shown = lesson(populations)
    with torch.no_grad():
        said = answer(network, shown)
        pmf = {"prior_fitted": said.counts.pmf(width).double().numpy()}
        mean = {"prior_fitted": said.counts.mean().double().numpy()}
        shock_sd = float(said.log_shock_W2[0, 0].exp())
    predictors: dict[str, Callable[[], BgNbd | ParetoNbd]] = {
        "bgnbd": lambda: BgNbd.fit(x_C, t_x_C, T_C),
        "pareto_nbd": lambda: ParetoNbd.fit(x_C, t_x_C, T_C),
    }
    true = _truth(worlds)
    if true is not None:
        predictors["truth"] = lambda: true
    if (x_C > 0).any():
        for name, fitted in predictors.items():
            process = fitted()
            pmf[name] = process.count_pmf(x_C, t_x_C, T_C, horizon, width)
            mean[name] = process.expected_purchases(x_C, t_x_C, T_C, horizon)
    total, k_M = float(next_C.sum()), np.arange(width)
    variance_C = pmf["prior_fitted"] @ k_M**2 - np.square(pmf["prior_fitted"] @ k_M)
    noise, expected = float(np.sqrt(variance_C.sum())), float(mean["prior_fitted"].sum())
    draws_S = expected + noise * np.random.default_rng(0).standard_normal(4000)
    shocked_S = draws_S * np.exp(shock_sd * np.random.default_rng(1).standard_normal(4000))

    def holds(draws_S: np.ndarray) -> bool:
        low, high = np.quantile(draws_S, [(1 - COVERED) / 2, (1 + COVERED) / 2])
        return bool(low <= total <= high)

    days_C, money_C = shown.next_days_C, shown.next_money_C
    inside_days_C = inside(said.counts.cdf(days_C - 1), said.counts.cdf(days_C))
    cdf_money_C = said.money.cdf(money_C)
    inside_money_C = inside(cdf_money_C * (money_C > 0), cdf_money_C)
    regular_C = x_C >= REGULAR
    from_mean_C = mean["prior_fitted"] - mean["prior_fitted"].mean()
    return WorldScore(
        family=family,
        num_customers=len(next_C),
        crps={name: float(crps_of_pmf(table, next_C).mean()) for name, table in pmf.items()},
        bias={name: float(mean_C.sum() / max(total, 1.0) - 1) for name, mean_C in mean.items()},
        covered=holds(shocked_S),
        covered_without_shock=holds(draws_S),
        crps_money=float(crps(money_C.double().numpy(), _money_quantiles(said.money)).mean()),
        slope=float(from_mean_C @ next_C / (from_mean_C @ from_mean_C)),
        coverage_days=float(inside_days_C.mean()),
        coverage_money=float(inside_money_C.mean()),
        coverage_days_regular=float(inside_days_C[regular_C].mean()) if regular_C.any() else float("nan"),
        coverage_money_regular=float(inside_money_C[regular_C].mean()) if regular_C.any() else float("nan"),
    )


def inside(below_C: Tensor, cdf_C: Tensor) -> np.ndarray:
    """Whether each customer's value lies in the central interval: P(less) and P(at most) of it, the place between them
    drawn at random, as of a value with a mass of its own.
    """
    low_C, high_C = below_C.double().numpy(), cdf_C.double().numpy()
    place_C = low_C + np.random.default_rng(2).random(len(low_C)) * (high_C - low_C)
    return (place_C > (1 - COVERED) / 2) & (place_C < (1 + COVERED) / 2)


def _money_quantiles(money: LogNormalMixture) -> np.ndarray:
    """[C, L] at ``LEVELS``, some rows at a time."""
    columns = (money.logit_p_Q, money.log_weight_QM, money.mu_QM, money.sigma_QM)
    parts = zip(*(column.split(ROWS_AT_ONCE) for column in columns), strict=True)
    return np.concatenate([LogNormalMixture(*part).quantile(LEVELS).double().numpy() for part in parts])


def _truth(worlds: Hyperparameters) -> BgNbd | ParetoNbd | None:
    """The law of a world of the two classical families, in weeks, where everybody came within the window."""
    family, weeks = FAMILIES[int(worlds.family[0])], float(worlds.window_days[0]) / DAYS_PER_WEEK
    if worlds.entry[0] == LONG_THERE:
        return None
    r = float(worlds.rate_shape[0])
    alpha = r / float(worlds.rate[0]) * weeks
    if family == "bgnbd":
        mean, concentration = float(worlds.leave_mean[0]), float(worlds.leave_concentration[0])
        return BgNbd(r, alpha, mean * concentration, (1 - mean) * concentration)
    if family == "pareto_nbd":
        s = float(worlds.stay_shape[0])
        return ParetoNbd(r, alpha, s, s * float(worlds.stay[0]) * weeks)
    return None


def validate(
    network: PriorNetwork,
    *,
    worlds_per_family: int,
    customers: tuple[int, int] = (300, 2500),
    seed: int = 0,
    wide: bool = False,
) -> list[WorldScore]:
    """Scores of held-out worlds of every family of a prior, with at least 20 repeat purchase days before and after the
    cutoff.
    """
    scores: list[WorldScore] = []
    for place, family in enumerate(FAMILIES if wide else PLAIN_FAMILIES):
        rng = np.random.default_rng([HELD_OUT_SEED, seed, 1000 + place])
        while sum(score.family == family for score in scores) < worlds_per_family:
            worlds = (draw_wide if wide else draw)(1, rng, family=family, customers=customers)
            populations = simulate(worlds, rng)
            repeats = len(populations.day_P) - len(populations.age_C)
            if repeats < 20 or populations.next_days_C.sum() < 20:
                continue
            scores.append(score_world(network, worlds, populations))
    return scores


def summary(scores: list[WorldScore]) -> list[dict[str, float | str]]:
    """One row a family: mean over worlds of log CRPS ratios (network over each other predictor), as shares; the mean
    absolute bias of totals; coverage of the 90 % interval of the total; of the network the median signed bias and
    slope, and the mean coverage of customers' intervals.
    """
    rows: list[dict[str, float | str]] = []
    for family in (*FAMILIES, "all"):
        chosen = [score for score in scores if family in (score.family, "all")]
        if not chosen:
            continue
        row: dict[str, float | str] = {"family": family, "worlds": len(chosen)}
        for name in ("truth", "bgnbd", "pareto_nbd"):
            both = [score for score in chosen if name in score.crps]
            ratios = [np.log(score.crps["prior_fitted"] / score.crps[name]) for score in both]
            row[f"crps_over_{name}"] = float(np.exp(np.mean(ratios)) - 1) if ratios else float("nan")
        for name in ("prior_fitted", "bgnbd", "pareto_nbd"):
            both = [score for score in chosen if name in score.bias]
            row[f"bias_abs_{name}"] = float(np.median([abs(score.bias[name]) for score in both]))
        row["total_coverage_90"] = float(np.mean([score.covered for score in chosen]))
        row["total_coverage_90_no_shock"] = float(np.mean([score.covered_without_shock for score in chosen]))
        row["bias_prior_fitted"] = float(np.median([score.bias["prior_fitted"] for score in chosen]))
        row["slope_prior_fitted"] = float(np.median([score.slope for score in chosen]))
        for name in ("days", "money", "days_regular", "money_regular"):
            found = np.array([getattr(score, f"coverage_{name}") for score in chosen])
            found = found[np.isfinite(found)]
            row[f"coverage_{name}"] = float(found.mean()) if len(found) else float("nan")
        rows.append(row)
    return rows
