"""the six kinds of image, by where they come from and by what they look like.

The names are the paper's symbols in words: see the table in objective/step.py.
"""

from __future__ import annotations

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
