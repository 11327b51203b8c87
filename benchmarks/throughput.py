"""Training throughput beside peers, on the same data, shape and threads.

    python benchmarks/peers/install.py                # once: the peers, each in an environment of its own
    python benchmarks/throughput.py                   # the same as: constellation benchmark throughput
    python benchmarks/throughput.py shapes=[short] peers=[replay,pmixer] num_threads=[1] num_repeats=5

What is measured is in ``constellation.commands.benchmarks.throughput``; docs/benchmarks.md says what the columns mean.
"""

from __future__ import annotations

import sys

from constellation.cli import main

if __name__ == "__main__":
    sys.exit(main(["benchmark", "what=throughput", *sys.argv[1:]]))
