"""voxels somewhere in a file, raw or packed -> array, when they are asked for, in one copy."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
from isal import igzip, isal_zlib
from numpy.typing import NDArray

from leuda_deploy.machine.outside import open_file

Packing = Literal["raw", "gzip", "zlib"]
PIECE_BYTES = 1 << 20
MOST_SHRUNK = 1100  # deflate shrinks 1032 times at most
RAS_OF = {"R": 1.0, "A": 1.0, "S": 1.0, "L": -1.0, "P": -1.0, "I": -1.0}


@dataclass(frozen=True, kw_only=True)
class StoredVoxels:
    """Voxels of a file, which numpy reads when it asks for them.

    offset   bytes before them; of a raw file, -1: they end where it ends
    stored   their shape as they lie, the first axis fastest
    order    the axes of `stored` in the order of the array's: those of space first
    """

    path: Path
    offset: int
    packing: Packing
    stored: tuple[int, ...]
    dtype: np.dtype[Any]
    order: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the array."""
        return tuple(self.stored[axis] for axis in self.order)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        """Read them. Raises EOFError for a file that is too short."""
        size, have = prod(self.stored) * self.dtype.itemsize, self.path.stat().st_size
        if size > have * (1 if self.packing == "raw" else MOST_SHRUNK):
            raise EOFError(f"it has {have:,} bytes, and states {size:,} of voxels")
        array = np.empty(self.stored, dtype=self.dtype, order="F")
        flat: Any = array.ravel(order="K").view(np.uint8)  # a view: the array is contiguous
        with open_file(self.path) as file:
            file.seek(have - size if self.offset < 0 else self.offset)
            waiting = _fill(memoryview(flat), file, self.packing)
        if waiting:
            raise EOFError(f"the file ends {waiting:,} bytes too early")
        turned = array.transpose(self.order)
        return turned if dtype is None else turned.astype(dtype)


def _fill(waiting: memoryview, file: BinaryIO, packing: Packing) -> int:
    """Fill a buffer from a file; how many bytes are missing."""
    if packing == "zlib":
        unpack = isal_zlib.decompressobj(zlib.MAX_WBITS)
        while waiting and (piece := unpack.unconsumed_tail or file.read(PIECE_BYTES)):
            got = unpack.decompress(piece, min(len(waiting), PIECE_BYTES))
            waiting[: len(got)] = got
            waiting = waiting[len(got) :]
        return len(waiting)
    stream: Any = igzip.IGzipFile(fileobj=file, mode="rb") if packing == "gzip" else file
    while waiting and (count := stream.readinto(waiting[:PIECE_BYTES])):
        waiting = waiting[count:]
    return len(waiting)


@dataclass(frozen=True, kw_only=True)
class OtherImage:
    """An image with the few members of a nibabel image that are looked at.

    data_file  where its voxels lie, if not in the file itself
    """

    dataobj: StoredVoxels
    affine: NDArray[np.float64]
    data_file: Path | None = None
    header: None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Axes of space first."""
        return self.dataobj.shape

    def get_data_dtype(self) -> np.dtype[Any]:
        """The type of the values as they are stored."""
        return self.dataobj.dtype


def ras_affine(
    directions: NDArray[np.float64], origin: NDArray[np.float64], space: str
) -> NDArray[np.float64]:
    """Affine (4, 4) to RAS+ of axis steps in columns (3, 3), in a space such as "LPS"."""
    turn = np.zeros((3, 3))
    for column, letter in enumerate(space):
        turn["RAS".index(letter) if letter in "RAS" else "LPI".index(letter), column] = RAS_OF[
            letter
        ]
    if np.linalg.matrix_rank(turn) < 3:
        raise ValueError(f"the space {space!r} has not three directions")
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = turn @ directions, turn @ origin
    return affine


def beside(header: Path, name: str) -> Path:
    """The data file that a header names: in its own folder, and nowhere else."""
    if Path(name).name != name or name in ("", ".", ".."):
        raise ValueError(f"its voxels are said to lie in {name[:80]!r}, not beside it")
    return header.with_name(name)
