"""DICOM file -> its images, one by one: itself, or the frames of an enhanced CT or MR.

An enhanced file says once what holds for all frames, and again for each what holds for it alone.
A frame here answers for both, so that nothing else needs to know of the difference.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

from leuda_deploy.errors import ScanError
from leuda_deploy.scans.dicom.attributes import Attributes, ImageFacts, image_facts, whole_number
from leuda_deploy.scans.dicom.sources import DicomFile

MAX_FRAMES = 1 << 16
GROUPS = (
    "PixelMeasuresSequence",
    "PlanePositionSequence",
    "PlaneOrientationSequence",
    "PixelValueTransformationSequence",
    "FrameContentSequence",
    "CardiacSynchronizationSequence",
    "TemporalPositionSequence",
    "MREchoSequence",
    "MRDiffusionSequence",
    "CTImageFrameTypeSequence",
    "MRImageFrameTypeSequence",
)


@dataclass(frozen=True)
class Frame:
    """One frame: what it says of itself, what holds for all frames, what the file says."""

    own: Mapping[str, Any]
    shared: Mapping[str, Any]
    dataset: Any

    def get(self, name: str, default: Any = None) -> Any:
        """The value that stands nearest to the frame."""
        if name in self.own:
            return self.own[name]
        return self.shared[name] if name in self.shared else self.dataset.get(name, default)


def read_header(stream: BinaryIO) -> tuple[Any, int | None]:
    """A data set up to its pixels, and the tag of the element with them; None if there is none.

    Raises whatever pydicom raises of a damaged file.
    """
    from pydicom.filereader import read_partial

    met: list[int] = []

    def at_pixels(tag: Any, _vr: str | None, _length: int) -> bool:
        if tag in (0x7FE00008, 0x7FE00009, 0x7FE00010):
            met.append(int(tag))
        return bool(met)

    dataset = read_partial(stream, stop_when=at_pixels)
    return dataset, met[0] if met else None


def images_of(dataset: Any, file: DicomFile, pixels_tag: int | None) -> Iterator[ImageFacts]:
    """The facts of each image of a file. Raises ScanError as `image_facts` does."""
    frames = whole_number(dataset, "NumberOfFrames")
    is_enhanced = bool(_sequence(dataset, "SharedFunctionalGroupsSequence")) or bool(
        _sequence(dataset, "PerFrameFunctionalGroupsSequence")
    )
    if not is_enhanced and (frames is None or frames <= 1):
        yield image_facts(dataset, file, pixels_tag=pixels_tag)
        return
    if not is_enhanced:
        raise ScanError(
            "frames",
            f"{file} is a file of {frames} frames that do not say where they lie; convert it to "
            "NIfTI first",
        )
    for index, frame in enumerate(_frames(dataset, file, frames or 1)):
        yield image_facts(frame, file, frame=index, pixels_tag=pixels_tag)


def _frames(dataset: Any, file: DicomFile, count: int) -> Iterator[Attributes]:
    shared = _sequence(dataset, "SharedFunctionalGroupsSequence")
    own = _sequence(dataset, "PerFrameFunctionalGroupsSequence")
    if count > MAX_FRAMES or len(own) not in (0, count):
        raise ScanError(
            "damaged", f"{file} has {count} frames, and says of {len(own)} where they lie"
        )
    for_all = _flat(shared[0], file) if shared else {}
    for index in range(count):
        yield Frame(_flat(own[index], file) if own else {}, for_all, dataset)


def _flat(groups: Any, file: DicomFile) -> dict[str, Any]:
    """All that the functional groups of a frame say, by keyword."""
    flat: dict[str, Any] = {}
    try:
        for group in GROUPS:
            for item in _sequence(groups, group)[:1]:
                flat |= {element.keyword: element.value for element in item}
    except Exception as error:  # a damaged value raises anything when it is looked at
        raise ScanError("damaged", f"{file} has damaged functional groups") from error
    return flat


def _sequence(dataset: Any, name: str) -> list[Any]:
    try:
        return list(dataset.get(name) or ())
    except Exception:  # noqa: BLE001  (a damaged sequence raises anything; it is none)
        return []
