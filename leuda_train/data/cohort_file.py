"""cohort.toml as written -> CohortSpec: names, values and globs that make sense; reads no scan."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from leuda_deploy.errors import one_line
from leuda_deploy.model.card import Code
from leuda_deploy.scans.recipe import SliceAxis

Domain = Literal["source", "target"]
PixelSize = tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]]
RawValues = int | tuple[int, ...]
MAX_PATTERN = 300  # characters of a regular expression
MAX_CLASSES = 254  # 255 marks unlabelled slices


# Checked before pydantic tries the alternatives of a union: it would report each one that fails.
def _strings(given: Any) -> Any:
    items = [given] if isinstance(given, str) else given
    if not (isinstance(items, list | tuple) and items and all(type(i) is str for i in items)):
        raise ValueError("must be a glob or a list of globs and paths")
    return given


def _whole_numbers(given: Any) -> Any:
    parts = list(given.values()) if isinstance(given, dict) else [given]
    keys = set(given) if isinstance(given, dict) else set()
    numbers = [n for part in parts for n in (part if isinstance(part, list | tuple) else [part])]
    if not (keys <= {"source", "target"} and all(type(n) is int for n in numbers)):
        raise ValueError(
            "must be a whole number, a list of them, or { source = ..., target = ... } of these"
        )
    return given


def _code(given: Any) -> Any:
    if not (isinstance(given, list | tuple) and [type(part) for part in given] == [str] * 3):
        raise ValueError('must be [scheme, value, meaning], e.g. ["SCT", "10200004", "Liver"]')
    return given


Globs = Annotated[str | tuple[str, ...], BeforeValidator(_strings)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ImagesSpec(_Part):
    """Scans without labels: a glob relative to cohort.toml, or a list of globs and paths."""

    images: Globs


class LabelledSpec(ImagesSpec):
    """Scans with labels: two globs or lists of them, matched by subject."""

    labels: Globs


class LabelsSpec(_Part):
    """Labels of scans that are named elsewhere."""

    labels: Globs


class PerDomain(_Part):
    """Raw label values that mean one thing in the source's files, another in the target's."""

    source: RawValues = ()
    target: RawValues = ()


DomainValues = Annotated[RawValues | PerDomain, BeforeValidator(_whole_numbers)]


class SlicesSpec(_Part):
    """How volumes become slices: see `Recipe` for axis and spacing."""

    axis: SliceAxis
    spacing_mm: PixelSize | Literal["native"]
    background_values: DomainValues = ()


class SourceSpec(_Part):
    """The labelled domain. pixel_spacing_mm replaces a pixel size that is wrong in the headers."""

    modality: str
    labelled: LabelledSpec
    unlabelled: ImagesSpec | None = None
    pixel_spacing_mm: PixelSize | None = None


class TargetSpec(_Part):
    """The unlabelled domain. upper_bound labels are trained on by `--method supervised` alone."""

    modality: str
    unlabelled: ImagesSpec
    test: LabelledSpec | None = None
    upper_bound: LabelsSpec | None = None
    pixel_spacing_mm: PixelSize | None = None


class CohortSpec(_Part):
    """cohort.toml as written. classes: name -> raw label values, in the model's class order.

    classes  each one value, several that all mean the class, or {source = ..., target = ...}
    codes    for DICOM: name of a class -> [scheme, value, meaning]; training does not depend on it
    subject  a regular expression with one group that finds the subject in a file name; without it
             the subject is the file name less its extension and `_image`, `_label` and the like
    source   for training; a cohort without it is one for `leuda adapt`
    """

    name: str
    classes: Annotated[dict[str, DomainValues], Field(min_length=1, max_length=MAX_CLASSES)]
    codes: dict[str, Annotated[Code, BeforeValidator(_code)]] = {}
    slices: SlicesSpec
    source: SourceSpec | None = None
    target: TargetSpec
    subject: Annotated[str, Field(max_length=MAX_PATTERN)] | None = None

    @property
    def structures(self) -> dict[str, int]:
        """Structure name -> class number of the model, from 1."""
        return {name: number for number, name in enumerate(self.classes, start=1)}

    def class_of_raw(self, domain: Domain) -> dict[int, int]:
        """Raw label value in a domain's files -> class number; declared background values -> 0."""
        background = dict.fromkeys(_values(self.slices.background_values, domain), 0)
        return background | {
            raw: number
            for number, values in enumerate(self.classes.values(), start=1)
            for raw in _values(values, domain)
        }

    @property
    def of_training(self) -> dict[str, Any]:
        """All that decides what is trained, JSON-able."""
        return self.model_dump(mode="json", exclude={"codes"})

    @model_validator(mode="after")
    def _codes_of_classes(self) -> Self:
        for name in self.codes:
            if name not in self.classes:
                raise ValueError(f"[codes] names {name}, which is not in [classes]")
        return self

    @model_validator(mode="after")
    def _one_meaning(self) -> Self:
        """In each domain, each class has values, and each value means one thing."""
        domains: tuple[Domain, ...] = ("source", "target") if self.source else ("target",)
        for domain in domains:
            background = {*_values(self.slices.background_values, domain)}
            seen = {0}
            for name, given in self.classes.items():
                values = _values(given, domain)
                if not values:
                    raise ValueError(f"class {name} has no raw label value in the {domain}")
                for value in values:
                    if value in seen:
                        raise ValueError("raw label values must differ from each other and from 0")
                    if value in background:
                        raise ValueError(
                            f"label value {value} is in [classes] and in background_values"
                        )
                    seen.add(value)
        return self

    @field_validator("subject")
    @classmethod
    def _one_group(cls, pattern: str | None) -> str | None:
        if pattern is None:
            return None
        try:
            groups = re.compile(pattern).groups
        except (re.error, RecursionError, OverflowError) as error:
            raise ValueError(f"is not a regular expression: {one_line(error)}") from error
        if groups != 1:
            raise ValueError("must be a regular expression with exactly one group")
        return pattern


def _values(given: DomainValues, domain: Domain) -> tuple[int, ...]:
    values = getattr(given, domain) if isinstance(given, PerDomain) else given
    return (values,) if isinstance(values, int) else tuple(values)
