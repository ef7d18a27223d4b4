"""a job -> its scan, read and ready for the model; which series it is, and what is odd about it."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import nibabel as nib
import numpy as np

from leuda_deploy.errors import InputError, ScanError
from leuda_deploy.inference.segmenter import Segmenter
from leuda_deploy.jobs.dicom_out.seg import SegType
from leuda_deploy.jobs.find_jobs import Job
from leuda_deploy.jobs.outputs import is_done, plan_job_outputs, scan_sha256
from leuda_deploy.jobs.report import PreparedScan
from leuda_deploy.machine.clock import Clock
from leuda_deploy.machine.files import file_sha256
from leuda_deploy.model.card import ModelCard
from leuda_deploy.scans.channels import read_channels
from leuda_deploy.scans.dicom.rules import NO_CHOICE, SeriesChoice
from leuda_deploy.scans.dicom.sources import is_dicom_source
from leuda_deploy.scans.volume import Volume, read_volume

if TYPE_CHECKING:
    from leuda_deploy.scans.dicom import FoundSeries, Series

_log = logging.getLogger(__name__)

LEAST_MM, MOST_MM = 0.05, 20.0  # edge of a voxel
MOST_FIELD_MM = 2000.0
SAYS = {"CT": ("CT",), "MR": ("MR", "MRI", "CMR")}  # words of a card's modality
# of DICOM objects, as measured: 124 MB for 10 million voxels, 114 MB for 5
CODE_BYTES, DICOM_BYTES_PER_VOXEL = 104 << 20, 3
SAME_SHARE = 0.02  # by which two statements of a voxel's size may differ


@dataclass(frozen=True, kw_only=True)
class Wishes:
    """What the user asked for besides the settings of the model.

    force     replace files that leuda did not write; scans never are
    series    which series of a study, and whether it may be one that is not whole
    strict    refuse a series that would have to be resampled to an orthogonal grid
    seg_type  how a DICOM SEG holds its segments
    """

    force: bool = False
    series: SeriesChoice = NO_CHOICE
    strict: bool = False
    seg_type: SegType = "binary"


NO_WISHES = Wishes()


def prepare(
    job: Job, segmenter: Segmenter, *, overlay: bool, skip_done: bool, wishes: Wishes
) -> PreparedScan | None:
    """Read a scan and fit its intensities; None if it was done before and may be skipped.

    Raises:
        InputError: The scan cannot be used, needs too much memory, or its outputs cannot be
            written.
    """
    began, clock = time.perf_counter(), Clock()
    inputs = segmenter.model.files
    plan_job_outputs([job], overlay=overlay, force=wishes.force, inputs=inputs)
    asked = segmenter.asked | {"frame": job.frame}
    asked |= {"allow_partial": True} if wishes.series.allow_partial else {}
    asked |= {"strict": True} if wishes.strict else {}
    if "dicom_seg" in job.dicom and wishes.seg_type != "binary":
        asked["seg_type"] = wishes.seg_type
    with clock("read"):
        found = _found(job, segmenter.card, wishes)
        sha256 = scan_sha256(job) if found is None else _series_sha256(found)
        done = skip_done and is_done(job, sha256, segmenter.sha256, asked, overlay=overlay)
        if done:
            return None
        if segmenter.settings.max_bytes is not None and segmenter.settled:
            header, _ = _read(
                job, found, wishes, segmenter.card, voxels=False
            )  # refused where it shows that
            segmenter.plan(
                segmenter.stack(header),
                uncertainty=job.uncertainty is not None,
                writing=writing_bytes(job, header),
            )
        volume, series = _read(job, found, wishes, segmenter.card)
    if series is not None and series.mended is not None:
        _log.warning("%s was mended: %s", series.found.name, mended_words(series.mended))
    implausible = implausible_geometry(volume)
    for line in implausible:
        _log.warning("%s: %s", job.scan, line)
    with clock("normalise"):
        stack = segmenter.stack(volume)
        _ = stack.intensity  # refused here if it cannot be normalised, before anything is logged
    return PreparedScan(
        job=job,
        stack=stack,
        series=series,
        scan_sha256=sha256,
        implausible=implausible,
        asked=asked,
        clock=clock,
        began=began,
    )


def writing_bytes(job: Job, volume: Volume) -> int:
    """What highdicom takes for the DICOM objects: its tables of codes, and copies of the labels."""
    return CODE_BYTES + DICOM_BYTES_PER_VOXEL * volume.raw.size if job.dicom else 0


def _found(job: Job, card: ModelCard, wishes: Wishes) -> FoundSeries | None:
    """The series that is meant; None if the scan is no DICOM. Raises InputError."""
    if not is_dicom_source(job.scan):
        if job.dicom and job.scan.exists():
            option = next(iter(job.dicom)).replace("_", "-")
            raise InputError(f"--{option} is for a DICOM series; {job.scan} is not one")
        return None
    choice = wishes.series
    if choice.rules is None:
        choice = replace(choice, rules=card.series)
    found = choice.of(job.scan)
    for_modality = scanner_modality(card.modality)
    if for_modality is not None and found.modality != for_modality:
        line = f"{found.name} is {found.modality}, the model is for {card.modality}"
        if choice.rules is not None and choice.rules.other_modality == "refuse":
            raise ScanError("modality", line)
        _log.warning("%s", line)
    return found


def mended_words(mended: Mapping[str, Any]) -> str:
    """What was wrong with the slices of a series, and their new grid; see `Report.series`."""
    what = []
    if mended["tilt_degrees"]:
        what.append(f"tilted by {mended['tilt_degrees']:.1f} degrees")
    if mended["uneven"]:
        first, last = mended["slice_distances_mm"]
        what.append(f"slices {first:g} to {last:g} mm apart")
    if mended["missing_slices"]:
        what.append(f"{mended['missing_slices']} slices filled in")
    grid = " x ".join(map(str, mended["resampled_to"]))
    return f"{', '.join(what)}; resampled to {grid}, as the labels are"


def scanner_modality(modality: str) -> str | None:
    """What a card says of its modality -> DICOM's "CT" or "MR"; None if it is neither.

    Examples:
        >>> scanner_modality("MRI, T2"), scanner_modality("ct"), scanner_modality("target")
        ('MR', 'CT', None)
    """
    words = modality.upper().replace(",", " ").replace("-", " ").replace("_", " ").split()
    found = {name for name, says in SAYS.items() if any(word in says for word in words)}
    return found.pop() if len(found) == 1 else None


def _series_sha256(found: FoundSeries) -> str:
    """Over the hashes of its files; of one within a zip, the zip's with its name."""
    zips = {file.path: file_sha256(file.path) for file in found.files if file.inside}
    hashes = [
        zips[file.path] + file.inside if file.inside else file_sha256(file.path)
        for file in found.files
    ]
    return hashlib.sha256("".join(hashes).encode()).hexdigest()


