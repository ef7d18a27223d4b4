"""scan + its way through the runtime -> the least seconds that memory and gzip allow here.

What a phase has to move, at the speed at which this machine moves it: the scan once through the
histogram; scan and model grid once through resampling; scores and labels once through labelling;
and the file through gzip, there and back. No phase can be faster; how near it is says what is left.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from isal import igzip
from numpy.typing import NDArray

from leuda_deploy.scans.formats.gzip_array import LEVEL, PIECE_BYTES
from leuda_deploy.scans.stack import Stack

COPIED_BYTES = 64 << 20
ROUNDS = 3


def least_seconds(
    scan: Path, stack: Stack, labels: NDArray[np.uint8], classes: int
) -> dict[str, float]:
    """Phase -> seconds, measured and worked out; the phases' names are those of `Segmentation`."""
    bytes_per_second = memory_bandwidth()
    raw, grid = stack.volume.raw, stack.depth * int(np.prod(stack.grid_shape)) * 4
    moved = {
        "normalise": raw.nbytes,
        "resample": raw.nbytes + grid,
        "labels": classes * grid + labels.nbytes,
    }
    found = {phase: count / bytes_per_second for phase, count in moved.items()}
    content = labels.tobytes(order="F")
    found["read"] = _best(lambda: _unpack(scan))
    found["write"] = _best(lambda: _pack(content))
    return found


def memory_bandwidth() -> float:
    """Bytes a second, read and written, of one thread's plain copy of more than the caches hold."""
    source: NDArray[Any] = np.ones(COPIED_BYTES, np.uint8)
    target = np.zeros_like(source)
    return 2 * COPIED_BYTES / _best(lambda: np.copyto(target, source))


def _best(work: Callable[[], object]) -> float:
    seconds = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - began)
    return min(seconds)


def _unpack(path: Path) -> None:
    piece = bytearray(PIECE_BYTES)
    with igzip.open(path, "rb") as stream:
        while stream.readinto(piece):
            pass


def _pack(content: bytes) -> None:
    with igzip.IGzipFile("", "wb", LEVEL, fileobj=io.BytesIO(), mtime=0) as stream:
        stream.write(content)
