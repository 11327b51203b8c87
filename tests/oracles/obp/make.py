"""Make inputs.npz and expected.json with the peer library obp 0.5.7. Not run by the tests: it needs its own
environment.

python3.11 -m venv v && v/bin/pip install numpy==1.26.4 pandas==2.0.3 scikit-learn==1.3.2 scipy pyyaml tqdm matplotlib \
    seaborn torch && v/bin/pip install obp==0.5.7 --no-deps --ignore-requires-python && v/bin/python make.py
"""

import json
from pathlib import Path

import numpy as np
from obp import __version__
from obp.ope import (
    DirectMethod,
    DoublyRobust,
    DoublyRobustWithShrinkage,
    DoublyRobustWithShrinkageTuning,
    InverseProbabilityWeighting,
    RegressionModel,
    SelfNormalizedDoublyRobust,
    SelfNormalizedInverseProbabilityWeighting,
    SwitchDoublyRobust,
    SwitchDoublyRobustTuning,
)
from obp.ope.helper import estimate_bernstein_lower_bound, estimate_student_t_lower_bound
from sklearn.linear_model import Ridge

FOLDER = Path(__file__).parent
LAMBDAS = [0.5, 1.0, 2.0, 5.0, 20.0, 100.0, 1000.0]


def main() -> None:
    rng = np.random.default_rng(7)
    num, actions, features = 600, 5, 4
    context = rng.normal(size=(num, features))
    logits = context @ rng.normal(size=(features, actions))
    logging = np.exp(0.8 * logits) / np.exp(0.8 * logits).sum(1, keepdims=True)
    target = np.exp(-1.2 * logits) / np.exp(-1.2 * logits).sum(1, keepdims=True)
    action = (logging.cumsum(1) < rng.random((num, 1))).sum(1)
    truth = 1 + 0.5 * np.tanh(context @ rng.normal(size=(features, actions)))
    reward = np.maximum(truth[np.arange(num), action] + rng.normal(size=num), 0)
    propensity = logging[np.arange(num), action]
    model = truth + 0.3 * rng.normal(size=(num, actions))

    given = {
        "reward": reward,
        "action": action,
        "pscore": propensity,
        "action_dist": target[:, :, None],
        "estimated_rewards_by_reg_model": model[:, :, None],
        "position": np.zeros(num, dtype=int),
    }
    estimators = {
        "direct": DirectMethod(),
        "ips": InverseProbabilityWeighting(),
        "ips_clipped_5": InverseProbabilityWeighting(lambda_=5.0),
        "snips": SelfNormalizedInverseProbabilityWeighting(),
        "dr": DoublyRobust(),
        "sndr": SelfNormalizedDoublyRobust(),
        "switch_dr_3": SwitchDoublyRobust(lambda_=3.0),
        "dros_2": DoublyRobustWithShrinkage(lambda_=2.0),
    }
    expected = {name: float(estimator.estimate_policy_value(**given)) for name, estimator in estimators.items()}
    for name, tuned in {
        "dros_slope": DoublyRobustWithShrinkageTuning(lambdas=LAMBDAS, tuning_method="slope", delta=0.1),
        "switch_dr_slope": SwitchDoublyRobustTuning(lambdas=LAMBDAS, tuning_method="slope", delta=0.1),
        "dros_mse": DoublyRobustWithShrinkageTuning(lambdas=LAMBDAS, tuning_method="mse", delta=0.1),
    }.items():
        expected[name] = float(tuned.estimate_policy_value_with_tuning(**given))
        expected[f"{name}_lambda"] = float(tuned.best_hyperparam)
    mrdr = RegressionModel(n_actions=actions, base_model=Ridge(alpha=1.0), fitting_method="mrdr")
    mrdr.fit(context=context, action=action, reward=reward, pscore=propensity, action_dist=target[:, :, None])
    mrdr_model = mrdr.predict(context)[:, :, 0]
    expected["mrdr"] = float(
        DoublyRobust().estimate_policy_value(**given | {"estimated_rewards_by_reg_model": mrdr_model[:, :, None]})
    )
    rows = reward * target[np.arange(num), action] / propensity
    expected["student_low_ips"] = float(estimate_student_t_lower_bound(rows, delta=0.05))
    expected["bernstein_low_ips_40"] = float(estimate_bernstein_lower_bound(rows, x_max=40.0, delta=0.05))
    expected["version"] = __version__
    expected["lambdas"] = LAMBDAS
    np.savez_compressed(
        FOLDER / "inputs.npz", context=context, logging=logging, target=target, action=action, reward=reward,
        propensity=propensity, model=model, mrdr_model=mrdr_model,
    )  # fmt: skip
    (FOLDER / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")


if __name__ == "__main__":
    main()
