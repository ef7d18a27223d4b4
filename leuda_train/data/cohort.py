"""cohort.toml -> Cohort: which scan plays which role, all checked before any training starts.

Long because each thing that can be wrong with a cohort file is found here, and told in one line.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from leuda_deploy.errors import InputError, describe
from leuda_deploy.machine.files import write_json
from leuda_deploy.machine.outside import read_toml
from leuda_deploy.scans.label_map import check_same_grid, read_label_map
from leuda_deploy.scans.recipe import Recipe
from leuda_deploy.scans.stack import Stack
from leuda_deploy.scans.volume import read_volume
from leuda_train.data.cohort_file import (
    CohortSpec,
    Domain,
    Globs,
    ImagesSpec,
    LabelledSpec,
    PixelSize,
    SourceSpec,
    TargetSpec,
)
from leuda_train.data.file_names import scans_of, subjects_of

Role = Literal["source labelled", "source unlabelled", "target unlabelled", "target test"]
CHECKS = 2  # raise it when more is checked, so that older notes are not believed


@dataclass(frozen=True, kw_only=True)
class Scan:
    """One scan of the cohort. label is None where the role has none."""

    role: Role
    subject: str
    image: Path
    label: Path | None
    pixel_spacing_mm: PixelSize | None

    @property
    def domain(self) -> Domain:
        """Whose label values this scan's labels have."""
        return "source" if self.role.startswith("source") else "target"


@dataclass(frozen=True, kw_only=True)
class Cohort:
    """A checked cohort. sha256 covers the file's meaning and the bytes of every scan and label."""

    spec: CohortSpec
    scans: tuple[Scan, ...]
    sha256: str

    def role(self, *roles: Role) -> list[Scan]:
        """The scans that play these roles, in the file's order."""
        return [scan for scan in self.scans if scan.role in roles]

    def with_labelled(self, count: int) -> Cohort:
        """The same cohort with labels on its first `count` labelled source scans alone.

        Raises InputError if it has fewer.
        """
        labelled = self.role("source labelled")
        if not 1 <= count <= len(labelled):
            raise InputError(f"{count} labelled scans asked for; the cohort has {len(labelled)}")
        if count == len(labelled):
            return self
        dropped = {scan.image for scan in labelled[count:]}
        scans = tuple(
            replace(scan, role="source unlabelled", label=None) if scan.image in dropped else scan
            for scan in self.scans
        )
        sha256 = hashlib.sha256(f"{self.sha256} labelled {count}".encode()).hexdigest()
        return replace(self, scans=scans, sha256=sha256)

    @property
    def structures(self) -> dict[str, int]:
        """Structure name -> class number of the model, from 1."""
        return self.spec.structures


def read_spec(path: Path | str) -> CohortSpec:
    """Read cohort.toml without looking at any scan. Raises InputError."""
    path = Path(path)
    if path.is_dir():
        raise InputError(f"{path} is a folder; name its cohort file, e.g. {path / 'cohort.toml'}")
    if not path.is_file():
        raise InputError(f"no such cohort file: {path}")
    try:
        return CohortSpec.model_validate(read_toml(path))
    except ValidationError as error:
        raise InputError(f"{path}: {describe(error)}") from error


def read_cohort(path: Path | str, *, cache: Path | None = None) -> Cohort:
    """Read and check a cohort: files, roles, subjects, grids and label values.

    Headers come first, since they are read in no time. Voxels are read of label files, whose values
    are checked, and of test scans, which nobody reads before training is over. Those of training
    scans are read next, when slices are made.

    Args:
        path: The cohort file, cohort.toml. Its globs start at its own folder.
        cache: A folder where a checked cohort leaves a note. While the file says the same, and its
            scans have the sizes and times that they had, none of them is read again.

    Raises:
        InputError: For the first thing that is wrong.
    """
    path = Path(path)
    spec = read_spec(path)
    scans = _find_scans(spec, path.parent)
    _check_roles(scans)
    note = None if cache is None else cache / f"cohort-{_state_of_files(spec, scans)}.json"
    if note is not None and note.is_file():
        sha256 = json.loads(note.read_text())["sha256"]
        return Cohort(spec=spec, scans=tuple(scans), sha256=sha256)
    for scan in scans:
        _check_headers(scan)
    for scan in scans:
        _check_voxels(scan, spec)
    sha256 = _sha256(spec, scans)
    if note is not None:
        with suppress(OSError):  # without it, the scans are read again
            write_json(note, {"cohort": spec.name, "sha256": sha256})
    return Cohort(spec=spec, scans=tuple(scans), sha256=sha256)


def _state_of_files(spec: CohortSpec, scans: Iterable[Scan]) -> str:
    """A short name for a cohort and its files as they are: path, size, times of last change."""
    state: list[object] = [CHECKS, spec.of_training]
    for scan in scans:
        for path in filter(None, (scan.image, scan.label)):
            found = path.stat() if path.exists() else None  # a link into nowhere is found later
            facts = found and (found.st_size, found.st_mtime_ns, found.st_ctime_ns)
            state.append([scan.role, scan.subject, str(path.resolve()), facts])
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()[:16]


