"""Cross-fitted decisions on disk: what ``train objective=engagement`` leaves and ``evaluate policy=...`` reads."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from constellation.errors import InputError
from constellation.policies.cross_fit import Predictions
from constellation.policies.evaluation import Experiment
from constellation.policies.log import Log

FOLDER = "engagement"


@dataclass
class Saved:
    """systems: predictions by the name of who made them, the first is the default. customer_ids_Q as the source has
    them; time_Q microseconds UTC; cost_A of each action; facts: numbers and words about how it was made. step_reward_Q:
    rewards up to the customer's next decision, None where they cannot be told apart; action_AY: features of the
    actions, None in runs from before they were kept."""

    log: Log
    fold_Q: np.ndarray
    features_QX: np.ndarray
    feature_names: tuple[str, ...]
    time_Q: np.ndarray
    customer_ids_Q: np.ndarray
    cost_A: np.ndarray
    systems: dict[str, Predictions]
    facts: dict[str, object]
    step_reward_Q: np.ndarray | None = None
    action_AY: np.ndarray | None = None

    def experiment(self, system: str | None = None) -> Experiment:
        """Ready for policies, with the predictions of one system. Raises InputError for a name that is not there."""
        name = next(iter(self.systems)) if system is None else system
        if name not in self.systems:
            raise InputError(f"The run has no predictions of {name!r}; it has {', '.join(self.systems)}.")
        return Experiment(self.log, self.fold_Q, self.features_QX, self.systems[name])

    def save(self, run_folder: Path) -> None:
        folder = run_folder / FOLDER
        folder.mkdir(parents=True, exist_ok=True)
        further = {"step_reward_Q": self.step_reward_Q, "action_AY": self.action_AY}
        kept: dict[str, Any] = {name: array for name, array in further.items() if array is not None}
        np.savez_compressed(
            folder / "decisions.npz",
            action_Q=self.log.action_Q,
            reward_Q=self.log.reward_Q,
            logging_QA=self.log.logging_QA,
            customer_Q=self.log.customer_Q,
            eligible_QA=self.log.eligible_QA,
            fold_Q=self.fold_Q,
            features_QX=self.features_QX.astype(np.float32),
            time_Q=self.time_Q,
            cost_A=self.cost_A,
            ids=np.asarray(self.customer_ids_Q).astype(str),
            **kept,
        )
        for name, predictions in self.systems.items():
            np.savez_compressed(
                folder / f"predictions_{name}.npz",
                members_MQA=predictions.members_MQA.astype(np.float32),
                inner_KQA=predictions.inner_KQA.astype(np.float32),
                kept_K2=predictions.kept_K2,
            )
        words = {
            "actions": list(self.log.actions),
            "features": list(self.feature_names),
            "systems": list(self.systems),
            "facts": self.facts,
        }
        (folder / "engagement.json").write_text(json.dumps(words, indent=1, default=str), encoding="utf-8")

    @classmethod
    def load(cls, run_folder: Path) -> Saved:
        """Raises InputError where the run is not one of ``objective=engagement``."""
        folder = run_folder / FOLDER
        path = folder / "engagement.json"
        if not path.exists():
            raise InputError(
                f"{run_folder} holds no decisions to judge a policy by. Train with objective=engagement on data "
                f"that have "
                "decisions, then evaluate that run."
            )
        words = json.loads(path.read_text(encoding="utf-8"))
        with np.load(folder / "decisions.npz", allow_pickle=False) as stored:
            arrays = dict(stored)
        systems = {}
        for name in words["systems"]:
            with np.load(folder / f"predictions_{name}.npz", allow_pickle=False) as stored:
                systems[name] = Predictions(
                    stored["members_MQA"].astype(np.float64), stored["inner_KQA"].astype(np.float64), stored["kept_K2"]
                )
        log = Log(
            tuple(words["actions"]),
            arrays["action_Q"],
            arrays["reward_Q"],
            arrays["logging_QA"],
            arrays["customer_Q"],
            arrays["eligible_QA"],
        )
        return cls(
            log,
            arrays["fold_Q"],
            arrays["features_QX"].astype(np.float64),
            tuple(words["features"]),
            arrays["time_Q"],
            arrays["ids"],
            arrays["cost_A"],
            systems,
            words["facts"],
            arrays.get("step_reward_Q"),
            arrays.get("action_AY"),
        )


def seed_folder(run_folder: Path, seed: int) -> Path:
    """Where a run of several seeds keeps the decisions of one beyond the first."""
    return run_folder / "seeds" / str(seed)


def load_seeds(run_folder: Path) -> list[Saved]:
    """Of every seed of a run, the first one first. Raises InputError as :meth:`Saved.load`."""
    others = sorted((run_folder / "seeds").glob(f"*/{FOLDER}"), key=lambda folder: int(folder.parent.name))
    return [Saved.load(run_folder), *(Saved.load(folder.parent) for folder in others)]


def has_decisions(run_folder: Path) -> bool:
    """Whether a run folder is one of ``objective=engagement``."""
    return (run_folder / FOLDER / "engagement.json").exists()
