"""content -> files that are whole or not there, and their hashes."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from leuda_deploy.errors import InputError


def file_sha256(path: Path | str) -> str:
    """SHA-256 of a file's bytes, read piece by piece."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_writable(target: Path) -> None:
    """Make the target's folder and prove that files can be made in it. Raises InputError."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=target.parent):
            pass
    except OSError as error:
        raise InputError(
            f"cannot write {target}: {error.strerror or error}; choose another --output"
        ) from error


@contextmanager
def atomic_path(target: Path | str) -> Iterator[Path]:
    """Yield a temporary path beside the target; move it onto the target if the block succeeds."""
    target = Path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=".tmp-", suffix="-" + target.name)
    os.close(handle)
    temporary = Path(name)
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
