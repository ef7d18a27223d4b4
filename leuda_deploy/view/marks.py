"""what a reader said of each scan -> a CSV file that is whole at any time."""

from __future__ import annotations

import csv
import io
import threading
from datetime import UTC, datetime
from pathlib import Path

from leuda_deploy.errors import InputError, reading
from leuda_deploy.machine.files import atomic_path
from leuda_deploy.machine.outputs import Output, plan_outputs
from leuda_deploy.machine.outside import read_text
from leuda_deploy.view.scene import Scene

FIELDS = ("scan", "labels", "frame", "mark", "marked")
MARKS = ("ok", "look again")
MOST_BYTES = 64 << 20


class Marks:
    """The marks in a CSV file with the columns scan, labels, frame, mark and marked (UTC).

    Rows of other scans in it are kept.

    Raises:
        InputError: The file is there and is no such table, or cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._rows: dict[tuple[str, ...], dict[str, str]] = {}
        kept = Output(
            path=path, what="list of marks", option="--marks", endings=(".csv",), is_ours=_is_list
        )
        plan_outputs([kept])
        if path.exists():
            with reading(lambda what: InputError(f"{path} is no list of marks: {what}")):
                text = io.StringIO(read_text(path, most=MOST_BYTES), newline="")
                rows = csv.DictReader(text, restkey="more", restval="")
                self._rows = {_key_of_row(row): row for row in rows}
                if any("more" in row for row in self._rows.values()):
                    raise InputError(f"{path} has rows of more than {len(FIELDS)} columns")

    def of(self, scene: Scene) -> str | None:
        """ok, look again, or None."""
        row = self._rows.get(_key(scene))
        return row["mark"] if row and row["mark"] in MARKS else None

    def set(self, scene: Scene, mark: str | None) -> None:
        """Keep a mark, or take it back with None; written at once. Raises ValueError, OSError."""
        if mark is not None and mark not in MARKS:
            raise ValueError(f"a mark is one of {', '.join(MARKS)}, not {mark!r}")
        key = _key(scene)
        with self._lock:
            rows = {k: row for k, row in self._rows.items() if k != key}
            if mark is not None:
                now = datetime.now(UTC).isoformat(timespec="seconds")
                rows[key] = dict(zip(FIELDS, (*key, mark, now), strict=True))
            with (
                atomic_path(self.path) as temporary,
                temporary.open("w", newline="", encoding="utf-8") as file,
            ):
                table = csv.DictWriter(file, FIELDS)
                table.writeheader()
                table.writerows(rows[k] for k in sorted(rows))
            self._rows = rows


def _is_list(path: Path) -> bool:
    """Whether a file has the columns of a list of marks; any other stays as it is."""
    try:
        text = io.StringIO(read_text(path, most=MOST_BYTES), newline="")
        return tuple(next(csv.reader(text), ())) == FIELDS
    except (InputError, csv.Error):
        return False


def _key(scene: Scene) -> tuple[str, ...]:
    labels = str(scene.labels[0]) if scene.labels else ""
    return (str(scene.scan), labels, "" if scene.frame is None else str(scene.frame))


def _key_of_row(row: dict[str, str]) -> tuple[str, ...]:
    return tuple(row[name] for name in FIELDS[:3])
