"""The door: `constellation <command> [group=choice] [key=value] ...`.

Composes ``configs/<command>.yaml`` with Hydra, builds the objects it describes, opens the run and calls the command,
which is a plain function. This is the only file that imports Hydra or OmegaConf, and nothing heavy is imported
before the configuration has been found good.

Exit codes: 0 done, 1 a defect (with traceback), 2 an input error (one paragraph), 130 Ctrl-C or SIGTERM.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import json
import logging
import os
import signal
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import FrameType
from typing import Any

from constellation import __version__
from constellation.errors import InputError
from constellation.manual import choices_of, command_help, commands, did_you_mean, general_help
from constellation.paths import config_directories

RUN_KEYS = ("output", "overwrite", "debug", "tracking")
"""Configuration keys that this file consumes; all others are arguments of the command."""

ARGUMENT_OF_KEY = {"run": "trained"}
"""A command's first parameter is the run it is, so the run it reads has another name in Python."""

DESCRIBED = ("encoder", "readout", "objective")
"""Parts that need what only the data know, and that a bundle carries as JSON: commands get their descriptions."""


@dataclass
class Composed:
    """A composed configuration and the choice made in each group."""

    config: Any  # omegaconf.DictConfig
    choices: dict[str, Any]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # progress must pass through pipes line by line, whatever the locale
            stream.reconfigure(line_buffering=True, errors="replace")
    debug = any(word.replace(" ", "").lower() in ("debug=true", "debug=1") for word in arguments)
    try:
        _dispatch(arguments)
        return 0
    except InputError as error:
        return _explain(arguments, str(error), debug, 2)
    except FileNotFoundError as error:
        if error.filename is None:
            traceback.print_exc()
            return 1
        return _explain(arguments, f"There is no file or folder {error.filename}.", debug, 2)
    except KeyboardInterrupt:
        return _explain(arguments, "stopped", debug, 130)
    except BrokenPipeError:  # the reader of our output, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception:
        traceback.print_exc()
        return 1


def _explain(arguments: list[str], message: str, debug: bool, code: int) -> int:
    if debug:
        traceback.print_exc()
    where = f"constellation {arguments[0]}" if arguments and arguments[0] in commands() else "constellation"
    print(f"{where}: {' '.join(message.split())}", file=sys.stderr)
    return code


def _dispatch(arguments: list[str]) -> None:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(general_help())
        return
    if arguments[0] == "--version":
        print(f"constellation {__version__}")
        return
    command, words = arguments[0], arguments[1:]
    if command not in commands():
        raise InputError(
            f"There is no command {command!r}. {did_you_mean(command, commands())}See `constellation --help`."
        )
    flags = {word for word in words if word.startswith("-")}
    unknown = flags - {"-h", "--help", "--cfg"}
    if unknown:
        raise InputError(
            f"Unknown option {min(unknown)}. Options are --help and --cfg; settings are written key=value, "
            "without dashes."
        )
    overrides = _with_positionals(command, [word for word in words if word not in flags])
    if flags & {"-h", "--help"}:
        composed = compose(command, overrides)
        print(command_help(command, composed.choices, to_yaml(composed.config)))
    elif "--cfg" in flags:
        print(to_yaml(compose(command, overrides).config), end="")
    else:
        execute(command, overrides)


# ---------------------------------------------------------------- composing


def compose(command: str, overrides: Sequence[str] = ()) -> Composed:
    """The configuration of a command. Raises InputError for an unknown key or choice, or a value of a wrong kind."""
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    try:
        composed = _compose(command, overrides)
        _check_kinds(command, overrides, composed)
    except YAMLError as error:
        raise InputError(
            f"A configuration file cannot be read as YAML: {error}. Quote text that has a colon."
        ) from error
    except (HydraException, OmegaConfBaseException) as error:
        raise InputError(_diagnosis(command, overrides, error)) from error
    return composed


def _compose(command: str, overrides: Sequence[str]) -> Composed:
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from omegaconf import open_dict

    folders = [str(folder.absolute()) for folder in config_directories()]
    # Hydra takes the command's own YAML from one folder only; the others add choices of groups.
    first = next((folder for folder in folders if (Path(folder) / f"{command}.yaml").is_file()), folders[0])
    others = [folder for folder in folders if folder != first]
    search = ",".join(_quoted(f"file://{folder}") for folder in others)
    with initialize_config_dir(config_dir=first, version_base="1.3"):
        every = [*overrides, f"hydra.searchpath=[{search}]"]
        config = hydra_compose(config_name=command, overrides=every, return_hydra_config=True)
    # Hydra tells the choice of each group, but leaves out groups of which several or none are chosen by default.
    choices = _default_choices(command) | {
        override.key_or_group: override.value()
        for override in _parsed(overrides)
        if choices_of(override.key_or_group) and not override.is_delete()
    }
    choices |= {group: choice for group, choice in config.hydra.runtime.choices.items() if "hydra" not in group}
    with open_dict(config):
        del config["hydra"]
    return Composed(config, choices)


