"""a command and a limit -> it is run in a process of its own, and how it ended.

A process that takes too long, and what it started, is ended. So is it if this process is
interrupted, or, on Linux, killed.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from leuda_deploy.errors import printable
from leuda_deploy.machine.stop import end_with_parent

GRACE_SECONDS = 10.0  # from SIGTERM to SIGKILL


@dataclass(frozen=True)
class Ended:
    """How a process ended. reason: in one line; None: with exit code 0."""

    seconds: float
    over_time: bool
    reason: str | None


def run_limited(
    command: Sequence[str], log: Path, *, limit_s: float, environment: Mapping[str, str]
) -> Ended:
    """Run a command; what it prints goes into the log."""
    log.parent.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    with log.open("wb") as file:
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            env={**os.environ, **environment},
            start_new_session=True,
            preexec_fn=end_with_parent,
        )
        over_time = False
        try:
            child.wait(limit_s)
        except subprocess.TimeoutExpired:
            over_time = True
        finally:
            _end(child)
    seconds = round(time.monotonic() - began, 1)
    if over_time:
        return Ended(seconds, True, f"took longer than its {limit_s:.0f} s")
    return Ended(seconds, False, _reason(child.returncode, log))


def _end(child: subprocess.Popen[bytes]) -> None:
    """End the process, if it still runs, and whatever is left of its group."""
    if child.poll() is None:
        os.killpg(child.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            child.wait(GRACE_SECONDS)
    with suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def _reason(code: int, log: Path) -> str | None:
    if code == 0:
        return None
    lines = log.read_text(errors="replace").strip().splitlines()
    said = printable(lines[-1].strip()) if lines else "it printed nothing"
    if code < 0:
        with suppress(ValueError):
            return f"killed by {signal.Signals(-code).name}; last it printed: {said}"
    return f"ended with code {code}: {said}"
