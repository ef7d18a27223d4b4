"""MetaImage (MHA, MHD) -> an image whose voxels are read when they are asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from leuda_deploy.machine.outside import open_file
from leuda_deploy.scans.formats.stored import OtherImage, Packing, StoredVoxels, beside, ras_affine

MAX_HEADER_BYTES = 1 << 20
TYPES = {
    "MET_CHAR": "i1",
    "MET_UCHAR": "u1",
    "MET_SHORT": "i2",
    "MET_USHORT": "u2",
    "MET_INT": "i4",
    "MET_UINT": "u4",
    "MET_LONG": "i4",  # ITK's writer: 4 bytes on any machine
    "MET_ULONG": "u4",
    "MET_LONG_LONG": "i8",
    "MET_ULONG_LONG": "u8",
    "MET_FLOAT": "f4",
    "MET_DOUBLE": "f8",
}
# one idea has several names
ALIASES = {
    "TransformMatrix": ("TransformMatrix", "Rotation", "Orientation"),
    "Offset": ("Offset", "Position", "Origin"),
    "ElementSpacing": ("ElementSpacing", "ElementSize"),
    "BigEndian": ("BinaryDataByteOrderMSB", "ElementByteOrderMSB"),
}


def read_metaimage(path: Path) -> OtherImage:
    """The header of a MetaImage. The world of ITK is LPS.

    Raises:
        ValueError: It is damaged, or keeps its voxels as text, in many files or as vectors.
        OSError: It cannot be read.
    """
    with open_file(path) as file:
        head = file.read(MAX_HEADER_BYTES)
    fields, size = _fields(head)
    count = int(fields["NDims"])
    sizes = tuple(int(n) for n in fields["DimSize"].split())
    if len(sizes) != count or not 3 <= count <= 4 or min(sizes) < 1:
        raise ValueError(f"it has {count} dimensions of {sizes}; 3 or 4 are read")
    if int(fields.get("ElementNumberOfChannels", "1")) != 1:
        raise ValueError(f"it has {fields['ElementNumberOfChannels']} values a voxel")
    if not _true(fields.get("BinaryData", "True")):
        raise ValueError("its voxels are written as text")
    named = fields["ElementDataFile"]
    if named.split()[0].upper() == "LIST" or "%" in named:
        raise ValueError("its voxels lie in several files")
    data_file = None if named.upper() == "LOCAL" else beside(path, named)
    skip = int(fields.get("HeaderSize", "0"))
    packing: Packing = "zlib" if _true(fields.get("CompressedData", "False")) else "raw"
    # rows of the matrix are the directions of the axes; a fourth axis is none of space
    matrix = _numbers(fields, "TransformMatrix", np.eye(count).ravel()).reshape(count, count)
    spacing = _numbers(fields, "ElementSpacing", np.ones(count))
    kind = TYPES[fields["ElementType"]]
    order = ">" if _true(_first(fields, "BigEndian") or "False") else "<"
    return OtherImage(
        dataobj=StoredVoxels(
            path=data_file or path,
            offset=-1 if skip == -1 else skip if data_file else size,
            packing=packing,
            stored=sizes,
            dtype=np.dtype(order + kind),
            order=tuple(range(count)),
        ),
        affine=ras_affine(
            matrix[:3, :3].T * spacing[:3], _numbers(fields, "Offset", np.zeros(count))[:3], "LPS"
        ),
        data_file=data_file,
    )


def _fields(head: bytes) -> tuple[dict[str, str], int]:
    """The fields of a header, and where it ends: behind ElementDataFile, which is its last."""
    fields: dict[str, str] = {}
    place = 0
    while (end := head.find(b"\n", place)) >= 0 or place < len(head):
        end = len(head) if end < 0 else end
        line = head[place:end].decode("latin-1")
        place = end + 1
        name, equals, value = line.partition("=")
        if not equals:
            raise ValueError(f"{line[:40]!r} is no line of a MetaImage header")
        fields[name.strip()] = value.strip()
        if name.strip() == "ElementDataFile":
            return fields, place
    raise ValueError("it has no ElementDataFile")


def _first(fields: dict[str, str], name: str) -> str | None:
    return next((fields[each] for each in ALIASES[name] if each in fields), None)


def _numbers(fields: dict[str, str], name: str, default: Any) -> Any:
    text = _first(fields, name)
    numbers = default if text is None else np.array([float(n) for n in text.split()])
    if numbers.shape != default.shape or not np.isfinite(numbers).all():
        raise ValueError(f"its {name} is {text!r}")
    return numbers


def _true(text: str) -> bool:
    return text.strip().lower() in ("true", "1", "yes")
