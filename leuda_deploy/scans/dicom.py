"""folder with one DICOM series -> Volume.

What makes a series no regular grid is looked for here and refused with its reason; the conversion
itself is highdicom's.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leuda_deploy.errors import MissingExtraError, ScanError, one_line
from leuda_deploy.scans.volume import Volume, volume_of

MAX_TILT_DEGREES = 0.5
MAX_GAP_SHARE = 0.05  # of the slice distance, by which it may vary
RAS_OF_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass(frozen=True, kw_only=True)
class Series:
    """One series: its data sets in the order of the volume's slices, and their volume.

    The volume's array is (columns, rows, slices), as a NIfTI file of the series would have it.
    """

    datasets: Sequence[Any]
    volume: Volume


def read_series(folder: Path) -> Series:
    """Read the one CT or MR series in a folder.

    Raises:
        ScanError: There is no DICOM image, or there are two series; the modality is no scan; a file
            has several frames; slices differ in shape, orientation or scale; slices are missing,
            repeated or shifted (gantry tilt). `fault` says which.
        MissingExtraError: highdicom is not installed.
    """
    if find_spec("highdicom") is None or find_spec("pydicom") is None:
        raise MissingExtraError("reading DICOM", "highdicom", "dicom")
    import highdicom
    from pydicom.errors import InvalidDicomError

    datasets = _sorted_slices(_read_datasets(folder), folder)
    stored = np.dtype(np.uint16 if datasets[0].PixelRepresentation == 0 else np.int16)
    slopes = {
        (float(d.get("RescaleSlope", 1)), float(d.get("RescaleIntercept", 0))) for d in datasets
    }
    if len(slopes) > 1:
        raise ScanError(
            "unlike slices", f"the slices of {folder} are scaled in {len(slopes)} ways, as PET is"
        )
    try:
        found = highdicom.get_volume_from_series(
            datasets,
            dtype=stored,
            apply_modality_transform=False,
            apply_real_world_transform=False,
            apply_presentation_lut=False,
        )
    except (ValueError, RuntimeError, AttributeError, InvalidDicomError) as error:
        raise ScanError(
            "damaged", f"cannot read the series in {folder}: {one_line(error)}"
        ) from error
    # highdicom: (slices, rows, columns) and LPS; here (columns, rows, slices) and RAS
    affine = RAS_OF_LPS @ np.asarray(found.affine)[:, [2, 1, 0, 3]]
    slope, inter = next(iter(slopes))
    volume = volume_of(np.asarray(found.array).T, affine)
    return Series(
        datasets=_in_order_of(found, datasets),
        volume=volume.with_scale(folder.name, slope, inter),
    )


def _read_datasets(folder: Path) -> list[Any]:
    """The image files of the folder; files that are no DICOM or hold no pixels are left out."""
    import pydicom
    from pydicom.errors import InvalidDicomError

    datasets = []
    for path in sorted(p for p in folder.iterdir() if p.is_file()):
        try:
            dataset = pydicom.dcmread(path)
        except InvalidDicomError:
            continue
        except (OSError, EOFError, ValueError) as error:
            raise ScanError("damaged", f"cannot read {path}: {one_line(error)}") from error
        if "Rows" in dataset:
            datasets.append(dataset)
    if not datasets:
        raise ScanError("missing", f"no scan in {folder}: neither NIfTI files nor DICOM images")
    return datasets


def _sorted_slices(datasets: list[Any], folder: Path) -> list[Any]:
    """The slices along their normal, after everything that makes them no grid was looked for."""
    series = Counter((str(d.SeriesInstanceUID), d.get("SeriesDescription", "")) for d in datasets)
    if len(series) > 1:
        names = "; ".join(f"{n} images of '{name}'" for (_, name), n in series.most_common())
        raise ScanError(
            "several series", f"{folder} holds {len(series)} series, choose one: {names}"
        )
    if (modality := datasets[0].get("Modality")) not in ("CT", "MR"):
        raise ScanError("modality", f"the series in {folder} is {modality}; CT and MR are read")
    if any(int(d.get("NumberOfFrames", 1)) > 1 for d in datasets):
        raise ScanError("frames", f"{folder} holds multi-frame files; convert them to NIfTI first")
    for name in ("Rows", "Columns", "PixelSpacing", "ImageOrientationPatient"):
        _all_alike(datasets, name, folder)
    row, column = np.asarray(datasets[0].ImageOrientationPatient, dtype=np.float64).reshape(2, 3)
    normal = np.cross(row, column)
    places = np.array([d.ImagePositionPatient for d in datasets], dtype=np.float64)
    order = np.argsort(places @ normal, kind="stable")
    _check_spacing(places[order], normal, folder)
    return [datasets[i] for i in order]


def _all_alike(datasets: list[Any], name: str, folder: Path) -> None:
    if any(name not in dataset for dataset in datasets):
        raise ScanError("unlike slices", f"an image in {folder} has no {name}; it cannot be placed")
    values = np.array([np.atleast_1d(d[name].value) for d in datasets], dtype=np.float64)
    if np.abs(values - values[0]).max() > 1e-3:
        kinds = len(np.unique(values.round(3), axis=0))
        raise ScanError(
            "unlike slices", f"the images in {folder} have {kinds} different {name} (a localiser?)"
        )


def _check_spacing(places: NDArray[np.float64], normal: NDArray[np.float64], folder: Path) -> None:
    """Refuse repeated or missing slices and a tilted gantry; places (D, 3) in mm, sorted."""
    if len(places) == 1:
        raise ScanError("axes", f"{folder} holds one slice; its thickness alone makes no volume")
    steps = np.diff(places, axis=0)
    along = steps @ normal
    distance = float(np.median(along))
    if along.min() < 0.01:
        where = int(along.argmin())
        raise ScanError(
            "repeated slice", f"slices {where} and {where + 1} of {folder} lie at the same place"
        )
    if np.abs(along - distance).max() > MAX_GAP_SHARE * distance:
        where = int(np.abs(along - distance).argmax())
        missing = max(1, round(float(along[where]) / distance) - 1)
        raise ScanError(
            "missing slice",
            f"{folder} misses about {missing} slice(s) after slice {where}: a step of "
            f"{along[where]:.2f} mm where the others are {distance:.2f} mm",
        )
    whole = places[-1] - places[0]
    tilt = float(np.degrees(np.arccos(np.clip(whole @ normal / np.linalg.norm(whole), -1, 1))))
    if tilt > MAX_TILT_DEGREES:
        raise ScanError(
            "sheared",
            f"the slices of {folder} are shifted by {tilt:.1f} degrees (gantry tilt); "
            "resample the series to an orthogonal grid",
        )


def _in_order_of(found: Any, datasets: Sequence[Any]) -> list[Any]:
    """The data sets as highdicom stacked them, which may be from the other end."""
    first = np.asarray(found.affine)[:3, 3]
    here, there = (
        np.linalg.norm(np.asarray(datasets[k].ImagePositionPatient, float) - first) for k in (0, -1)
    )
    return list(datasets) if here <= there else list(reversed(datasets))
