"""this process -> bytes it holds now and held at most; text like "1.5G" -> bytes."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from pydantic import ByteSize, TypeAdapter, ValidationError

from leuda_deploy.errors import InputError

BYTE_SIZE = TypeAdapter(ByteSize)


def resident_bytes() -> int | None:
    """Bytes of memory that this process holds now; None if the system does not report it."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return None
    import resource

    return pages * resource.getpagesize()


def peak_bytes() -> int | None:
    """The most that this process has held so far; None if the system does not report it."""
    try:
        # not getrusage, which also counts what the process that started this one held
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) << 10
    except (OSError, IndexError):
        pass
    if sys.platform != "darwin":
        return None
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def parse_bytes(text: str) -> int:
    """ "1.5G" -> 1_500_000_000; K, M, G, T are powers of 1000, Ki, Mi, Gi, Ti of 1024.

    Raises:
        InputError: The text is no size, or a size of nothing.
    """
    # pydantic looks past what follows the unit, and wants "GiB" where people write "Gi"
    size = re.fullmatch(r"\s*(\d*\.?\d+)\s*([kmgt]?i?)b?\s*", text, re.IGNORECASE)
    try:
        count = BYTE_SIZE.validate_python(f"{size[1]}{size[2]}B") if size else 0
    except ValidationError:
        count = 0
    if count <= 0:
        raise InputError(f"a memory size reads like 1.5G or 800M, not {text!r}")
    return int(count)


def in_megabytes(count: float) -> str:
    """12_345_678 -> "12 MB"."""
    return f"{count / 1e6:,.0f} MB"
