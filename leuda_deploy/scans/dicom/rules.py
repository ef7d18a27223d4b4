"""series + rules -> the one that is meant.

Rules stand in a model's card, under `series`, or in a small TOML file with the same keys.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from leuda_deploy.errors import InputError, ScanError, describe
from leuda_deploy.machine.outside import read_toml
from leuda_deploy.scans.dicom.find import find_series
from leuda_deploy.scans.dicom.found import FoundSeries

_log = logging.getLogger(__name__)

MAX_SHOWN = 6  # series in a line
Pattern = Annotated[str, Field(min_length=1, max_length=100)]


class SeriesRules(BaseModel):
    """Which series of a study is meant. A rule that is not given lets everything through.

    Attributes:
        modality: DICOM's, e.g. ["CT"].
        description: One of these stands in the SeriesDescription; * is any text, in any case.
        not_description: None of these does.
        orientation: Of its slices.
        slice_thickness_mm: Lowest and highest; where it is not said, the slice distance.
        min_images: Slices that it has at least.
        contrast: Whether a contrast agent is said.
        localisers: Whether scouts may be taken.
        derived: Whether images that were made of others may be taken, e.g. projections.
        other_modality: What to do with a scan that is not of the model's modality.
        prefer: Which of several that fit; None: that is an error.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    modality: Annotated[tuple[Pattern, ...], Field(max_length=20)] = ()
    description: Annotated[tuple[Pattern, ...], Field(max_length=50)] = ()
    not_description: Annotated[tuple[Pattern, ...], Field(max_length=50)] = ()
    orientation: Annotated[
        tuple[Literal["axial", "coronal", "sagittal", "oblique"], ...], Field(max_length=4)
    ] = ()
    slice_thickness_mm: tuple[float, float] | None = None
    min_images: Annotated[int, Field(ge=2, le=1 << 20)] = 2
    contrast: bool | None = None
    localisers: bool = False
    derived: bool = False
    other_modality: Literal["warn", "refuse"] = "warn"
    prefer: Literal["most images", "thinnest", "first", "last"] | None = None

    def against(self, found: FoundSeries) -> str | None:
        """Which rule speaks against a series; None if none does."""
        if self.modality and found.modality not in (name.upper() for name in self.modality):
            return f"modality {found.modality or 'not said'}"
        if self.description and not _stands_in(self.description, found.description):
            return "its description"
        if _stands_in(self.not_description, found.description):
            return "its description is excluded"
        if self.orientation and found.orientation not in self.orientation:
            return f"{found.orientation or 'no'} slices"
        if len(found.images) < self.min_images:
            return f"{len(found.images)} image(s)"
        if self.contrast is not None and bool(found.contrast) != self.contrast:
            return "with contrast" if found.contrast else "no contrast is said"
        if found.is_localiser and not self.localisers:
            return "a localiser"
        if found.is_derived and not self.derived:
            return "derived from other images"
        return self._against_its_slices(found)

    def _against_its_slices(self, found: FoundSeries) -> str | None:
        if self.slice_thickness_mm is None:
            return None
        thickness = thickness_mm(found)
        lowest, highest = self.slice_thickness_mm
        if thickness is None or not lowest <= thickness <= highest:
            return f"slices of {'unknown thickness' if thickness is None else f'{thickness:g} mm'}"
        return None


NO_RULES = SeriesRules()


def read_rules(path: Path) -> SeriesRules:
    """The rules of a TOML file. Raises InputError."""
    try:
        return SeriesRules.model_validate(read_toml(path))
    except ValidationError as error:
        raise InputError(f"{path}: {describe(error)}") from error


