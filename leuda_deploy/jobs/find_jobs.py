"""folder -> the scans in it, and where their results go; what else lies there is named."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from leuda_deploy.errors import InputError, ScanError
from leuda_deploy.scans.dicom.files import DICOMDIR, holds_images, is_dicom, look_through, named
from leuda_deploy.scans.dicom.rules import NO_CHOICE, SeriesChoice
from leuda_deploy.scans.dicom.sources import is_dicom_source, zip_holds_images
from leuda_deploy.scans.formats import ENDINGS as OTHER_ENDINGS
from leuda_deploy.scans.formats import is_other, read_other
from leuda_deploy.scans.formats.seg_nrrd import ENDING as SEG_NRRD
from leuda_deploy.scans.nifti import is_own_output
from leuda_deploy.scans.volume import count_frames

_log = logging.getLogger(__name__)

EXTENSIONS = (".nii.gz", ".nii", ".mgz", ".mgh", ".hdr", *OTHER_ENDINGS)

LABEL_ENDINGS = (".nii.gz", ".nii", SEG_NRRD)
LABEL_SUFFIXES = ("_label", "_labels", "_manual", "_seg", "_mask", "_uncertainty")
# what is written of a DICOM series besides its labels: its name in reports -> the end of its file's
DICOM_ENDINGS = {"dicom_seg": "_seg.dcm", "dicom_sr": "_sr.dcm", "rtstruct": "_rtstruct.dcm"}
FRAME_NUMBER = re.compile(r"_frame\d+$")  # that --frame all adds to an output's name


@dataclass(frozen=True, kw_only=True)
class Job:
    """One scan and where its results go; its report and picture lie beside `output`."""

    scan: Path  # a file, or a folder or zip with a DICOM series
    others: tuple[Path, ...] = ()  # the files of the other channels; none: one, or all in `scan`
    output: Path
    uncertainty: Path | None = None
    dicom: Mapping[str, Path] = field(default_factory=dict)  # of a DICOM series: see DICOM_ENDINGS
    frame: int | None = None
    regions: Mapping[str, Path] = field(default_factory=dict)  # name of a structure -> its mask

    def files_of(self, channels: Sequence[str]) -> dict[str, str]:
        """Name of each channel -> its file, or its frame of the one file."""
        frames = [f"{self.scan}, frame {k}" for k in range(len(channels))]
        files = [str(path) for path in (self.scan, *self.others)] if self.others else frames
        return dict(zip(channels, files, strict=True))


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


def find_jobs(
    folder: Path,
    wanted: Wanted,
    *,
    shard: str = "1/1",
    frames: str | None = None,
    series: SeriesChoice = NO_CHOICE,
) -> list[Job]:
    """The scans in a folder, in the order of their names; of n shards, the i-th takes every n-th.

    A scan is a file or, in a folder or zip of its own, a DICOM study of which one series is meant.
    Files whose names end in _label, _labels, _manual, _seg or _mask, and what leuda wrote, are no
    scans. What is passed over is logged, by kind and name.

    Raises InputError for a folder without scans, a shard that is none, or two scans that would
    have the same output.
    """
    part, parts = _parse_shard(shard)
    out = wanted.output or Path()
    scans, passed_over = _sort_out(folder)
    if not scans:
        inside = f"; in it: {passed_over}" if passed_over else ""
        raise InputError(
            f"no scan in {folder}: nothing in it ends in {', '.join(EXTENSIONS)} or is a folder "
            f"with DICOM images{inside}"
        )
    if passed_over:
        _log.warning("passed over in %s: %s", folder, passed_over)
    jobs = [
        Job(
            scan=scan,
            output=out / f"{stem(scan)}_labels{wanted.ending}",
            uncertainty=wanted.uncertainty
            and wanted.uncertainty / f"{stem(scan)}_uncertainty.nii.gz",
            dicom={
                what: folder / f"{stem(scan)}{DICOM_ENDINGS[what]}"
                for what, folder in wanted.dicom.items()
                if is_dicom_source(scan)
            },
        )
        for scan in scans
    ]
    taken: dict[Path, Path] = {}
    for job in jobs:
        if (other := taken.setdefault(job.output, job.scan)) != job.scan:
            raise InputError(f"{other} and {job.scan} would both become {job.output}; rename one")
    return [each for job in jobs[part - 1 :: parts] for each in with_frames(job, frames, series)]


def _sort_out(folder: Path) -> tuple[list[Path], str]:
    """The scans of a folder, and a line on all else that lies in it; "" if nothing does."""
    scans: list[Path] = []
    others: dict[str, list[Path]] = {}
    for path in sorted(folder.iterdir()):
        kind = _kind(path)
        if kind is None:
            scans.append(path)
        else:
            others.setdefault(kind, []).append(path)
    parts = [f"{len(paths)} {kind} ({named(paths)})" for kind, paths in sorted(others.items())]
    return scans, "; ".join(parts)


def _kind(path: Path) -> str | None:
    """What an entry of a folder is, in the plural; None if it is a scan."""
    name = path.name.lower()
    if name.startswith("."):
        return "hidden files"
    if not path.exists():
        return "links to nothing"
    if path.is_dir():
        return None if holds_images(path) else "folders without DICOM images"
    if not path.is_file():
        return "things that are no files"
    if is_dicom(path):
        return "DICOM files beside other scans, not in a folder of their own"
    if name.endswith(".zip"):
        return None if zip_holds_images(path) else "zips without DICOM images"
    if not name.endswith(EXTENSIONS):
        return (
            "halves of .hdr/.img pairs"
            if name.endswith((".img", ".img.gz"))
            else "files of other kinds"
        )
    if name.endswith(SEG_NRRD) or _is_label_name(stem(path)) or is_own_output(path):
        return "labels or outputs of leuda"
    return None


def with_frames(job: Job, frames: str | None, series: SeriesChoice = NO_CHOICE) -> list[Job]:
    """The job for one frame of a 4D scan, given as a number, or a job each for "all" of them.

    The phases of a DICOM series are its frames.
    """
    if frames is None:
        return [job]
    if frames != "all":
        if not frames.isdecimal():
            raise InputError(f"--frame is a number or all, not {frames!r}")
        return [replace(job, frame=int(frames))]

    def numbered(path: Path, frame: int) -> Path:
        name = label_stem(path) if path.name.endswith(LABEL_ENDINGS) else path.stem
        ending = path.name[len(name) :] if name else ""
        return path.with_name(f"{name}_frame{frame:03d}{ending}")

    try:
        if is_dicom_source(job.scan):
            count = len(series.of(job.scan).phases().stacks)
        else:
            count = count_frames(job.scan)
    except ScanError:
        return [job]  # what is wrong with it is said when it is read; the others go on
    if count == 1:
        return [job]
    return [
        replace(
            job,
            frame=frame,
            output=numbered(job.output, frame),
            uncertainty=job.uncertainty and numbered(job.uncertainty, frame),
            dicom={what: numbered(path, frame) for what, path in job.dicom.items()},
        )
        for frame in range(count)
    ]


def is_scan_file(path: Path) -> bool:
    """Whether a path looks like a scan that nibabel reads; hidden files and labels are none."""
    return path.is_file() and not is_dicom(path) and _kind(path) is None


def is_series(folder: Path) -> bool:
    """Whether a folder is one DICOM series, and not a folder of scans.

    Where both lie in it, what there is more of decides; what is passed over is named later. With a
    DICOMDIR in it, it is one study.
    """
    if not folder.is_dir():
        return False
    if any(path.name.upper() == DICOMDIR for path in folder.iterdir()):
        return True
    images = len(look_through(folder).images)
    return images > 0 and images > sum(map(is_scan_file, folder.iterdir()))


def _is_label_name(name: str) -> bool:
    """Whether a scan file's name, without its ending, says that it holds labels or uncertainty."""
    name = FRAME_NUMBER.sub("", name.lower())
    return name.endswith(LABEL_SUFFIXES)


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
    """The name of a label file without .nii, .nii.gz or .seg.nrrd, and nothing else cut off."""
    return output.name.removesuffix(".gz").removesuffix(".nii").removesuffix(SEG_NRRD)


