"""images of a series -> whole, alike, and split into stacks: its phases, e.g. times or echoes."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from leuda_deploy.errors import ScanError
from leuda_deploy.scans.dicom.attributes import PHASE_KEYS, ImageFacts

_log = logging.getLogger(__name__)

SAME_PLACE_MM = 0.01
SAME_WITHIN = 1e-3


@dataclass(frozen=True, kw_only=True)
class Phases:
    """The stacks of a series, each with one image a place.

    stacks  the images of each, in any order
    key     the attribute that tells them apart; "" if there is one stack, or none does
    values  of each, as text: its value, or the lowest and the highest
    """

    stacks: tuple[tuple[ImageFacts, ...], ...]
    key: str = ""
    values: tuple[str, ...] = ()


def split_phases(images: Sequence[ImageFacts], name: str) -> Phases:
    """Images of one shape and direction -> phases.

    Args:
        images: All of a series.
        name: What messages call it.

    Raises:
        ScanError: Some places have more images than others.
    """
    places = _by_place(images)
    counts = {len(place) for place in places}
    if counts == {1}:
        return Phases(stacks=(tuple(images),))
    if len(counts) > 1:
        most = max(places, key=len)
        raise ScanError(
            "repeated slice",
            f"{name} has {len(most)} images at one place ({most[0].file.name}, "
            f"{most[1].file.name}) and {min(map(len, places))} at another; {len(places)} places "
            "in all",
        )
    for key in PHASE_KEYS:
        if all(len({image.phase.get(key) for image in place} - {None}) == len(place)
               for place in places):  # fmt: skip
            ranked = [sorted(place, key=lambda image: _rank(image.phase[key])) for place in places]
            stacks = tuple(zip(*ranked, strict=True))
            values = tuple(_range([image.phase[key] for image in stack]) for stack in stacks)
            return Phases(stacks=stacks, key=key, values=values)
    ranked = [sorted(place, key=_order) for place in places]
    return Phases(stacks=tuple(zip(*ranked, strict=True)), values=("",) * len(ranked[0]))


def _by_place(images: Sequence[ImageFacts]) -> list[list[ImageFacts]]:
    along = np.array([image.position_mm for image in images]) @ images[0].normal
    order = np.argsort(along, kind="stable")
    places: list[list[ImageFacts]] = []
    for before, index in zip([-1, *order[:-1]], order, strict=True):
        if before < 0 or along[index] - along[before] > SAME_PLACE_MM:
            places.append([])
        places[-1].append(images[index])
    return places


def _rank(value: float | str) -> tuple[int, float, str]:
    """Numbers by size, before texts."""
    return (1, 0.0, value) if isinstance(value, str) else (0, value, "")


def _order(image: ImageFacts) -> tuple[int, str, int]:
    return image.number or 0, str(image.file), image.frame or 0


def _range(values: Sequence[float | str]) -> str:
    first, last = min(values, key=_rank), max(values, key=_rank)
    shown = [value if isinstance(value, str) else f"{value:g}" for value in (first, last)]
    return shown[0] if first == last else f"{shown[0]} to {shown[1]}"


def check_whole(images: Sequence[ImageFacts], name: str) -> None:
    """Raises ScanError for a series that says it has more images than there are."""
    stated = max((each.stated_images or 0 for each in images), default=0)
    if stated > len(images):
        raise ScanError(
            "partial",
            f"{name} holds {len(images)} images, but the series says that it has {stated}: copy "
            "it again, or label what is there with --allow-partial",
        )
    numbers = sorted(each.number for each in images if each.number is not None)
    if len(numbers) < len(images) or len(set(numbers)) < len(numbers):
        return  # nothing can be said
    step = int(np.median(np.diff(numbers))) if len(numbers) > 1 else 1
    if numbers and numbers[0] > max(1, step):
        raise ScanError(
            "partial",
            f"the images of {name} are numbered from {numbers[0]} to {numbers[-1]}; the first "
            f"{numbers[0] - 1} are missing: copy the series again, or label what is there with "
            "--allow-partial",
        )
    if step > 1:
        shown = ", ".join(map(str, numbers[:3]))
        _log.warning(
            "%s: its images are numbered %s, ...; if the scanner did not number them so, slices "
            "between them are missing: copy the series again",
            name,
            shown,
        )


def usable_images(images: Sequence[ImageFacts], name: str) -> tuple[ImageFacts, ...]:
    """The images without the scouts that some scanners put into a series beside its slices.

    Raises:
        ScanError: They differ in shape, pixel size, direction or frame of reference.
    """
    slices = tuple(image for image in images if not image.localiser)
    if slices and len(slices) < len(images):
        _log.info("%s: %d scouts are left out", name, len(images) - len(slices))
    kept = slices or tuple(images)
    for field in ("rows", "columns", "spacing_mm", "orientation", "frame_of_reference"):
        values = [getattr(each, field) for each in kept]
        kinds = {_rounded(value) for value in values}
        if len(kinds) > 1 and not _nearly_alike(values):
            raise ScanError(
                "unlike slices",
                f"the images of {name} have {len(kinds)} different {field.replace('_', ' ')} "
                "(a localiser?)",
            )
    return kept


def _rounded(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(round(float(part), 3) for part in value)
    return value


def _nearly_alike(values: list[Any]) -> bool:
    """Whether numbers differ by rounding alone."""
    if not isinstance(values[0], tuple):
        return False
    numbers = np.array(values, dtype=np.float64)
    return bool(np.abs(numbers - numbers[0]).max() <= SAME_WITHIN)
