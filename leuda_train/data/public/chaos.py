"""CHAOS T2-SPIR (DICOM slices, PNG labels) -> NIfTI scans and labels on one grid.

Data: Kavur et al., Med. Image Anal. 69, 2021. Where a slice lies is taken from its own
ImagePositionPatient and ImageOrientationPatient, never from file names; a PNG belongs to the DICOM
slice of its name, and its rows are the DICOM rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from leuda_deploy.errors import InputError, MissingExtraError
from leuda_deploy.scans.nifti import write_scan
from leuda_train.data.public.benchmark import Pair

# Grey values of the PNG labels, as (above, up to), and what each stands for; the ranges are CHAOS's
# own. In the released files each organ has the value that it is given here.
GREY = {63: (55, 70), 126: (110, 135), 189: (175, 200), 252: (240, 255)}
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])  # DICOM's patient axes -> NIfTI's


def convert(patient: Path, pair: Pair) -> None:
    """Write a patient's T2-SPIR scan and labels, the same bytes each time, over what is there.

    patient  the folder that holds T2SPIR/DICOM_anon and T2SPIR/Ground

    Raises InputError for a series that is not one stack of slices with one label each, and
    MissingExtraError without pydicom.
    """
    folder = patient / "T2SPIR" / "DICOM_anon"
    slices = _read_slices(sorted(folder.glob("*.dcm")), folder)
    affine = _affine(slices, folder)
    labels = [_read_label(_ground(path, patient), dicom) for path, dicom in slices]
    pictures = len(list((patient / "T2SPIR" / "Ground").glob("*.png")))
    if pictures != len(slices):
        raise InputError(f"{folder} holds {len(slices)} slices, but Ground {pictures} labels")
    # rows, columns, slices -> columns, rows, slices: NIfTI's first axis runs along a row
    image = np.stack([_values(*item) for item in slices], axis=-1).transpose(1, 0, 2)
    write_scan(pair.image, image, affine)
    write_scan(pair.label, np.stack(labels, axis=-1).transpose(1, 0, 2), affine)


def _read_slices(paths: Sequence[Path], folder: Path) -> list[tuple[Path, Any]]:
    """The slices and the files they are from, in the order in which they lie in the patient."""
    try:
        import pydicom
    except ImportError as error:
        raise MissingExtraError("leuda cohort chaos-btcv", "pydicom", "dicom") from error
    slices = []
    for path in paths:
        try:
            dicom = pydicom.dcmread(path)
            for tag in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "Rows"):
                getattr(dicom, tag)
        except (pydicom.errors.InvalidDicomError, OSError, AttributeError) as error:
            raise InputError(f"{path} is not a DICOM slice of a scan: {error}") from error
        slices.append((path, dicom))
    if len(slices) < 2:
        raise InputError(f"{folder} holds {len(slices)} DICOM slices; a scan has at least two")
    for path, dicom in slices[1:]:
        for tag in ("Rows", "Columns", "PixelSpacing", "ImageOrientationPatient"):
            first, this = (np.array(d[tag].value, float) for d in (slices[0][1], dicom))
            if not np.allclose(first, this, atol=1e-3):
                raise InputError(f"{path} has {tag} {this.tolist()}, others {first.tolist()}")
    return sorted(slices, key=lambda item: _height_mm(item[1]))


def _height_mm(dicom: Any) -> float:
    """How far along the slices' normal a slice lies."""
    row, column = np.array(dicom.ImageOrientationPatient, float).reshape(2, 3)
    return float(np.cross(row, column) @ np.array(dicom.ImagePositionPatient, float))


def _affine(slices: Sequence[tuple[Path, Any]], folder: Path) -> NDArray[np.float64]:
    """(column, row, slice) -> RAS+ mm, by DICOM PS3.3 C.7.6.2.1.1."""
    steps = np.diff([_height_mm(dicom) for _, dicom in slices])
    if steps.min() <= 0 or np.ptp(steps) > 0.1 * steps.mean():
        raise InputError(
            f"{folder}: the slices lie {steps.min():.2f} to {steps.max():.2f} mm apart; "
            "one is missing or there twice"
        )
    first, last = slices[0][1], slices[-1][1]
    row, column = np.array(first.ImageOrientationPatient, float).reshape(2, 3)
    down_mm, along_mm = map(float, first.PixelSpacing)  # between rows, between columns
    start, end = (np.array(d.ImagePositionPatient, float) for d in (first, last))
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1] = row * along_mm, column * down_mm
    affine[:3, 2], affine[:3, 3] = (end - start) / (len(slices) - 1), start
    return LPS_TO_RAS @ affine


def _values(path: Path, dicom: Any) -> NDArray[np.float32]:
    """Pixels (rows, columns) through the slice's own rescale, which may differ slice by slice."""
    try:
        pixels = dicom.pixel_array
    except (AttributeError, ValueError, RuntimeError) as error:  # cut short, or compressed
        raise InputError(f"cannot read the pixels of {path}: {error}") from error
    slope, inter = (float(dicom.get(f"Rescale{w}", d)) for w, d in (("Slope", 1), ("Intercept", 0)))
    values: NDArray[np.float32] = (pixels * slope + inter).astype(np.float32)
    return values


def _ground(dicom: Path, patient: Path) -> Path:
    path = patient / "T2SPIR" / "Ground" / f"{dicom.stem}.png"
    if not path.is_file():
        raise InputError(f"{dicom} has no labels: {path} is missing")
    return path


def _read_label(path: Path, dicom: Any) -> NDArray[np.uint8]:
    """Organ values (rows, columns) uint8."""
    try:
        with Image.open(path) as picture:
            grey = np.asarray(picture)
    except (UnidentifiedImageError, OSError) as error:
        raise InputError(f"cannot read {path} as a picture: {error}") from error
    if grey.shape != (dicom.Rows, dicom.Columns):
        shape = (dicom.Rows, dicom.Columns)
        raise InputError(f"{path} has shape {grey.shape}; its DICOM slice {shape}")
    marks = np.zeros(grey.shape, dtype=np.uint8)
    for value, (above, up_to) in GREY.items():
        marks[(grey > above) & (grey <= up_to)] = value
    if unknown := np.unique(grey[(marks == 0) & (grey != 0)]).tolist():
        raise InputError(f"{path} has grey values {unknown[:8]}, which are no CHAOS organ")
    return marks