def stem(scan: Path) -> str:
    """The name of a scan without its ending; of ".." or "." that of the folder it stands for."""
    name = scan.name if scan.name not in ("", "..") else scan.resolve().name
    for extension in (
        ".gz",
        ".zip",
        ".dcm",
        *OTHER_ENDINGS,
        ".seg",
        ".nii",
        ".hdr",
        ".img",
        ".mgz",
        ".mgh",
    ):
        if name.lower().endswith(extension):
            name = name[: -len(extension)]
    return name or "scan"


def scan_files(scan: Path) -> list[Path]:
    """All files that a scan is made of: one, a pair (.hdr and .img), or those of a series."""
    if scan.is_dir():
        found = look_through(scan)
        return sorted([*found.images, *found.unreadable])
    name = scan.name
    if is_other(scan):
        try:
            data = read_other(scan).data_file
        except Exception:  # noqa: BLE001  (what is wrong with it is said when it is read)
            return [scan]
        return [scan] if data is None or not data.is_file() else [scan, data]
    for one, other in ((".hdr", ".img"), (".img", ".hdr")):
        for ending in ("", ".gz"):
            if name.lower().endswith(one + ending):
                cut = scan.with_name(name[: -len(one + ending)])
                partners = [cut.with_name(cut.name + other + more) for more in ("", ".gz")]
                return [scan, *(path for path in partners if path.is_file())]
    return [scan]
