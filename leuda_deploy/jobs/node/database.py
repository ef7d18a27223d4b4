"""a folder -> the database of its queue: its tables, whether it is sound, one change at a time.

`queue.py` says what is written, and when.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from leuda_deploy.errors import InputError, one_line, printable

State = Literal["received", "running", "labelled", "sent", "passed over", "failed"]
DATABASE = "queue.sqlite"
TABLES = """
CREATE TABLE IF NOT EXISTS series (
    id INTEGER PRIMARY KEY, uid TEXT NOT NULL, sender TEXT NOT NULL, modality TEXT NOT NULL,
    state TEXT NOT NULL, reason TEXT NOT NULL DEFAULT '', images INTEGER NOT NULL DEFAULT 0,
    attempts INTEGER NOT NULL DEFAULT 0, received REAL NOT NULL, changed REAL NOT NULL,
    next_try REAL NOT NULL DEFAULT 0, cleared INTEGER NOT NULL DEFAULT 0);
CREATE INDEX IF NOT EXISTS series_by_uid ON series (uid);
CREATE TABLE IF NOT EXISTS images (
    series INTEGER NOT NULL, uid TEXT NOT NULL, PRIMARY KEY (series, uid)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS images_by_uid ON images (uid);
CREATE TABLE IF NOT EXISTS results (
    series INTEGER NOT NULL, kind TEXT NOT NULL, uid TEXT NOT NULL, sent REAL,
    PRIMARY KEY (series, kind)) WITHOUT ROWID;
"""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A series in the queue. Times are seconds since 1970."""

    id: int
    uid: str
    sender: str
    modality: str
    state: State
    reason: str
    images: int
    attempts: int
    received: float
    changed: float
    next_try: float

    def as_dict(self) -> dict[str, object]:
        """JSON-able."""
        return asdict(self)


FIELDS = ", ".join(Entry.__dataclass_fields__)
MOST_SECONDS = 4e9  # since 1970: the year 2096
# what a sound row never is; SQLite keeps any kind of value in any column
ODD_ROWS = f"""
SELECT (SELECT COUNT(*) FROM series WHERE typeof(id) != 'integer' OR typeof(uid) != 'text'
    OR typeof(sender) != 'text' OR typeof(modality) != 'text' OR typeof(reason) != 'text'
    OR typeof(images) != 'integer' OR typeof(attempts) != 'integer'
    OR state NOT IN {get_args(State)}
    OR received NOT BETWEEN 0 AND {MOST_SECONDS} OR changed NOT BETWEEN 0 AND {MOST_SECONDS}
    OR next_try NOT BETWEEN 0 AND {MOST_SECONDS})
  + (SELECT COUNT(*) FROM images WHERE typeof(uid) != 'text')
  + (SELECT COUNT(*) FROM results WHERE typeof(kind) != 'text' OR typeof(uid) != 'text')
"""


class Database:
    """The database of the queue in a folder.

    Attributes:
        lock: Held by a thread whose steps belong together.
    """

    def __init__(self, folder: Path, *, read_only: bool) -> None:
        """Open the database in a folder, or make it.

        Raises:
            InputError: There is none and it is only to be read, or it cannot be opened.
        """
        path = folder / DATABASE
        if read_only and not path.is_file():
            raise InputError(f"no queue in {folder}: leuda listen --queue {folder} makes one")
        self.lock = threading.RLock()
        with in_one_line(folder):
            folder.mkdir(parents=True, exist_ok=True)
            self._connection = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
            self.execute("PRAGMA busy_timeout = 10000")
            if not read_only:
                self.execute("PRAGMA journal_mode = WAL")
                self.execute("PRAGMA synchronous = FULL")
                self._connection.executescript(TABLES)
            self._check(folder)

    def _check(self, folder: Path) -> None:
        """Raises sqlite3.Error or InputError if the database is damaged, or is none of ours."""
        (found,) = self.row("PRAGMA integrity_check(1)")
        (odd,) = self.row(ODD_ROWS)
        if found != "ok" or odd:
            what = printable(str(found), 80) if found != "ok" else f"{odd} odd rows"
            raise InputError(
                f"the queue in {folder} is damaged ({what}): move {DATABASE} away to begin "
                "anew, and have what is in images/ sent again"
            )

    def close(self) -> None:
        """Let go of it."""
        self._connection.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All of it, or nothing; other threads wait."""
        with self.lock:
            self.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                if self._connection.in_transaction:
                    self.execute("ROLLBACK")
                raise
            self.execute("COMMIT")

    def execute(self, statement: str, values: Sequence[object] = ()) -> int:
        """Change something; how many rows were changed."""
        with self.lock:
            return self._connection.execute(statement, values).rowcount

    def rows(self, query: str, values: Sequence[object] = ()) -> list[Any]:
        """All that a query finds."""
        with self.lock:
            return self._connection.execute(query, values).fetchall()

    def row(self, query: str, values: Sequence[object] = ()) -> Any:
        """The first that it finds; None: nothing."""
        with self.lock:
            return self._connection.execute(query, values).fetchone()

    def entries(self, where: str, values: Sequence[object] = ()) -> list[Entry]:
        """The series for which this holds."""
        found = self.rows(f"SELECT {FIELDS} FROM series WHERE {where}", values)
        return [Entry(**dict(zip(Entry.__dataclass_fields__, row, strict=True))) for row in found]


@contextmanager
def in_one_line(folder: Path) -> Iterator[None]:
    """Whatever SQLite or the disk says of the queue in a folder is an InputError."""
    try:
        yield
    except (sqlite3.Error, OSError, UnicodeDecodeError) as error:  # of its messages, too
        raise InputError(f"cannot use the queue in {folder}: {one_line(error)}") from error
