"""Where a study lives, so that it can be taken up again and shared."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from constellation.errors import InputError

if TYPE_CHECKING:
    import optuna

STORAGE = "CONSTELLATION_STORAGE"
"""Environment variable with the address of the study's database; its password then stands on no command line."""

HEARTBEAT_SECONDS = 60
"""A worker that has not been heard of for twice as long is dead, and its trial is marked as failed."""


def storage_url(storage: str | None, folder: Path) -> str:
    """The address asked for, else that of the environment, else a SQLite file in the run's folder."""
    url = storage or os.environ.get(STORAGE) or f"sqlite:///{folder / 'study.db'}"
    if "://" not in url:
        raise InputError(
            f"storage is {url!r}, but the address of a database was expected, such as sqlite:///study.db or "
            "postgresql://user@host/name."
        )
    return url


def open_study(
    url: str, name: str, directions: Sequence[Literal["minimize", "maximize"]], sampler: Any, pruner: Any
) -> optuna.Study:
    """The study of this name, made when absent. Raises InputError where it cannot be reached or has other goals."""
    import optuna
    from sqlalchemy.exc import SQLAlchemyError

    optuna.logging.set_verbosity(optuna.logging.ERROR)  # it would show the traceback of an input error
    # Several workers may write one SQLite file: each waits for the other.
    engine = {"connect_args": {"timeout": 60}} if url.startswith("sqlite") else {"pool_pre_ping": True}
    try:
        storage = optuna.storages.RDBStorage(
            url, engine_kwargs=engine, heartbeat_interval=HEARTBEAT_SECONDS, grace_period=2 * HEARTBEAT_SECONDS
        )
        study = optuna.create_study(
            storage=storage,
            study_name=name,
            directions=list(directions),
            sampler=sampler,
            pruner=pruner,
            load_if_exists=True,
        )
    except (SQLAlchemyError, ImportError) as error:
        shown = url.rpartition("@")[2]
        raise InputError(
            f"The study's database at {shown} cannot be used: {str(error).splitlines()[0]} "
            "For PostgreSQL install constellation[postgres]; a SQLite folder must exist."
        ) from error
    found = [direction.name.lower() for direction in study.directions]
    if found != list(directions):
        raise InputError(
            f"The study {name!r} has the directions {', '.join(found)}, but these metrics need "
            f"{', '.join(directions)}. Choose another study=NAME, or the metrics it was begun with."
        )
    return study


def check_goal(study: optuna.Study, metrics: Sequence[str], settings: str) -> None:
    """Raises InputError where a study was begun for other metrics, or on another data set, split or seed."""
    for name, mine in (("metrics", ", ".join(metrics)), ("settings", settings)):
        theirs = study.user_attrs.get(name)
        if theirs is None:
            study.set_user_attr(name, mine)
        elif theirs != mine:
            raise InputError(
                f"The study {study.study_name!r} was begun with other {name}: {theirs} then, {mine} now. "
                "Choose another study=NAME."
            )
