"""How close each system of a backtest on the world ``spenders`` comes to the best possible predictor.

    python experiments/0007-known-truth/judge.py DIR/world_0 DIR/world_1 ...

Each folder is one backtest of one world. Prints a row per world, target and system; seeds of the model are kept apart.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
import yaml

from constellation.journeys.windows import parse_cutoff
from constellation.worlds.spenders import SpendersWorld

FIGURES = ("best_correlation", "correlation", "share_of_best", "slope", "total_over_best", "coverage_90")


def judge(folder: Path) -> list[dict[str, object]]:
    """Rows of every system, seed, horizon and target of one backtest."""
    config = yaml.safe_load((folder / "config.yaml").read_text())
    arguments = config["data"]["source"]["arguments"]
    truth = SpendersWorld().simulate(arguments["num_customers"], arguments["seed"]).truth
    rows: list[dict[str, object]] = []
    for cell in sorted(folder.glob("cells/*/*/seed_*/*d")):
        origin, system, seed, horizon = cell.parts[-4:]
        cutoff = parse_cutoff(origin, config["data"]["schema"]["timezone"])
        known = truth.expected(cutoff, int(horizon[:-1]))
        figures = json.loads((cell / "metrics.json").read_text())
        for kind in ("value", "purchases"):
            answers = cell / f"{kind}_{horizon}.parquet"
            if not answers.exists():
                continue
            # Journeys are numbered in the order of customers, and customers of this world from 1.
            table = (
                pl.read_parquet(answers).with_columns(customer_id=pl.col("journey") + 1).join(known, on="customer_id")
            )
            said, best, hidden = (
                table[name].to_numpy().astype(float)
                for name in ("expected", f"{kind}_from_history", f"{kind}_expected")
            )
            rows.append(
                {"world": arguments["seed"], "system": system, "seed": int(seed[5:]), "target": f"{kind}_{horizon}"}
                | dict(zip(FIGURES, _figures(said, best, hidden), strict=False))
                | {"coverage_90": figures.get(f"backtest/{kind}_{horizon}/{system}/coverage_90")}
            )
    return rows


def _figures(said_Q: np.ndarray, best_Q: np.ndarray, hidden_Q: np.ndarray) -> tuple[float, ...]:
    """Correlations with the expected value given the hidden state, and the best predictor regressed on the said."""
    best_correlation = float(np.corrcoef(best_Q, hidden_Q)[0, 1])
    if said_Q.std() == 0:
        return best_correlation, np.nan, np.nan, np.nan, said_Q.sum() / best_Q.sum()
    correlation = float(np.corrcoef(said_Q, hidden_Q)[0, 1])
    slope = float(np.cov(said_Q, best_Q)[0, 1] / said_Q.var(ddof=1))
    return best_correlation, correlation, correlation / best_correlation, slope, float(said_Q.sum() / best_Q.sum())


def main() -> None:
    table = pd.DataFrame([row for folder in sys.argv[1:] for row in judge(Path(folder))])
    print(table.to_csv(index=False, float_format="%.5g"), end="")


if __name__ == "__main__":
    main()
