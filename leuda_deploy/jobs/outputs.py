"""jobs -> their output files, checked before the work; and what leuda wrote of them, by its hash.

The report beside labels holds the hash of each file that was written with it. A file with that hash
is leuda's own and may be replaced; a scan with all of its files is done.

    .NAME.writing   hashes of what a run is writing; it lies there until the report does
    NAME.nii.gz     then entropy map, picture and DICOM objects
    NAME.json       the report, last: where it stands, all is done

The report of an earlier run is taken away before its labels are replaced, so it never stands beside
the labels of another model.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from leuda_deploy.errors import LeudaError
from leuda_deploy.jobs.find_jobs import Job, label_stem, picture_path, report_path, scan_files
from leuda_deploy.machine.files import atomic_path, file_sha256, write_json
from leuda_deploy.machine.outputs import Output, plan_outputs
from leuda_deploy.machine.outside import read_json

_log = logging.getLogger(__name__)

NIFTI = (".nii", ".nii.gz")
LABELS = (*NIFTI, ".seg.nrrd")
REGION = "region "  # in a report, before the name of a structure whose mask it is
NOT_DICOM = (".nii", ".gz", ".json", ".png", ".txt", ".hdr", ".img", ".mgz", ".onnx")
# what each report has, of whatever version
REPORT_KEYS = {"scan", "labels", "model_sha256", "scan_sha256", "volumes_ml"}
MAX_REPORT_BYTES = 4 << 20


def outputs_of(job: Job, *, overlay: bool) -> dict[str, Path]:
    """What a job writes besides its report, by the name that the report gives it."""
    outputs = {
        "labels": job.output,
        "uncertainty": job.uncertainty,
        **{region_role(name): path for name, path in job.regions.items()},
        **job.dicom,
        "overlay": picture_path(job.output) if overlay else None,
    }
    return {role: path for role, path in outputs.items() if path is not None}


def region_role(name: str) -> str:
    """What a report calls the mask of a structure."""
    return f"{REGION}{name}"


def plan_job_outputs(
    jobs: Sequence[Job], *, overlay: bool, force: bool = False, inputs: Iterable[Path] = ()
) -> None:
    """Refuse, before any work, whatever must not be written. See `plan_outputs`.

    Args:
        jobs: All jobs of the run.
        overlay: Whether pictures are drawn.
        force: Replace files that leuda did not write.
        inputs: What is read besides the scans: the model.

    Raises:
        InputError: An output cannot be written, or must not.
    """
    read: list[Path] = [*inputs]
    for job in jobs:
        read += [job.scan] if job.scan.is_dir() else scan_files(job.scan)
        read += job.others
    plan_outputs(
        [each for job in jobs for each in _planned(job, overlay)], inputs=read, force=force
    )


def _planned(job: Job, overlay: bool) -> Iterator[Output]:
    kinds = {
        "labels": ("labels", "--output", LABELS, ()),
        "uncertainty": ("entropy map", "--uncertainty", NIFTI, ()),
        "region": ("mask of a region", "--regions", NIFTI, ()),
        "dicom_seg": ("DICOM SEG", "--dicom-seg", (), NOT_DICOM),
        "dicom_sr": ("DICOM SR", "--dicom-sr", (), NOT_DICOM),
        "rtstruct": ("RTSTRUCT", "--rtstruct", (), NOT_DICOM),
        "overlay": ("picture", "--output", (), ()),
    }
    own = _own_hashes(job.output)

    def is_own(path: Path) -> bool:
        return path.is_file() and not path.is_symlink() and file_sha256(path) in own

    for role, path in outputs_of(job, overlay=overlay).items():
        kind = "region" if role.startswith(REGION) else role
        what, option, endings, not_endings = kinds[kind]
        yield Output(
            path=path,
            what=what,
            option=option,
            endings=endings,
            not_endings=not_endings,
            is_ours=is_own,
        )
    yield Output(
        path=report_path(job.output), what="report", is_ours=lambda path: _is_report(_read(path))
    )
    yield Output(path=_note_path(job.output), what="note of what is written", is_ours=_is_note)


def is_done(
    job: Job,
    scan_sha256: str,
    model_sha256: str,
    asked: Mapping[str, object],
    *,
    overlay: bool = False,
) -> bool:
    """Whether this model did this very scan as `asked`, and all that is wanted stands as written.

    A report of an earlier leuda does not hold the hashes: such a scan is done again.
    """
    said = _read(report_path(job.output))
    this = {"scan_sha256": scan_sha256, "model_sha256": model_sha256, "asked": asked}
    if any(said.get(key) != value for key, value in this.items()):
        return False
    written = said.get("written")
    if not isinstance(written, dict):
        return False
    for role, path in outputs_of(job, overlay=overlay).items():
        if not (path.is_file() and role in written and file_sha256(path) == written[role]):
            return False
    return True


class JobWriter:
    """Writes the outputs of one job, so that a run that is killed leaves nothing misleading."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._own = _own_hashes(job.output)
        self._before = _read(report_path(job.output))
        self.written: dict[str, str] = {}

    def write(self, role: str, path: Path, make: Callable[[Path], None]) -> None:
        """Have a file made under another name, and put it in its place once it is known as ours."""
        with atomic_path(path) as temporary:
            make(temporary)
            self.written[role] = file_sha256(temporary)
            note = sorted({*self._own, *self.written.values()})
            write_json(_note_path(self._job.output), {"leuda is writing": note})
            # from here on an earlier report would stand beside files that it does not speak of
            report_path(self._job.output).unlink(missing_ok=True)

    def finish(self, report: Mapping[str, Any]) -> None:
        """Write the report, and take away what an earlier one left that is no longer true."""
        self._clear_picture()
        write_json(report_path(self._job.output), report)
        _note_path(self._job.output).unlink(missing_ok=True)

    def _clear_picture(self) -> None:
        """A picture of earlier labels goes; of an earlier entropy map, which has a name of its own,
        it is said that it is not of these labels.
        """
        picture = picture_path(self._job.output)
        if "overlay" not in self.written and picture.is_file():
            with suppress(OSError):
                if file_sha256(picture) in self._own:
                    picture.unlink()
                    _log.info("removed %s: it showed the labels of an earlier run", picture)
        earlier = self._before.get("uncertainty")
        if "uncertainty" not in self.written and isinstance(earlier, str) and earlier:
            _log.warning("%s is of an earlier run, not of %s", earlier, self._job.output)


