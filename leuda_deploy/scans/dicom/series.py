"""a series -> Volume, and the data sets that a result refers to.

Its pixels are read once, slice by slice; pydicom unpacks them. Where all slices have one type and
one scale, values stay as they are stored.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from importlib.util import find_spec
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leuda_deploy.errors import MissingExtraError, ScanError, one_line
from leuda_deploy.scans.dicom.attributes import ImageFacts
from leuda_deploy.scans.dicom.find import find_series
from leuda_deploy.scans.dicom.found import FoundSeries
from leuda_deploy.scans.dicom.geometry.grid import Grid
from leuda_deploy.scans.dicom.geometry.mend import Mending
from leuda_deploy.scans.dicom.multiframe import read_header
from leuda_deploy.scans.dicom.rules import choose_series
from leuda_deploy.scans.dicom.sources import DicomFile, Open, opening
from leuda_deploy.scans.volume import Volume, volume_of

Padding = tuple[float, float] | None


@dataclass(frozen=True, kw_only=True)
class Series:
    """One series that was read.

    found     what its headers say
    grid      its slices, in the order of the volume's; each names its file, and its frame
    mending   how the volume was made of slices that have no regular grid; None: it is they
    datasets  one a file, without its pixels, in the order in which the slices first need it
    volume    its array is (columns, rows, slices), as a NIfTI file of the series would have it
    """

    found: FoundSeries
    grid: Grid
    mending: Mending | None
    volume: Volume
    datasets: Sequence[Any] = field(default=(), repr=False)

    def on_slices(self, labels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Labels of the volume -> of the series' own slices (columns, rows, slices)."""
        return labels if self.mending is None else self.mending.labels_on_slices(labels)

    def on_frames(self, labels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Labels of the volume -> (frames, rows, columns) as the data sets have their frames.

        Frames of the files that are not part of the volume, e.g. of other phases, are 0.
        """
        slices = self.on_slices(labels)
        counts = [max(1, int(each.get("NumberOfFrames") or 1)) for each in self.datasets]
        first = dict(zip(_files(self.grid), np.cumsum([0, *counts]).tolist(), strict=False))
        columns, rows, _ = self.grid.shape
        frames = np.zeros((sum(counts), rows, columns), dtype=np.uint8)
        for k, image in enumerate(self.grid.images):
            frames[first[image.file] + (image.frame or 0)] = slices[..., k].T
        return frames

    def about(self, phase: int | None) -> dict[str, Any]:
        """What a report says of it, JSON-able; phase: which one was read, of several."""
        names = ("uid", "number", "modality", "description", "image_type")
        said = self.found.as_dict()
        said = {name: said[name] for name in names}
        return said | {"phase": phase, "images": len(self.grid.images), "mended": self.mended}

    @property
    def mended(self) -> dict[str, Any] | None:
        """What was done to make a grid of the slices, JSON-able; None: nothing had to be."""
        return None if self.mending is None else _mended(self.grid, self.mending)


def read_series(
    source: Path | FoundSeries,
    *,
    phase: int | None = None,
    allow_partial: bool = False,
    strict: bool = False,
    voxels: bool = True,
) -> Series:
    """Read a CT or MR series.

    Args:
        source: A series that was found; or a place in which there is one alone that is good.
        phase: Which of several, counted from 0.
        allow_partial: Read what is there of a series that is not whole.
        strict: Refuse slices that would have to be resampled to lie on an orthogonal grid.
        voxels: False reads the headers alone. The values are then 0, and take no memory.

    Returns:
        The series: `volume`, in scanner units, and `on_slices` for labels of it.

    Raises:
        ScanError: There is no DICOM image, or there are two series; files cannot be read, or there
            are fewer than the series says; the modality is no scan; a file lacks what places it;
            slices differ in shape or direction; slices are missing or repeated. `fault` says which.
        MissingExtraError: pydicom is not installed, or what unpacks the pixels is not.
    """
    if find_spec("pydicom") is None:
        raise MissingExtraError("reading DICOM", "pydicom", "dicom")
    if isinstance(source, FoundSeries):
        found = source
    else:
        found = choose_series(find_series(source), source=source, allow_partial=allow_partial)
    grid = found.grid(phase=phase, allow_partial=allow_partial)
    mending = None if grid.is_regular else Mending(grid=grid)
    if mending is not None and strict:
        raise ScanError("sheared" if grid.is_shifted else "uneven", _why_strict(found, grid))
    scale = scale_of(grid.images)
    affine = grid.affine() if mending is None else mending.affine
    shape = grid.shape if mending is None else mending.shape
    datasets: list[Any] = []
    padding: Padding = scale.padding
    raw: NDArray[Any] = np.broadcast_to(scale.dtype.type(0), shape)
    if voxels:
        slices = _pixels(grid, scale, datasets)
        if mending is None:
            raw = np.empty(shape, dtype=scale.dtype, order="F")
            for k, pixels in enumerate(slices):
                raw[..., k] = pixels.T
        else:
            raw, padding = mending.resample(slices, scale.dtype, scale.padding)
    volume = volume_of(raw, affine).with_scale(_name(found), scale.slope, scale.intercept)
    if padding is not None:
        volume = volume.with_padding(*padding)
    return Series(found=found, grid=grid, mending=mending, volume=volume, datasets=datasets)


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How values are held: as stored, value = slope * stored + intercept; or as values.

    as_stored  whether all slices have one type and scale, and no table
    """

    dtype: np.dtype[Any]
    slope: float = 1.0
    intercept: float = 0.0
    padding: tuple[int, int] | None = None
    as_stored: bool = True


def scale_of(images: Sequence[ImageFacts]) -> Scale:
    """As stored, if all slices agree; else real values, whole ones as such where all are whole."""
    first = images[0]
    kinds = {(each.stored, each.slope, each.intercept, each.table) for each in images}
    if len(kinds) == 1 and not first.table:
        return Scale(
            dtype=first.stored, slope=first.slope, intercept=first.intercept, padding=first.padding
        )
    paddings = {_padding_value(each) for each in images}
    padding = paddings.pop() if len(paddings) == 1 else None
    return Scale(dtype=_common_type(images), padding=padding, as_stored=False)


def _common_type(images: Sequence[ImageFacts]) -> np.dtype[Any]:
    """The smallest of int16, int32 and float32 that holds every value there can be; or float64."""
    if any(each.stored == np.float64 for each in images):
        return np.dtype(np.float64)
    lowest, highest = 0.0, 0.0
    for each in images:
        whole = each.slope.is_integer() and each.intercept.is_integer()
        if each.table or each.stored.kind == "f" or not whole:
            return np.dtype(np.float32)
        limits = np.iinfo(each.stored)
        ends = [each.slope * end + each.intercept for end in (int(limits.min), int(limits.max))]
        lowest, highest = min(lowest, *ends), max(highest, *ends)
    for dtype in (np.int16, np.int32):
        if np.iinfo(dtype).min <= lowest and highest <= np.iinfo(dtype).max:
            return np.dtype(dtype)
    return np.dtype(np.float64)


def _padding_value(image: ImageFacts) -> tuple[int, int] | None:
    if image.padding is None or image.table:
        return None
    low, high = sorted(image.slope * end + image.intercept for end in image.padding)
    return (int(low), int(high)) if low.is_integer() and high.is_integer() else None


def _pixels(grid: Grid, scale: Scale, datasets: list[Any]) -> Iterator[NDArray[Any]]:
    """The slices (rows, columns) in order; the data set of each file is added to `datasets`."""
    known: set[DicomFile] = set()
    with opening() as open_file:
        for file, group in groupby(grid.images, key=lambda image: image.file):
            images = list(group)
            read = _one_image if images[0].frame is None else _frames
            for image, (dataset, pixels) in zip(images, read(file, images, open_file), strict=True):
                if file not in known:
                    known.add(file)
                    datasets.append(dataset)
                want = ((image.rows, image.columns), image.stored)
                if (pixels.shape, pixels.dtype) != want:
                    raise ScanError(
                        "no real numbers",
                        f"{file} has pixels {pixels.shape} {pixels.dtype}, but says that they are "
                        f"{want[0]} {want[1]}",
                    )
                yield pixels if scale.as_stored else _as_values(pixels, image, dataset, scale)


def _one_image(
    file: DicomFile, _images: Sequence[ImageFacts], open_file: Open
) -> Iterator[tuple[Any, NDArray[Any]]]:
    import pydicom
    from pydicom.pixels.utils import pixel_array

    try:
        with open_file(file) as stream:
            dataset = pydicom.dcmread(stream)
        if not dataset.get("NumberOfFrames"):
            dataset.pop("NumberOfFrames", None)  # empty: pydicom would speak of it
        pixels = pixel_array(dataset)
    except Exception as error:
        raise _unreadable(file, error) from error
    for name in ("PixelData", "FloatPixelData", "DoubleFloatPixelData"):
        dataset.pop(name, None)
    yield dataset, pixels


def _frames(
    file: DicomFile, images: Sequence[ImageFacts], open_file: Open
) -> Iterator[tuple[Any, NDArray[Any]]]:
    """The frames that are asked for; of the file no more than one of them is held."""
    from pydicom.pixels.utils import iter_pixels

    indices = [image.frame or 0 for image in images]
    with open_file(file) as stream:
        dataset = read_header(stream)[0]
        with closing(iter_pixels(stream, indices=indices)) as unpacked:
            for _ in images:
                try:
                    pixels = next(unpacked)
                except Exception as error:
                    raise _unreadable(file, error) from error
                yield dataset, pixels


def _unreadable(file: DicomFile, error: Exception) -> ScanError | MissingExtraError:
    what = one_line(error)
    if "missing dependencies" in what or "missing required dependencies" in what:
        return MissingExtraError(f"unpacking the pixels of {file}", "python-gdcm", "dicom")
    return ScanError("damaged", f"cannot read the pixels of {file}: {what}")


def _as_values(pixels: NDArray[Any], image: ImageFacts, dataset: Any, scale: Scale) -> NDArray[Any]:
    if image.table:
        from pydicom.pixels.processing import apply_modality_lut

        try:
            return np.asarray(apply_modality_lut(pixels, dataset)).astype(scale.dtype)
        except Exception as error:
            raise ScanError(
                "damaged",
                f"cannot apply the ModalityLUTSequence of {image.file}: {one_line(error)}",
            ) from error
    values = pixels.astype(np.float64) * image.slope + image.intercept
    return values.astype(scale.dtype)


def _files(grid: Grid) -> list[DicomFile]:
    return list(dict.fromkeys(image.file for image in grid.images))


def _name(found: FoundSeries) -> str:
    return found.source.name or found.source.resolve().name


def _why_strict(found: FoundSeries, grid: Grid) -> str:
    what = []
    if grid.is_shifted:
        what.append(f"are shifted by {grid.tilt_degrees:.1f} degrees (gantry tilt)")
    if grid.is_uneven:
        what.append(f"lie {grid.steps_mm.min():.2f} to {grid.steps_mm.max():.2f} mm apart")
    return (
        f"the slices of {found.name} {' and '.join(what)}; they would be resampled to an "
        "orthogonal grid without --strict"
    )


def _mended(grid: Grid, mending: Mending) -> dict[str, Any]:
    steps = grid.steps_mm
    return {
        "tilt_degrees": round(grid.tilt_degrees, 3),
        "uneven": grid.is_uneven,
        "slice_distances_mm": [round(float(steps.min()), 4), round(float(steps.max()), 4)],
        "missing_slices": grid.missing,
        "slices": list(grid.shape),
        "resampled_to": list(mending.shape),
        "slice_distance_mm": round(mending.distance_mm, 4),
    }
