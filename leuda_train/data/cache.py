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

MAKING, READY = "making", "ready"


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

    Runs that share a cache wait for the one that is making the folder. A lock dies with its
    process.

    Of one run's several processes only the first one looks at the disk. It sends the others one or
    two messages, and they wait for each:

        READY          the folder is there: go on
        MAKING, READY  it is being made: do your part, `assist`; then it is there: go on

    If `make` fails, no second message comes; the launcher then ends the others.

    Args:
        folder: Where it is to be, in the end.
        make: Fills a temporary folder, in the first process.
        ranks: The run's processes.
        assist: What the others do meanwhile: nothing, or their share of a joint training.
    """
    if not ranks.first:
        if ranks.broadcast() == MAKING:
            assist()
            ranks.broadcast()
        return folder

    def make_together(temporary: Path) -> None:
        ranks.broadcast(MAKING)
        make(temporary)

    _made_once(folder, make_together)
    ranks.broadcast(READY)
    return folder


def _made_once(folder: Path, make: Callable[[Path], None]) -> None:
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_name(f".{folder.name}.lock")):
            if not folder.is_dir():
                with atomic_folder(folder) as temporary:
                    make(temporary)
