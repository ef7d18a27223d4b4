"""NIfTI files with any header, written byte by byte, and DICOM series with a fault in them."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

DATATYPES = {"uint8": 2, "int16": 4, "float32": 16, "float64": 64}
CODED_AT = {"qform_code": (252, "<h"), "sform_code": (254, "<h")}


def write_nifti(
    path: Path,
    values: NDArray[Any],
    *,
    pixdim: tuple[float, float, float] = (1.0, 1.0, 2.0),
    qform_code: int = 0,
    sform_code: int = 0,
    sform: NDArray[np.float64] | None = None,
    scale: tuple[float, float] = (1.0, 0.0),
) -> Path:
    """A NIfTI-1 file whose header says exactly this, sense or no sense. The qform is unturned."""
    head = bytearray(352)

    def put(at: int, kind: str, *numbers: float) -> None:
        struct.pack_into(kind, head, at, *numbers)

    put(0, "<i", 348)
    shape = [*values.shape, *(1 for _ in range(7 - values.ndim))]
    put(40, "<8h", values.ndim, *shape)
    put(70, "<hh", DATATYPES[values.dtype.name], 8 * values.dtype.itemsize)
    put(76, "<8f", 1.0, *pixdim, 0, 0, 0, 0)
    put(108, "<f", 352.0)
    put(112, "<ff", *scale)
    put(123, "<b", 2)  # mm
    put(252, "<hh", qform_code, sform_code)
    if sform is not None:
        put(280, "<12f", *np.asarray(sform)[:3].ravel())
    put(344, "<4s", b"n+1\0")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes(head) + values.tobytes(order="F"))
    return path


def tissue(shape: tuple[int, int, int] = (16, 18, 6), seed: int = 0) -> NDArray[np.int16]:
    """Values 0 to 1000 at random, both of them among them."""
    values = np.random.default_rng(seed).integers(1, 1000, shape).astype(np.int16)
    values[0, 0, :2] = 0, 1000
    return values
