"""what `leuda infer` is given -> jobs: one scan, its frames, or all scans of a folder."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from leuda_deploy.errors import InputError, ScanError
from leuda_deploy.jobs.find_jobs import (
    DICOM_ENDINGS,
    Job,
    Wanted,
    find_jobs,
    is_series,
    label_stem,
    stem,
    with_frames,
)
from leuda_deploy.model.card import ModelCard
from leuda_deploy.scans.channels import sibling_channels
from leuda_deploy.scans.dicom.rules import NO_CHOICE, SeriesChoice
from leuda_deploy.scans.dicom.sources import is_dicom_source


def jobs_of(
    scan: Path,
    wanted: Wanted,
    *,
    shard: str = "1/1",
    frames: str | None = None,
    series: SeriesChoice = NO_CHOICE,
) -> tuple[list[Job], bool]:
    """What is to be done, and whether it is one scan alone. See `find_jobs`.

    A folder of which a series is named is one study.

    Raises:
        InputError: There is no such scan, or it is none.
    """
    if not scan.exists():
        raise ScanError("missing", f"no such scan or folder: {scan}")
    if scan.suffix.lower() in (".onnx", ".engine"):
        raise InputError(f"{scan} is a model, not a scan: leuda infer SCAN --model {scan}")
    if "dicom_sr" in wanted.dicom and "dicom_seg" not in wanted.dicom:
        raise InputError("--dicom-sr refers to the segments of a DICOM SEG: add --dicom-seg")
    if scan.is_dir() and series.wanted is None and not is_series(scan):
        jobs = find_jobs(
            scan,
            wanted,
            shard=shard,
            frames=frames,
            series=series,
        )
        return jobs, False
    name = stem(scan)
    output = wanted.output or Path()
    job = Job(
        scan=scan,
        output=_in_folder(output, f"{name}_labels{wanted.ending}"),
        uncertainty=wanted.uncertainty
        and _in_folder(wanted.uncertainty, f"{name}_uncertainty.nii.gz"),
        dicom={
            what: _in_folder(path, f"{name}{DICOM_ENDINGS[what]}")
            for what, path in wanted.dicom.items()
        },
    )
    jobs = with_frames(job, frames, series)
    return jobs, len(jobs) == 1


def for_model(
    jobs: Sequence[Job],
    card: ModelCard,
    *,
    others: Sequence[Path] = (),
    regions: Path | None = None,
) -> list[Job]:
    """The same jobs, with the channels that a model reads and the masks of its regions.

    Where a model has channels, CASE_0000.nii.gz is one scan with CASE_0001 and so on beside it.

    Args:
        jobs: Of `jobs_of`.
        card: The model's.
        others: The other channels of the one scan, in the order of the card.
        regions: Folder for a mask of each structure; None: no masks.

    Raises:
        InputError: The model has no channels, or no regions; or what is asked of a model with them
            is not offered.
    """
    if regions is not None and not card.options.regions:
        raise InputError("--regions: the structures of this model do not overlap")
    if card.options.regions and any(job.dicom for job in jobs):
        raise InputError("DICOM objects of structures that overlap are not offered: NIfTI alone")
    if others and (card.scan_count == 1 or len(jobs) > 1):
        what = f"reads {card.scan_count} scan(s) together, and there are {len(jobs)} to label"
        raise InputError(f"--channel is for one scan and a model with channels; this one {what}")
    if card.scan_count > 1:
        if any(is_dicom_source(job.scan) for job in jobs):
            raise InputError("channels are read from NIfTI, NRRD or MHA, not from DICOM series")
        if any(job.frame is not None for job in jobs):
            raise InputError("the frames of a 4D scan are this model's channels: without --frame")
        beside = {job.scan: tuple(others or sibling_channels(job.scan)) for job in jobs}
        parts = {path for paths in beside.values() for path in paths}
        jobs = [
            _of_case(job, beside[job.scan]) if not others else replace(job, others=tuple(others))
            for job in jobs
            if job.scan not in parts
        ]
    if regions is None:
        return list(jobs)
    return [replace(job, regions=_masks(job, card, regions)) for job in jobs]


def _of_case(job: Job, others: tuple[Path, ...]) -> Job:
    """CASE_0000 with its channels; what leuda names is named after the case."""
    if not others:
        return job
    name = stem(job.scan)
    case = name.removesuffix("_0000")

    def renamed(path: Path) -> Path:
        if not path.name.startswith(f"{name}_"):
            return path
        return path.with_name(case + path.name.removeprefix(name))

    uncertainty = job.uncertainty and renamed(job.uncertainty)
    return replace(job, others=others, output=renamed(job.output), uncertainty=uncertainty)


def _masks(job: Job, card: ModelCard, folder: Path) -> dict[str, Path]:
    start = label_stem(job.output).removesuffix("_labels")
    slugs = {each.name: re.sub(r"\W+", "-", each.name).strip("-") for each in card.structures}
    return {
        each.name: folder / f"{start}_{each.value}_{slugs[each.name]}.nii.gz"
        for each in card.structures
    }


def _in_folder(given: Path, name: str) -> Path:
    """A file of this name, if a folder is given, there or to be made; else what is given."""
    to_be_made = not given.suffix and not given.exists()
    return given / name if given.is_dir() or to_be_made else given
