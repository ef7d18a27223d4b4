"""folder, zip, DICOMDIR or file -> the series in it, and what each is good for.

Of each file no more than its header is read. Whatever is wrong with one series is kept with it and
said when it is asked for; it stops no other.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from leuda_deploy.errors import MissingExtraError, ScanError, printable, reading
from leuda_deploy.machine.progress import Progress, no_progress
from leuda_deploy.scans.dicom.attributes import (
    ImageFacts,
    image_type,
    number_or_none,
    texts,
    whole_number,
)
from leuda_deploy.scans.dicom.files import is_image_class, named
from leuda_deploy.scans.dicom.found import FoundSeries
from leuda_deploy.scans.dicom.multiframe import images_of, read_header
from leuda_deploy.scans.dicom.sources import DicomFile, Open, Place, opening, places_of

_log = logging.getLogger(__name__)

DEFLATED = b"1.2.840.10008.1.2.1.99"
HEAD_BYTES = 1 << 16


def find_series(source: Path | str, *, progress: Progress = no_progress) -> list[FoundSeries]:
    """All series in a source, by study and number.

    Args:
        source: A folder, looked through at any depth; a zip; a DICOMDIR; or one DICOM file.
        progress: Told how many of the files were looked at.

    Returns:
        The series; also those that are no scans, e.g. structured reports. Empty if there are none.

    Raises:
        ScanError: There is no such source, or none of its files can be read.
        MissingExtraError: pydicom is not installed.
    """
    if find_spec("pydicom") is None:
        raise MissingExtraError("reading DICOM", "pydicom", "dicom")
    source = Path(source)
    gathered: dict[str, _Gathered] = {}
    places = places_of(source)
    total, done, stray = sum(len(p.images) + len(p.objects) for p in places), 0, list[ScanError]()
    seen: set[tuple[str, int | None]] = set()
    with opening() as open_file:
        for place in places:
            here: set[str] = set()
            faults: list[ScanError] = []
            unreadable: list[DicomFile] = list(place.unreadable)
            for file in (*place.images, *place.objects):
                done += 1
                progress(done, total, "")
                try:
                    uid = _gather(file, source, open_file, gathered, seen)
                except ScanError as error:
                    faults.append(error)
                    continue
                if uid is None:
                    unreadable.append(file)
                else:
                    here.add(uid)
            if unreadable:
                faults.append(_unreadable(place, unreadable))
            for uid in here:
                gathered[uid].faults += faults
            stray += [] if here else faults
    if stray and not gathered:
        raise stray[0]
    for fault in stray:
        _log.warning("%s", fault)
    if gathered and (others := sum(place.others for place in places)):
        _log.info("passed over in %s: %d file%s of other kinds", source, others, "s"[: others > 1])
    found = [each.series() for each in gathered.values()]
    return sorted(found, key=lambda each: (each.study_uid, each.number or 0, each.uid))


@dataclass(kw_only=True)
class _Gathered:
    """What was gathered of one series so far."""

    facts: dict[str, Any]
    files: list[DicomFile] = field(default_factory=list)
    images: list[ImageFacts] = field(default_factory=list)
    faults: list[ScanError] = field(default_factory=list)

    def series(self) -> FoundSeries:
        return FoundSeries(
            **self.facts,
            files=tuple(sorted(self.files)),
            images=tuple(self.images),
            faults=tuple(self.faults),
        )


def _gather(
    file: DicomFile,
    source: Path,
    open_file: Open,
    gathered: dict[str, _Gathered],
    seen: set[tuple[str, int | None]],
) -> str | None:
    """Add a file to its series, whose key is returned; None if the file cannot be read."""
    with open_file(file) as stream:
        if DEFLATED in stream.read(HEAD_BYTES):
            raise ScanError(
                "damaged",
                f"{file} is deflated as a whole, of which a megabyte can hold a gigabyte; write it "
                "anew without: dcmconv +te",
            )
        stream.seek(0)
        try:
            dataset, pixels_tag = read_header(stream)
            uid = str(dataset.get("SeriesInstanceUID", "") or "")
            has_image = "Rows" in dataset and is_image_class(
                str(dataset.get("SOPClassUID", "") or "")
            )
        except Exception:  # noqa: BLE001  (of a damaged file, pydicom raises anything)
            return None
    key = uid or f"none/{file.path.parent}"
    series = gathered.setdefault(key, _Gathered(facts=_series_facts(dataset, uid, source)))
    series.files.append(file)
    if not has_image:
        return key
    try:
        with reading(lambda what: ScanError("damaged", f"cannot read {file}: {what}")):
            images = list(images_of(dataset, file, pixels_tag))
    except ScanError as error:
        series.faults.append(error)
        return key
    for image in images:
        if image.uid and (image.uid, image.frame) in seen:
            _log.info("%s is a copy of another file of its series", file)
            series.files.remove(file)
            break
        seen.add((image.uid, image.frame))
        series.images.append(image)
    return key


def _series_facts(dataset: Any, uid: str, source: Path) -> dict[str, Any]:
    """What the first file of a series says of all of it."""

    def text(name: str) -> str:
        return printable(" ".join(texts(dataset, name)))

    return {
        "source": source,
        "uid": uid,
        "study_uid": text("StudyInstanceUID"),
        "number": whole_number(dataset, "SeriesNumber"),
        "modality": text("Modality").upper(),
        "description": text("SeriesDescription"),
        "study_description": text("StudyDescription"),
        "image_type": image_type(dataset),
        "slice_thickness_mm": number_or_none(dataset, "SliceThickness"),
        "contrast": text("ContrastBolusAgent"),
    }


def _unreadable(place: Place, files: Sequence[DicomFile]) -> ScanError:
    count = len(place.images) + len(place.objects) + len(place.unreadable)
    what = f"{len(files)} of {count} files in {place.name} cannot be read"
    return ScanError(
        "partial",
        f"{what} ({named(files)}): copy the series again, or label what is there with "
        "--allow-partial",
    )
