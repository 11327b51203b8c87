"""What `--help` says, read from docstrings and YAML files without importing the commands."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from constellation.paths import config_directories

COMMANDS = Path(__file__).parent / "commands"


@functools.cache
def commands() -> dict[str, str]:
    """Every command and its module's docstring, read without importing it."""
    found = {}
    for path in sorted(COMMANDS.glob("[a-z]*.py")):
        found[path.stem] = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return found


def general_help() -> str:
    width = max(map(len, commands()), default=0)
    lines = [f"  {name:<{width}}  {text.splitlines()[0] if text else ''}" for name, text in commands().items()]
    return "\n".join(
        [
            "Sequence models on customer journeys: value, and the next-best engagement.",
            "",
            "Usage: constellation <command> [group=choice] [key=value] ...",
            "",
            "Commands:",
            *lines,
            "",
            "constellation <command> --help shows its groups, choices, defaults and examples;",
            "constellation <command> ... --cfg shows the configuration it would run with.",
        ]
    )


def command_help(command: str, choices: Mapping[str, Any], settings: str) -> str:
    """Text of `constellation <command> --help`: what it does, groups with choices, defaults, examples.

    choices: what is chosen in each group; settings: the composed configuration as YAML.
    """
    lines = [f"Usage: constellation {command} [group=choice] [key=value] ...", "", commands()[command]]
    groups = {group: choice for group, choice in choices.items() if choices_of(group)}
    if groups:
        lines += ["", "Groups (group=choice; the one in force in brackets):"]
        width = max(map(len, groups))
        for group, choice in groups.items():
            chosen: list[str] = [choice] if isinstance(choice, str) else list(choice or [])
            names = [f"[{name}]" if name in chosen else name for name in choices_of(group)]
            lines.append(f"  {group:<{width}}  {' '.join(names)}")
    lines += ["", "Keys and defaults (key=value, nested with dots: a.b=1; ??? must be given):"]
    lines += [f"  {line}" for line in settings.splitlines()]
    examples = _examples(command)
    if examples:
        lines += ["", "Examples:", *(f"  {example}" for example in examples)]
    return "\n".join(lines)


def choices_of(group: str) -> list[str]:
    """Names of the choices in a group, from all folders of configurations."""
    return sorted({path.stem for folder in config_directories() for path in (folder / group).glob("*.yaml")})


def _examples(command: str) -> list[str]:
    """The opening comment lines of the command's YAML that are command lines."""
    for folder in config_directories():
        path = folder / f"{command}.yaml"
        if path.is_file():
            lines = path.read_text(encoding="utf-8").splitlines()
            return [line.removeprefix("# ") for line in lines if line.startswith("# constellation ")]
    return []


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`Did you mean ...? ` with the names nearest to a word, or nothing."""
    known = list(known)
    last = word.rsplit(".", 1)[-1]
    same_end = [key for key in known if key.rsplit(".", 1)[-1] == last][:3]
    near = same_end or get_close_matches(word, known, n=1, cutoff=0.5)
    near = near or [key for key in known if get_close_matches(last, [key.rsplit(".", 1)[-1]], cutoff=0.7)][:3]
    return f"Did you mean {' or '.join(near)}? " if near else ""
