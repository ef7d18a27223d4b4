"""CHAOS T2-SPIR (DICOM slices, PNG labels) -> NIfTI scans and labels on one grid.

Data: Kavur et al., Med. Image Anal. 69, 2021. Where a slice lies is what its DICOM says, never its
file's name; a PNG belongs to the DICOM slice of its name, and its rows are the DICOM rows.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from leuda_deploy.errors import InputError
from leuda_deploy.scans.dicom import read_series
from leuda_deploy.scans.nifti import write_scan
from leuda_train.data.layouts.cohort_plan import Pair

# Grey values of the PNG labels, as (above, up to), and what each stands for; the ranges are CHAOS's
# own. In the released files each organ has the value that it is given here.
GREY = {63: (55, 70), 126: (110, 135), 189: (175, 200), 252: (240, 255)}


def convert(patient: Path, pair: Pair) -> None:
    """Write a patient's T2-SPIR scan and labels, the same bytes each time, over what is there.

    Args:
        patient: The folder that holds T2SPIR/DICOM_anon and T2SPIR/Ground.
        pair: Where to write.

    Raises:
        InputError: The series is not one stack of slices with one label each.
        MissingExtraError: The DICOM extra is not installed.
    """
    folder, ground = patient / "T2SPIR" / "DICOM_anon", patient / "T2SPIR" / "Ground"
    series = read_series(folder)
    scan = series.volume
    labels = [_read_label(_label_of(dicom, ground), scan.raw.shape) for dicom in series.datasets]
    pictures = len(list(ground.glob("*.png")))
    if pictures != len(labels):
        raise InputError(f"{folder} holds {len(labels)} slices, but Ground {pictures} labels")
    image = (scan.raw * scan.slope + scan.inter).astype(np.float32)
    # (rows, columns) a slice -> (columns, rows, slices): NIfTI's first axis runs along a row
    marks, affine = np.stack(labels, axis=-1).transpose(1, 0, 2), scan.affine
    if np.linalg.det(affine[:3, :3]) < 0:  # the files count slices along the DICOM's normal
        turn = np.diag([1.0, 1.0, -1.0, 1.0])
        turn[2, 3] = image.shape[2] - 1
        image, marks, affine = image[..., ::-1], marks[..., ::-1], affine @ turn
    write_scan(pair.image, image, affine)
    write_scan(pair.label, marks, affine)


def _label_of(dicom: Any, ground: Path) -> Path:
    """The picture with a slice's labels."""
    name = Path(dicom.filename)
    path = ground / f"{name.stem}.png"
    if not path.is_file():
        raise InputError(f"{name} has no labels: {path} is missing")
    return path


def _read_label(path: Path, scan_shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Organ values (rows, columns) uint8, of a slice of a scan (columns, rows, slices)."""
    try:
        with Image.open(path) as picture:
            grey = np.asarray(picture)
    except (UnidentifiedImageError, OSError) as error:
        raise InputError(f"cannot read {path} as a picture: {error}") from error
    shape = scan_shape[1::-1]
    if grey.shape != shape:
        raise InputError(f"{path} has shape {grey.shape}; its DICOM slice {shape}")
    marks = np.zeros(grey.shape, dtype=np.uint8)
    for value, (above, up_to) in GREY.items():
        marks[(grey > above) & (grey <= up_to)] = value
    if unknown := np.unique(grey[(marks == 0) & (grey != 0)]).tolist():
        raise InputError(f"{path} has grey values {unknown[:8]}, which are no CHAOS organ")
    return marks
