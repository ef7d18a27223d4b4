"""What a queue is told, it still knows after whatever ends the process; nothing is done twice."""

from __future__ import annotations

import os
import resource
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from leuda_deploy.errors import InputError
from leuda_deploy.jobs.node.database import DATABASE, Entry
from leuda_deploy.jobs.node.queue import MOST_ATTEMPTS, Queue


@pytest.fixture
def queue(tmp_path: Path) -> Queue:
    return Queue(tmp_path / "queue")


def take(queue: Queue, image: str, series: str = "1.2", content: bytes = b"pixels") -> bool:
    return queue.take(series, image, content, sender="CT1@10.0.0.5", modality="CT")


def complete(queue: Queue, quiet_s: float = 0.0) -> Entry:
    entry = queue.next_received(quiet_s=quiet_s)
    assert entry is not None
    return entry


def test_images_become_a_series_that_is_labelled_and_sent(queue: Queue) -> None:
    assert [take(queue, image) for image in ("a", "b", "a")] == [True, True, False]
    assert queue.next_received(quiet_s=60) is None
    assert queue.next_received(quiet_s=0, busy={"1.2"}) is None
    entry = complete(queue)
    assert (entry.images, entry.sender, entry.state) == (2, "CT1@10.0.0.5", "received")
    assert {path.read_bytes() for path in queue.images(entry.id).iterdir()} == {b"pixels"}
    queue.begin(entry.id)
    assert queue.next_received(quiet_s=0) is None
    queue.labelled(entry.id, {"dicom_seg": "9.1", "dicom_sr": "9.2"})
    assert queue.to_send(entry.id) == [("dicom_seg", "9.1"), ("dicom_sr", "9.2")]
    queue.was_sent(entry.id, "dicom_seg")
    assert queue.counts() == {"labelled": 1}
    assert queue.to_send(entry.id) == [("dicom_sr", "9.2")]
    queue.was_sent(entry.id, "dicom_sr")
    assert queue.counts() == {"sent": 1}
    assert queue.next_labelled() is None


def test_what_comes_again_is_known_and_what_comes_late_joins_the_rest(queue: Queue) -> None:
    for image in "ab":
        take(queue, image)
    first = complete(queue)
    queue.begin(first.id)
    assert not take(queue, "a")  # as it was
    assert queue.counts() == {"running": 1}
    assert take(queue, "c")  # one more
    second = complete(queue)
    assert (second.id != first.id, second.images) == (True, 3)
    assert len(list(queue.images(second.id).iterdir())) == 3
    queue.end(second.id, "failed", "for a test")
    assert not take(queue, "a")  # sent again by hand: to be tried again, with what is there
    third = complete(queue)
    assert (third.id not in (first.id, second.id), third.images) == (True, 3)


def test_a_process_that_ended_leaves_nothing_behind_that_is_lost(queue: Queue) -> None:
    take(queue, "a")
    for attempt in range(1, MOST_ATTEMPTS + 1):
        entry = complete(queue)
        queue.begin(entry.id)
        queue.close()
        queue = Queue(queue.folder)
        assert queue.recover() == (1 if attempt < MOST_ATTEMPTS else 0)
    (entry,) = queue.entries()
    assert entry.state == "failed"  # it may be what ends the process
    assert str(MOST_ATTEMPTS) in entry.reason
    assert queue.retry_failed() == 1
    queue.begin(complete(queue).id)
    queue.put_back(entry.id)  # told to stop: not the series' fault
    assert complete(queue).attempts == 0


def test_an_image_that_was_taken_is_there_after_a_kill(tmp_path: Path) -> None:
    code = f"""
import os, signal
from pathlib import Path
from leuda_deploy.jobs.node.queue import Queue
queue = Queue(Path({str(tmp_path / "queue")!r}))
for k in range(5):
    queue.take("1.2", str(k), b"x" * 1000, sender="A", modality="CT")
os.kill(os.getpid(), signal.SIGKILL)
"""
    search = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[4])}
    ended = subprocess.run([sys.executable, "-c", code], env=search, check=False)
    assert ended.returncode == -9
    assert complete(Queue(tmp_path / "queue")).images == 5


