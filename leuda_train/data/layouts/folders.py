"""globs of images and labels -> CohortPlan: what nobody has said is looked up in the files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from leuda_deploy.errors import InputError, printable
from leuda_deploy.machine.progress import Progress, no_progress
from leuda_deploy.scans.recipe import SliceAxis
from leuda_train.data.cohort_file import PixelSize
from leuda_train.data.file_names import scans_of, subjects_of
from leuda_train.data.layouts.cohort_plan import CohortPlan, Value
from leuda_train.data.layouts.found import (
    Found,
    Values,
    grid_of,
    modality_of,
    source_side,
    target_side,
    values_in,
)

# How file names may say whose scan it is, where the names of images and labels are not alike.
SUBJECTS = (None, r"^(.+?)(?:_\d{4})?\.(?:nii|hdr|img|mgz|mgh)", r"(\d+)", r"(\d+)\D*$")


@dataclass(frozen=True, kw_only=True)
class DomainGlobs:
    """Where one domain's files lie.

    images    of all scans; those without labels are unlabelled
    labels    of the scans that have some; None: of none
    modality  None: guessed
    """

    images: str
    labels: str | None = None
    modality: str | None = None


@dataclass(frozen=True, kw_only=True)
class Wishes:
    """What is asked for; None: what the files say.

    labelled  source scans that keep their labels
    test      target scans with labels that are held out
    names     label value -> structure
    subject   how a file name says whose scan it is
    """

    labelled: int | None = None
    test: int | None = None
    axis: SliceAxis | None = None
    spacing_mm: PixelSize | None = None
    names: Mapping[int, str] = field(default_factory=dict)
    subject: str | None = None


def plan(
    source: DomainGlobs,
    target: DomainGlobs,
    wishes: Wishes,
    *,
    root: Path,
    name: str,
    progress: Progress = no_progress,
) -> CohortPlan:
    """Find and read what the globs match; they start at `root`. Raises InputError."""
    if source.labels is None:
        raise InputError("the source needs labels: --source-labels GLOB")
    files = {
        "source": _files(source, "source", root),
        "target": _files(target, "target", root),
    }
    subject, found = _pair_up(files, wishes.subject)
    values = {
        domain: values_in(list(one.labels.values()), progress) for domain, one in found.items()
    }
    classes, notes = _classes(values, wishes.names)
    others = sorted(values["target"].holding.keys() - values["source"].holding.keys())
    grid = grid_of(
        [*found["source"].images.values(), *found["target"].images.values()], wishes.axis
    )
    notes |= {"axis": grid.axis_note, "spacing_mm": grid.pixel_note}
    sides = {}
    for domain, globs in (("source", source), ("target", target)):
        first = next(iter(found[domain].images.values()))
        sides[domain] = (globs.modality, None) if globs.modality else modality_of(first)
    return CohortPlan(
        name=name,
        about=(
            "Written from what was found. Change what is not so: give the classes their names,",
            "or move their values to background_values; and move files from one list to another to",
            "give them another role.",
        ),
        classes=classes,
        background=others,
        axis=grid.axis,
        spacing_mm=wishes.spacing_mm or (grid.pixel_mm, grid.pixel_mm),
        source=source_side(
            found["source"], sides["source"][0], wishes.labelled, sides["source"][1]
        ),
        target=target_side(found["target"], sides["target"][0], wishes.test, sides["target"][1]),
        subject=subject,
        notes=notes,
    )


def parse_names(given: Sequence[str]) -> dict[int, str]:
    """VALUE=NAME, each -> value: name. Raises InputError."""
    names: dict[int, str] = {}
    for one in given:
        value, equals, name = one.partition("=")
        if not (equals and name and value.strip().lstrip("-").isdecimal()):
            raise InputError(f"--structure {one!r} is not VALUE=NAME, as in 205=MYO")
        names[int(value)] = name
    return names


def _files(globs: DomainGlobs, domain: str, root: Path) -> tuple[list[Path], list[Path]]:
    """Images and labels; a file that both globs match is a label file."""
    labels = [] if globs.labels is None else scans_of(globs.labels, f"--{domain}-labels", root)
    images = scans_of(globs.images, f"--{domain}-images", root)
    images = [path.resolve() for path in images if path not in labels]
    if not images:
        raise InputError(f"--{domain}-images {globs.images!r} matches label files alone")
    return images, [path.resolve() for path in labels]


def _pair_up(
    files: Mapping[str, tuple[list[Path], list[Path]]], subject: str | None
) -> tuple[str | None, dict[str, Found]]:
    """Images and labels by subject, with the first pattern that fits all. Raises InputError."""
    fault = ""
    for pattern in (subject,) if subject else SUBJECTS:
        try:
            found = {
                domain: Found(
                    images=_by_subject(images, pattern), labels=_by_subject(labels, pattern)
                )
                for domain, (images, labels) in files.items()
            }
        except InputError as error:
            fault = fault or str(error)
            continue
        lone = [
            one.labels[subject].name
            for one in found.values()
            for subject in sorted(one.labels.keys() - one.images.keys())
        ]
        if not lone:
            return pattern, found
        fault = fault or f"{printable(lone[0])} has no image of the same subject"
    raise InputError(f"{fault}; say how a file name tells its subject: --subject 'REGEX'")


def _by_subject(paths: Sequence[Path], pattern: str | None) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path, subject in zip(
        paths, subjects_of([path.name for path in paths], pattern), strict=True
    ):
        if subject in found:
            raise InputError(f"{found[subject].name} and {path.name} are both subject {subject!r}")
        found[subject] = path
    return found


def _classes(
    values: Mapping[str, Values], names: Mapping[int, str]
) -> tuple[dict[str, Value], dict[str, str]]:
    """Name -> value of what the source's labels hold, and a comment on each. Raises InputError."""
    source, target = values["source"], values["target"]
    if not source.holding:
        raise InputError("no label file of the source marks anything: every voxel is 0")
    unknown = sorted(names.keys() - source.holding.keys())
    if unknown:
        raise InputError(
            f"--structure {unknown[0]}={names[unknown[0]]}: no label file of the source holds "
            f"{unknown[0]}; there are {', '.join(map(str, sorted(source.holding)[:20]))}"
        )
    classes: dict[str, Value] = {}
    notes: dict[str, str] = {}
    for value in sorted(source.holding):
        name = names.get(value, f"value_{value}")
        if name in classes:
            raise InputError(f"two label values are called {name!r}: {classes[name]} and {value}")
        classes[name], notes[name] = value, source.note(value)
        if target.files and value not in target.holding:
            notes[name] += "; in none of the target"
    return classes, notes
