"""folder -> which of its files are images of a series, which cannot be read, which are others."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol

from leuda_deploy.machine.outside import open_file

_log = logging.getLogger(__name__)

DICOMDIR = "DICOMDIR"
MARK_AT, MARK = 128, b"DICM"
# what an unfinished download adds to a name
UNFINISHED = (".part", ".partial", ".tmp", ".crdownload", ".filepart", ".download")
# objects that refer to images and are none, and the list of a disk's files
NO_IMAGES = (
    "1.2.840.10008.1.3.10",  # DICOMDIR
    "1.2.840.10008.5.1.4.1.1.66",  # raw data, segmentations and surfaces, registrations, fiducials
    "1.2.840.10008.5.1.4.1.1.88",  # structured reports
    "1.2.840.10008.5.1.4.1.1.481",  # radiotherapy: doses, structures, plans
    "1.2.840.10008.5.1.4.1.1.11",  # presentation states
    "1.2.840.10008.5.1.4.1.1.104",  # documents
)


@dataclass(frozen=True, kw_only=True)
class SeriesFiles:
    """The files of a folder, in the order of their names.

    images      DICOM files that may be images
    unreadable  those that are named as images are, and are no DICOM: damaged, cut off, or links to
                nothing
    others      all else: hidden files, folders, other endings, DICOM objects that are no images
    objects     those of the others that are DICOM, e.g. structured reports; no DICOMDIR
    """

    images: tuple[Path, ...]
    unreadable: tuple[Path, ...]
    others: tuple[Path, ...]
    objects: tuple[Path, ...] = ()


def look_through(folder: Path) -> SeriesFiles:
    """Sort the files of a folder by what they are. Of each, no more than the beginning is read."""
    marked: list[Path] = []
    rest: list[Path] = []
    others: list[Path] = []
    objects: list[Path] = []
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or path.is_dir():
            others.append(path)
        elif not is_dicom(path):
            rest.append(path)
        elif is_image(path):
            marked.append(path)
        else:
            others.append(path)
            if path.name.upper() != DICOMDIR:
                objects.append(path)
    endings = {ending(path.name) for path in marked}
    unreadable = [path for path in rest if ending(path.name) in endings]
    others += [path for path in rest if ending(path.name) not in endings]
    return SeriesFiles(
        images=tuple(marked),
        unreadable=tuple(unreadable),
        others=tuple(sorted(others)),
        objects=tuple(objects),
    )


def is_dicom(path: Path) -> bool:
    """Whether a file carries the mark that each DICOM file has."""
    try:
        with open_file(path) as file:
            return file.read(MARK_AT + len(MARK))[MARK_AT:] == MARK
    except (OSError, ValueError):  # a link to nothing; or no name that a file can have
        return False


def is_image(path: Path) -> bool:
    """Whether a DICOM file may be an image. One that does not say what it is may be."""
    if find_spec("pydicom") is None:
        return True
    from pydicom.filereader import read_file_meta_info

    try:
        storage = str(read_file_meta_info(path).get("MediaStorageSOPClassUID", ""))
    except Exception:  # noqa: BLE001  (pydicom raises anything; the reader will say what is wrong)
        return True
    return is_image_class(storage)


def is_image_class(storage: str) -> bool:
    """Whether objects of a SOP class may be images."""
    return not any(storage == uid or storage.startswith(f"{uid}.") for uid in NO_IMAGES)


def is_deflated(path: Path) -> bool:
    """Whether all of a DICOM file behind its first part is deflated: reading it inflates it."""
    from pydicom.filereader import read_file_meta_info
    from pydicom.uid import DeflatedExplicitVRLittleEndian

    try:
        syntax = read_file_meta_info(path).get("TransferSyntaxUID")
    except Exception:  # noqa: BLE001  (pydicom raises anything; the reader will say what is wrong)
        return False
    return bool(syntax == DeflatedExplicitVRLittleEndian)


def holds_images(folder: Path) -> bool:
    """Whether a folder, or one at any depth in it, holds a DICOM image."""
    if not folder.is_dir() or folder.name.startswith("."):
        return False
    return any(
        is_dicom(path) and is_image(path)
        for inside in folders_of(folder)
        for path in sorted(inside.iterdir())
        if path.is_file() and not path.name.startswith(".")
    )


def folders_of(folder: Path) -> Iterator[Path]:
    """The folder and those in it, at any depth; hidden ones, links and locked ones aside."""
    for place, names, _ in os.walk(folder, onerror=_say_locked):
        names[:] = sorted(name for name in names if not name.startswith("."))
        yield Path(place)


def _say_locked(error: OSError) -> None:
    _log.warning("not looked into: %s", error)


class Named(Protocol):
    """Whatever has a file's name."""

    @property
    def name(self) -> str: ...  # noqa: D102


def named(paths: Sequence[Named], most: int = 5) -> str:
    """Names for a line: the first few, and how many more there are."""
    more = f" and {len(paths) - most} more" if len(paths) > most else ""
    return ", ".join(path.name for path in paths[:most]) + more


def ending(name: str) -> str:
    """ ".dcm"; "" for names such as IM0001 or 1.2.840.113, whose last part is a number."""
    name = name.lower()
    for unfinished in UNFINISHED:
        name = name.removesuffix(unfinished)
    found = Path(name).suffix
    return "" if found[1:].isdigit() else found
