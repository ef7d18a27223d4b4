"""A process that is told to end ends in time, whatever it is in the middle of."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from leuda_deploy.machine.files import atomic_path

# in the middle of a file, the main thread waits for a thread that does not end by itself
STUCK = """
import sys, threading
from concurrent.futures import ThreadPoolExecutor
from leuda_deploy.machine.files import atomic_path
from leuda_deploy.machine.stop import ending_when_told
with ending_when_told(), atomic_path(sys.argv[1]) as half, ThreadPoolExecutor(1) as pool:
    half.write_text("half")
    stuck = pool.submit(threading.Event().wait)
    print("ready", flush=True)
    stuck.result()
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_process_that_hangs_ends_and_leaves_nothing(tmp_path: Path, number: int) -> None:
    running = subprocess.Popen(
        [sys.executable, "-c", STUCK, tmp_path / "a.txt"], stdout=subprocess.PIPE, text=True
    )
    try:
        assert running.stdout is not None
        assert running.stdout.readline() == "ready\n"
        running.send_signal(number)
        assert running.wait(timeout=60) == 128 + number
    finally:
        running.kill()
        running.communicate()
    assert list(tmp_path.iterdir()) == []


LISTENS = """
import os, signal, threading
from leuda_deploy.machine.stop import ending_when_told
forced = []
before = signal.getsignal(signal.SIGTERM)
with ending_when_told(forced.append) as came:
    try:
        os.kill(os.getpid(), signal.SIGTERM)
        threading.Event().wait(60)
    except KeyboardInterrupt:
        print("interrupted", came == [signal.SIGTERM])
print(forced, signal.getsignal(signal.SIGTERM) == before)
"""


def test_a_process_that_listens_is_interrupted_and_never_forced() -> None:
    done = subprocess.run(
        [sys.executable, "-c", LISTENS], capture_output=True, text=True, check=True
    )
    assert done.stdout == "interrupted True\n[] True\n"


def test_what_a_killed_process_left_is_removed_by_the_next_one(tmp_path: Path) -> None:
    code = (
        "import sys, os\nfrom leuda_deploy.machine.files import atomic_path\n"
        "with atomic_path(sys.argv[1]) as half:\n"
        "    half.write_text('half')\n"
        "    os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", code, tmp_path / "a.txt"], check=False).returncode
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".tmp-")
    (tmp_path / ".tmp-of-somebody-else").touch()
    with atomic_path(tmp_path / "b.txt") as mine:
        mine.write_text("whole")
    assert {path.name for path in tmp_path.iterdir()} == {"b.txt", ".tmp-of-somebody-else"}


# a child that asks to end with its parent after that was killed
LATE = """
import os, subprocess, sys, time
child = '''
import os, sys, time
from leuda_deploy.machine.stop import end_with_launcher
while os.getppid() == int(os.environ["LEUDA_LAUNCHER"]):
    time.sleep(0.01)
end_with_launcher()
time.sleep(5)
print("left", flush=True)
'''
os.environ["LEUDA_LAUNCHER"] = str(os.getpid())
subprocess.Popen([sys.executable, "-c", child])
print("ready", flush=True)
time.sleep(600)
"""


def test_a_child_ends_though_its_parent_was_killed_before_it_asked() -> None:
    with subprocess.Popen([sys.executable, "-c", LATE], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"ready\n"
        parent.kill()
        assert parent.stdout.read() == b""  # the child held it, and has ended
