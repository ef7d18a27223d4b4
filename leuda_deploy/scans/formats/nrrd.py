"""NRRD -> an image whose voxels are read when they are asked for; pynrrd reads the header."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from leuda_deploy.machine.outside import open_file
from leuda_deploy.scans.formats.stored import OtherImage, Packing, StoredVoxels, beside, ras_affine

MAX_HEADER_BYTES = 1 << 20
SPACES = {
    "right-anterior-superior": "RAS",
    "left-anterior-superior": "LAS",
    "left-posterior-superior": "LPS",
    "ras": "RAS",
    "las": "LAS",
    "lps": "LPS",
}
PACKINGS: dict[str, Packing] = {"raw": "raw", "gzip": "gzip", "gz": "gzip"}

# one type has several names
TYPES = {
    name: kind
    for kind, names in {
        "i1": ("signed char", "int8", "int8_t"),
        "u1": ("uchar", "unsigned char", "uint8", "uint8_t"),
        "i2": ("short", "short int", "signed short", "signed short int", "int16", "int16_t"),
        "u2": ("ushort", "unsigned short", "unsigned short int", "uint16", "uint16_t"),
        "i4": ("int", "signed int", "int32", "int32_t"),
        "u4": ("uint", "unsigned int", "uint32", "uint32_t"),
        "i8": ("longlong", "long long", "long long int", "signed long long",
               "signed long long int", "int64", "int64_t"),
        "u8": ("ulonglong", "unsigned long long", "unsigned long long int", "uint64", "uint64_t"),
        "f4": ("float",),
        "f8": ("double",),
    }.items()
    for name in names
}  # fmt: skip


def read_nrrd(path: Path) -> OtherImage:
    """The header of a NRRD file. Axes that are none of space, e.g. time, come last.

    Raises:
        ValueError: It is damaged, says not where its voxels lie, or packs them in a rare way.
        OSError: It cannot be read.
    """
    import nrrd

    with open_file(path) as file:
        head = file.read(MAX_HEADER_BYTES)
    # the header ends with an empty line; a detached one with the file
    ends = [at + len(end) for end in (b"\n\n", b"\r\n\r\n") if (at := head.find(end)) >= 0]
    size = min(ends, default=len(head))
    header: dict[str, Any] = nrrd.read_header(head[:size].splitlines(keepends=True))
    sizes = tuple(int(n) for n in header["sizes"])
    if len(sizes) != int(header["dimension"]) or min(sizes, default=0) < 1:
        raise ValueError(f"its sizes are {sizes}, its dimension is {header['dimension']}")
    space = SPACES.get(str(header.get("space", "")).lower())
    directions = header.get("space directions")
    if space is None or directions is None:
        raise ValueError("it does not say where it lies (space, space directions)")
    steps = np.array(
        [[np.nan] * 3 if row is None else np.asarray(row, dtype=np.float64) for row in directions]
    )
    in_space = [axis for axis in range(len(sizes)) if np.isfinite(steps[axis]).all()]
    if len(in_space) != 3 or len(steps) != len(sizes):
        raise ValueError(f"it has {len(in_space)} axes of space")
    encoding = str(header["encoding"]).lower()
    if encoding not in PACKINGS:
        raise ValueError(f"its encoding is {encoding}; raw and gzip are read")
    if int(header.get("line skip", header.get("lineskip", 0))) != 0:
        raise ValueError("it skips lines before its voxels")
    skip = int(header.get("byte skip", header.get("byteskip", 0)))
    named = header.get("data file", header.get("datafile"))
    data_file = None if named is None else beside(path, str(named))
    origin = header.get("space origin")
    return OtherImage(
        dataobj=StoredVoxels(
            path=data_file or path,
            offset=-1 if skip == -1 else skip + (0 if data_file else size),
            packing=PACKINGS[encoding],
            stored=sizes,
            dtype=_dtype(header),
            order=(*in_space, *(axis for axis in range(len(sizes)) if axis not in in_space)),
        ),
        affine=ras_affine(
            steps[in_space].T, np.zeros(3) if origin is None else np.asarray(origin), space
        ),
        data_file=data_file,
    )


def _dtype(header: dict[str, Any]) -> np.dtype[Any]:
    name = " ".join(str(header["type"]).lower().split())
    if name not in TYPES:
        raise ValueError(f"its type is {name[:40]!r}")
    little = str(header.get("endian", "little")).lower() == "little"
    return np.dtype(("<" if little else ">") + TYPES[name])
