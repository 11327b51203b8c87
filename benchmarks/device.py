"""Our training step on one device: events per second, utilisation, and where its time goes.

    python benchmarks/device.py training.precision=bf16-mixed warmup_steps=10 num_steps=30
    python benchmarks/device.py training.precision=bf16-mixed training.compile=true widths=[1024]
    python benchmarks/device.py training.accelerator=cpu training.products=float32 widths=[16,64]

The same as ``constellation benchmark device``. What is measured is in ``constellation.commands.benchmarks.device``;
docs/benchmarks.md says what the columns mean.
"""

from __future__ import annotations

import sys

from constellation.cli import main

if __name__ == "__main__":
    sys.exit(main(["benchmark", "what=device", *sys.argv[1:]]))
