"""what something is made of -> a folder, made once, by one process, whole or not at all."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from filelock import FileLock

from leuda_deploy.machine.files import atomic_folder
from leuda_train.loop.ranks import ALONE, Ranks


def content_key(*parts: Any) -> str:
    """A short name for whatever the parts (JSON-able) say; equal parts, equal name."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def made_once(
    folder: Path,
    make: Callable[[Path], None],
    *,
    ranks: Ranks = ALONE,
    assist: Callable[[], None] = lambda: None,
) -> Path:
    """The folder; if it is not there, make(temporary) fills it first.

    Runs that share a cache wait for the one that is making it. A lock dies with its process. Of a
    run's several processes the first one makes it; the others do their part of the work, `assist`,
    if there is any to do, and wait.
    """
    if not ranks.first:
        if ranks.broadcast():  # the first process is making it
            assist()
            ranks.broadcast()
        return folder

    def make_together(temporary: Path) -> None:
        ranks.broadcast(True)
        make(temporary)

    _made_once(folder, make_together)
    ranks.broadcast(False)  # either nothing was to be made, or it is there now
    return folder


def _made_once(folder: Path, make: Callable[[Path], None]) -> None:
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_name(f".{folder.name}.lock")):
            if not folder.is_dir():
                with atomic_folder(folder) as temporary:
                    make(temporary)
