"""this process -> bytes it holds now and held at most; text like "1.5G" -> bytes."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from leuda_deploy.errors import InputError

UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "KI": 1 << 10, "MI": 1 << 20, "GI": 1 << 30}


def resident_bytes() -> int | None:
    """Bytes of memory that this process holds now; None where the system does not tell."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return None
    import resource

    return pages * resource.getpagesize()


def peak_bytes() -> int | None:
    """The most that this process has held so far; None where the system does not tell."""
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
    """ "1.5G" -> 1_500_000_000; K, M, G are powers of 1000, Ki, Mi, Gi of 1024."""
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*([KMG]?I?)B?", text.strip().upper())
    if match is None or match[2] not in UNITS or float(match[1]) == 0:
        raise InputError(f"a memory size reads like 1.5G or 800M, not {text!r}")
    return int(float(match[1]) * UNITS[match[2]])


def in_megabytes(count: float) -> str:
    """12_345_678 -> "12 MB"."""
    return f"{count / 1e6:,.0f} MB"
