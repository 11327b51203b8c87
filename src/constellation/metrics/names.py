"""The metric names, their order in tables, and what a perfect system would score."""

import numpy as np

VALUE_METRICS = (
    "gini_normalised",
    "spearman",
    "mae",
    "rmse",
    "bias_total",
    "decile_mape",
    "crps",
    "coverage_90",
    "auc_any",
)
SURVIVAL_METRICS = ("brier", "brier_skill", "auc", "concordance")
PRODUCT_METRICS = ("ndcg_at_10", "hit_rate_at_10", "recall_new_at_10")

# Every metric is read as its distance from the ideal, so errors, scores, signed bias and coverage rank alike.
_IDEAL = {
    "gini_normalised": 1.0,
    "spearman": 1.0,
    "mae": 0.0,
    "rmse": 0.0,
    "bias_total": 0.0,
    "decile_mape": 0.0,
    "crps": 0.0,
    "coverage_90": 0.9,
    "auc_any": 1.0,
    "ndcg": 1.0,
    "hit_rate": 1.0,
    "recall_new": 1.0,
    "log_loss": 0.0,
    "brier": 0.0,
    "brier_skill": 1.0,
    "auc": 1.0,
    "concordance": 1.0,
}


def ideal(metric: str) -> float:
    """The value of a perfect forecast; `ndcg_at_20` is looked up as `ndcg`."""
    return _IDEAL[metric.split("_at_")[0]]


def is_known(metric: str) -> bool:
    return metric.split("_at_")[0] in _IDEAL


def shortfall(metric: str, values: float | np.ndarray) -> np.ndarray:
    """Distance from the ideal, lower is better for every metric (a bias of -3 % is as bad as +3 %)."""
    return np.abs(np.asarray(values, dtype=np.float64) - ideal(metric))


def higher_is_better(metric: str) -> bool:
    """True for scores; errors, bias and coverage are read by their distance from the ideal instead."""
    return ideal(metric) == 1.0


def flat_name(split: str, target: str, system: str, metric: str) -> str:
    """`test/value_91d/model/gini_normalised`: the one grammar of metric names."""
    return f"{split}/{target}/{system}/{metric}"
