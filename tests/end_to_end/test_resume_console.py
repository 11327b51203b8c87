"""`constellation train`, killed with SIGKILL again and again and resumed, leaves what the run in one go leaves."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from tests.end_to_end.console import SECONDS, console, console_environment
from tests.end_to_end.test_train import SMALL, folder

__all__ = ["folder"]

SETTINGS = [
    *SMALL,
    "baseline=[]",
    "tracking=none",
    "seeds=[0,1]",
    "training.checkpoint_every_steps=2",
]

ENCODERS = {
    "recurrent": ["encoder.dropout=0.2"],
    # Kernels of our own where this machine has them, with their own counters of dropout; else torch's in bfloat16.
    "fused": [
        "encoder=transformer",
        "encoder.width=32",
        "encoder.heads=2",
        "encoder.dropout=0.2",
        "training.products=fused",
    ],
}

CLOCKED = ("train/events_per_second", "train/waiting_share")


def phases(run: Path) -> dict[str, Any]:
    """Per seed and phase: the weights, and every loss and score, without what the clock said."""
    found: dict[str, Any] = {}
    for path in sorted((run / "checkpoints").glob("seed_*/*/done.json")):
        facts = json.loads(path.read_text())
        history = [{name: value for name, value in row.items() if name not in CLOCKED} for row in facts["history"]]
        weights = (path.parent / "weights.safetensors").read_bytes()
        found[str(path.parent.relative_to(run))] = (facts["num_steps"], facts["best_epoch"], history, weights)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("encoder", ENCODERS)
def test_killed_at_random_moments(folder: Path, encoder: str) -> None:
    one, another = f"whole_{encoder}", f"parts_{encoder}"

    def start(*words: str) -> subprocess.Popen[bytes]:
        with (folder / "killed.txt").open("ab") as file:
            return subprocess.Popen(
                console("train", *words), cwd=folder, env=console_environment(), stdout=file, stderr=subprocess.STDOUT
            )

    began = time.monotonic()
    assert start(*SETTINGS, *ENCODERS[encoder], f"output={one}").wait(timeout=SECONDS) == 0
    seconds = time.monotonic() - began
    moments, kills = random.Random(3), 0
    process = start(*SETTINGS, *ENCODERS[encoder], f"output={another}")
    while not (folder / another / "run.json").is_file():
        assert process.poll() is None, (folder / "killed.txt").read_text()[-3000:]
        time.sleep(0.05)
    while True:
        try:
            code = process.wait(timeout=moments.uniform(0.3, 0.9) * seconds)
            break
        except subprocess.TimeoutExpired:
            # A person stops it first, then the power fails.
            os.kill(process.pid, signal.SIGKILL if kills else signal.SIGINT)
            process.wait()
            kills += 1
        # Every resumption imports everything anew, so the later ones are given more time.
        seconds *= 1.1
        process = start(f"resume={another}")
    assert code == 0, (folder / "killed.txt").read_text()[-3000:]
    assert kills >= 1
    whole, parts = phases(folder / one), phases(folder / another)
    assert len(whole) == 4 and whole == parts
    for seed in (0, 1):
        bundles = [folder / run / f"seed_{seed}" / "bundle" / "weights.safetensors" for run in (one, another)]
        assert bundles[0].read_bytes() == bundles[1].read_bytes()
    figures = [json.loads((folder / run / "metrics.json").read_text()) for run in (one, another)]
    judged = [{name: value for name, value in each.items() if name.startswith(("val/", "test"))} for each in figures]
    assert judged[0] == judged[1] and len(judged[0]) > 50
