"""a scan, or a folder -> scenes: which files are looked at together."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from leuda_deploy.errors import InputError, LeudaError, ModelError
from leuda_deploy.jobs.find_jobs import (
    EXTENSIONS,
    LABEL_ENDINGS,
    LABEL_SUFFIXES,
    is_scan_file,
    is_series,
    report_path,
    stem,
)
from leuda_deploy.machine.outside import read_json, read_toml
from leuda_deploy.model.card import MAX_CARD_BYTES, ModelCard, parse_card
from leuda_deploy.model.export_folder import CARD_FILE

_log = logging.getLogger(__name__)

MAX_REPORT_BYTES = 1 << 20
# a name without its ending: group 1 is the subject, the rest says what of it is in the file
SUBJECT = re.compile(
    r"(?i)(.+?)([_-](image|labels?|manual|pred|prediction|seg|mask|gt|truth|0000))*"
)
NAMED_AT_MOST = 5  # in a warning


@dataclass(frozen=True, kw_only=True)
class Scene:
    """One scan and what is shown with it.

    scan         a file, or a folder with one DICOM series
    labels       no, one or two label files
    uncertainty  a map on the same grid
    frame        of a 4D scan
    report       beside the first label file, as it was read; empty if there is none
    card         of the model that the report names, if its export still lies there
    """

    scan: Path
    labels: tuple[Path, ...] = ()
    uncertainty: Path | None = None
    frame: int | None = None
    report: Mapping[str, Any] = field(default_factory=dict)
    card: ModelCard | None = None

    @property
    def name(self) -> str:
        """What the page calls it."""
        return self.scan.name if self.frame is None else f"{self.scan.name}, frame {self.frame}"

    @property
    def unsure(self) -> float | None:
        """Share of the structures' voxels that the network is unsure of; None: no report."""
        share = self.report.get("low_confidence")
        return float(share) if isinstance(share, int | float) else None

    @property
    def unlike(self) -> bool:
        """Whether the report says that the scan does not look like the scans of training."""
        domain = self.report.get("domain")
        return isinstance(domain, dict) and domain.get("fits") is False


def make_scene(
    scan: Path,
    labels: tuple[Path, ...] = (),
    *,
    uncertainty: Path | None = None,
    frame: int | None = None,
) -> Scene:
    """The scene of one scan. Labels and map that are not named are looked for beside it.

    Raises:
        InputError: A file is not there, or there are more than two label files.
    """
    if not labels:
        labels = _labels_beside(scan)
    if len(labels) > 2:
        raise InputError(f"{len(labels)} label files were given; two can be compared")
    for path in (scan, *labels, *([uncertainty] if uncertainty else [])):
        if not path.exists():
            raise InputError(f"no such file: {path}")
    report = _read_report(report_path(labels[0])) if labels else {}
    if uncertainty is None:
        uncertainty = _named_in(report, "uncertainty", labels[0].parent) if labels else None
    return Scene(
        scan=scan,
        labels=labels,
        uncertainty=uncertainty,
        frame=_frame_of(report) if frame is None else frame,
        report=report,
        card=_card_of(report, labels[0].parent) if labels else None,
    )


def find_scenes(folder: Path, label_folders: Sequence[Path] = ()) -> list[Scene]:
    """The scenes of a folder, the least sure first.

    A folder that `leuda infer -o` wrote is known by its reports, which name the scans. In any
    other, each scan is shown with the labels beside it.

    Args:
        folder: Of scans, or of results.
        label_folders: One or two with label files, which belong to the scans by their names. One
            beside results is their truth; else only what lies in these folders is shown.

    Raises:
        InputError: There is nothing to show, or the label files belong to no scan.
    """
    reports = {path: _reported(path) for path in sorted(folder.glob("*.json"))}
    scenes = [scene for scene in reports.values() if scene is not None]
    lost = [path.name for path, scene in reports.items() if scene is None and _has_labels(path)]
    if scenes and lost:
        _log.warning(
            "not shown, since its report cannot be read or its scan is not there: %s", _named(lost)
        )
    if not scenes:
        scans = sorted(path for path in folder.iterdir() if is_scan_file(path) or is_series(path))
        scenes = [make_scene(scan) for scan in scans]
    if not scenes:
        raise InputError(
            f"nothing to show in {folder}: no report of `leuda infer` whose scan is still there, "
            f"no file that ends in {', '.join(EXTENSIONS)}, no folder with DICOM images"
        )
    if label_folders:
        scenes = _with_labels_of(scenes, label_folders)
    # scans without a report last: nothing is known of them
    return sorted(
        scenes, key=lambda s: (not s.unlike, -1 if s.unsure is None else -s.unsure, s.name)
    )


