"""Where configs, raw data and stores are looked for."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

from constellation.errors import InputError


def config_directories() -> list[Path]:
    """Folders with configs, nearest first: ``./configs``, the clone's, the installed package's; those that exist."""
    package = Path(__file__).resolve().parent
    candidates = [Path("configs").resolve(), package.parents[1] / "configs", package / "configs"]
    return [folder for folder in dict.fromkeys(candidates) if folder.is_dir()]


def find_sql(name: str) -> Path:
    """The ``.sql`` file of that name: as a path, then in ``data/`` of the config folders. Raises InputError."""
    places = [Path(name), *(folder / "data" / name for folder in config_directories())]
    for place in places:
        if place.is_file():
            return place
    looked = ", ".join(str(place.parent) or "." for place in places)
    raise InputError(f"The SQL file {name} was not found. Looked in: {looked}. Put it there or give its path.")


def data_root(root: str | Path | None = None) -> Path:
    """The folder of raw data: ``root``, else the environment variable CONSTELLATION_DATA, else ``./data``."""
    return Path(root or os.environ.get("CONSTELLATION_DATA") or "data")


def cache_folder() -> str:
    """The folder of prepared stores: CONSTELLATION_CACHE, else ``./.constellation``."""
    return os.environ.get("CONSTELLATION_CACHE") or ".constellation"


def package_folder(resource: str) -> Path | None:
    """Folder of ``package/sub/folder`` inside an installed package, found without importing it; None if absent."""
    package, _, inner = resource.partition("/")
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        return None
    folder = Path(next(iter(spec.submodule_search_locations))) / inner
    return folder if folder.is_dir() else None