def _note_path(output: Path) -> Path:
    return output.with_name(f".{label_stem(output)}.writing")


def _own_hashes(output: Path) -> set[str]:
    """Of the files that leuda wrote, or was about to write, with the labels at `output`."""
    written = _read(report_path(output)).get("written")
    note = _read(_note_path(output)).get("leuda is writing")
    hashes = [*(written.values() if isinstance(written, dict) else ())]
    hashes += note if isinstance(note, list) else []
    return {sha256 for sha256 in hashes if isinstance(sha256, str)}


def _is_report(said: Mapping[str, Any]) -> bool:
    return said.keys() >= REPORT_KEYS


def _is_note(path: Path) -> bool:
    return _read(path).keys() == {"leuda is writing"}


def _read(path: Path) -> dict[str, Any]:
    """A small JSON table; empty if there is none."""
    try:
        said = read_json(path, most=MAX_REPORT_BYTES, file_names=True)
    except LeudaError:
        return {}
    return said if isinstance(said, dict) else {}


def scan_sha256(job: Job) -> str:
    """The hash of all that a scan is made of; "" if it is not there.

    Of one file it is the file's; of a pair (.hdr, .img) or a series, over the hashes of its files.
    """
    files = [*scan_files(job.scan), *job.others]
    if not files or not all(path.is_file() for path in files):
        return ""
    if len(files) == 1 and not job.scan.is_dir():
        return file_sha256(files[0])
    return hashlib.sha256("".join(map(file_sha256, files)).encode()).hexdigest()
