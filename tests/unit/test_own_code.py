"""What a function source is made of decides whether its store is still good."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

from constellation.journeys.own_code import code_digest
from constellation.journeys.sources import FunctionSource


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A world in a package, a helper it loads late, a bystander, and a function in a file of its own."""
    package = tmp_path / "my_worlds"
    (package / "deep").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "deep" / "__init__.py").write_text("")
    (package / "world.py").write_text(
        "import json\nimport numpy\n\ndef draw(root):\n    from .deep import parts\n    return parts.RATE\n"
    )
    (package / "deep" / "parts.py").write_text("from my_worlds import shared\nRATE = shared.BASE + 1\n")
    (package / "shared.py").write_text("BASE = 1\n")
    (package / "bystander.py").write_text("from my_worlds import world\n")
    (tmp_path / "my_loose.py").write_text("import my_beside\n\ndef draw(root):\n    return my_beside.RATE\n")
    (tmp_path / "my_beside.py").write_text("RATE = 1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    yield tmp_path
    for name in [name for name in sys.modules if name.startswith("my_")]:
        del sys.modules[name]


@pytest.mark.parametrize(
    ("function", "changed", "counts"),
    [
        ("my_worlds.world:draw", "my_worlds/world.py", True),
        ("my_worlds.world:draw", "my_worlds/deep/parts.py", True),  # loaded inside the function, relatively
        ("my_worlds.world:draw", "my_worlds/shared.py", True),  # loaded by what is loaded
        ("my_worlds.world:draw", "my_worlds/bystander.py", False),
        ("my_worlds.world:draw", "my_beside.py", False),
        ("my_loose:draw", "my_beside.py", True),
        ("my_loose:draw", "my_worlds/shared.py", False),
    ],
)
def test_the_code_that_a_function_is_made_of_counts(folder: Path, function: str, changed: str, counts: bool) -> None:
    source = FunctionSource(function)
    before = source.identity(folder)
    assert before == source.identity(folder)
    path = folder / changed
    path.write_text(path.read_text() + "# another world\n")
    assert (source.identity(folder) != before) == counts


def test_libraries_do_not_count_and_our_worlds_are_hashed_whole() -> None:
    from constellation.journeys.own_code import _texts

    found = set(_texts("constellation.worlds.loyalty.world"))
    assert {"constellation.worlds.loyalty.dynamics", "constellation.worlds.simulated", "constellation.schema"} <= found
    assert all(name.split(".")[0] == "constellation" for name in found)
    assert not any(name.startswith(("constellation.worlds.order", "constellation.journeys")) for name in found)
    assert code_digest("constellation.worlds.order") != code_digest("constellation.worlds.loyalty.world")
    assert code_digest("itertools") == code_digest("sys")  # nothing to read