def _default_choices(command: str) -> dict[str, Any]:
    """The groups in the defaults list of a command's YAML, with what is chosen there."""
    from omegaconf import OmegaConf

    for folder in config_directories():
        path = folder / f"{command}.yaml"
        if path.is_file():
            written = OmegaConf.to_container(OmegaConf.load(path))
            assert isinstance(written, dict)
            return {
                str(group).removeprefix("override "): choice
                for entry in written.get("defaults", [])
                if isinstance(entry, dict)
                for group, choice in entry.items()
            }
    return {}


def _check_kinds(command: str, overrides: Sequence[str], composed: Composed) -> None:
    """The default's kind is the expected kind: a number, a switch, a list, a mapping, or free where it is null."""
    from omegaconf import DictConfig, ListConfig, OmegaConf

    values = [override for override in _parsed(overrides) if _is_value(override, composed)]
    if not values:
        return
    chosen = [word for word, override in zip(overrides, _parsed(overrides), strict=True) if override not in values]
    defaults = _compose(command, chosen).config
    for override in values:
        key = override.key_or_group
        if key == "hydra" or key.startswith("hydra."):
            raise InputError(f"{key} cannot be set: folders and logs of runs are this program's own.")
        default, value = OmegaConf.select(defaults, key), OmegaConf.select(composed.config, key)
        if isinstance(default, bool):
            wanted = None if isinstance(value, bool) else "true or false"
        elif isinstance(default, int | float):
            wanted = "a number" if isinstance(value, str | bool | ListConfig | DictConfig) else None
        elif isinstance(default, ListConfig):
            wanted = None if isinstance(value, ListConfig) else f"a list, such as {key}=[{value}],"
        elif isinstance(default, DictConfig):
            wanted = None if isinstance(value, DictConfig) else f"a group of keys ({', '.join(map(str, default))})"
        else:
            wanted = None
        if wanted is not None and value is not None:
            raise InputError(f"{key} is {value!r}, but {wanted} was expected. Its default is {_plain(default)!r}.")


def _parsed(overrides: Sequence[str]) -> list[Any]:
    from hydra.core.override_parser.overrides_parser import OverridesParser

    return OverridesParser.create().parse_overrides(overrides=list(overrides))


def _is_value(override: Any, composed: Composed) -> bool:
    """Whether an override sets the value of a key that exists (and does not choose, add or delete)."""
    return override.key_or_group not in composed.choices and not override.is_add() and not override.is_delete()


def _diagnosis(command: str, overrides: Sequence[str], error: Exception) -> str:
    """Which override was wrong, and what comes nearest to it; else what Hydra said."""
    from hydra.errors import HydraException, OverrideParseException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    said = " ".join(str(error).split())
    if isinstance(error, OverrideParseException):
        return (
            f"{error.override!r} cannot be read as key=value. Quote a value that has spaces, commas, brackets or "
            "equals signs, twice over because of the shell: \"key='a, b'\"."
        )
    try:
        bare = _compose(command, [])
    except (HydraException, OmegaConfBaseException):
        return f"The configuration of {command} cannot be composed: {said}"
    groups = [override for override in _parsed(overrides) if override.key_or_group in bare.choices]
    for override in groups:
        names = override.value() if isinstance(override.value(), list) else [override.value()]
        known = choices_of(override.key_or_group)
        for name in names:
            if name is not None and name not in known:
                return (
                    f"{override.key_or_group}={name}: there is no such choice. {did_you_mean(str(name), known)}"
                    f"Choices: {', '.join(known)}. Your own goes in ./configs/{override.key_or_group}/{name}.yaml."
                )
    try:
        config = _compose(command, [override.input_line for override in groups]).config
    except (HydraException, OmegaConfBaseException):
        return said
    keys = [*_keys(OmegaConf.to_container(config)), *bare.choices]
    for override in _parsed(overrides):
        key = override.key_or_group
        if override.is_sweep_override():
            return f"{override.input_line} gives several values. A list is written {key}=[a,b]."
        if key not in keys and not override.is_add():
            return f"{command} has no key {key!r}. {did_you_mean(key, keys)}See `constellation {command} --help`."
    return said


def _keys(nested: Any, prefix: str = "") -> Iterator[str]:
    if isinstance(nested, dict):
        for name, value in nested.items():
            yield f"{prefix}{name}"
            yield from _keys(value, f"{prefix}{name}.")


def _plain(value: Any) -> Any:
    from omegaconf import OmegaConf

    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "\\'") + "'"


