"""a folder -> a scan of 10 million voxels in it, in a format of many."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

Write = Callable[[Path], Path]
AFFINE = np.diag([-0.8, -0.8, 2.0, 1.0])
SHAPE = (320, 320, 100)


def body(shape: tuple[int, int, int] = SHAPE) -> NDArray[np.int16]:
    """A smooth body on air with noise (X, Y, Z), which does not compress to nothing."""
    from support.dicom_series import smooth

    noise = np.random.default_rng(0).integers(-20, 20, shape, dtype=np.int16)
    return smooth(shape[::-1]).transpose(2, 1, 0) + noise


def nifti(
    kind: type[np.generic] | str,
    name: str = "a.nii",
    *,
    image: type[nib.spatialimages.SpatialImage] = nib.Nifti1Image,
    affine: NDArray[Any] = AFFINE,
    change: Callable[[NDArray[Any]], NDArray[Any]] = lambda values: values,
    slope: float | None = None,
    shape: tuple[int, int, int] = SHAPE,
) -> Write:
    """A file that nibabel writes, its voxels of one kind."""

    def write(folder: Path) -> Path:
        values = body(shape)
        if np.dtype(kind).kind == "u":
            values = values - values.min()
        if np.dtype(kind).itemsize == 1:
            values = values // 16
        more = {} if image is nib.MGHImage else {"dtype": np.dtype(kind)}
        made = image(change(values.astype(kind)), affine, **more)
        if slope is not None:
            made.header.set_slope_inter(slope, -3.5)
        nib.save(made, folder / name)
        return folder / name

    return write


def outlier(values: NDArray[Any]) -> NDArray[Any]:
    """One voxel far from all others."""
    values[3, 3, 3] = 2_000_000_000
    return values


def holes(values: NDArray[Any]) -> NDArray[Any]:
    """Some voxels that are no numbers."""
    values[:20, :20, :5] = np.nan
    return values


def nrrd(folder: Path) -> Path:
    """A compressed NRRD."""
    import gzip

    values = body()
    head = (
        "NRRD0004\ntype: short\ndimension: 3\nspace: left-posterior-superior\n"
        f"sizes: {' '.join(map(str, values.shape))}\nendian: little\nencoding: gzip\n"
        "space directions: (0.8,0,0) (0,0.8,0) (0,0,2)\nspace origin: (0,0,0)\n\n"
    )
    packed = gzip.compress(values.tobytes(order="F"), 1)
    (folder / "a.nrrd").write_bytes(head.encode() + packed)
    return folder / "a.nrrd"


def mha(folder: Path) -> Path:
    """A compressed MetaImage."""
    import zlib

    values = body()
    head = (
        "ObjectType = Image\nNDims = 3\nBinaryDataByteOrderMSB = False\nCompressedData = True\n"
        "TransformMatrix = 1 0 0 0 1 0 0 0 1\nOffset = 0 0 0\nElementSpacing = 0.8 0.8 2\n"
        f"DimSize = {' '.join(map(str, values.shape))}\nElementType = MET_SHORT\n"
        "ElementDataFile = LOCAL\n"
    )
    (folder / "a.mha").write_bytes(head.encode() + zlib.compress(values.tobytes(order="F"), 1))
    return folder / "a.mha"


def series(syntax: str = "", *, tilt: float = 0.0, zipped: bool = False) -> Write:
    """A DICOM series of 100 slices, a file each."""

    def write(folder: Path) -> Path:
        from support.dicom_series import even, make_slices, write_images

        images = make_slices(body().transpose(2, 1, 0), even(100, tilt_degrees=tilt))
        for image in images:
            if syntax:
                image.compress(syntax)
        write_images(folder / "a", images)
        if not zipped:
            return folder / "a"
        import shutil

        return Path(shutil.make_archive(str(folder / "z"), "zip", folder / "a"))

    return write


def enhanced(folder: Path) -> Path:
    """A DICOM series in one file."""
    from support.dicom_series import even, make_enhanced

    values = (body().transpose(2, 1, 0) + 1024).astype(np.uint16)
    (folder / "a").mkdir()
    made = make_enhanced(values, even(100))
    made.save_as(folder / "a" / "a.dcm", enforce_file_format=True)
    return folder / "a"


def frames(name: str, count: int = 4) -> Write:
    """A 4D file."""

    def write(folder: Path) -> Path:
        values = np.stack([body()] * count, axis=-1)
        nib.save(nib.Nifti1Image(values, AFFINE), folder / name)
        return folder / name

    return write


def two_files(folder: Path) -> Path:
    """CASE_0000 beside CASE_0001."""
    for k in range(2):
        nib.save(nib.Nifti1Image(body(), AFFINE), folder / f"a_{k:04d}.nii")
    return folder / "a_0000.nii"
