"""Compose, build, open the run, call the command: what happens once the words are understood."""

from __future__ import annotations

import functools
import importlib
import inspect
import json
import logging
import os
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from types import FrameType
from typing import Any

from constellation.cli.building import build
from constellation.cli.composing import resolved
from constellation.cli.diagnosing import compose
from constellation.errors import InputError
from constellation.manual import choices_of

RUN_KEYS = ("output", "overwrite", "debug", "tracking")
"""Configuration keys that this file consumes; all others are arguments of the command."""

ARGUMENT_OF_KEY = {"run": "trained"}
"""A command's first parameter is the run it is, so the run it reads has another name in Python."""

DESCRIBED = ("encoder", "readout", "objective")
"""Parts that need what only the data know, and that a bundle carries as JSON: commands get their descriptions."""


HANDED = "build"
"""A command with this parameter composes variants of its own configuration: see :func:`variant`."""


def execute(command: str, overrides: Sequence[str]) -> None:
    """Compose, build, open the run, call the command."""
    from omegaconf import OmegaConf

    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))  # a user's own modules; last, so that they hide nothing that is installed

    composed = compose(command, overrides)
    missing = sorted(OmegaConf.missing_keys(composed.config))
    if missing:
        raise InputError(f"{command} needs {missing[0]}=... See `constellation {command} --help`.")

    from constellation.tracking import Run, Tracking, quiet_libraries, resolve_run

    quiet_libraries()
    tracking = build(resolved(composed).get("tracking"), "tracking")
    where = tracking if isinstance(tracking, Tracking) else None
    resumed = None
    if composed.config.get("resume") is not None:
        resumed = resolve_run(str(composed.config.resume), tracking=where, finished=False, command=command)
        overrides = [*_overrides_of(resumed), *overrides]  # the run goes on as it was started
        composed = compose(command, overrides)
        if composed.config.output is not None and Path(composed.config.output).absolute() != resumed:
            raise InputError(f"resume goes on in the folder of that run, {resumed}. Leave output=... out.")
    config = resolved(composed)

    function = getattr(importlib.import_module(f"constellation.commands.{command}"), command)
    parameters = inspect.signature(function).parameters
    own = {name: value for name, value in config.items() if name not in RUN_KEYS or name in parameters}
    own |= {name: None for name in parameters if name not in own and choices_of(name)}  # a group with nothing chosen
    own = {ARGUMENT_OF_KEY.get(name, name): value for name, value in own.items()}
    stray = sorted(set(own) - set(parameters) | ({HANDED} & set(own)))
    if stray:
        raise InputError(f"{command} has no key {stray[0]!r}. See `constellation {command} --help`.")
    if resumed is not None:
        own["resume"] = resumed
    if own.get("trained") is not None:
        own["trained"] = _bundle(str(own["trained"])) or resolve_run(str(own["trained"]), tracking=where)
        if "data" in own and own["data"] is None and own.get("events") is None:
            own["data"] = config["data"] = _data_of(own["trained"])
    arguments = {name: value if name in DESCRIBED else build(value, name) for name, value in own.items()}
    if HANDED in parameters:
        arguments[HANDED] = functools.partial(variant, command, tuple(overrides))
    with _listening(debug=bool(config.get("debug"))):
        if "run" not in parameters:  # such a command looks at what is there, and leaves nothing behind
            function(**arguments)
            return
        opened = {
            "config": config,
            "tracking": tracking,
            "overwrite": config["overwrite"],
            "overrides": list(overrides),
        }
        with Run.start(resumed or _output(command, config), command, **opened, resume=resumed is not None) as run:
            for group, choice in composed.choices.items():
                run.set_tag(group, choice if isinstance(choice, str) else ", ".join(choice or ["none"]))
            function(run, **arguments)
        print(f"Written to {_relative(run.folder)}")


def variant(command: str, overrides: Sequence[str], more: Sequence[str], names: Sequence[str]) -> dict[str, Any]:
    """Arguments ``names`` of a command as they would be with ``more`` overrides behind those of its command line.

    Raises InputError where the overrides name what is not there. A group that is not chosen is None.
    """
    config = resolved(compose(command, [*_without_groups_of(more, overrides), *more]))
    return {name: config.get(name) if name in DESCRIBED else build(config.get(name), name) for name in names}


def _without_groups_of(more: Sequence[str], overrides: Sequence[str]) -> list[str]:
    """Overrides less the choices of groups that are chosen anew: Hydra takes one choice for each group."""
    chosen = {word.partition("=")[0] for word in more}
    return [word for word in overrides if word.partition("=")[0] not in chosen]


def _overrides_of(folder: Path) -> list[str]:
    """What the run was started with on its command line."""
    path = folder / "run.json"
    if not path.is_file():
        raise InputError(f"{folder} cannot be resumed: it has no run.json. Name the folder of a run that began here.")
    words = json.loads(path.read_text(encoding="utf-8"))["overrides"]
    return [word for word in words if word.partition("=")[0] not in ("resume", "output", "overwrite", "debug")]


def _bundle(where: str) -> Path | None:
    """The folder of a bundle that is asked about without its run, else None."""
    folder = Path(where).expanduser()
    if not folder.is_dir() or (folder / "run.json").is_file():
        return None
    from constellation.bundle.files import CONTENT

    return folder.absolute() if (folder / CONTENT).is_file() else None


def _data_of(folder: Path) -> Any:
    """The data set that a run was trained on, as configured there."""
    from omegaconf import OmegaConf

    path = folder / "config.yaml"
    config = OmegaConf.to_container(OmegaConf.load(path)) if path.is_file() else None
    data = config.get("data") if isinstance(config, dict) else None
    if data is None:
        raise InputError(f"{folder} does not say which data set it was trained on. Name one with data=...")
    return data


def _output(command: str, config: Mapping[str, Any]) -> Path:
    if config.get("output") is not None:
        return Path(config["output"])
    inherited = os.environ.get("CONSTELLATION_OUTPUT")
    if inherited and int(os.environ.get("RANK") or os.environ.get("LOCAL_RANK") or 0) > 0:
        return Path(inherited)
    stem = Path("outputs") / command / f"{datetime.now():%Y-%m-%d_%H-%M-%S}"
    for suffix in ("", *(f"_{again}" for again in range(2, 100))):
        folder = stem.with_name(stem.name + suffix)
        try:
            folder.mkdir(parents=True)  # taken at once, so that two commands of one second get two folders
        except FileExistsError:
            continue
        os.environ["CONSTELLATION_OUTPUT"] = str(folder.absolute())  # processes that Lightning starts write beside us
        return folder
    raise InputError(f"{stem} exists a hundred times over; choose a folder with output=DIR.")


@contextmanager
def _listening(*, debug: bool) -> Iterator[None]:
    """Our warnings go to the terminal, Python's to run.log only; SIGTERM ends a run as Ctrl-C does."""
    handler = logging.StreamHandler()
    handler.setLevel(logging.INFO if debug else logging.WARNING)
    handler.setFormatter(logging.Formatter("%(levelname)s: %(message)s"))
    logging.getLogger("constellation").addHandler(handler)
    logging.captureWarnings(not debug)

    def terminate(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
        logging.captureWarnings(False)
        logging.getLogger("constellation").removeHandler(handler)


def _relative(path: Path) -> Path:
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
