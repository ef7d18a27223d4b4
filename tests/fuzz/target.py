"""a reader of what others wrote, as it is fuzzed.

A target takes the bytes of one file and a folder to put it in. It ends in a result or in a
LeudaError; anything else that it raises is a finding.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

Feed = Callable[[bytes, Path], object]


@dataclass(frozen=True)
class Target:
    """A sound input, and what is fed with it and with others."""

    sound: Callable[[], bytes]
    feed: Feed


def as_file(name: str, read: Callable[[Path], object]) -> Feed:
    """The content becomes a file of this name, which is read."""

    def feed(content: bytes, folder: Path) -> object:
        (folder / name).write_bytes(content)
        return read(folder / name)

    return feed


def as_json(value: object) -> Callable[[], bytes]:
    """A value as a file holds it."""
    return lambda: json.dumps(value, indent=1).encode()