def test_a_full_disk_costs_the_image_that_did_not_fit_and_no_more(queue: Queue) -> None:
    take(queue, "a")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (3000, hard))
        with pytest.raises((OSError, sqlite3.Error)):
            take(queue, "b", content=b"x" * 10_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert complete(queue).images == 1
    assert len(list(queue.images(complete(queue).id).iterdir())) == 1
    assert take(queue, "b", content=b"x" * 10_000)  # the sender was told, and sends it again
    assert complete(queue).images == 2


def test_what_waits_for_its_next_try_stands_in_nobodys_way(queue: Queue) -> None:
    take(queue, "a", series="1")
    take(queue, "b", series="2")
    first = complete(queue)
    queue.begin(first.id)
    queue.later(first.id, "received", "no room", 60)
    assert complete(queue).uid == "2"
    waiting = next(entry for entry in queue.entries() if entry.id == first.id)
    assert (waiting.state, waiting.reason) == ("received", "no room")


def test_files_of_what_is_done_go_and_the_entry_stays(queue: Queue) -> None:
    take(queue, "a")
    entry = complete(queue)
    queue.labelled(entry.id, {"dicom_seg": "9"})
    queue.clear(0)
    assert queue.images(entry.id).exists()  # not sent yet
    queue.was_sent(entry.id, "dicom_seg")
    queue.clear(3600)
    assert queue.images(entry.id).exists()
    queue.clear(0)
    assert not queue.images(entry.id).exists()
    assert not take(queue, "a")
    assert queue.counts() == {"sent": 1}


def test_a_queue_has_one_process(queue: Queue, tmp_path: Path) -> None:
    with (
        queue.exclusively(),
        pytest.raises(InputError, match="another leuda listen"),
        Queue(queue.folder).exclusively(),
    ):
        pass
    with pytest.raises(InputError, match="no queue in"):
        Queue(tmp_path / "nowhere", read_only=True)


def test_names_from_outside_name_no_file(queue: Queue, tmp_path: Path) -> None:
    take(queue, "../../../evil", series="../evil")
    assert not (tmp_path / "evil").exists()
    (kept,) = queue.images(complete(queue).id).iterdir()
    assert kept.name.removesuffix(".dcm").isalnum()


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(b"SQLite format 3" + path.read_bytes()[15:4000]),
        lambda path: path.write_bytes(path.read_bytes().replace(b"sender", b"xender")),
        lambda path: changed(path, "UPDATE series SET received = 'soon'"),
        lambda path: changed(path, "UPDATE series SET state = 'asleep'"),
    ],
    ids=["cut off", "other columns", "odd time", "odd state"],
)
def test_a_damaged_database_is_one_line(queue: Queue, damage: Callable[[Path], object]) -> None:
    take(queue, "a")
    queue.close()
    path = queue.folder / DATABASE
    damage(path)
    with pytest.raises(InputError, match="queue in"):
        Queue(queue.folder)


def changed(path: Path, command: str) -> None:
    with sqlite3.connect(path) as database:
        database.execute(command)


def test_a_database_that_was_lost_mixes_no_series_with_those_before(queue: Queue) -> None:
    take(queue, "a")
    (queue.results(1)).mkdir(parents=True)
    (queue.results(3)).mkdir(parents=True)
    queue.close()
    for path in queue.folder.glob(f"{DATABASE}*"):
        path.unlink()
    anew = Queue(queue.folder)
    take(anew, "b", series="1.7")
    entry = complete(anew)
    assert entry.id == 4
    assert len(list(anew.images(entry.id).iterdir())) == 1
    assert len(list(anew.images(1).iterdir())) == 1


def test_a_clock_that_was_set_back_keeps_nothing_waiting(
    queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, year = time.time(), 365 * 24 * 3600.0
    monkeypatch.setattr("time.time", lambda: now + year)
    take(queue, "a")
    take(queue, "b", series="1.3")
    late = complete(queue)
    queue.later(late.id, "received", "no memory", 600.0)
    monkeypatch.setattr("time.time", lambda: now)
    assert queue.next_received(quiet_s=10) is None  # it may still be coming
    monkeypatch.setattr("time.time", lambda: now + 11)
    first = complete(queue, quiet_s=10)
    queue.end(first.id, "failed", "for a test")
    assert complete(queue, quiet_s=10).uid != first.uid
