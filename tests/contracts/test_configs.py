"""Every YAML composes, and its keys are the parameters of what it builds: the signature is the schema."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from constellation import cli, manual

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "configs"
FILES = sorted(CONFIGS.rglob("*.yaml"))
CHOICES = [path for path in FILES if path.parent != CONFIGS]

GIVEN = {"encoder", "readout", "objective", "optimizer"}
"""Groups whose objects get further arguments, positional or by name, from the command."""

MULTIPLE = {"objective", "baseline", "outcome", "policy"}
"""Groups of which several are chosen; each file says where it goes by its first line."""


@cache
def read(path: Path) -> Any:
    # As Hydra reads it: plain YAML 1.1 takes 2e-3 for text.
    return OmegaConf.to_container(OmegaConf.load(path))


def name(path: Path) -> str:
    return str(path.relative_to(CONFIGS).with_suffix(""))


@cache
def command_with(group: str) -> str | None:
    """A command that has this group in its defaults."""
    for command in manual.commands():
        document = read(CONFIGS / f"{command}.yaml")
        for entry in document.get("defaults", []):
            if isinstance(entry, dict) and group in entry:
                return command
    return None


def blocks(tree: Any) -> Iterator[dict[str, Any]]:
    """Every mapping with a ``_target_``, at any depth."""
    if isinstance(tree, dict):
        if "_target_" in tree:
            yield tree
        for value in tree.values():
            yield from blocks(value)
    elif isinstance(tree, list):
        for value in tree:
            yield from blocks(value)


def located(target: str) -> Any:
    module, _, attribute = target.rpartition(".")
    return getattr(importlib.import_module(module), attribute)


@pytest.mark.parametrize("command", sorted(manual.commands()))
def test_a_command_composes_and_its_keys_are_its_parameters(command: str) -> None:
    composed = cli.compose(command)
    function = getattr(importlib.import_module(f"constellation.commands.{command}"), command)
    parameters = dict(inspect.signature(function).parameters)
    has_run = parameters.pop("run", None) is not None
    parameters.pop(cli.HANDED, None)
    keys = {str(key) for key in composed.config} | {group for group in composed.choices if group != "experiment"}
    own = {cli.ARGUMENT_OF_KEY.get(key, key) for key in keys if key not in cli.RUN_KEYS or key in parameters}
    assert own == set(parameters)
    if has_run:
        assert set(cli.RUN_KEYS) <= keys
    assert "debug" in composed.config


@pytest.mark.parametrize("path", CHOICES, ids=name)
def test_a_choice_composes_into_a_command(path: Path) -> None:
    group = path.parent.relative_to(CONFIGS).as_posix()
    command = command_with(group)
    assert command is not None, f"no command has the group {group}; who reads {path.name}?"
    alone = group not in MULTIPLE or group == "objective"  # objectives of one kind go to one place; others together
    names = [path.stem] if alone else sorted(each.stem for each in CHOICES if each.parent == path.parent)
    choice = f"[{','.join(names)}]" if group in MULTIPLE else path.stem
    found = composed_config(command, f"{group}={choice}").get(group)
    if group in MULTIPLE:
        assert len(found) == len(names)
        found = found[path.read_text(encoding="utf-8").splitlines()[0].rpartition(".")[2]]
    if group != "experiment":
        assert OmegaConf.to_container(found).keys() == read(path).keys()


@cache
def composed_config(command: str, chosen: str) -> Any:
    return cli.compose(command, [chosen]).config


@pytest.mark.parametrize("path", CHOICES, ids=name)
def test_keys_are_constructor_parameters(path: Path) -> None:
    group = path.parent.relative_to(CONFIGS).as_posix()
    document = read(path)
    if group == "experiment":
        pytest.skip("experiments choose and override; they build nothing of their own")
    found = list(blocks(document))
    assert found, f"{path.name} builds nothing: it has no _target_"
    for block in found:
        parameters = inspect.signature(located(block["_target_"])).parameters
        keys = {key for key in block if not key.startswith("_")}
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
            assert keys <= set(parameters), f"{block['_target_']} has no {sorted(keys - set(parameters))}"
        late = block.get("_partial_") or (group in GIVEN and block is document)
        for parameter in parameters.values():
            required = parameter.default is parameter.empty and parameter.kind is not parameter.VAR_KEYWORD
            positional = parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
            if required and parameter.kind is not parameter.VAR_POSITIONAL and not (late and positional):
                assert parameter.name in keys, f"{path.name} lacks {parameter.name} of {block['_target_']}"


@pytest.mark.parametrize("path", CHOICES, ids=name)
def test_values_have_the_kinds_of_the_defaults(path: Path) -> None:
    """A number stays a number, and a switch a switch."""
    for block in blocks(read(path)):
        parameters = inspect.signature(located(block["_target_"])).parameters
        for key, value in block.items():
            if key.startswith("_") or key not in parameters or isinstance(value, dict):
                continue
            default = parameters[key].default
            if isinstance(default, bool):
                assert isinstance(value, bool), (path.name, key)
            elif isinstance(default, int | float) and value is not None:
                assert isinstance(value, int | float), (path.name, key)


@pytest.mark.parametrize("path", [path for path in CHOICES if path.parent.name in MULTIPLE], ids=name)
def test_a_file_of_which_several_are_chosen_says_where_it_goes(path: Path) -> None:
    first = path.read_text(encoding="utf-8").splitlines()[0]
    assert first.startswith(f"# @package {path.parent.name}."), f"the first line of {path.name} is {first!r}"


@pytest.mark.parametrize("group", ["encoder", "objective", "baseline", "data", "readout"])
def test_groups_are_there_and_every_module_that_needs_one_has_a_yaml(group: str) -> None:
    assert list((CONFIGS / group).glob("*.yaml"))
    if group in ("encoder", "baseline"):
        targets = {block["_target_"] for path in (CONFIGS / group).glob("*.yaml") for block in blocks(read(path))}
        room = importlib.import_module(f"constellation.{group}s")
        folder = Path(str(room.__file__)).parent
        for module_path in folder.glob("[a-z]*.py"):
            if not defines_a_choice(module_path, group):
                continue
            module = f"constellation.{group}s.{module_path.stem}"
            assert any(target.startswith(f"{module}.") for target in targets), (
                f"{module} has no YAML in configs/{group}"
            )


def defines_a_choice(path: Path, group: str) -> bool:
    """Whether a module defines a concrete encoder or baseline: a class with ``name`` or ``forward(batch)``."""
    module = importlib.import_module(f"constellation.{group}s.{path.stem}")
    base_module, base_name = {"encoder": ("base", "Encoder"), "baseline": ("baseline", "Baseline")}[group]
    base = getattr(importlib.import_module(f"constellation.{group}s.{base_module}"), base_name)
    return any(
        isinstance(found, type)
        and issubclass(found, base)
        and found is not base
        and found.__module__ == module.__name__
        and not inspect.isabstract(found)
        and found.__name__.lower() == path.stem.replace("_", "")
        for found in vars(module).values()
    )
