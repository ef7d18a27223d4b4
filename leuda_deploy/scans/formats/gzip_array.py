"""file, gzipped or plain <-> array, in one copy; gzip by ISA-L: several times the speed of zlib.

A plain file is read, not mapped: of a mapped one that is cut off meanwhile the process dies.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import IO, Any

import numpy as np
from isal import igzip, isal_zlib
from numpy.typing import NDArray

GZIP_MAGIC = b"\x1f\x8b"
NIFTI1_BYTES, NIFTI2_BYTES = 348, 540
LEVEL = 1  # labels shrink thirtyfold at any level; this one costs a tenth of zlib's 6
PIECE_BYTES = 1 << 20
MAX_HEADER_BYTES = 16 << 20  # before the voxels begin; a NIfTI extension is text or a few tables
DecodeError: Any = isal_zlib.error


def is_gzip(path: Path) -> bool:
    """Whether a file begins as gzip does, whatever it is called."""
    with path.open("rb") as file:
        return file.read(2) == GZIP_MAGIC


def read_array(
    path: Path, *, offset: int, shape: tuple[int, ...], dtype: np.dtype[Any], order: Any, last: bool
) -> NDArray[Any]:
    """The array that begins `offset` bytes into the unpacked stream, as it is stored.

    last  nothing of interest follows: read on to the end, where gzip keeps its checksum
    Raises EOFError for a stream that is too short, OSError if the file was written to meanwhile,
    and what gzip raises for a damaged one.
    """
    before, size = path.stat(), prod(shape) * dtype.itemsize
    packed = is_gzip(path)
    # deflate shrinks 1032 times at most: what the header states does not cost memory by itself
    if offset + size > before.st_size * (1100 if packed else 1):
        raise EOFError(f"it has {before.st_size:,} bytes, and states {size:,} of voxels")
    array = np.empty(shape, dtype=dtype, order=order)
    flat: Any = array.ravel(order="K").view(np.uint8)  # a view: the array is contiguous
    waiting = memoryview(flat)
    with igzip.open(path, "rb") if packed else path.open("rb") as stream:
        if not packed:
            stream.seek(offset)
            offset = 0
        while offset and (skipped := len(stream.read(min(offset, PIECE_BYTES)))):
            offset -= skipped
        # piece by piece: the stream unpacks what it is asked for beside the array before it copies
        while waiting and (count := stream.readinto(waiting[:PIECE_BYTES])):
            waiting = waiting[count:]
        if offset or waiting:
            raise EOFError(f"the file ends {offset + len(waiting):,} bytes too early")
        while packed and last and stream.read(PIECE_BYTES):
            pass
    after = path.stat()
    if (after.st_size, after.st_mtime_ns) != (before.st_size, before.st_mtime_ns):
        raise OSError("it was written to while it was read")
    return array


def check_header(path: Path) -> None:
    """Refuse a NIfTI header that takes more than MAX_HEADER_BYTES before it is read whole.

    A megabyte of gzip can hold an extension of a gigabyte. Raises ValueError.
    """
    with igzip.open(path, "rb") if is_gzip(path) else path.open("rb") as stream:
        head = stream.read(NIFTI2_BYTES)
        order = next((o for o in "<>" if _header_size(head, o) in (NIFTI1_BYTES, NIFTI2_BYTES)), "")
        if not order:
            return  # another format
        wide = _header_size(head, order) == NIFTI2_BYTES
        magic = head[4:8] if wide else head[344:348]
        begin = (NIFTI2_BYTES if wide else NIFTI1_BYTES) + 4
        if magic[:2] == b"ni":  # a pair: extensions go on to the end of the header file
            rest = stream.read(MAX_HEADER_BYTES + 1)
            end = len(head) + len(rest)
        elif magic[:2] == b"n+":
            form, place = ("q", 168) if wide else ("f", 108)
            (end,) = struct.unpack_from(order + form, head, place)
            if not 0 <= end <= MAX_HEADER_BYTES:
                raise ValueError(f"its voxels begin at byte {end:g}; at most {MAX_HEADER_BYTES:,}")
            rest = stream.read(max(0, int(end) - len(head)))
        else:
            return
    if end > MAX_HEADER_BYTES:
        raise ValueError(f"its header has more than {MAX_HEADER_BYTES:,} bytes")
    content, place = (head + rest)[: int(end)], begin
    if content[begin - 4 : begin - 3] in (b"", b"\0"):
        return  # no extensions
    while place + 16 <= len(content):
        (size,) = struct.unpack_from(order + "i", content, place)
        if not 8 <= size <= len(content) - place:
            raise ValueError(f"its header has an extension of {size:,} bytes and no room for it")
        place += size


def _header_size(head: bytes, order: str) -> int:
    size: int = struct.unpack_from(order + "i", head)[0] if len(head) >= NIFTI1_BYTES else 0
    return size


@contextmanager
def open_to_write(path: Path, *, compress: bool) -> Iterator[IO[bytes]]:
    """A stream into `path`; the same content always gives the same bytes."""
    with path.open("wb") as file:
        if not compress:
            yield file
            return
        # neither the time nor the (temporary) name belongs into the file
        with igzip.IGzipFile("", "wb", LEVEL, fileobj=file, mtime=0) as stream:
            yield stream