def _read(
    job: Job, found: FoundSeries | None, wishes: Wishes, card: ModelCard, *, voxels: bool = True
) -> tuple[Volume, Series | None]:
    if card.scan_count > 1:
        return read_channels(job.scan, job.others, card.channels, voxels=voxels), None
    if found is None:
        return read_volume(job.scan, frame=job.frame, voxels=voxels), None
    from leuda_deploy.scans.dicom import read_series

    series = read_series(
        found,
        phase=job.frame,
        allow_partial=wishes.series.allow_partial,
        strict=wishes.strict,
        voxels=voxels,
    )
    return series.volume, series


def implausible_geometry(volume: Volume) -> list[str]:
    """What no scanner would write. Empty for a sound scan."""
    spacing = volume.spacing_mm
    sizes = " x ".join(f"{size:.4g}" for size in spacing)
    found = []
    if min(spacing) < LEAST_MM or max(spacing) > MOST_MM:
        found.append(
            f"its voxels are {sizes} mm; scanners make {LEAST_MM:g} to {MOST_MM:g} mm, so volumes "
            "may be wrong"
        )
    field = [n * size for n, size in zip(volume.raw.shape, spacing, strict=True)]
    if max(field) > MOST_FIELD_MM:
        found.append(
            f"it is {' x '.join(f'{side:.4g}' for side in field)} mm large, more than "
            f"{MOST_FIELD_MM / 1000:g} m"
        )
    return found + _said_by_its_header(volume, sizes)


def _said_by_its_header(volume: Volume, sizes: str) -> list[str]:
    header = volume.header
    if not isinstance(header, nib.Nifti1Header):
        return []
    stated = np.abs(np.asarray(header["pixdim"][1:4], dtype=np.float64))
    stated_sizes = " x ".join(f"{size:.4g}" for size in stated)
    found = []
    if int(header["sform_code"]) == 0 and int(header["qform_code"]) == 0:
        found.append(
            "it does not say where it lies (sform and qform codes are 0); its axes are taken for "
            f"right-left, back-front, feet-head, its voxels for {sizes} mm (pixdim {stated_sizes})"
        )
    elif (np.abs(stated - volume.spacing_mm) > SAME_SHARE * np.array(volume.spacing_mm)).any():
        found.append(
            f"its header contradicts itself: voxels of {sizes} mm by its affine, which is used, "
            f"and {stated_sizes} mm by its pixdim"
        )
    return found
