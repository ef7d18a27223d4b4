"""folder, zip, DICOMDIR or one file -> the DICOM files in it, place by place.

A zip is never unpacked to disk: its files are read from where they lie, one at a time.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from leuda_deploy.errors import ScanError, reading
from leuda_deploy.scans.dicom.files import (
    DICOMDIR,
    MARK,
    MARK_AT,
    ending,
    folders_of,
    is_dicom,
    is_image,
    look_through,
)

# a larger file in a zip must not have shrunk to less than a hundredth: a megabyte may hold a
# gigabyte of nothing
LARGE, MOST_SHRUNK = 1 << 26, 100


@dataclass(frozen=True, kw_only=True, order=True)
class DicomFile:
    """One DICOM file: a path, or a zip's path and the name inside of it."""

    path: Path
    inside: str = ""

    @property
    def name(self) -> str:
        """What messages call it in short."""
        return PurePosixPath(self.inside).name if self.inside else self.path.name

    def __str__(self) -> str:
        return f"{self.path}/{self.inside}" if self.inside else str(self.path)


@dataclass(frozen=True, kw_only=True)
class Place:
    """One folder, on disk or within a zip.

    name        of it, in messages
    images      DICOM files that may be images
    objects     DICOM files that are none, e.g. structured reports
    unreadable  files that are named as images are and cannot be read; or, of a DICOMDIR, that it
                lists and that are not there
    others      how many files there are of other kinds
    """

    name: str
    images: tuple[DicomFile, ...] = ()
    objects: tuple[DicomFile, ...] = ()
    unreadable: tuple[DicomFile, ...] = ()
    others: int = 0


Open = Callable[[DicomFile], BinaryIO]


@contextmanager
def opening() -> Iterator[Open]:
    """A function that opens DICOM files; each zip among them is opened once, and closed behind."""
    with ExitStack() as stack:
        zips: dict[Path, zipfile.ZipFile] = {}

        def open_file(file: DicomFile) -> BinaryIO:
            if not file.inside:
                return file.path.open("rb")
            if file.path not in zips:
                zips[file.path] = stack.enter_context(open_zip(file.path))
            return io.BytesIO(read_entry(zips[file.path], file))

        yield open_file


def open_zip(path: Path) -> zipfile.ZipFile:
    """Raises ScanError if it is none."""
    with reading(lambda what: ScanError("damaged", f"cannot read {path} as a zip: {what}")):
        return zipfile.ZipFile(path)


def read_entry(opened: zipfile.ZipFile, file: DicomFile) -> bytes:
    """The bytes of a file within a zip. Raises ScanError."""
    with reading(lambda what: ScanError("damaged", f"cannot read {file}: {what}")):
        about = opened.getinfo(file.inside)
        if about.file_size > LARGE and about.file_size > MOST_SHRUNK * about.compress_size:
            raise ScanError(
                "damaged",
                f"{file} has {about.file_size:,} bytes, of which {about.compress_size:,} are left "
                "in the zip: no scan shrinks so; unpack it first if it is one",
            )
        return opened.read(about)


def is_dicom_source(path: Path) -> bool:
    """Whether a scan of this path is read as DICOM: a folder, a zip, a DICOMDIR, a DICOM file."""
    return path.is_dir() or (path.is_file() and (is_dicom(path) or is_zip(path)))


def is_zip(path: Path) -> bool:
    """Whether a file is named as a zip and is one."""
    return path.suffix.lower() == ".zip" and zipfile.is_zipfile(path)


def zip_holds_images(path: Path) -> bool:
    """Whether a zip can be read and holds a DICOM file that may be an image."""
    try:
        return any(place.images for place in places_of(path))
    except ScanError:
        return False


