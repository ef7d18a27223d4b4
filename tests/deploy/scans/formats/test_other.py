"""NRRD and MetaImage are read as NIfTI is; labels go out as Slicer has them."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import nibabel as nib
import nrrd
import numpy as np
import pytest

from leuda_deploy.errors import ScanError
from leuda_deploy.model.card import Structure
from leuda_deploy.scans.formats.seg_nrrd import write_seg_nrrd
from leuda_deploy.scans.volume import read_volume

VALUES = np.random.default_rng(0).integers(-900, 900, (6, 5, 4)).astype(np.int16)
TURN = np.linalg.qr(np.random.default_rng(1).normal(size=(3, 3)))[0]
AFFINE = nib.affines.from_matvec(TURN * [0.7, 0.8, 2.5], [-12.0, 5.0, 33.0])
LPS = np.diag([-1.0, -1.0, 1.0])


def write_nrrd(path: Path, values: np.ndarray = VALUES, **more: Any) -> Path:
    header = {
        "space": "left-posterior-superior",
        "space directions": (LPS @ AFFINE[:3, :3]).T,
        "space origin": LPS @ AFFINE[:3, 3],
        "encoding": "gzip",
    }
    nrrd.write(str(path), values, header | more)
    return path


def write_mha(path: Path, *, packed: bool = True, big: bool = False, data: str = "LOCAL") -> Path:
    content = VALUES.astype(">i2" if big else "<i2").tobytes(order="F")
    content = zlib.compress(content) if packed else content
    steps = LPS @ AFFINE[:3, :3]
    spacing = np.linalg.norm(steps, axis=0)
    lines = [
        "ObjectType = Image",
        "NDims = 3",
        "BinaryData = True",
        f"BinaryDataByteOrderMSB = {big}",
        f"CompressedData = {packed}",
        f"TransformMatrix = {' '.join(map(repr, (steps / spacing).T.ravel().tolist()))}",
        f"Offset = {' '.join(map(repr, (LPS @ AFFINE[:3, 3]).tolist()))}",
        f"ElementSpacing = {' '.join(map(repr, spacing.tolist()))}",
        "DimSize = 6 5 4",
        "ElementType = MET_SHORT",
        f"ElementDataFile = {data}",
    ]
    head = ("\n".join(lines) + "\n").encode()
    if data == "LOCAL":
        path.write_bytes(head + content)
    else:
        path.write_bytes(head)
        path.with_name(Path(data).name).write_bytes(content)
    return path


MAKE = {
    "nrrd": lambda folder: write_nrrd(folder / "a.nrrd"),
    "nrrd, raw": lambda folder: write_nrrd(folder / "a.nrrd", encoding="raw"),
    "nrrd, RAS": lambda folder: write_nrrd(
        folder / "a.nrrd",
        **{"space": "RAS", "space directions": AFFINE[:3, :3].T, "space origin": AFFINE[:3, 3]},
    ),
    "nrrd, other end first": lambda folder: write_nrrd(
        folder / "a.nrrd", VALUES.astype(">i2"), endian="big"
    ),
    "nrrd, detached": lambda folder: write_nrrd(folder / "a.nhdr"),
    "mha": lambda folder: write_mha(folder / "a.mha"),
    "mha, raw": lambda folder: write_mha(folder / "a.mha", packed=False),
    "mha, other end first": lambda folder: write_mha(folder / "a.mha", packed=False, big=True),
    "mhd": lambda folder: write_mha(folder / "a.mhd", data="a.raw"),
}


@pytest.mark.parametrize("what", MAKE)
def test_it_is_read_as_nifti_is(tmp_path: Path, what: str) -> None:
    path = MAKE[what](tmp_path)
    volume = read_volume(path)
    np.testing.assert_array_equal(volume.raw, VALUES)
    np.testing.assert_allclose(volume.affine, AFFINE, atol=1e-12)
    assert (volume.slope, volume.inter) == (1, 0)
    header = read_volume(path, voxels=False)
    assert header.raw.strides == (0, 0, 0)
    np.testing.assert_array_equal(header.affine, volume.affine)


def test_an_axis_that_is_none_of_space_is_one_of_frames(tmp_path: Path) -> None:
    values = np.stack([VALUES, VALUES + 1])  # time runs fastest, as Slicer's sequences have it
    steps = np.vstack([np.full(3, np.nan), (LPS @ AFFINE[:3, :3]).T])
    path = write_nrrd(
        tmp_path / "a.nrrd",
        values,
        **{"space directions": steps, "kinds": ["list", *["domain"] * 3]},
    )
    with pytest.raises(ScanError) as caught:
        read_volume(path)
    assert caught.value.fault == "frames"
    np.testing.assert_array_equal(read_volume(path, frame=1).raw, VALUES + 1)


def replaced(path: Path, old: bytes, new: bytes) -> Path:
    content = path.read_bytes()
    assert old in content
    path.write_bytes(content.replace(old, new))
    return path


BAD = {
    "cut off": lambda folder: (p := write_mha(folder / "a.mha", packed=False)).write_bytes(
        p.read_bytes()[:-4]
    ),
    "too large": lambda folder: replaced(
        write_mha(folder / "a.mha"), b"DimSize = 6 5 4", b"DimSize = 60000 50000 40000"
    ),
    "elsewhere": lambda folder: write_mha(folder / "a.mhd", data="../b.raw"),
    "vectors": lambda folder: replaced(
        write_mha(folder / "a.mha"), b"ObjectType", b"ElementNumberOfChannels = 3\nObjectType"
    ),
    "no place": lambda folder: replaced(
        write_nrrd(folder / "a.nrrd"), b"space: left-posterior-superior\n", b"space dimension: 3\n"
    ),
    "text": lambda folder: write_nrrd(folder / "a.nrrd", encoding="ascii"),
    "no NRRD": lambda folder: (folder / "a.nrrd").write_bytes(b"NRRD"),
    "no MetaImage": lambda folder: (folder / "a.mha").write_bytes(bytes(100)),
}


@pytest.mark.parametrize("what", BAD)
def test_what_cannot_be_read_is_one_line(tmp_path: Path, what: str) -> None:
    (tmp_path / "in").mkdir()
    BAD[what](tmp_path / "in")
    (path,) = (path for path in (tmp_path / "in").iterdir() if path.name.startswith("a."))
    with pytest.raises(ScanError) as caught:
        read_volume(path)
    assert caught.value.fault == "damaged"
    assert "\n" not in str(caught.value)


def test_labels_have_the_names_and_colours_of_slicer(tmp_path: Path) -> None:
    volume = read_volume(write_nrrd(tmp_path / "a.nrrd"))
    labels = np.zeros(volume.raw.shape, dtype=np.uint8)
    labels[1:3, 2:5, 0] = 2
    structures = [
        Structure(name="liver", value=1, colour=(255, 0, 0)),
        Structure(name="left\\right", value=2, colour=(0, 51, 255)),
    ]
    for name in ("b", "c"):
        write_seg_nrrd(tmp_path / f"{name}.seg.nrrd", labels, volume.affine, structures)
    assert (tmp_path / "b.seg.nrrd").read_bytes() == (tmp_path / "c.seg.nrrd").read_bytes()
    found, header = nrrd.read(str(tmp_path / "b.seg.nrrd"))
    np.testing.assert_array_equal(found, labels)
    assert [header[f"Segment{k}_Name"] for k in (0, 1)] == ["liver", r"left\\right"]
    assert [header[f"Segment{k}_LabelValue"] for k in (0, 1)] == ["1", "2"]
    assert [float(part) for part in header["Segment1_Color"].split()] == [0, 0.2, 1]
    assert header["Segment0_Extent"] == "0 -1 0 -1 0 -1"
    assert header["Segment1_Extent"] == "1 2 2 4 0 0"
    np.testing.assert_array_equal(read_volume(tmp_path / "b.seg.nrrd").affine, volume.affine)
