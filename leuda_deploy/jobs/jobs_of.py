"""what `leuda infer` is given -> jobs: one scan, its frames, or all scans of a folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from leuda_deploy.errors import InputError, ScanError
from leuda_deploy.jobs.find_jobs import (
    DICOM_ENDINGS,
    LABEL_ENDINGS,
    Job,
    find_jobs,
    is_series,
    stem,
    with_frames,
)
from leuda_deploy.scans.dicom.rules import NO_CHOICE, SeriesChoice


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """Where results go, as the user gave it: files, or folders for many scans; None: not given.

    dicom   what is written of a DICOM series: see DICOM_ENDINGS
    ending  of label files that leuda names
    """

    output: Path | None = None
    uncertainty: Path | None = None
    dicom: Mapping[str, Path] = field(default_factory=dict)
    ending: str = LABEL_ENDINGS[0]


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
            wanted.output or Path(),
            shard=shard,
            uncertainty=wanted.uncertainty,
            dicom=wanted.dicom,
            frames=frames,
            series=series,
            ending=wanted.ending,
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


def _in_folder(given: Path, name: str) -> Path:
    """A file of this name, if a folder is given, there or to be made; else what is given."""
    to_be_made = not given.suffix and not given.exists()
    return given / name if given.is_dir() or to_be_made else given
