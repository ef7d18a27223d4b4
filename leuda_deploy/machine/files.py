"""content -> files that are whole or not there, and their hashes."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

from leuda_deploy.machine.stop import unfinished

KEPT_OF_NAME = 24  # letters of a file's name that its temporary file has, too, with its ending


def file_sha256(path: Path | str) -> str:
    """SHA-256 of a file's bytes, read piece by piece."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def atomic_path(target: Path | str) -> Iterator[Path]:
    """Yield a temporary path beside the target; move it onto the target if the block succeeds.

    What killed runs on this machine left half-written in the folder is removed.
    """
    target = Path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    _remove_unfinished(target.parent)
    # shorter than the target's name, which may be as long as a name can be
    ending = "-" + target.name[-KEPT_OF_NAME:]
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=_own_prefix(), suffix=ending)
    os.close(handle)
    temporary = Path(name)
    with unfinished(temporary):
        try:
            yield temporary
            with temporary.open("rb") as written:
                os.fsync(written.fileno())
            mask = os.umask(0)
            os.umask(mask)
            temporary.chmod(0o666 & ~mask)  # mkstemp makes files private
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)


def _own_prefix() -> str:
    """Of this process's temporary files: machine and process."""
    return f".tmp-{_machine()}-{os.getpid()}-"


@cache
def _machine() -> str:
    """A short name of this machine, or of the container, whose processes have their own numbers."""
    return hashlib.sha256(platform.node().encode()).hexdigest()[:8]


_looked_through: set[Path] = set()


def _remove_unfinished(folder: Path) -> None:
    """Remove temporary files of this machine's processes that have ended; once a folder."""
    folder = folder.resolve()
    if folder in _looked_through:
        return
    _looked_through.add(folder)
    for path in folder.glob(f".tmp-{_machine()}-*-*"):
        process = path.name.split("-")[2]
        if process.isdigit() and path.is_file() and not _runs(int(process)):
            with suppress(OSError):
                path.unlink()


def _runs(process: int) -> bool:
    """Whether a process of this machine still runs."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # another user's
        return True
    return True


def write_json(target: Path | str, content: Any) -> None:
    """Write content as JSON, atomically. NaN is no JSON: it raises ValueError, nothing is written.

    Two runs that write the same content write the same bytes.
    """
    with atomic_path(target) as temporary:
        temporary.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")


@contextmanager
def atomic_folder(target: Path | str) -> Iterator[Path]:
    """Yield a temporary folder beside the target; it becomes the target if the block succeeds.

    What stood at the target is replaced; what a killed run left half-written is removed.
    """
    target = Path(target)
    temporary = target.with_name(f".tmp-{target.name}")
    replaced = target.with_name(f".old-{target.name}")
    for leftover in (temporary, replaced):
        shutil.rmtree(leftover, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        if target.exists():
            target.replace(replaced)
        temporary.replace(target)
    finally:
        for leftover in (temporary, replaced):
            shutil.rmtree(leftover, ignore_errors=True)
