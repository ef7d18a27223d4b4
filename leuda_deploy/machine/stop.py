"""Ctrl-C or SIGTERM -> the process ends within two seconds and leaves nothing half-written.

First as Python does it: KeyboardInterrupt, and whatever is under way is closed. Threads may be in
the middle of long work in another library, and closing waits for them. So a thread of its own looks
at the clock, and when the time is over removes what is half-written and ends the process.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import NoReturn

SECONDS = 1.5
STOPS = (signal.SIGINT, signal.SIGTERM)
LAUNCHER = "LEUDA_LAUNCHER"  # in the environment of processes that end with this one
_unfinished: set[Path] = set()


@contextmanager
def unfinished(path: Path) -> Iterator[None]:
    """While the block runs, the file or folder is half-written: it goes if the process is ended."""
    _unfinished.add(path)
    try:
        yield
    finally:
        _unfinished.discard(path)


def end_now(exit_code: int) -> NoReturn:
    """Remove what is half-written, and end this process without waiting for anything."""
    for path in list(_unfinished):
        with suppress(OSError):
            path.unlink() if not path.is_dir() else shutil.rmtree(path, ignore_errors=True)
    os._exit(exit_code)


@contextmanager
def ending_when_told(end: Callable[[int], object] = end_now) -> Iterator[list[int]]:
    """Within the block, SIGINT and SIGTERM end the process in time; yields those that came.

    Nothing is done outside the main thread, where Python cannot look at signals.
    """
    came: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield came
        return
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    over = threading.Event()

    def interrupt(number: int, frame: FrameType | None) -> None:
        came.append(number)
        raise KeyboardInterrupt

    def watch() -> None:
        while number := reader.recv(1):
            if number[0] in STOPS and not over.wait(SECONDS):
                end(128 + number[0])

    before = {number: signal.signal(number, interrupt) for number in STOPS}
    descriptor = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    watcher = threading.Thread(target=watch, name="leuda-stop", daemon=True)
    watcher.start()
    try:
        yield came
    finally:
        over.set()
        signal.set_wakeup_fd(descriptor)
        for number, handler in before.items():
            signal.signal(number, handler)
        writer.close()
        watcher.join()
        reader.close()


def end_with_parent(parent: int | None = None) -> None:
    """Have the system end this process if its parent ends, even by SIGKILL. On Linux alone.

    parent  its process id, for a parent that may have ended before this is called: then this
            process ends at once, on every system
    """
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(1, int(signal.SIGKILL))  # PR_SET_PDEATHSIG
    if parent is not None and os.getppid() != parent:
        os._exit(128 + signal.SIGTERM)


def end_with_launcher() -> None:
    """`end_with_parent`, if a launcher started this process: ours, or a torchrun started by hand.

    What this process starts is its own.
    """
    if launcher := os.environ.pop(LAUNCHER, None):
        end_with_parent(int(launcher))
    elif "TORCHELASTIC_RUN_ID" in os.environ:
        end_with_parent()
        if not _torchrun_listens():  # it ended before that
            os._exit(128 + signal.SIGTERM)


def _torchrun_listens() -> bool:
    """Whether the store of the torchrun that started this process, or its group's first, is open.

    torchrun does not say its process id. True where nobody can tell.
    """
    host, port = os.environ.get("MASTER_ADDR"), os.environ.get("MASTER_PORT", "")
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True" or not (host and port.isdecimal()):
        return True
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except ConnectionRefusedError:
        return False
    except OSError:
        return True
    return True