def _with_labels_of(scenes: Sequence[Scene], folders: Sequence[Path]) -> list[Scene]:
    """The scenes with the label files of their subjects. Who has none is shown all the same."""
    if len(folders) > 2:
        raise InputError(f"{len(folders)} folders of labels were given; two can be compared")
    found = [_labels_by_subject(folder) for folder in folders]
    subjects = [_subject(stem(scene.scan)) for scene in scenes]
    where = " and ".join(map(str, folders))
    if not any(set(subjects) & labels.keys() for labels in found):
        raise InputError(
            f"no label file in {where} belongs to a scan: to x.nii.gz or x_image.nii.gz belong "
            f"x.nii.gz, x_labels.nii.gz, x_truth.nii.gz; the first scan is {scenes[0].name}"
        )
    made, without = [], []
    for scene, subject in zip(scenes, subjects, strict=True):
        named = tuple(labels[subject] for labels in found if subject in labels)
        if len(named) < len(found):
            without.append(scene.name)
        if scene.report and len(found) == 1:  # predicted and true
            made.append(replace(scene, labels=(*scene.labels[:1], *named)))
        elif named:
            made.append(make_scene(scene.scan, named, frame=scene.frame))
        else:
            made.append(replace(scene, labels=(), uncertainty=None, report={}, card=None))
    if without:
        _log.warning("without labels in %s: %s", where, _named(without))
    left = [path.name for labels in found for name, path in labels.items() if name not in subjects]
    if left:
        _log.warning("label files that belong to no scan: %s", _named(left))
    return made


def _labels_by_subject(folder: Path) -> dict[str, Path]:
    """Subject -> its label file in a folder. Of two, the one that is called labels."""
    if not folder.is_dir():
        raise InputError(f"{folder} is no folder; beside a folder of scans stand folders of labels")
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.iterdir()):
        name = stem(path)
        # a map of uncertainty, or an image beside its labels, is no label file
        other = name.lower().endswith(("_uncertainty", "_image")) or name.startswith(".")
        if path.is_file() and path.name.lower().endswith(LABEL_ENDINGS) and not other:
            found.setdefault(_subject(name), []).append(path)
    chosen = {}
    for subject, paths in found.items():
        called = [path for path in paths if stem(path).lower().endswith(LABEL_SUFFIXES)]
        if len(paths) > 1 and len(called) != 1:
            raise InputError(f"{paths[0]} and {paths[1].name} are labels of one scan; remove one")
        chosen[subject] = (called or paths)[0]
    return chosen


def _subject(name: str) -> str:
    found = SUBJECT.fullmatch(name)
    return found[1].lower() if found else name.lower()


def _named(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMED_AT_MOST} more" if len(names) > NAMED_AT_MOST else ""
    return ", ".join(names[:NAMED_AT_MOST]) + more


def read_class_values(path: Path) -> dict[str, int]:
    """Names and label values from the table [classes] of a TOML file, e.g. a cohort's."""
    table = read_toml(path).get("classes")
    if not isinstance(table, dict) or not all(type(value) is int for value in table.values()):
        raise InputError(f"{path} has no table [classes] with lines such as liver = 1")
    return table


def _reported(path: Path) -> Scene | None:
    """The scene that a report describes, if it is one and its files are there."""
    report = _read_report(path)
    scan, labels = (_named_in(report, key, path.parent) for key in ("scan", "labels"))
    if scan is None or labels is None or report_path(labels).resolve() != path.resolve():
        return None
    return make_scene(scan, (labels,))


def _has_labels(report: Path) -> bool:
    """Whether labels lie beside a file as they do beside a report."""
    return any(report.with_name(report.stem + ending).is_file() for ending in LABEL_ENDINGS)


def _labels_beside(scan: Path) -> tuple[Path, ...]:
    """Labels of a scan by their name: SCAN_labels.nii.gz; or x_image and x_label."""
    names = {stem(scan), stem(scan).removesuffix("_image")}
    found = (
        scan.with_name(f"{name}{suffix}{ending}")
        for suffix in LABEL_SUFFIXES
        if suffix != "_uncertainty"
        for name in sorted(names, reverse=True)
        for ending in (".nii.gz", ".nii")
    )
    return tuple(path for path in found if path.is_file())[:1]


def _named_in(report: Mapping[str, Any], key: str, folder: Path) -> Path | None:
    """A path in a report, if it is there: see `_places`."""
    said = report.get(key)
    if not isinstance(said, str) or not said:
        return None
    for path in _places(said, folder):
        with suppress(OSError):  # no name that a file can have
            if path.is_file() or (key == "scan" and path.is_dir()):
                return path
    return None


def _places(said: str, folder: Path) -> Iterator[Path]:
    """Where a file may lie that a report in a folder names.

    By its name in that folder first: results that were moved or copied keep together. Then as it
    stands. It may also be meant from where `leuda infer` ran: often a folder above.
    """
    path = Path(said)
    yield folder / path.name
    yield path
    if not path.is_absolute():
        yield from (parent / path for parent in folder.resolve().parents)


def _read_report(path: Path) -> dict[str, Any]:
    """A report as it stands; empty if it is not there or no report."""
    try:
        content = read_json(path, most=MAX_REPORT_BYTES, file_names=True)
    except LeudaError:
        return {}
    return content if isinstance(content, dict) and "volumes_ml" in content else {}


def _frame_of(report: Mapping[str, Any]) -> int | None:
    asked = report.get("asked")
    frame = asked.get("frame") if isinstance(asked, dict) else None
    return frame if isinstance(frame, int) else None


def _card_of(report: Mapping[str, Any], folder: Path) -> ModelCard | None:
    """The card beside the model that a report names: colours and modality. None: it is gone."""
    model = report.get("model")
    if not isinstance(model, str) or not model:
        return None
    try:
        cards = [place.parent / CARD_FILE for place in _places(model, folder)]
        path = next((card for card in cards[1:] if _small(card)), None)  # none lies among results
        return None if path is None else parse_card(path.read_text(), str(path))
    except (OSError, UnicodeDecodeError, ModelError):
        return None


def _small(path: Path) -> bool:
    return path.is_file() and path.stat().st_size <= MAX_CARD_BYTES
