"""Build the store of a data set, or take the one that is there."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import uuid
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import constellation
from constellation.errors import InputError
from constellation.journeys import layout
from constellation.journeys.build import (
    Progress,
    build_profile,
    first_pass,
    observed_end,
    write_store,
)
from constellation.journeys.dataset import DataSet
from constellation.journeys.decisions import Decisions, clean_decisions
from constellation.journeys.rejects import Rejects
from constellation.journeys.spool import Spool
from constellation.journeys.store import SCHEMA_VERSION, Manifest, Store
from constellation.journeys.tables import clean_attributes
from constellation.paths import cache_folder
from constellation.schema import CUSTOMER_ID

if TYPE_CHECKING:
    from constellation.journeys.build import Ordered

MANIFEST, REJECTED = "manifest.json", "rejected.parquet"


def prepare(data: DataSet, *, rebuild: bool = False, progress: Progress | None = None) -> Store:
    """The memory-mapped store of a data set.

    A store whose fingerprint matches (SQL texts, size and time of the files read, schema, decisions, versions) is
    reused unless ``rebuild``. Two processes may ask at once: each builds beside, the first to finish wins, and the
    other takes what stands there. Raises InputError for absent data, wrong SQL, missing columns, too many rejects.
    """
    fingerprint = data_fingerprint(data)
    target = store_directory(data, fingerprint)
    if not rebuild and (target / MANIFEST).exists():
        return Store.open(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    building = target.parent / f".building-{target.name}-{uuid.uuid4().hex[:8]}"
    building.mkdir()
    try:
        _build(data, fingerprint, building, progress)
        _put_in_place(building, target, rebuild)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return Store.open(target)


def data_fingerprint(data: DataSet) -> str:
    """What the store of a data set depends on, hashed. Windows are not part of it: a new split needs no new store."""
    parts = {
        "source": data.source.identity(data.root),
        "schema": asdict(data.schema),
        "decisions": None if data.decisions is None else asdict(data.decisions),
        "observed_until": data.observed_until,
        "versions": [SCHEMA_VERSION, constellation.__version__],
    }
    text = json.dumps(parts, sort_keys=True, default=dict)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def store_directory(data: DataSet, fingerprint: str) -> Path:
    return Path(data.cache or cache_folder()) / "stores" / f"{data.name}-{fingerprint[:12]}"


def _build(data: DataSet, fingerprint: str, directory: Path, progress: Progress | None) -> None:
    schema = data.schema
    tables = data.source.open(data.root)
    attributes = clean_attributes(tables.attributes, schema)
    decided = clean_decisions(tables.decisions, schema)
    runs = directory / "runs"
    runs.mkdir()
    rejects = Rejects(directory / REJECTED)
    try:
        ordered = first_pass(
            tables.events,
            schema,
            attributes,
            None if decided is None else decided[CUSTOMER_ID],
            spool=Spool(runs),
            rejects=rejects,
            progress=progress,
        )
    except InputError as error:
        if not rejects.too_many(schema):
            raise
        kept = directory.parent / f"{data.name}-{REJECTED}"
        os.replace(directory / REJECTED, kept)
        raise InputError(f"{error} All rejected rows, with their reasons, are in {kept}.") from None
    _check_content(ordered, data)
    content = write_store(ordered, attributes, directory, progress)
    shutil.rmtree(runs)
    until = observed_end(ordered, data.observed_until)
    if decided is not None and data.observed_until is None and len(decided) and ordered.num_events == 0:
        until = max(until, int(decided["decision_time"].max()))  # type: ignore[arg-type]
    manifest = Manifest(
        name=data.name,
        schema=schema,
        kinds=ordered.kinds,
        num_customers=ordered.customers.height,
        num_events=ordered.num_events,
        first_time=ordered.first_time,
        last_time=ordered.last_time,
        observed_until=until,
        fingerprint=fingerprint,
        content=content,
        profile=build_profile(ordered),
    )
    if data.decisions is not None:
        store = Store(manifest=manifest, **layout.read(directory))
        decisions = data.decisions.derive(store, decided)
        layout.write_decisions(directory, decisions, schema.clock)
        manifest = replace(manifest, content=_with_decisions(content, decisions))
        del store
    text = json.dumps(manifest.to_json(), indent=2, ensure_ascii=False)
    (directory / MANIFEST).write_text(text, encoding="utf-8")


def _check_content(ordered: Ordered, data: DataSet) -> None:
    if ordered.customers.height == 0:
        raise InputError(f"The data set {data.name} has no events and no customers: the SELECT returned no rows.")
    if ordered.num_events == 0:
        return
    known = ordered.dictionaries["event_type"][1:]
    missing = [name for name in data.schema.purchase_types if name not in known]
    if missing:
        raise InputError(
            f"purchase_types names {', '.join(missing)}, which no event has. "
            f"Event types of the data: {', '.join(str(name) for name in known[:20])}."
        )


def _with_decisions(content: str, decisions: Decisions) -> str:
    hasher = hashlib.blake2b(content.encode(), digest_size=16)
    hasher.update(json.dumps([decisions.actions, decisions.choice_sets]).encode())
    for field, dtype in layout.DECISION_COLUMNS.values():
        hasher.update(np.ascontiguousarray(getattr(decisions, field)).astype(dtype).tobytes())
    for further in (decisions.propensity_QA, decisions.context_QX):
        if further is not None:
            hasher.update(np.ascontiguousarray(further).tobytes())
    return hasher.hexdigest()


def _put_in_place(building: Path, target: Path, rebuild: bool) -> None:
    """Rename the finished store to its place; where another process was first, its store stands."""
    if rebuild and target.exists():
        old = target.parent / f".old-{target.name}-{uuid.uuid4().hex[:8]}"
        with contextlib.suppress(FileNotFoundError):  # another rebuild may have moved it first
            os.rename(target, old)  # whoever has it mapped keeps it until done
        shutil.rmtree(old, ignore_errors=True)
    try:
        os.rename(building, target)
    except OSError:
        if not (target / MANIFEST).exists():
            raise


def describe_place(data: DataSet, store: Store) -> dict[str, Any]:
    """Folder and files of a prepared store, for reports."""
    folder = store_directory(data, store.manifest.fingerprint)
    rejected = folder / REJECTED
    return {"folder": folder, "rejected": rejected if rejected.exists() else None}
