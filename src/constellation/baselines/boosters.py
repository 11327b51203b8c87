"""One boosted ensemble per question (mean, zero, quantile), with its own loss to choose the number of trees by."""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager
from typing import Any

import numpy as np

TINY = 1e-9


def limited_threads(num_threads: int) -> AbstractContextManager[object]:
    """Within it the boosting library uses so many threads."""
    # The limit reaches the libraries that are loaded by then, so the one in question comes first.
    import sklearn.ensemble  # noqa: F401
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    return threadpool_limits(num_threads, user_api="openmp")


class Booster(ABC):
    """Features [Q, F] -> a number [Q]. Where the answers are all alike it is that constant: nothing to learn."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self.settings = settings
        self.constant: float | None = None
        self.best: int | None = None

    @abstractmethod
    def _target(self, y_Q: np.ndarray) -> np.ndarray:
        """What the library is asked to learn, from money or counts >= 0."""

    @abstractmethod
    def _model(self, num_trees: int) -> Any:
        """An unfitted ensemble of the library."""

    @abstractmethod
    def _staged(self, features_QF: np.ndarray) -> Any:
        """Predictions after 1, 2, .. trees, on the scale of ``_target``."""

    @abstractmethod
    def _loss(self, target_Q: np.ndarray, prediction_Q: np.ndarray) -> float:
        """Mean loss of predictions on the scale of ``_target``."""

    def _answer(self, prediction_Q: np.ndarray) -> np.ndarray:
        return prediction_Q

    def fit(self, features_QF: np.ndarray, y_Q: np.ndarray, num_trees: int) -> None:
        """y_Q: money or counts, not below 0."""
        target_Q = self._target(y_Q)
        self.constant, self.best = None, None
        if target_Q.min() == target_Q.max():
            self.constant = float(target_Q[0])
            return
        self.model = self._model(num_trees).fit(features_QF, target_Q)

    def keep_best(self, features_QF: np.ndarray, y_Q: np.ndarray) -> int:
        """Number of trees with the least loss on these rows; predictions use that many from now on."""
        if self.constant is not None:
            return 1
        target_Q = self._target(y_Q)
        losses = [self._loss(target_Q, prediction_Q) for prediction_Q in self._staged(features_QF)]
        self.best = int(np.argmin(losses)) + 1
        return self.best

    def predict(self, features_QF: np.ndarray) -> np.ndarray:
        """[Q], float64: the mean, the probability, or the quantile on the scale log(1 + y)."""
        if self.constant is not None:
            return self._answer(np.full(len(features_QF), self.constant))
        prediction_Q = np.zeros(len(features_QF))
        for num_trees, staged_Q in enumerate(self._staged(features_QF), start=1):
            prediction_Q = staged_Q
            if num_trees == self.best:
                break
        return self._answer(prediction_Q)


class MeanBooster(Booster):
    """The mean, by Poisson deviance."""

    def _target(self, y_Q: np.ndarray) -> np.ndarray:
        return y_Q

    def _model(self, num_trees: int) -> Any:
        from sklearn.ensemble import HistGradientBoostingRegressor

        return HistGradientBoostingRegressor(loss="poisson", max_iter=num_trees, early_stopping=False, **self.settings)

    def _staged(self, features_QF: np.ndarray) -> Any:
        return self.model.staged_predict(features_QF)

    def _loss(self, target_Q: np.ndarray, prediction_Q: np.ndarray) -> float:
        # The part of the Poisson deviance that depends on the prediction.
        return float(np.mean(prediction_Q - target_Q * np.log(np.maximum(prediction_Q, TINY))))


class ZeroBooster(Booster):
    """P(y = 0), by log loss."""

    def _target(self, y_Q: np.ndarray) -> np.ndarray:
        return (y_Q <= 0).astype(np.float64)

    def _model(self, num_trees: int) -> Any:
        from sklearn.ensemble import HistGradientBoostingClassifier

        return HistGradientBoostingClassifier(max_iter=num_trees, early_stopping=False, **self.settings)

    def _staged(self, features_QF: np.ndarray) -> Any:
        return (each[:, 1] for each in self.model.staged_predict_proba(features_QF))

    def _loss(self, target_Q: np.ndarray, prediction_Q: np.ndarray) -> float:
        p_Q = np.clip(prediction_Q, TINY, 1 - TINY)
        return float(-np.mean(target_Q * np.log(p_Q) + (1 - target_Q) * np.log1p(-p_Q)))


class QuantileBooster(Booster):
    """A quantile of log(1 + y), by pinball loss: on that scale a few rich customers do not rule the trees."""

    def __init__(self, settings: dict[str, Any], level: float) -> None:
        super().__init__(settings)
        self.level = float(level)

    def _target(self, y_Q: np.ndarray) -> np.ndarray:
        return np.log1p(y_Q)

    def _model(self, num_trees: int) -> Any:
        from sklearn.ensemble import HistGradientBoostingRegressor

        return HistGradientBoostingRegressor(
            loss="quantile", quantile=self.level, max_iter=num_trees, early_stopping=False, **self.settings
        )

    def _staged(self, features_QF: np.ndarray) -> Any:
        return self.model.staged_predict(features_QF)

    def _loss(self, target_Q: np.ndarray, prediction_Q: np.ndarray) -> float:
        short_Q = target_Q - prediction_Q
        return float(np.mean(np.maximum(self.level * short_Q, (self.level - 1) * short_Q)))
