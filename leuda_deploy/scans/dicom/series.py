"""folder with one DICOM series -> Volume.

What makes a series no whole, regular grid is looked for here and refused with its reason. Where the
slices stand is worked out by highdicom, their pixels are unpacked by pydicom, one after another.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leuda_deploy.errors import MissingExtraError, ScanError, one_line
from leuda_deploy.scans.dicom.attributes import SliceFacts, slice_facts
from leuda_deploy.scans.dicom.files import is_deflated, look_through, named
from leuda_deploy.scans.volume import Volume, volume_of

_log = logging.getLogger(__name__)

MAX_TILT_DEGREES = 0.5
MAX_GAP_SHARE = 0.05  # of the slice distance, by which it may vary
RAS_OF_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
SAME_WITHIN = 1e-3


@dataclass(frozen=True, kw_only=True)
class Series:
    """One series: its data sets in the order of the volume's slices, and their volume.

    datasets  without their pixels: these are in the volume alone
    volume    its array is (columns, rows, slices), as a NIfTI file of the series would have it
    """

    datasets: Sequence[Any]
    volume: Volume


def read_series(folder: Path, *, allow_partial: bool = False, voxels: bool = True) -> Series:
    """Read the one CT or MR series in a folder.

    Args:
        folder: Where its files lie, one a slice.
        allow_partial: Read what is there of a series that is not whole.
        voxels: False reads the headers alone. The values are then 0, and take no memory.

    Raises:
        ScanError: There is no DICOM image, or there are two series; files cannot be read, or there
            are fewer than the series says; the modality is no scan; a file has several frames, or
            lacks what places it; slices differ in shape, orientation or scale; slices are missing,
            repeated or shifted (gantry tilt). `fault` says which.
        MissingExtraError: highdicom is not installed.
    """
    if find_spec("highdicom") is None or find_spec("pydicom") is None:
        raise MissingExtraError("reading DICOM", "highdicom", "dicom")
    slices = _read_headers(folder, allow_partial=allow_partial)
    _check_one_series(slices, folder)
    if not allow_partial:
        _check_whole(slices, folder)
    _check_alike(slices, folder)
    _check_spacing(slices, folder)
    ordered, affine = _placed(slices, folder)
    first = ordered[0]
    shape = (first.columns, first.rows, len(ordered))
    raw = np.broadcast_to(first.stored.type(0), shape)
    if voxels:
        raw = _read_pixels(ordered, shape, folder)
    volume = volume_of(raw, affine).with_scale(folder.name, first.slope, first.intercept)
    if first.padding is not None:
        volume = volume.with_padding(*first.padding)
    return Series(datasets=[each.dataset for each in ordered], volume=volume)


def _read_headers(folder: Path, *, allow_partial: bool) -> list[SliceFacts]:
    """What each image of the folder says of itself, its pixels aside."""
    import pydicom

    found = look_through(folder)
    slices: list[SliceFacts] = []
    unreadable, others = list(found.unreadable), list(found.others)
    for path in found.images:
        if is_deflated(path):
            raise ScanError(
                "damaged",
                f"{path} is deflated as a whole, of which a megabyte can hold a gigabyte; write it "
                "anew without: dcmconv +te",
            )
        try:
            dataset = pydicom.dcmread(path, stop_before_pixels=True)
            is_image = "Rows" in dataset
        except Exception:  # noqa: BLE001  (of a damaged file, pydicom raises anything)
            unreadable.append(path)
            continue
        if is_image:
            slices.append(slice_facts(dataset, path))
        else:
            others.append(path)
    if unreadable:
        total = len(slices) + len(unreadable)
        what = f"{len(unreadable)} of {total} files in {folder} cannot be read"
        if not allow_partial:
            raise ScanError(
                "partial",
                f"{what} ({named(unreadable)}): copy the series again, or label what is there "
                "with --allow-partial",
            )
        _log.warning("%s: %s", what, named(unreadable))
    if not slices:
        raise ScanError(
            "missing",
            f"no scan in {folder}: neither NIfTI files nor DICOM images"
            + (f" ({named(others)})" if others else ""),
        )
    if others:
        _log.info("passed over in %s: %d other files (%s)", folder, len(others), named(others))
    return slices


def _check_one_series(slices: list[SliceFacts], folder: Path) -> None:
    series = Counter(
        (each.series, str(each.dataset.get("SeriesDescription", ""))) for each in slices
    )
    if len({uid for uid, _ in series}) > 1:
        names = "; ".join(f"{n} images of '{name}'" for (_, name), n in series.most_common())
        raise ScanError(
            "several series",
            f"{folder} holds {len({uid for uid, _ in series})} series, choose one: {names}",
        )
    if (modality := slices[0].dataset.get("Modality")) not in ("CT", "MR"):
        raise ScanError("modality", f"the series in {folder} is {modality}; CT and MR are read")


def _check_whole(slices: list[SliceFacts], folder: Path) -> None:
    """Refuse a series that says it has more images than there are."""
    stated = max((each.stated_images or 0 for each in slices), default=0)
    if stated > len(slices):
        raise ScanError(
            "partial",
            f"{folder} holds {len(slices)} images, but the series says that it has {stated}: copy "
            "it again, or label what is there with --allow-partial",
        )
    numbers = sorted(each.number for each in slices if each.number is not None)
    if len(numbers) < len(slices) or len(set(numbers)) < len(numbers):
        return  # nothing can be said
    step = int(np.median(np.diff(numbers))) if len(numbers) > 1 else 1
    if numbers[0] > max(1, step):
        raise ScanError(
            "partial",
            f"the images in {folder} are numbered from {numbers[0]} to {numbers[-1]}; the first "
            f"{numbers[0] - 1} are missing: copy the series again, or label what is there with "
            "--allow-partial",
        )


def _check_alike(slices: list[SliceFacts], folder: Path) -> None:
    """Refuse slices that no one array can hold."""
    for name in ("rows", "columns", "spacing_mm", "orientation", "stored", "frame_of_reference"):
        kinds = {_rounded(getattr(each, name)) for each in slices}
        if len(kinds) > 1 and not _nearly_alike([getattr(each, name) for each in slices]):
            raise ScanError(
                "unlike slices",
                f"the images in {folder} have {len(kinds)} different {name.replace('_', ' ')} "
                "(a localiser?)",
            )
    scales = {(each.slope, each.intercept) for each in slices}
    if len(scales) > 1:
        raise ScanError(
            "unlike slices", f"the slices of {folder} are scaled in {len(scales)} ways, as PET is"
        )


def _rounded(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(round(float(part), 3) for part in value)
    return value


def _nearly_alike(values: list[Any]) -> bool:
    """Whether numbers differ by rounding alone."""
    if not isinstance(values[0], tuple):
        return False
    numbers = np.array(values, dtype=np.float64)
    return bool(np.abs(numbers - numbers[0]).max() <= SAME_WITHIN)


def _check_spacing(slices: list[SliceFacts], folder: Path) -> None:
    """Refuse repeated or missing slices and a tilted gantry."""
    if len(slices) == 1:
        raise ScanError("axes", f"{folder} holds one slice; its thickness alone makes no volume")
    normal = slices[0].normal
    places = np.array([each.position_mm for each in slices])
    places = places[np.argsort(places @ normal, kind="stable")]
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


def _placed(slices: list[SliceFacts], folder: Path) -> tuple[list[SliceFacts], NDArray[np.float64]]:
    """The slices in the order of the volume, and its affine (4, 4), RAS+ in mm."""
    from highdicom import CoordinateSystemNames, VolumeGeometry
    from highdicom.spatial import get_volume_positions

    positions = [list(each.position_mm) for each in slices]
    try:
        distance, places = get_volume_positions(positions, list(slices[0].orientation))
    except (ValueError, RuntimeError) as error:
        raise ScanError(
            "damaged", f"cannot place the slices in {folder}: {one_line(error)}"
        ) from error
    if distance is None or places is None:
        raise ScanError("missing slice", f"the slices of {folder} do not lie evenly apart")
    ordered = [slices[places.index(k)] for k in range(len(slices))]
    geometry = VolumeGeometry.from_attributes(
        image_position=ordered[0].position_mm,
        image_orientation=ordered[0].orientation,
        rows=ordered[0].rows,
        columns=ordered[0].columns,
        pixel_spacing=ordered[0].spacing_mm,
        spacing_between_slices=distance,
        number_of_frames=len(ordered),
        coordinate_system=CoordinateSystemNames.PATIENT,
    )
    # highdicom: (slices, rows, columns) and LPS; here (columns, rows, slices) and RAS
    return ordered, RAS_OF_LPS @ np.asarray(geometry.affine)[:, [2, 1, 0, 3]]


def _read_pixels(
    ordered: list[SliceFacts], shape: tuple[int, int, int], folder: Path
) -> NDArray[Any]:
    """Stored values (columns, rows, slices); beside them, one slice at a time is held."""
    import pydicom

    values = np.empty(shape, dtype=ordered[0].stored, order="F")
    for k, each in enumerate(ordered):
        try:
            dataset = pydicom.dcmread(each.path)
            if not dataset.get("NumberOfFrames"):
                dataset.pop("NumberOfFrames", None)  # empty: pydicom would speak of it
            whole = "PixelData" in dataset
            pixels = dataset.pixel_array
        except Exception as error:
            raise ScanError(
                "damaged", f"cannot read the pixels of {each.path}: {one_line(error)}"
            ) from error
        if not whole or pixels.dtype != values.dtype or pixels.shape != shape[1::-1]:
            raise ScanError(
                "no real numbers",
                f"{each.path} has pixels {pixels.shape} {pixels.dtype}, but says that they are "
                f"{shape[1::-1]} {values.dtype}",
            )
        values[..., k] = pixels.T
    return values
