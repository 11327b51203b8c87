"""Preparing an event log: events per second and peak memory of Constellation, polars by hand, and pandas.

    python benchmarks/prepare.py                     # the same as: constellation benchmark prepare
    python benchmarks/prepare.py 100000 1000000

Each system runs in a fresh process on the same simulated Parquet file and must leave flat arrays, sorted by customer
and time, on disk. Only Constellation validates, orders ties, sums money, and fingerprints what it wrote. What is
measured is in ``constellation.commands.benchmarks.prepare``.
"""

from __future__ import annotations

import sys

from constellation.commands.benchmarks.prepare import benchmark_prepare, print_rows

if __name__ == "__main__":
    sizes = [int(float(word)) for word in sys.argv[1:]] or [100_000, 1_000_000, 10_000_000]
    print_rows(benchmark_prepare(sizes))
