"""folder -> the scans in it, where their results go, and which of them are done."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from leuda_deploy.errors import InputError
from leuda_deploy.machine.files import file_sha256
from leuda_deploy.scans.volume import count_frames

EXTENSIONS = (".nii.gz", ".nii", ".mgz", ".mgh", ".hdr")

LABEL_SUFFIXES = ("_label", "_labels", "_manual", "_seg", "_mask")


@dataclass(frozen=True, kw_only=True)
class Job:
    """One scan and where its results go; its report and picture lie beside `output`."""

    scan: Path  # a file, or a folder with one DICOM series
    output: Path
    uncertainty: Path | None = None
    seg: Path | None = None  # DICOM SEG, for a DICOM series
    frame: int | None = None


def find_jobs(
    folder: Path,
    out: Path,
    *,
    shard: str = "1/1",
    uncertainty: Path | None = None,
    frames: str | None = None,
) -> list[Job]:
    """The scans in a folder, in the order of their names; of n shards, the i-th takes every n-th.

    A scan is a file or, in a folder of its own, a DICOM series. Files whose names end in _label,
    _labels, _manual, _seg or _mask are labels of scans, not scans.

    Raises InputError for a folder without scans, a shard that is none, or two scans that would
    have the same output.
    """
    part, parts = _parse_shard(shard)
    scans = sorted(path for path in folder.iterdir() if is_scan_file(path) or holds_dicom(path))
    if not scans:
        raise InputError(
            f"no scan in {folder}: nothing in it ends in {', '.join(EXTENSIONS)} or is a folder "
            "with DICOM images"
        )
    jobs = [
        Job(
            scan=scan,
            output=out / f"{stem(scan)}_labels.nii.gz",
            uncertainty=uncertainty and uncertainty / f"{stem(scan)}_uncertainty.nii.gz",
        )
        for scan in scans
    ]
    taken: dict[Path, Path] = {}
    for job in jobs:
        if (other := taken.setdefault(job.output, job.scan)) != job.scan:
            raise InputError(f"{other} and {job.scan} would both become {job.output}; rename one")
    return [each for job in jobs[part - 1 :: parts] for each in with_frames(job, frames)]


def with_frames(job: Job, frames: str | None) -> list[Job]:
    """The job for one frame of a 4D scan, given as a number, or a job each for "all" of them."""
    if frames is None:
        return [job]
    if frames != "all":
        if not frames.isdecimal():
            raise InputError(f"--frame is a number or all, not {frames!r}")
        return [replace(job, frame=int(frames))]
    if job.scan.is_dir():
        return [job]

    def numbered(path: Path | None, frame: int) -> Path | None:
        return path and path.with_name(f"{label_stem(path)}_frame{frame:03d}.nii.gz")

    count = count_frames(job.scan)
    if count == 1:
        return [job]
    return [
        replace(
            job,
            frame=frame,
            output=numbered(job.output, frame) or job.output,
            uncertainty=numbered(job.uncertainty, frame),
        )
        for frame in range(count)
    ]


def is_scan_file(path: Path) -> bool:
    """Whether a path looks like a scan that nibabel reads; hidden files and labels are none."""
    named = path.name.endswith(EXTENSIONS) and not path.name.startswith(".")
    return path.is_file() and named and not stem(path).lower().endswith(LABEL_SUFFIXES)


def holds_dicom(folder: Path) -> bool:
    """Whether a folder holds a DICOM file, by the mark that each of them carries."""
    if not folder.is_dir() or folder.name.startswith("."):
        return False
    for path in filter(Path.is_file, sorted(folder.iterdir())):
        with path.open("rb") as file:
            if file.read(132)[128:] == b"DICM":
                return True
    return False


def _parse_shard(shard: str) -> tuple[int, int]:
    try:
        part, parts = (int(number) for number in shard.split("/"))
    except ValueError:
        part, parts = 0, 0
    if not 1 <= part <= parts:
        raise InputError(f"--shard is i/n with 1 <= i <= n, not {shard!r}")
    return part, parts


def report_path(output: Path) -> Path:
    """Where the report of these labels lies: x.nii.gz -> x.json."""
    return output.with_name(label_stem(output) + ".json")


def picture_path(output: Path) -> Path:
    """Where the picture of these labels lies: x.nii.gz -> x.png."""
    return output.with_name(label_stem(output) + ".png")


def label_stem(output: Path) -> str:
    """The name of a label file without .nii or .nii.gz, and nothing else cut off."""
    return output.name.removesuffix(".gz").removesuffix(".nii")


def stem(scan: Path) -> str:
    """The name of a scan without its ending."""
    name = scan.name
    for extension in (".gz", ".nii", ".hdr", ".img", ".mgz", ".mgh"):
        name = name.removesuffix(extension)
    return name


def scan_sha256(scan: Path) -> str:
    """The hash of a scan's file, or of the hashes of a series' files; "" if there is none."""
    if not scan.is_dir():
        return file_sha256(scan) if scan.is_file() else ""
    files = sorted(path for path in scan.iterdir() if path.is_file())
    return hashlib.sha256("".join(map(file_sha256, files)).encode()).hexdigest()


def is_done(job: Job, scan_sha256: str, model_sha256: str, asked: Mapping[str, object]) -> bool:
    """Whether the report beside the labels says that this model did this very scan as `asked`.

    A report of an earlier leuda does not say what was asked: such a scan is done again.
    """
    wanted = [path for path in (job.output, job.uncertainty, job.seg) if path is not None]
    try:
        said = json.loads(report_path(job.output).read_text())
    except (OSError, ValueError):
        return False
    this = {"scan_sha256": scan_sha256, "model_sha256": model_sha256, "asked": asked}
    same = isinstance(said, dict) and all(said.get(key) == value for key, value in this.items())
    return same and all(path.is_file() for path in wanted)
