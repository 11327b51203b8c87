"""Taught on simulated worlds alone: answers about data it has never seen, without fitting anything."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from constellation.baselines.baseline import Baseline, Predictions, training_journeys
from constellation.distributions.count_tables import quantile
from constellation.distributions.log_normal_mixture import LogNormalMixture
from constellation.distributions.rounded_log_normals import RoundedLogNormals
from constellation.prior.forecast import Context, context_of, forecast
from constellation.prior.histories import Histories, histories

if TYPE_CHECKING:
    from constellation.journeys.store import Store
    from constellation.journeys.vocabulary import Vocabulary
    from constellation.journeys.windows import Queries, Until
    from constellation.prior.network import Answer, PriorNetwork

MONEY_ROWS_AT_ONCE = 2048
LEAST_WIDTH, MAX_WIDTH, TABLE_CELLS = 32, 4096, 1 << 20
TAIL_PARTS = 50
"""A table of counts ends where a fiftieth of what the outermost quantile leaves above it is left."""


@dataclass
class _Population:
    """The training customers as they were at one moment; contexts by horizon in days."""

    customers: Histories
    purchases_per_day: float
    contexts: dict[int, Context] = field(default_factory=dict)


class PriorFitted(Baseline):
    """A prior-fitted network on purchase days, in units without a scale: see ``constellation.prior``.

    ``fit`` learns nothing: it remembers who the training customers are and until when they may be read. At a cutoff
    their purchase days up to it, and never after ``until``, are the *context* in which each customer is answered, as
    examples are in a prompt. No outcome of a question is ever read, so any horizon can be answered from any history.

    - It counts days. Purchases are days times the training customers' purchases per purchase day; in the predictive
      distribution each day brings one purchase and a Poisson number of further ones.
    - Money is that of purchases: refunds that are events of their own are not modelled.
    - ``purchases_<h>d_shock_sd`` and ``value_<h>d_shock_sd`` [Q], the same for all customers of a cutoff: standard
      deviation of the log total that they have in common, for intervals of totals.
    - It was taught horizons of a twentieth of the known past to twice as long; beyond that it extrapolates.
    - Where times are unknown (``clock: order``) there is nothing to say; money is left out where nobody ever paid.

    weights: a file of ``constellation train_prior``; null is the one that comes with the package.
    """

    name = "prior_fitted"

    def __init__(self, *, weights: str | None = None) -> None:
        self.weights = weights

    def left_out(self, store: Store, horizons_days: Sequence[int]) -> str | None:
        if not store.has_clock:
            return "it reads purchase days, and only the order of these events is known"
        return super().left_out(store, horizons_days)

    def fit(
        self, store: Store, vocabulary: Vocabulary, train: Queries, *, until: Until, val: Queries | None = None
    ) -> None:
        """Remember the population to be read; the weights stay as they came."""
        self.journeys = training_journeys(train)
        self.until = int(np.min(until))
        self.populations: dict[int, _Population] = {}

    def predict(self, store: Store, queries: Queries, levels: np.ndarray) -> Predictions:
        if not store.has_clock:
            return {}
        predictions: Predictions = {}
        for cutoff in np.unique(queries.cutoff_Q):
            population = self._population(store, min(int(cutoff), self.until))
            if not len(population.customers):
                return {}
            rows = np.flatnonzero(queries.cutoff_Q == cutoff)
            customers = histories(store, queries.take(rows))
            for days in queries.horizons_days:
                for name, values in self._answers(customers, population, days, levels).items():
                    shape = (len(queries), *values.shape[1:])
                    predictions.setdefault(name, np.full(shape, np.nan))[rows] = values
        return predictions

    def _network(self) -> PriorNetwork:
        from constellation.prior.weights import load

        return load(self.weights)

    def _population(self, store: Store, moment: int) -> _Population:
        from constellation.journeys.windows import ask, at_risk

        if moment not in self.populations:
            risk = at_risk(store, moment, self.journeys)
            questions = ask(store, risk, np.full(len(risk), moment), (), moment)
            record = store.purchase_index.before(questions)
            per_day = float(record.purchases_Q.sum() / max(record.days_Q.sum(), 1))
            self.populations[moment] = _Population(histories(store, questions), max(per_day, 1.0))
        return self.populations[moment]

    def _answers(self, customers: Histories, population: _Population, days: int, levels: np.ndarray) -> Predictions:
        network = self._network()
        if days not in population.contexts:
            population.contexts[days] = context_of(network, population.customers, float(days))
        context = population.contexts[days]
        said = forecast(network, customers, context)
        shock_2 = said.log_shock_W2[0].exp().double().numpy()
        purchases, value = f"purchases_{days}d", f"value_{days}d"
        found = {
            f"{purchases}_expected": said.counts.mean().double().numpy() * population.purchases_per_day,
            f"{purchases}_p_zero": said.counts.p_zero().double().numpy(),
            f"{purchases}_quantiles": _purchase_quantiles(said, population.purchases_per_day, levels),
            f"{purchases}_shock_sd": np.full(len(customers), shock_2[0]),
        }
        if np.isfinite(context.money):
            found |= {
                f"{value}_expected": said.money.mean().double().numpy() * context.money,
                f"{value}_p_zero": said.money.p_zero().double().numpy(),
                f"{value}_quantiles": _money_quantiles(said.money, levels) * context.money,
                f"{value}_shock_sd": np.full(len(customers), shock_2[1]),
            }
        return found


def _purchase_quantiles(said: Answer, purchases_per_day: float, levels: np.ndarray) -> np.ndarray:
    """[Q, L], of purchases: each purchase day brings one, and a Poisson number of further ones."""
    parts = said.counts.continuous
    found_QL = np.zeros((len(parts.logit_p_Q), len(levels)))
    levels_L = torch.as_tensor(np.array(levels, dtype=np.float64))

    def days_pmf(rows: Tensor, width: int) -> Tensor:
        columns = (parts.logit_p_Q, parts.log_weight_QM, parts.mu_QM, parts.sigma_QM)
        return RoundedLogNormals(*(column[rows].double() for column in columns)).pmf(width)

    # Heavy tails make endless tables, of which the outermost level needs little.
    top_Q = said.counts.quantile([1 - (1 - float(np.max(levels))) / TAIL_PARTS])[:, 0].clamp(max=MAX_WIDTH - 2)
    width_Q = np.exp2(np.ceil(np.log2(np.maximum(top_Q.numpy() + 2, LEAST_WIDTH)))).astype(np.int64)
    for width in np.unique(width_Q):
        for rows in torch.as_tensor(np.flatnonzero(width_Q == width)).split(max(1, TABLE_CELLS // int(width))):
            pmf_RM = days_pmf(rows, int(width))
            if purchases_per_day - 1 > 1e-9:
                pmf_RM = _with_further(pmf_RM, purchases_per_day - 1)
            found_QL[rows.numpy()] = quantile(pmf_RM, levels_L).numpy()
    return found_QL


def _with_further(days_RM: Tensor, further: float) -> Tensor:
    days_M = np.arange(days_RM.shape[1])
    most = days_M[-1] * (1 + further)
    counts = np.arange(int(most + 8 * np.sqrt(most + 1)) + 10)
    table = stats.poisson.pmf(counts[None, :] - days_M[:, None], further * days_M[:, None])
    return days_RM @ torch.as_tensor(table)


def _money_quantiles(money: LogNormalMixture, levels: np.ndarray) -> np.ndarray:
    """[Q, L], in the population's unit, some rows at a time."""
    columns = (money.logit_p_Q, money.log_weight_QM, money.mu_QM, money.sigma_QM)
    parts = [np.empty((0, len(levels)))]
    for start in range(0, len(money.logit_p_Q), MONEY_ROWS_AT_ONCE):
        rows = slice(start, start + MONEY_ROWS_AT_ONCE)
        parts.append(LogNormalMixture(*(column[rows] for column in columns)).quantile(levels).double().numpy())
    return np.concatenate(parts)
