"""this process -> bytes it holds now, held at most and may still take; "1.5G" -> bytes."""

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
    # not getrusage, which also counts what the process that started this one held
    peak = _bytes_in("/proc/self/status", "VmHWM")
    if peak is not None:
        return peak
    if sys.platform != "darwin":
        return None
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def forget_peak() -> bool:
    """Let `peak_bytes` count from what is held now; whether the system can do that."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def resident_file_bytes() -> int | None:
    """Pages of files that this process holds, which the system can drop; None if unknown."""
    return _bytes_in("/proc/self/status", "RssFile")


def available_bytes() -> int | None:
    """What processes may still take before this machine, or this control group, runs out of memory.

    None if the system does not report it.
    """
    free = _bytes_in("/proc/meminfo", "MemAvailable")
    try:
        group = Path("/sys/fs/cgroup")
        limit = int((group / "memory.max").read_text())  # "max": no limit
        held = int((group / "memory.current").read_text())
        droppable = int((group / "memory.stat").read_text().split("\ninactive_file ")[1].split()[0])
    except (OSError, ValueError, IndexError):
        return free
    within = max(0, limit - held + droppable)
    return within if free is None else min(free, within)


def _bytes_in(file: str, name: str) -> int | None:
    """The value of a line "NAME: 123 kB"."""
    try:
        return int(Path(file).read_text().split(f"{name}:")[1].split()[0]) << 10
    except (OSError, IndexError, ValueError):
        return None


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
