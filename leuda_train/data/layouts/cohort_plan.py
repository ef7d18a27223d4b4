"""which scan plays which role -> the text of a cohort.toml, kept only if every check passes."""

from __future__ import annotations

import glob
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from leuda_deploy.errors import InputError, MissingExtraError
from leuda_deploy.machine.files import atomic_path
from leuda_deploy.model.card import Code
from leuda_deploy.scans.recipe import SliceAxis
from leuda_train.data.cohort import read_cohort
from leuda_train.data.cohort_file import PixelSize

try:
    import tomlkit
    from tomlkit.items import Array, Item, Table
except ImportError as missing:
    raise MissingExtraError("leuda cohort", "tomlkit", "train") from missing

Value = int | Sequence[int] | Mapping[str, int | Sequence[int]]


class Pair(NamedTuple):
    """A scan and its labels."""

    image: Path
    label: Path


@dataclass(frozen=True, kw_only=True)
class Side:
    """A domain. pixel_spacing_mm replaces a (row, column) pixel size that is wrong in the headers.

    labelled    pairs whose labels are trained on (source), or scored against (target: the test set)
    unlabelled  scans without labels
    upper_bound labels of `unlabelled`, for supervised training on the target alone
    note        a comment on the modality
    """

    modality: str
    labelled: Sequence[Pair]
    unlabelled: Sequence[Path]
    upper_bound: Sequence[Path] = ()
    pixel_spacing_mm: PixelSize | None = None
    note: str | None = None


@dataclass(frozen=True, kw_only=True)
class CohortPlan:
    """All that a cohort.toml says.

    about       comment lines at its head
    classes, background  as in [classes]
    spacing_mm  the (row, column) pixel size of the network's grid
    subject     how a file name says whose scan it is; None: by the file's name
    notes       comments, by class name or key
    codes       of classes, for DICOM
    """

    name: str
    about: Sequence[str]
    classes: Mapping[str, Value]
    background: Value
    axis: SliceAxis
    spacing_mm: PixelSize
    source: Side
    target: Side
    subject: str | None = None
    notes: Mapping[str, str] = field(default_factory=dict)
    codes: Mapping[str, Code] = field(default_factory=dict)


def write_plan(plan: CohortPlan, out: Path) -> None:
    """Write a plan as `out`, if `read_cohort` takes it. Raises InputError for all it refuses."""
    check_free(out)
    text = cohort_toml(plan, out.resolve().parent)
    try:
        content = text.encode()
    except UnicodeEncodeError as error:  # as Python keeps the name of such a file
        near = text[max(0, error.start - 20) : error.end + 20]
        raise InputError(f"a cohort file is UTF-8, and this name is not: ...{near}...") from error
    with atomic_path(out) as temporary:
        # beside its final place, so that the relative paths in it can be read
        temporary.write_bytes(content)
        read_cohort(temporary)


def check_free(out: Path) -> None:
    """Raises InputError if something stands where the cohort file is to be written."""
    if out.exists():
        raise InputError(f"{out} exists; remove it, or name another file with -o")


def cohort_toml(plan: CohortPlan, folder: Path) -> str:
    """The text of a cohort.toml that lies in `folder`, with comments."""
    text = tomlkit.document()
    for line in plan.about:
        text.add(tomlkit.comment(line))
    text["name"] = plan.name
    if plan.subject:
        pattern = tomlkit.string(plan.subject, literal=True)
        pattern.comment("how a file name says whose scan it is")
        text["subject"] = pattern
    text["classes"] = _table(
        {name: _item(value, plan.notes.get(name)) for name, value in plan.classes.items()},
        "name = raw value in the label files, in the model's class order",
    )
    if plan.codes:
        text["codes"] = _table(
            {name: [*code] for name, code in plan.codes.items()},
            "name = [scheme, value, meaning], for DICOM",
        )
    text["slices"] = _table(
        {
            "axis": _item(plan.axis, plan.notes.get("axis")),
            "spacing_mm": _item(
                plan.spacing_mm, plan.notes.get("spacing_mm", "in-plane grid of the network")
            ),
            "background_values": _item(plan.background, "raw values that are no class"),
        }
    )
    source = _side(plan.source)
    source["labelled"] = _table(_pairs(plan.source.labelled, folder))
    if plan.source.unlabelled:
        source["unlabelled"] = _table({"images": _paths(plan.source.unlabelled, folder)})
    target = _side(plan.target)
    target["unlabelled"] = _table({"images": _paths(plan.target.unlabelled, folder)})
    if plan.target.upper_bound:
        labels = _paths(plan.target.upper_bound, folder)
        comment = "read by `--method supervised` alone"
        target["upper_bound"] = _table({"labels": labels}, comment)
    if plan.target.labelled:
        target["test"] = _table(
            _pairs(plan.target.labelled, folder),
            "never trained on, tuned on or used to choose a checkpoint",
        )
    text["source"], text["target"] = source, target
    return tomlkit.dumps(text)


def _side(side: Side) -> Table:
    table = _table({"modality": _item(side.modality, side.note)})
    if side.pixel_spacing_mm:
        size = _item(side.pixel_spacing_mm, "instead of the headers', which are wrong")
        table["pixel_spacing_mm"] = size
    return table


def _pairs(pairs: Sequence[Pair], folder: Path) -> dict[str, Array]:
    images, labels = ([getattr(pair, kind) for pair in pairs] for kind in ("image", "label"))
    return {"images": _paths(images, folder), "labels": _paths(labels, folder)}


def _paths(paths: Sequence[Path], folder: Path) -> Array:
    """One a line; relative to the cohort's folder if they lie in it, absolute elsewhere."""
    lines = tomlkit.array()
    lines.multiline(True)
    for path in paths:
        shown = path.relative_to(folder) if path.is_relative_to(folder) else path
        # they are globs to the reader: a bracket in a folder's name must mean itself
        lines.append(glob.escape(shown.as_posix()))
    return lines


def _table(content: Mapping[str, Any], comment: str | None = None) -> Table:
    table = tomlkit.table()
    for key, value in content.items():
        table[key] = value
    if comment:
        table.comment(comment)
    return table


def _item(value: str | Value | PixelSize, comment: str | None) -> Item:
    made: Item = tomlkit.item(_plain(value))
    if comment:
        made.comment(comment)
    return made


def _plain(value: str | Value | PixelSize) -> Any:
    """Numbers, lists and inline tables of them, as tomlkit writes them on one line."""
    if isinstance(value, Mapping):
        inline = tomlkit.inline_table()
        inline.update({key: _plain(part) for key, part in value.items()})
        return inline
    return value if isinstance(value, int | str) else list(value)
