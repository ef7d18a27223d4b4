"""content -> files that are whole or not there, and their hashes."""

from __future__ import annotations

import ctypes
import glob
import hashlib
import json
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

from leuda_deploy.machine.stop import unfinished

KEPT_OF_NAME = 24  # letters of a file's name that its temporary file has, too, with its ending

# of renameat2(2): paths are relative to the current folder; swap the two names
_HERE, _RENAME_EXCHANGE = -100, 2
_LINUX = sys.platform == "linux"


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
            _flush(temporary)
            temporary.chmod(0o666 & ~_umask())  # mkstemp makes files private
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
    """Whether a process of this machine still runs; elsewhere than on POSIX, it may."""
    if os.name != "posix":  # where the signal 0 ends a process
        return True
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

    What stood at the target is replaced. At every moment a whole folder stands there, the old one
    or the new one, on Linux; elsewhere a process that is killed between two renames leaves the old
    one as `.old-NAME`, and the next one puts it back. What killed processes left is removed.
    """
    target = Path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    replaced = target.with_name(f".old-{target.name}")
    if replaced.is_dir() and not target.exists():
        replaced.rename(target)  # a process was killed before the new one stood in its place
    _remove_leftovers(target)
    temporary = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".tmp-{target.name}-"))
    temporary.chmod(0o777 & ~_umask())  # mkdtemp makes folders private
    try:
        with _held(temporary), unfinished(temporary):
            yield temporary
            for path in temporary.rglob("*"):
                if path.is_file():
                    _flush(path)
            _put_in_place(temporary, target, replaced)
    finally:
        for leftover in (temporary, replaced):
            shutil.rmtree(leftover, ignore_errors=True)


def _put_in_place(temporary: Path, target: Path, replaced: Path) -> None:
    """Rename the temporary folder to the target; what stood there has another name then."""
    try:
        temporary.rename(target)
    except OSError:
        if not target.is_dir():
            raise
        if not _exchange(temporary, target):
            target.rename(replaced)
            temporary.rename(target)


def _exchange(one: Path, other: Path) -> bool:
    """Swap two names at once. False if this system or file system cannot."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None) if _LINUX else None
    if rename is None:
        return False
    names = os.fsencode(one), os.fsencode(other)
    return bool(rename(_HERE, names[0], _HERE, names[1], _RENAME_EXCHANGE) == 0)


@contextmanager
def _held(folder: Path) -> Iterator[None]:
    """Lock a folder for as long as this process works in it; the lock goes with the process."""
    descriptor = _lock(folder)
    try:
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _lock(folder: Path) -> int | None:
    """The descriptor of a folder that is locked now; None if another process holds it."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return None
    try:
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (OSError, ImportError):  # held; or a system without locks
        os.close(descriptor)
        return None
    return descriptor


def _remove_leftovers(target: Path) -> None:
    """Temporary folders for this target that no living process holds."""
    for leftover in target.parent.glob(f".tmp-{glob.escape(target.name)}-*"):
        if (descriptor := _lock(leftover)) is not None:
            shutil.rmtree(leftover, ignore_errors=True)
            os.close(descriptor)


def flush_folder(folder: Path) -> None:
    """Have the names in a folder on the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _flush(path: Path) -> None:
    """Have a file on the disk before its name says that it is there."""
    with path.open("rb") as written:
        os.fsync(written.fileno())


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
