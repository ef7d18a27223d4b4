"""the six kinds of image, by where they come from and by what they look like.

The names are the paper's symbols in words: see the table in objective/step.py.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

Stream = Literal[
    "source",
    "source_as_target",
    "source_cycled",
    "target",
    "target_as_source",
    "target_cycled",
]
SOURCE_STREAMS: tuple[Stream, ...] = ("source", "source_as_target", "source_cycled")
TARGET_STREAMS: tuple[Stream, ...] = ("target", "target_as_source", "target_cycled")
# by appearance
SOURCE_LIKE: tuple[Stream, ...] = ("source", "source_cycled", "target_as_source")
TARGET_LIKE: tuple[Stream, ...] = ("source_as_target", "target", "target_cycled")
# (student's image, teacher's image): the same slice in the two appearances
Pair = tuple[Stream, Stream]
PAPER_PAIRS: tuple[Pair, ...] = (
    ("source", "source_as_target"),
    ("source_cycled", "source_as_target"),
    ("target_as_source", "target"),
    ("target_as_source", "target_cycled"),
)


def in_order(streams: Iterable[Stream]) -> tuple[Stream, ...]:
    """Each stream once, source-like ones first: the order in which a network reads them."""
    read = set(streams)
    return tuple(stream for stream in (*SOURCE_LIKE, *TARGET_LIKE) if stream in read)


def is_aligned(a: Stream, b: Stream) -> bool:
    """Whether the two show the same slice, of the source or of the target."""
    return (a in SOURCE_STREAMS) == (b in SOURCE_STREAMS)
