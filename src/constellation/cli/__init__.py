"""The door: `constellation <command> [group=choice] [key=value] ...`.

Composes ``configs/<command>.yaml`` with Hydra, builds the objects it describes, opens the run and calls the command,
which is a plain function. Only this package imports Hydra or OmegaConf, and nothing heavy is imported before the
configuration has been found good.

Exit codes: 0 done, 1 a defect (with traceback), 2 an input error (one paragraph), 130 Ctrl-C or SIGTERM.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence

from constellation import __version__
from constellation.cli.building import build
from constellation.cli.composing import to_yaml
from constellation.cli.diagnosing import compose, with_positionals
from constellation.cli.executing import ARGUMENT_OF_KEY, HANDED, RUN_KEYS, execute
from constellation.errors import InputError
from constellation.manual import command_help, commands, did_you_mean, general_help

__all__ = ["ARGUMENT_OF_KEY", "HANDED", "RUN_KEYS", "build", "compose", "execute", "main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # progress must pass through pipes line by line, whatever the locale
            stream.reconfigure(line_buffering=True, errors="replace")
    if int(os.environ.get("WORLD_SIZE", 1)) > 1 and int(os.environ.get("RANK", 0)) > 0:  # torchrun
        from constellation.training.ranks import serve

        return serve()  # the first rank alone does what was asked; the others help it train
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
    overrides = with_positionals(command, [word for word in words if word not in flags])
    if flags & {"-h", "--help"}:
        composed = compose(command, overrides)
        print(command_help(command, composed.choices, to_yaml(composed.config)))
    elif "--cfg" in flags:
        print(to_yaml(compose(command, overrides).config), end="")
    else:
        execute(command, overrides)