def choose_series(
    found: Sequence[FoundSeries],
    rules: SeriesRules = NO_RULES,
    *,
    wanted: str | None = None,
    source: Path | str = "",
    allow_partial: bool = False,
) -> FoundSeries:
    """The one series that is meant.

    Args:
        found: What there is.
        rules: Which it may be. Not asked if it is named by hand.
        wanted: SeriesInstanceUID, or SeriesNumber, of the one chosen by hand.
        source: What messages call the place where they were found.
        allow_partial: Series that are not whole are good, too.

    Returns:
        That series; `read_series` reads it.

    Raises:
        ScanError: There is none, or there are several; `fault` says which. Where one series alone
            would fit but for a fault of its own, it is that fault.
    """
    if wanted is not None:
        return _by_hand(found, wanted, source)
    fitting = [each for each in found if rules.against(each) is None]
    good = [each for each in fitting if _is_good(each, allow_partial=allow_partial)]
    if len(good) == 1:
        return good[0]
    if len(good) > 1:
        if rules.prefer is not None:
            return _preferred(good, rules.prefer)
        raise ScanError(
            "several series",
            f"{source} holds {len(good)} series, choose one with --series: {_listed(good)}",
        )
    with_images = [each for each in found if each.images or each.faults]
    # its own fault says more than that there is none
    for few in (fitting, with_images):
        if len(few) == 1 and few[0].fault is not None:
            raise few[0].fault
    if not with_images:
        others = f" (it holds {_listed(found)})" if found else ""
        raise ScanError(
            "missing", f"no scan in {source}: neither NIfTI files nor DICOM images{others}"
        )
    reasons = "; ".join(
        f"{_shown(each)}: {rules.against(each) or each.fault or 'good'}"
        for each in with_images[:MAX_SHOWN]
    )
    raise ScanError(
        "missing", f"no series in {source} that can be labelled by the rules: {reasons}"
    )


@dataclass(frozen=True, kw_only=True)
class SeriesChoice:
    """Which series of a study is meant.

    wanted         the one chosen by hand: its SeriesInstanceUID, or its SeriesNumber
    rules          which it may be; None: those of the model
    allow_partial  whether it may be one that is not whole
    """

    wanted: str | None = None
    rules: SeriesRules | None = None
    allow_partial: bool = False

    def of(self, source: Path) -> FoundSeries:
        """The series of a source. Raises ScanError as `find_series` and `choose_series` do."""
        found = find_series(source)
        chosen = choose_series(
            found,
            self.rules or NO_RULES,
            wanted=self.wanted,
            source=source,
            allow_partial=self.allow_partial,
        )
        if others := [each for each in found if each is not chosen and each.images]:
            _log.info("%s is taken, not %s", chosen.name, _listed(others))
        return chosen


NO_CHOICE = SeriesChoice()


def thickness_mm(found: FoundSeries) -> float | None:
    """SliceThickness; where it is not said, the slice distance; None if there is none."""
    if found.slice_thickness_mm:
        return found.slice_thickness_mm
    spacing = found.as_dict()["spacing_mm"]
    return None if spacing is None else float(spacing[2])


def _is_good(found: FoundSeries, *, allow_partial: bool) -> bool:
    fault = found.fault
    return fault is None or (allow_partial and fault.fault in ("partial", "missing slice"))


def _by_hand(found: Sequence[FoundSeries], wanted: str, source: Path | str) -> FoundSeries:
    chosen = [each for each in found if each.uid == wanted]
    if not chosen and wanted.isdecimal() and len(wanted) < 10:
        chosen = [each for each in found if each.number == int(wanted)]
    if len(chosen) == 1:
        return chosen[0]
    if chosen:
        uids = ", ".join(each.uid for each in chosen[:MAX_SHOWN])
        raise ScanError(
            "several series",
            f"{source} holds {len(chosen)} series of number {wanted}; name its UID: {uids}",
        )
    raise ScanError(
        "missing",
        f"{source} holds no series {wanted}; there are {_listed(found) or 'none'}",
    )


def _preferred(good: Sequence[FoundSeries], prefer: str) -> FoundSeries:
    if prefer == "most images":
        return max(good, key=lambda each: len(each.images))
    if prefer == "thinnest":
        return min(good, key=lambda each: thickness_mm(each) or float("inf"))
    return good[0] if prefer == "first" else good[-1]


def _listed(found: Sequence[FoundSeries]) -> str:
    more = f"; and {len(found) - MAX_SHOWN} more" if len(found) > MAX_SHOWN else ""
    return "; ".join(map(_shown, found[:MAX_SHOWN])) + more


def _shown(found: FoundSeries) -> str:
    number = found.uid if found.number is None else str(found.number)
    return f"{number}: {found.modality} '{found.description}', {len(found.images)} images"


def _stands_in(patterns: Sequence[str], text: str) -> bool:
    """Whether one of the patterns stands in a text, in any case."""
    return any(fnmatchcase(text.lower(), f"*{pattern.lower()}*") for pattern in patterns)