def _find_scans(spec: CohortSpec, root: Path) -> list[Scan]:
    source, target = spec.source, spec.target
    scans: list[Scan] = []
    if source is not None:
        scans += _match("source labelled", source.labelled, source, spec, root)
        if source.unlabelled is not None:
            scans += _match("source unlabelled", source.unlabelled, source, spec, root)
    scans += _match("target unlabelled", target.unlabelled, target, spec, root)
    if target.test is not None:
        scans += _match("target test", target.test, target, spec, root)
    return scans


def _match(
    role: Role,
    files: ImagesSpec,
    domain: SourceSpec | TargetSpec,
    spec: CohortSpec,
    root: Path,
) -> list[Scan]:
    """The scans of one role; images and labels are paired by subject."""
    key = role.replace(" ", ".")
    images = _by_subject(files.images, f"{key}.images", spec, root)
    labels: dict[str, Path] = {}
    if isinstance(files, LabelledSpec):
        labels = _by_subject(files.labels, f"{key}.labels", spec, root)
        _check_paired(images, labels, key)
    elif role == "target unlabelled" and isinstance(domain, TargetSpec) and domain.upper_bound:
        labels = _by_subject(domain.upper_bound.labels, "target.upper_bound.labels", spec, root)
        _check_paired(images, labels, "target.upper_bound")
    return [
        Scan(
            role=role,
            subject=subject,
            image=image,
            label=labels.get(subject),
            pixel_spacing_mm=domain.pixel_spacing_mm,
        )
        for subject, image in images.items()
    ]


def _by_subject(globs: Globs, key: str, spec: CohortSpec, root: Path) -> dict[str, Path]:
    found: dict[Path, None] = {}  # a file that two globs match is one file
    for pattern in (globs,) if isinstance(globs, str) else globs:
        found |= dict.fromkeys(scans_of(pattern, key, root))
    names = subjects_of([path.name for path in found], spec.subject)
    subjects: dict[str, Path] = {}
    for path, subject in zip(found, names, strict=True):
        if subject in subjects:
            raise InputError(
                f"{key}: {subjects[subject].name} and {path.name} are both subject {subject!r}; "
                "narrow the glob or set `subject`"
            )
        subjects[subject] = path
    return subjects


def _check_paired(images: dict[str, Path], labels: dict[str, Path], key: str) -> None:
    unlabelled = f"add the file, or list the scan under {key.partition('.')[0]}.unlabelled"
    for have, lack, what, mend in (
        (images, labels, "labels", unlabelled),
        (labels, images, "image", "add the scan, or narrow the glob"),
    ):
        for subject, path in have.items():
            if subject not in lack:
                raise InputError(f"{key}: {path.name} (subject {subject!r}) has no {what}: {mend}")


def _check_roles(scans: list[Scan]) -> None:
    """No file twice, no test subject in training."""
    owner: dict[Path, Scan] = {}
    for scan in scans:
        if scan.label is not None and scan.label.resolve() == scan.image.resolve():
            raise InputError(f"{scan.image} is both image and labels of {scan.role}")
        for path in filter(None, (scan.image, scan.label)):
            other = owner.setdefault(path.resolve(), scan)
            if other is not scan:
                raise InputError(f"{path} is both {other.role} and {scan.role}")
    training = {scan.subject: scan for scan in scans if scan.role != "target test"}
    for scan in scans:
        if scan.role == "target test" and scan.subject in training:
            raise InputError(
                f"subject {scan.subject!r} is in training ({training[scan.subject].image.name}, "
                f"{training[scan.subject].role}) and in test ({scan.image.name})"
            )


def _check_headers(scan: Scan) -> None:
    image = read_volume(scan.image, voxels=False)
    if scan.label is not None:
        check_same_grid(image, read_volume(scan.label, voxels=False))


def _check_voxels(scan: Scan, spec: CohortSpec) -> None:
    """Read what nobody reads before training is over: all that would be refused then."""
    if scan.label is not None:
        read_label_map(scan.label, class_of_raw=spec.class_of_raw(scan.domain))
    if scan.role == "target test":
        # whatever its window and clip limits will be: it must have a grid, and something in it
        recipe = Recipe(
            slice_axis=spec.slices.axis, spacing_mm=spec.slices.spacing_mm, window=(8, 8)
        )
        stack = Stack(read_volume(scan.image), recipe, pixel_spacing_mm=scan.pixel_spacing_mm)
        _ = stack.intensity


def _sha256(spec: CohortSpec, scans: Iterable[Scan]) -> str:
    digest = hashlib.sha256(json.dumps(spec.of_training, sort_keys=True).encode())
    for scan in scans:
        digest.update(f"{scan.role}/{scan.subject}".encode())
        for path in filter(None, (scan.image, scan.label)):
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()