def places_of(source: Path) -> list[Place]:
    """All places in a source that hold DICOM files, or files named as such.

    Args:
        source: A folder, looked through at any depth; a zip; a DICOMDIR, of which the files that
            it lists are taken; or one DICOM file.

    Raises:
        ScanError: There is no such source, or it is none.
    """
    if source.is_dir():
        return [_place_of_folder(folder) for folder in folders_of(source)]
    if not source.is_file():  # nor a pipe or a device, which would be waited for
        raise ScanError("missing", f"no such scan or folder: {source}")
    if is_dicom(source):
        if source.name.upper() == DICOMDIR:
            return _places_of_dicomdir(source)
        file = (DicomFile(path=source),)
        is_one = is_image(source)
        return [
            Place(name=str(source), images=file if is_one else (), objects=() if is_one else file)
        ]
    return _places_of_zip(source)


def _place_of_folder(folder: Path) -> Place:
    found = look_through(folder)
    return Place(
        name=str(folder),
        images=tuple(DicomFile(path=path) for path in found.images),
        objects=tuple(DicomFile(path=path) for path in found.objects),
        unreadable=tuple(DicomFile(path=path) for path in found.unreadable),
        others=len([path for path in found.others if path.is_file()]) - len(found.objects),
    )


def _places_of_zip(path: Path) -> list[Place]:
    """The places of a zip: its own folders."""
    marked: dict[str, list[DicomFile]] = {}
    rest: dict[str, list[DicomFile]] = {}
    with open_zip(path) as opened:
        for name in sorted(opened.namelist()):
            parts = PurePosixPath(name).parts or (name,)  # a damaged name has none
            # nothing is unpacked, so a file above the zip's own folder is read like any other
            inside = [part for part in parts if part != ".."]
            if name.endswith("/") or any(part.startswith((".", "__MACOSX")) for part in inside):
                continue
            if parts[-1].upper() == DICOMDIR:
                continue
            file = DicomFile(path=path, inside=name)
            with (
                reading(lambda what: ScanError("damaged", f"cannot read {path}: {what}")),
                opened.open(name) as stream,
            ):
                is_marked = stream.read(MARK_AT + len(MARK))[MARK_AT:] == MARK
            where = (marked if is_marked else rest).setdefault(str(PurePosixPath(name).parent), [])
            where.append(file)
    places = []
    for place in sorted({*marked, *rest}):
        endings = {ending(file.name) for file in marked.get(place, ())}
        unreadable = [file for file in rest.get(place, ()) if ending(file.name) in endings]
        places.append(
            Place(
                name=f"{path}/{place}",
                images=tuple(marked.get(place, ())),
                unreadable=tuple(unreadable),
                others=len(rest.get(place, ())) - len(unreadable),
            )
        )
    return places


def _places_of_dicomdir(path: Path) -> list[Place]:
    """The files that a DICOMDIR lists, by their folders."""
    import pydicom

    with reading(lambda what: ScanError("damaged", f"cannot read {path} as a DICOMDIR: {what}")):
        records = pydicom.dcmread(path).get("DirectoryRecordSequence") or []
        listed = [_listed_file(record) for record in records]
    folders: dict[Path, list[Path]] = {}
    root = path.parent
    for parts in listed:
        if parts:
            found = root.joinpath(*parts)
            folders.setdefault(found.parent, []).append(found)
    places = []
    for folder, paths in sorted(folders.items()):
        here = [each for each in sorted(set(paths)) if is_dicom(each)]
        images = [each for each in here if is_image(each)]
        places.append(
            Place(
                name=str(folder),
                images=tuple(DicomFile(path=each) for each in images),
                objects=tuple(DicomFile(path=each) for each in here if each not in set(images)),
                unreadable=tuple(
                    DicomFile(path=each) for each in sorted(set(paths)) if each not in set(here)
                ),
            )
        )
    return places


def _listed_file(record: Any) -> tuple[str, ...]:
    """The parts of the path that a record refers to; empty if to none, or to one elsewhere."""
    value = record.get("ReferencedFileID")
    parts = [value] if isinstance(value, str) else list(value or ())
    parts = [part for name in parts for part in str(name).replace("\\", "/").split("/")]
    return () if any(part in ("", ".", "..") for part in parts) else tuple(parts)
