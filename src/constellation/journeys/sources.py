"""Where events come from: a SELECT run by DuckDB, or a Python function. Both stream, and can say what they read."""

from __future__ import annotations

import contextlib
import glob
import importlib
import os
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from constellation.errors import InputError
from constellation.paths import data_root, find_sql, package_folder

if TYPE_CHECKING:
    import duckdb
    import polars as pl

BATCH_ROWS = 250_000


@dataclass
class Tables:
    """What a source yields: events chunk by chunk, and the two small tables whole. All optional but one of them."""

    events: Iterator[pl.DataFrame]
    attributes: pl.DataFrame | None = None
    decisions: pl.DataFrame | None = None


@dataclass
class SqlSource:
    """Event, customer and decision tables as SELECTs; DuckDB reads Parquet, CSV, JSON, databases, object stores.

    sql, attributes_sql, decisions_sql: SQL, or the name of a ``.sql`` file (searched in the working directory, then in
    ``data/`` of the config folders). ``{root}`` stands for the folder found by ``locate``.
    locate: candidates in order; each a folder, relative to the data root, or ``package:name/sub/folder`` (data inside
    an installed package), or a mapping with ``folder``, ``needs`` (files that must be there) and its own ``sql``.
    Without candidates ``{root}`` is the data root itself.
    origin: where a person gets the data, for the error when they are absent.
    memory_limit: of DuckDB, which spills to disk beyond it.
    """

    sql: str | None = None
    attributes_sql: str | None = None
    decisions_sql: str | None = None
    locate: Sequence[str | Mapping[str, Any]] = ()
    origin: str = ""
    memory_limit: str = "2GB"

    def __post_init__(self) -> None:
        if self.sql is None and self.decisions_sql is None:
            raise InputError(
                "The source has neither sql nor decisions_sql: write the SELECT that yields the event table."
            )

    @property
    def label(self) -> str:
        """What the tracking calls this source."""
        named = self.sql or self.decisions_sql or ""
        return named if named.endswith(".sql") else "inline SQL"

    def identity(self, root: str | Path | None = None) -> dict[str, Any]:
        """What decides whether a prepared store is still good: the texts, and size and time of each local file read."""
        statements = {name: text for name, text in self._statements(root).items() if text is not None}
        files = sorted({path for text in statements.values() for path in _files_read(text)})
        stats = {path: os.stat(path) for path in files}
        return {
            "sql": statements,
            "files": [[path, stat.st_size, stat.st_mtime_ns] for path, stat in stats.items()],
        }

    def open(self, root: str | Path | None = None) -> Tables:
        """Run the statements. Raises InputError where data are absent or the SQL is wrong."""
        statements = self._statements(root)
        return Tables(
            events=self._stream(statements["sql"]),
            attributes=self._table(statements["attributes_sql"]),
            decisions=self._table(statements["decisions_sql"]),
        )

    def located(self, root: str | Path | None = None) -> tuple[Path, str | None]:
        """The folder of the data and the SQL that goes with it. Raises InputError where no candidate is there."""
        if root is not None and not data_root(root).is_dir():
            raise InputError(f"data.root is {root}, but there is no such folder.")
        if not self.locate:
            return data_root(root), self.sql
        looked = []
        for candidate in self.locate:
            entry = {"folder": candidate} if isinstance(candidate, str) else dict(candidate)
            name = str(entry["folder"])
            if name.startswith("package:"):
                folder = package_folder(name.removeprefix("package:"))
                looked.append(f"the installed package {name.removeprefix('package:').split('/')[0]}")
            else:
                folder = data_root(root) / name
                looked.append(str(folder))
            needs = entry.get("needs") or ()
            needs = [needs] if isinstance(needs, str) else needs
            if folder is not None and folder.is_dir() and all((folder / file).exists() for file in needs):
                return folder, entry.get("sql", self.sql)
        raise InputError(
            f"The data set is not here. Looked in {'; '.join(looked)}. "
            + (self.origin or "Set data.root or the environment variable CONSTELLATION_DATA to the folder that has it.")
        )

    def _statements(self, root: str | Path | None) -> dict[str, str | None]:
        folder, sql = self.located(root)
        inside = str(folder).replace("'", "''")

        def text(given: str | None) -> str | None:
            if given is None:
                return None
            if re.fullmatch(r"\S+\.sql", given.strip()):
                given = find_sql(given.strip()).read_text(encoding="utf-8")
            return given.replace("{root}", inside).strip().rstrip(";")

        return {
            "sql": text(sql),
            "attributes_sql": text(self.attributes_sql),
            "decisions_sql": text(self.decisions_sql),
        }

    def _connect(self, folder: str) -> duckdb.DuckDBPyConnection:
        import duckdb

        connection = duckdb.connect()
        connection.execute(f"SET memory_limit = '{self.memory_limit}'")
        connection.execute("SET preserve_insertion_order = false")  # the store has its own order
        connection.execute(f"SET temp_directory = '{folder}'")
        connection.execute("SET python_enable_replacements = false")  # a table name must not find a Python variable
        with contextlib.suppress(duckdb.Error):  # a build without zones; a statement that needs them says so itself
            connection.execute("SET TimeZone = 'UTC'")
        return connection

    def _stream(self, statement: str | None) -> Iterator[pl.DataFrame]:
        import duckdb
        import polars as pl

        if statement is None:
            return
        with tempfile.TemporaryDirectory(prefix="constellation-duckdb-") as folder:
            connection = self._connect(folder)
            try:
                relation = connection.sql(statement)
                if relation is None:
                    raise InputError(f"A SELECT was expected, found: {statement[:200]}")
                with relation.to_arrow_reader(BATCH_ROWS) as reader:
                    empty = pl.DataFrame(pl.from_arrow(reader.schema.empty_table()))
                    rows = 0
                    for batch in reader:
                        rows += batch.num_rows
                        yield pl.DataFrame(pl.from_arrow(batch))
                    if rows == 0:
                        yield empty
            except duckdb.Error as error:
                raise InputError(_explain(error)) from error
            finally:
                connection.close()

    def _table(self, statement: str | None) -> pl.DataFrame | None:
        import polars as pl

        if statement is None:
            return None
        return pl.concat(list(self._stream(statement)))


