"""The history of a run: one line per number and step, in ``history.jsonl``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from constellation.tracking.records import finite

Row = tuple[str, float, int, int]
"""Name, value, milliseconds since 1970, step."""


class History:
    """Appends rows to a file.

    A run that was killed between the report of an epoch and its checkpoint makes that epoch again when it is resumed:
    what it then says takes the place of what it had said of the same step before.
    """

    def __init__(self, path: Path, *, resume: bool) -> None:
        self.path = path
        if not resume:
            path.unlink(missing_ok=True)
        before = self._whole_rows()
        if path.is_file():
            self._rewrite(before)
        self._of_before = {(row["step"], row["name"]) for row in before}

    def append(self, rows: Sequence[Row]) -> None:
        again = self._of_before & {(step, name) for name, _, _, step in rows}
        if again:
            self._rewrite([row for row in self._whole_rows() if (row["step"], row["name"]) not in again])
            self._of_before -= again
        with self.path.open("a", encoding="utf-8") as file:
            for name, value, now_ms, step in rows:
                file.write(json.dumps({"step": step, "name": name, "value": finite(value), "time_ms": now_ms}) + "\n")

    def _rewrite(self, rows: Sequence[dict[str, object]]) -> None:
        partial = self.path.with_suffix(".partial")
        partial.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        partial.replace(self.path)

    def _whole_rows(self) -> list[dict[str, object]]:
        """Without the last line where a kill has cut it."""
        if not self.path.is_file():
            return []
        found = []
        for line in self.path.read_text(encoding="utf-8").splitlines():
            try:
                found.append(json.loads(line))
            except json.JSONDecodeError:
                continue
        return found