def _with_positionals(command: str, words: list[str]) -> list[str]:
    """Words without an equals sign are the `runs` of a command that takes several."""
    bare = [word for word in words if "=" not in word and not word.startswith("~")]
    if not bare:
        return words
    if "runs" not in compose(command).config:
        raise InputError(f"{bare[0]!r} is not key=value. See `constellation {command} --help`.")
    runs = ",".join(_quoted(word) for word in bare)
    return [word for word in words if word not in bare] + [f"runs=[{runs}]"]


# ---------------------------------------------------------------- executing


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
    tracking = build(_resolved(composed).get("tracking"), "tracking")
    where = tracking if isinstance(tracking, Tracking) else None
    resumed = None
    if composed.config.get("resume") is not None:
        resumed = resolve_run(str(composed.config.resume), tracking=where, finished=False)
        overrides = [*_overrides_of(resumed), *overrides]  # the run goes on as it was started
        composed = compose(command, overrides)
        if composed.config.output is not None and Path(composed.config.output).absolute() != resumed:
            raise InputError(f"resume goes on in the folder of that run, {resumed}. Leave output=... out.")
    config = _resolved(composed)

    function = getattr(importlib.import_module(f"constellation.commands.{command}"), command)
    parameters = inspect.signature(function).parameters
    own = {name: value for name, value in config.items() if name not in RUN_KEYS or name in parameters}
    own |= {name: None for name in parameters if name not in own and choices_of(name)}  # a group with nothing chosen
    own = {ARGUMENT_OF_KEY.get(name, name): value for name, value in own.items()}
    stray = sorted(set(own) - set(parameters))
    if stray:
        raise InputError(f"{command} has no key {stray[0]!r}. See `constellation {command} --help`.")
    if resumed is not None:
        own["resume"] = resumed
    if own.get("trained") is not None:
        own["trained"] = resolve_run(str(own["trained"]), tracking=where)
        if "data" in own and own["data"] is None:
            own["data"] = config["data"] = _data_of(own["trained"])
    arguments = {name: value if name in DESCRIBED else build(value, name) for name, value in own.items()}
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


def _resolved(composed: Composed) -> dict[str, Any]:
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        plain = OmegaConf.to_container(composed.config, resolve=True)
    except OmegaConfBaseException as error:
        raise InputError(f"The configuration cannot be resolved: {error}") from error
    assert isinstance(plain, dict)
    return {str(name): value for name, value in plain.items()}


def _overrides_of(folder: Path) -> list[str]:
    """What the run was started with on its command line."""
    path = folder / "run.json"
    if not path.is_file():
        raise InputError(f"{folder} cannot be resumed: it has no run.json. Name the folder of a run that began here.")
    words = json.loads(path.read_text(encoding="utf-8"))["overrides"]
    return [word for word in words if word.partition("=")[0] not in ("resume", "output", "overwrite", "debug")]


def _data_of(folder: Path) -> Any:
    """The data set that a run was trained on, as configured there."""
    from omegaconf import OmegaConf

    path = folder / "config.yaml"
    config = OmegaConf.to_container(OmegaConf.load(path)) if path.is_file() else None
    data = config.get("data") if isinstance(config, dict) else None
    if data is None:
        raise InputError(f"{folder} does not say which data set it was trained on. Name one with data=...")
    return data


def build(value: Any, key: str) -> Any:
    """Objects from plain configuration. Raises InputError when a constructor does not take what it was given."""
    from hydra.errors import InstantiationException
    from hydra.utils import instantiate

    if not isinstance(value, dict | list):
        return value
    try:
        built = instantiate(value, _convert_="all")
    except InstantiationException as error:
        cause = error.__cause__
        if isinstance(cause, InputError | FileNotFoundError):
            raise cause from error
        if cause is None or isinstance(cause, TypeError | ImportError):
            raise InputError(f"{key} cannot be built: {cause or str(error)}") from error
        raise
    for name, part in _partials(built, key):
        _check_keywords(name, part)
    return built


def _partials(built: Any, key: str) -> Iterator[tuple[str, functools.partial[Any]]]:
    if isinstance(built, functools.partial):
        yield key, built
    elif isinstance(built, dict):
        for name, value in built.items():
            yield from _partials(value, f"{key}.{name}")


def _check_keywords(key: str, part: functools.partial[Any]) -> None:
    # A partial would only complain when it is called, minutes later.
    parameters = inspect.signature(part.func).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return
    for name in part.keywords:
        if name not in parameters:
            takes = ", ".join(parameters)
            raise InputError(f"{key} has no key {name!r}. {did_you_mean(name, parameters)}It takes {takes}.")


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


def to_yaml(config: Any) -> str:
    """YAML with interpolations resolved where they can be."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        return OmegaConf.to_yaml(config, resolve=True)
    except OmegaConfBaseException:
        return OmegaConf.to_yaml(config)


if __name__ == "__main__":
    sys.exit(main())