def _explain(error: Exception) -> str:
    """DuckDB's own words without the drawing of the statement, which a paragraph cannot hold."""
    lines = [line.strip() for line in str(error).splitlines()]
    kept = []
    for line in lines:
        if line.startswith("LINE ") or set(line) == {"^"}:
            break
        if line:
            kept.append(line)
    said = " ".join(kept)
    return f"The SELECT of the data set failed: {said} Mend the SQL (columns and files it names), or set data.root."


def _files_read(statement: str) -> list[str]:
    """Local files named in quotes anywhere in the statement, globs expanded."""
    found: set[str] = set()
    for single, double in re.findall(r"'((?:[^']|'')+)'|\"([^\"]+)\"", statement):
        name = (single or double).replace("''", "'")
        if "\n" in name or len(name) > 1000:
            continue
        paths = glob.glob(name, recursive=True) if glob.has_magic(name) else [name]
        found.update(os.path.abspath(path) for path in paths if os.path.isfile(path))
    return sorted(found)


@dataclass
class FunctionSource:
    """Tables from Python, where SQL does not serve.

    function: ``module:callable``; called with ``root`` (the data root, a Path) and ``arguments``. It returns the event
    table (pandas, polars or Arrow), an iterator of such tables, or a dict with ``events`` and, as wanted,
    ``attributes`` and ``decisions``.
    files: globs relative to the data root that it reads; their sizes and times decide whether a store is still good,
    and so does the code: the function's module and all of its own package that it imports.
    """

    function: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    files: Sequence[str] = ()

    @property
    def label(self) -> str:
        """What the tracking calls this source."""
        return self.function

    def identity(self, root: str | Path | None = None) -> dict[str, Any]:
        """Name, arguments, the code it is made of (``own_code``), and size and time of ``files``."""
        from constellation.journeys.own_code import code_digest

        paths = sorted({path for name in self.files for path in glob.glob(str(data_root(root) / name), recursive=True)})
        return {
            "function": self.function,
            "arguments": {name: repr(value) for name, value in sorted(self.arguments.items())},
            "code": code_digest(self._callable().__module__),
            "files": [[path, os.stat(path).st_size, os.stat(path).st_mtime_ns] for path in paths],
        }

    def open(self, root: str | Path | None = None) -> Tables:
        """Call the function. Raises InputError where it is not found or returns something else."""
        from constellation.journeys.tables import as_polars

        result = self._callable()(root=data_root(root), **self.arguments)
        given = dict(result) if isinstance(result, Mapping) else {"events": result}
        unknown = sorted(given.keys() - {"events", "attributes", "decisions"})
        if unknown:
            raise InputError(
                f"{self.function} returned tables named {', '.join(unknown)}; known are events, attributes, decisions."
            )
        attributes, decisions = given.get("attributes"), given.get("decisions")
        return Tables(
            events=_chunks(given.get("events")),
            attributes=None if attributes is None else as_polars(attributes),
            decisions=None if decisions is None else as_polars(decisions),
        )

    def _callable(self) -> Any:
        module, _, name = self.function.partition(":")
        try:
            return getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError, ValueError) as error:
            raise InputError(
                f"The function {self.function!r} was not found ({error}). Write module:callable, with the module "
                "importable from the working directory or installed."
            ) from error


def _chunks(events: Any) -> Iterator[pl.DataFrame]:
    from constellation.journeys.tables import as_polars

    if events is None:
        return
    for table in events if isinstance(events, Iterator) else [events]:
        frame = as_polars(table)
        for start in range(0, max(frame.height, 1), BATCH_ROWS):
            yield frame.slice(start, BATCH_ROWS)
