"""images and results of series <-> a folder and a database that survive whatever ends the process.

    QUEUE/queue.sqlite     each series: what came, what became of it and why
    QUEUE/images/N/*.dcm   the images of series N; each is on the disk before its sender is told so
    QUEUE/results/N/       labels, report and DICOM objects

    received -> running -> labelled -> sent      or passed over, or failed, with the reason

A series that is sent again as it was is known by its images' UIDs, and nothing is done. If others
come after it was labelled, it becomes a new entry with all images that are still there.

Long because whatever changes the database stands in one place, where its states can be checked.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import sqlite3
import threading
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from leuda_deploy.errors import InputError, one_line, printable
from leuda_deploy.machine.files import atomic_path

State = Literal["received", "running", "labelled", "sent", "passed over", "failed"]
DATABASE = "queue.sqlite"
MOST_ATTEMPTS = 5  # of labelling a series that ends the process each time
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
LONGEST_WAIT_S = 3600.0  # more than any delay; by less, a clock may be set back unseen
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


class Queue:
    """The queue in a folder; threads share one. Whoever changes it holds `exclusively`."""

    def __init__(self, folder: Path, *, read_only: bool = False) -> None:
        """Open the queue in a folder, or make it.

        Raises:
            InputError: There is none and it is only to be read, or it cannot be opened.
        """
        self.folder = folder
        path = folder / DATABASE
        if read_only and not path.is_file():
            raise InputError(f"no queue in {folder}: leuda listen --queue {folder} makes one")
        self._lock = threading.RLock()
        with in_one_line(folder):
            folder.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
            self._db.execute("PRAGMA busy_timeout = 10000")
            if not read_only:
                self._db.execute("PRAGMA journal_mode = WAL")
                self._db.execute("PRAGMA synchronous = FULL")
                self._db.executescript(TABLES)
            self._check()

    def _check(self) -> None:
        """Raises sqlite3.Error or InputError if the database is damaged, or is none of ours."""
        (found,) = self._db.execute("PRAGMA integrity_check(1)").fetchone()
        (odd,) = self._db.execute(ODD_ROWS).fetchone()
        if found != "ok" or odd:
            what = printable(str(found), 80) if found != "ok" else f"{odd} odd rows"
            raise InputError(
                f"the queue in {self.folder} is damaged ({what}): move {DATABASE} away to begin "
                "anew, and have what is in images/ sent again"
            )

    def close(self) -> None:
        """Let go of the database."""
        self._db.close()

    @contextmanager
    def exclusively(self) -> Iterator[None]:
        """Be the one process that works on this queue. Raises InputError if another does."""
        import fcntl

        with (self.folder / ".lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise InputError(f"another leuda listen works on {self.folder}") from error
            yield

    # --- what comes

    def take(self, series: str, image: str, content: bytes, *, sender: str, modality: str) -> bool:
        """Keep an image; when this returns, it is on the disk. False if it was there already.

        Raises:
            OSError, sqlite3.Error: It could not be written; nothing of it is kept.
        """
        with self._lock:
            entry, known = self._entry_for(series, image, sender, modality)
            if known:
                return False
            path = self.images(entry) / f"{_short(image)}.dcm"
            with atomic_path(path) as temporary:
                temporary.write_bytes(content)
            flush_folder(path.parent)
            with self._transaction():
                self._db.execute("INSERT OR IGNORE INTO images VALUES (?, ?)", (entry, image))
                self._count(entry)
        return True

    def _entry_for(self, series: str, image: str, sender: str, modality: str) -> tuple[int, bool]:
        """The entry that an image belongs to, and whether it is there and all is done for it."""
        last = self._one("SELECT id, state FROM series WHERE uid = ? ORDER BY id DESC", (series,))
        has = last is not None and bool(
            self._one("SELECT 1 FROM images WHERE series = ? AND uid = ?", (last[0], image))
        )
        if last is not None and (last[1] == "received" or (has and last[1] != "failed")):
            if has and last[1] == "received":
                self._count(int(last[0]))
            return int(last[0]), has
        now = time.time()
        with self._transaction():
            made = self._free_id()
            self._db.execute(
                "INSERT INTO series (id, uid, sender, modality, state, received, changed) "
                "VALUES (?, ?, ?, ?, 'received', ?, ?)",
                (made, series, sender, modality, now, now),
            )
            self.images(made).mkdir(parents=True, exist_ok=True)
            if last is not None:
                self._take_over(int(last[0]), made)
                self._count(made)
        return made, bool(
            self._one("SELECT 1 FROM images WHERE series = ? AND uid = ?", (made, image))
        )

    def _free_id(self) -> int:
        """Of a new entry. A database that was lost has left folders; none is mixed with another."""
        (last,) = self._one("SELECT COALESCE(MAX(id), 0) FROM series", ())
        folders = [*self.images(0).parent.glob("*"), *self.results(0).parent.glob("*")]
        numbers = [int(path.name) for path in folders if re.fullmatch(r"[0-9]{1,15}", path.name)]
        return max(int(last), *numbers, 0) + 1

    def _take_over(self, old: int, new: int) -> None:
        """The images of an earlier entry of a series that are still there."""
        for (image,) in self._db.execute("SELECT uid FROM images WHERE series = ?", (old,)):
            source = self.images(old) / f"{_short(image)}.dcm"
            target = self.images(new) / source.name
            if source.is_file():
                if not target.exists():
                    os.link(source, target)
                self._db.execute("INSERT OR IGNORE INTO images VALUES (?, ?)", (new, image))

    def _count(self, entry: int) -> None:
        """Something came just now."""
        self._db.execute(
            "UPDATE series SET changed = ?, images = (SELECT COUNT(*) FROM images "
            "WHERE series = id) WHERE id = ?",
            (time.time(), entry),
        )

    # --- what becomes of it

    def recover(self) -> int:
        """What a process that ended left running is received again; how many series that were."""
        with self._lock, self._transaction():
            self._db.execute(
                "UPDATE series SET state = 'failed', reason = 'the process ended ' || attempts || "
                "' times while it was labelled' WHERE state = 'running' AND attempts >= ?",
                (MOST_ATTEMPTS,),
            )
            return self._db.execute(
                "UPDATE series SET state = 'received' WHERE state = 'running'"
            ).rowcount

    def next_received(self, *, quiet_s: float, busy: Collection[str] = ()) -> Entry | None:
        """The oldest series that is complete: nothing came for so long, and nobody sends it now."""
        now = self._now()
        rows = self._entries(
            "state = 'received' AND images > 0 AND changed <= ? AND next_try <= ? ORDER BY id",
            (now - quiet_s, now),
        )
        return next((entry for entry in rows if entry.uid not in busy), None)

    def _now(self) -> float:
        """The time; nothing waits for a clock that was set back to come where it was before."""
        now = time.time()
        late = now + LONGEST_WAIT_S
        if self._entries("changed > ? OR next_try > ?", (late, late)):
            with self._lock, self._transaction():
                self._db.execute("UPDATE series SET changed = ? WHERE changed > ?", (now, now))
                self._db.execute("UPDATE series SET next_try = ? WHERE next_try > ?", (now, late))
        return now

    def next_labelled(self) -> Entry | None:
        """The oldest series whose results are to be sent now."""
        return next(
            iter(self._entries("state = 'labelled' AND next_try <= ? ORDER BY id", (self._now(),))),
            None,
        )

    def begin(self, entry: int) -> None:
        """It is being labelled."""
        self._set(entry, "running", "", "attempts = attempts + 1")

    def labelled(self, entry: int, results: Mapping[str, str]) -> None:
        """Its results are there: kind -> SOPInstanceUID."""
        with self._lock, self._transaction():
            self._db.execute("DELETE FROM results WHERE series = ?", (entry,))
            self._db.executemany(
                "INSERT INTO results (series, kind, uid) VALUES (?, ?, ?)",
                [(entry, kind, uid) for kind, uid in results.items()],
            )
            self._set(entry, "labelled", "", "attempts = 0, next_try = 0")

    def to_send(self, entry: int) -> list[tuple[str, str]]:
        """Kind and SOPInstanceUID of the results that were not sent yet."""
        with self._lock:
            rows = self._db.execute(
                "SELECT kind, uid FROM results WHERE series = ? AND sent IS NULL ORDER BY kind",
                (entry,),
            ).fetchall()
        return [(str(kind), str(uid)) for kind, uid in rows]

    def was_sent(self, entry: int, kind: str) -> None:
        """A result has arrived; with the last one, the series is done."""
        with self._lock, self._transaction():
            self._db.execute(
                "UPDATE results SET sent = ? WHERE series = ? AND kind = ?",
                (time.time(), entry, kind),
            )
            if not self.to_send(entry):
                self._set(entry, "sent", "", "next_try = 0")

    def later(self, entry: int, state: State, why: str, delay_s: float) -> None:
        """Try again after a while; `state` is what it waits in."""
        tried = int(state == "labelled")  # labelling is counted when it begins
        more = f"attempts = attempts + {tried}, next_try = {time.time() + delay_s}"
        self._set(entry, state, why, more)

    def put_back(self, entry: int) -> None:
        """It was being labelled when this process was told to stop."""
        self._set(entry, "received", "", "attempts = attempts - 1, next_try = 0")

    def end(self, entry: int, state: State, why: str) -> None:
        """It failed for good, or is passed over."""
        self._set(entry, state, why, "next_try = 0")

    def retry_failed(self) -> int:
        """All that failed is received again; how many that are."""
        with self._lock, self._transaction():
            return self._db.execute(
                "UPDATE series SET state = CASE WHEN EXISTS (SELECT 1 FROM results WHERE series = "
                "id) THEN 'labelled' ELSE 'received' END, attempts = 0, next_try = 0 "
                "WHERE state = 'failed'"
            ).rowcount

    def clear(self, older_than_s: float) -> None:
        """Remove the files of what was sent or passed over so long ago; the entry stays."""
        for entry in self._entries(
            "state IN ('sent', 'passed over') AND changed <= ? AND cleared = 0",
            (time.time() - older_than_s,),
        ):
            shutil.rmtree(self.images(entry.id), ignore_errors=True)
            shutil.rmtree(self.results(entry.id), ignore_errors=True)
            with self._lock:
                self._db.execute("UPDATE series SET cleared = 1 WHERE id = ?", (entry.id,))

    # --- looked at

    def images(self, entry: int) -> Path:
        """The folder of its images."""
        return self.folder / "images" / str(entry)

    def image(self, uid: str) -> Path | None:
        """The file of an image, if it is still there."""
        with self._lock:
            rows = self._db.execute(
                "SELECT series FROM images WHERE uid = ? ORDER BY series DESC", (uid,)
            ).fetchall()
        files = (self.images(entry) / f"{_short(uid)}.dcm" for (entry,) in rows)
        return next((path for path in files if path.is_file()), None)

    def results(self, entry: int) -> Path:
        """The folder of its results."""
        return self.folder / "results" / str(entry)

    def counts(self) -> dict[str, int]:
        """How many series are in each state."""
        with self._lock:
            rows = self._db.execute("SELECT state, COUNT(*) FROM series GROUP BY state").fetchall()
        return {str(state): int(count) for state, count in rows}

    def entries(self, most: int = 100) -> list[Entry]:
        """The newest series, newest first."""
        return self._entries("1 ORDER BY id DESC LIMIT ?", (most,))

    def _entries(self, where: str, values: tuple[object, ...]) -> list[Entry]:
        with self._lock:
            rows = self._db.execute(f"SELECT {FIELDS} FROM series WHERE {where}", values).fetchall()
        return [Entry(**dict(zip(Entry.__dataclass_fields__, row, strict=True))) for row in rows]

    def _one(self, query: str, values: tuple[object, ...]) -> Any:
        return self._db.execute(query, values).fetchone()

    def _set(self, entry: int, state: State, reason: str, more: str) -> None:
        with self._lock:
            self._db.execute(
                f"UPDATE series SET state = ?, reason = ?, changed = ?, {more} WHERE id = ?",
                (state, reason, time.time(), entry),
            )

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """All of it, or nothing."""
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")


@contextmanager
def in_one_line(folder: Path) -> Iterator[None]:
    """Whatever SQLite or the disk says of the queue in a folder is an InputError."""
    try:
        yield
    except (sqlite3.Error, OSError, UnicodeDecodeError) as error:  # of its messages, too
        raise InputError(f"cannot use the queue in {folder}: {one_line(error)}") from error


def _short(uid: str) -> str:
    """A file name for a UID, whatever is in it."""
    return hashlib.sha256(uid.encode()).hexdigest()[:32]


def flush_folder(folder: Path) -> None:
    """Have the names in a folder on the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
