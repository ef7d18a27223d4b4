"""Files and folders are whole or not there; equal content, equal bytes."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from leuda_deploy.machine.files import (
    atomic_folder,
    atomic_path,
    file_sha256,
    write_json,
)


def test_written_file_is_as_readable_as_any_other(tmp_path: Path) -> None:
    with atomic_path(tmp_path / "new" / "file.txt") as temporary:
        temporary.write_text("x")
    (tmp_path / "plain.txt").write_text("x")
    made, plain = tmp_path / "new" / "file.txt", tmp_path / "plain.txt"
    assert made.stat().st_mode == plain.stat().st_mode
    assert list(made.parent.iterdir()) == [made]


def test_failed_folder_leaves_the_old_one(tmp_path: Path) -> None:
    with atomic_folder(tmp_path / "out") as folder:
        (folder / "a").write_text("old")

    def fail() -> None:
        with atomic_folder(tmp_path / "out") as folder:
            (folder / "a").write_text("new")
            raise ValueError("stop")

    with pytest.raises(ValueError, match="stop"):
        fail()
    assert (tmp_path / "out" / "a").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    with atomic_folder(tmp_path / "out") as folder:
        (folder / "b").write_text("newer")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["b"]


KILLED_AT = """
import os, signal, sys
from pathlib import Path
from leuda_deploy.machine.files import atomic_folder

moment, target = sys.argv[1:]
seen = 0
def watch(event, arguments):
    # killed just before the n-th rename
    global seen
    if event == "os.rename":
        seen += 1
        if moment == f"before {seen}":
            os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(watch)
with atomic_folder(target) as folder:
    (folder / "a").write_text("new")
    if moment == "within":
        os.kill(os.getpid(), signal.SIGKILL)
    if moment.startswith("slow "):
        import leuda_deploy.machine.files as files
        files._exchange = lambda one, other: False
        moment = moment.removeprefix("slow ")
"""


@pytest.mark.parametrize("moment", ["within", "slow before 1", "slow before 2"])
def test_a_killed_process_never_costs_the_old_folder(tmp_path: Path, moment: str) -> None:
    """`slow`: on a system that cannot swap two names at once."""
    target = tmp_path / "out"
    with atomic_folder(target) as folder:
        (folder / "a").write_text("old")
    killed = subprocess.run([sys.executable, "-c", KILLED_AT, moment, target], check=False)
    assert killed.returncode == -signal.SIGKILL
    if moment != "slow before 2":
        assert (target / "a").read_text() == "old"
    try:
        with atomic_folder(target):
            assert (target / "a").read_text() == "old"
            raise ValueError("this one fails, too")
    except ValueError:
        pass
    assert (target / "a").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.skipif(sys.platform != "linux", reason="names are swapped at once on Linux")
def test_a_folder_is_there_at_every_moment(tmp_path: Path) -> None:
    target = tmp_path / "out"
    missing: list[int] = []
    stop = threading.Event()

    def look() -> None:
        while not stop.is_set():
            if not os.access(target / "a", os.R_OK):
                missing.append(1)

    with atomic_folder(target) as folder:
        (folder / "a").write_text("old")
    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        for number in range(10):
            with atomic_folder(target) as folder:
                (folder / "a").write_text(str(number))
    finally:
        stop.set()
        watcher.join()
    assert missing == []


def test_two_at_once_do_not_touch_each_others_folder(tmp_path: Path) -> None:
    target = tmp_path / "out"
    with atomic_folder(target) as one:
        (one / "a").write_text("one")
        with atomic_folder(target) as other:
            (other / "a").write_text("other")
        assert (target / "a").read_text() == "other"
        assert (one / "a").read_text() == "one"
    assert (target / "a").read_text() == "one"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_file_that_fails_leaves_the_old_one(tmp_path: Path) -> None:
    target = tmp_path / "a.json"
    write_json(target, {"old": 1})

    def fail() -> None:
        with atomic_path(target) as temporary:
            temporary.write_text("half")
            raise ValueError("stop")

    with pytest.raises(ValueError, match="stop"):
        fail()
    assert json.loads(target.read_text()) == {"old": 1}
    assert list(tmp_path.iterdir()) == [target]


def test_json_is_whole_or_not_there(tmp_path: Path) -> None:
    content = {"b": [1.5, None], "a": {"x": "é"}}
    write_json(tmp_path / "deep" / "one.json", content)
    write_json(tmp_path / "two.json", content)
    one = (tmp_path / "deep" / "one.json").read_bytes()
    assert json.loads(one) == content
    assert one == (tmp_path / "two.json").read_bytes()
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "two.json", {"loss": float("nan")})
    assert (tmp_path / "two.json").read_bytes() == one


def test_the_hash_is_that_of_the_bytes(tmp_path: Path) -> None:
    content = bytes(range(256)) * 5000
    (tmp_path / "a").write_bytes(content)
    assert file_sha256(tmp_path / "a") == hashlib.sha256(content).hexdigest()
