"""images and results of series <-> a folder and a database that survive whatever ends the process.

    QUEUE/queue.sqlite     each series: what came, what became of it and why
    QUEUE/images/N/*.dcm   the images of series N; each is on the disk before its sender is told so
    QUEUE/results/N/       labels, report and DICOM objects

    received -> running -> labelled -> sent      or passed over, or failed, with the reason

A series that is sent again as it was is known by its images' UIDs, and nothing is done. If others
come after it was labelled, it becomes a new entry with all images that are still there.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from leuda_deploy.errors import InputError
from leuda_deploy.jobs.node.database import Database, Entry, State
from leuda_deploy.machine.files import atomic_path, flush_folder

MOST_ATTEMPTS = 5  # of labelling a series that ends the process each time
LONGEST_WAIT_S = 3600.0  # more than any delay; by less, a clock may be set back unseen


class Queue:
    """The queue in a folder; threads share one. Whoever changes it holds `exclusively`."""

    def __init__(self, folder: Path, *, read_only: bool = False) -> None:
        """Open the queue in a folder, or make it.

        Raises:
            InputError: There is none and it is only to be read, or it cannot be opened.
        """
        self.folder = folder
        self._db = Database(folder, read_only=read_only)

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
        with self._db.lock:
            entry, known = self._entry_for(series, image, sender, modality)
            if known:
                return False
            path = self.images(entry) / f"{_short(image)}.dcm"
            with atomic_path(path) as temporary:
                temporary.write_bytes(content)
            flush_folder(path.parent)
            with self._db.transaction():
                self._db.execute("INSERT OR IGNORE INTO images VALUES (?, ?)", (entry, image))
                self._count(entry)
        return True

    def _entry_for(self, series: str, image: str, sender: str, modality: str) -> tuple[int, bool]:
        """The entry that an image belongs to, and whether it is there and all is done for it."""
        last = self._db.row(
            "SELECT id, state FROM series WHERE uid = ? ORDER BY id DESC", (series,)
        )
        has = last is not None and bool(
            self._db.row("SELECT 1 FROM images WHERE series = ? AND uid = ?", (last[0], image))
        )
        if last is not None and (last[1] == "received" or (has and last[1] != "failed")):
            if has and last[1] == "received":
                self._count(int(last[0]))
            return int(last[0]), has
        now = time.time()
        with self._db.transaction():
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
            self._db.row("SELECT 1 FROM images WHERE series = ? AND uid = ?", (made, image))
        )

    def _free_id(self) -> int:
        """Of a new entry. A database that was lost has left folders; none is mixed with another."""
        (last,) = self._db.row("SELECT COALESCE(MAX(id), 0) FROM series", ())
        folders = [*self.images(0).parent.glob("*"), *self.results(0).parent.glob("*")]
        numbers = [int(path.name) for path in folders if re.fullmatch(r"[0-9]{1,15}", path.name)]
        return max(int(last), *numbers, 0) + 1

    def _take_over(self, old: int, new: int) -> None:
        """The images of an earlier entry of a series that are still there."""
        for (image,) in self._db.rows("SELECT uid FROM images WHERE series = ?", (old,)):
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
        with self._db.transaction():
            self._db.execute(
                "UPDATE series SET state = 'failed', reason = 'the process ended ' || attempts || "
                "' times while it was labelled' WHERE state = 'running' AND attempts >= ?",
                (MOST_ATTEMPTS,),
            )
            return self._db.execute("UPDATE series SET state = 'received' WHERE state = 'running'")

    def next_received(self, *, quiet_s: float, busy: Collection[str] = ()) -> Entry | None:
        """The oldest series that is complete: nothing came for so long, and nobody sends it now."""
        now = self._now()
        rows = self._db.entries(
            "state = 'received' AND images > 0 AND changed <= ? AND next_try <= ? ORDER BY id",
            (now - quiet_s, now),
        )
        return next((entry for entry in rows if entry.uid not in busy), None)

    def _now(self) -> float:
        """The time; nothing waits for a clock that was set back to come where it was before."""
        now = time.time()
        late = now + LONGEST_WAIT_S
        if self._db.entries("changed > ? OR next_try > ?", (late, late)):
            with self._db.transaction():
                self._db.execute("UPDATE series SET changed = ? WHERE changed > ?", (now, now))
                self._db.execute("UPDATE series SET next_try = ? WHERE next_try > ?", (now, late))
        return now

    def next_labelled(self) -> Entry | None:
        """The oldest series whose results are to be sent now."""
        return next(
            iter(
                self._db.entries("state = 'labelled' AND next_try <= ? ORDER BY id", (self._now(),))
            ),
            None,
        )

    def begin(self, entry: int) -> None:
        """It is being labelled."""
        self._set(entry, "running", "", "attempts = attempts + 1")

    def labelled(self, entry: int, results: Mapping[str, str]) -> None:
        """Its results are there: kind -> SOPInstanceUID."""
        with self._db.transaction():
            self._db.execute("DELETE FROM results WHERE series = ?", (entry,))
            for kind, uid in results.items():
                self._db.execute(
                    "INSERT INTO results (series, kind, uid) VALUES (?, ?, ?)", (entry, kind, uid)
                )
            self._set(entry, "labelled", "", "attempts = 0, next_try = 0")

    def to_send(self, entry: int) -> list[tuple[str, str]]:
        """Kind and SOPInstanceUID of the results that were not sent yet."""
        rows = self._db.rows(
            "SELECT kind, uid FROM results WHERE series = ? AND sent IS NULL ORDER BY kind",
            (entry,),
        )
        return [(str(kind), str(uid)) for kind, uid in rows]

    def was_sent(self, entry: int, kind: str) -> None:
        """A result has arrived; with the last one, the series is done."""
        with self._db.transaction():
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
        with self._db.transaction():
            return self._db.execute(
                "UPDATE series SET state = CASE WHEN EXISTS (SELECT 1 FROM results WHERE series = "
                "id) THEN 'labelled' ELSE 'received' END, attempts = 0, next_try = 0 "
                "WHERE state = 'failed'"
            )

    def clear(self, older_than_s: float) -> None:
        """Remove the files of what was sent or passed over so long ago; the entry stays."""
        for entry in self._db.entries(
            "state IN ('sent', 'passed over') AND changed <= ? AND cleared = 0",
            (time.time() - older_than_s,),
        ):
            shutil.rmtree(self.images(entry.id), ignore_errors=True)
            shutil.rmtree(self.results(entry.id), ignore_errors=True)
            self._db.execute("UPDATE series SET cleared = 1 WHERE id = ?", (entry.id,))

    # --- looked at

    def images(self, entry: int) -> Path:
        """The folder of its images."""
        return self.folder / "images" / str(entry)

    def image(self, uid: str) -> Path | None:
        """The file of an image, if it is still there."""
        rows = self._db.rows("SELECT series FROM images WHERE uid = ? ORDER BY series DESC", (uid,))
        files = (self.images(entry) / f"{_short(uid)}.dcm" for (entry,) in rows)
        return next((path for path in files if path.is_file()), None)

    def results(self, entry: int) -> Path:
        """The folder of its results."""
        return self.folder / "results" / str(entry)

    def counts(self) -> dict[str, int]:
        """How many series are in each state."""
        rows = self._db.rows("SELECT state, COUNT(*) FROM series GROUP BY state")
        return {str(state): int(count) for state, count in rows}

    def entries(self, most: int = 100) -> list[Entry]:
        """The newest series, newest first."""
        return self._db.entries("1 ORDER BY id DESC LIMIT ?", (most,))

    def _set(self, entry: int, state: State, reason: str, more: str) -> None:
        self._db.execute(
            f"UPDATE series SET state = ?, reason = ?, changed = ?, {more} WHERE id = ?",
            (state, reason, time.time(), entry),
        )


def _short(uid: str) -> str:
    """A file name for a UID, whatever is in it."""
    return hashlib.sha256(uid.encode()).hexdigest()[:32]
