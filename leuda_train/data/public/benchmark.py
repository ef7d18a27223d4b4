"""which volume of a benchmark plays which role -> the text of its cohort.toml."""

from __future__ import annotations

import glob
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from leuda_deploy.errors import InputError, MissingExtraError
from leuda_deploy.machine.progress import Progress
from leuda_deploy.model.card import Code
from leuda_deploy.scans.recipe import SliceAxis
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
    """

    modality: str
    labelled: Sequence[Pair]
    unlabelled: Sequence[Path]
    upper_bound: Sequence[Path] = ()
    pixel_spacing_mm: PixelSize | None = None


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """All that its cohort.toml says. about: comment lines; classes and background: as in [classes].

    spacing_mm is the (row, column) pixel size of the network's grid.
    """

    name: str
    about: Sequence[str]
    classes: Mapping[str, Value]
    codes: Mapping[str, Code]
    background: Value
    axis: SliceAxis
    spacing_mm: PixelSize
    source: Side
    target: Side
    subject: str | None = None


class PublicData(Protocol):
    """What a module of this folder has: where the files are expected, and which way it can go."""

    @property
    def LAYOUT(self) -> str:  # noqa: N802  (a module's constant)
        """The files of the download, for people."""

    @property
    def DIRECTIONS(self) -> tuple[str, ...]:  # noqa: N802
        """SOURCE-to-TARGET, the default first."""

    def plan(
        self, root: Path, out: Path, direction: str, labelled: str | None, progress: Progress
    ) -> Benchmark:
        """Find and check the volumes, all paths absolute; what is converted goes under `out`."""


def need(files: Iterable[Path], root: Path, layout: str) -> None:
    """Raises InputError, with the layout that was expected, unless every file is there."""
    missing = [path for path in files if not path.is_file()]
    if missing:
        more = f" (nor are {len(missing) - 1} others)" if len(missing) > 1 else ""
        where = missing[0].relative_to(root)
        raise InputError(f"{where} is not under {root}{more}; expected {layout}")


def take_labelled(order: Sequence[int], labelled: str | None) -> tuple[int, ...]:
    """The subjects that keep their labels: the first `labelled` of a published order, a quarter
    without it; so the 1-shot list is the beginning of the 4-shot list. Raises InputError.
    """
    if labelled is None:
        return tuple(order[: round(len(order) / 4)])
    if labelled == "all":
        return tuple(order)
    if not (labelled.isdecimal() and 1 <= int(labelled) <= len(order)):
        raise InputError(f"--labelled {labelled}: 1 to {len(order)} source volumes, or all")
    return tuple(order[: int(labelled)])


def unpaired_sides(
    scans: Mapping[str, Mapping[int, Pair]],
    test: Mapping[str, Sequence[int]],
    few: Sequence[int],
    source: str,
    target: str,
) -> tuple[Side, Side]:
    """Source and target of two modalities of different patients; scans and test by modality.

    The papers' test subjects of the source take no part. Labelled volumes stay in the order of
    `few`: see Cohort.with_labelled.
    """
    train = {m: [s for s in scans[m] if s not in test[m]] for m in (source, target)}
    return Side(
        modality=source.upper(),
        labelled=[scans[source][s] for s in few],
        unlabelled=[scans[source][s].image for s in train[source] if s not in few],
    ), Side(
        modality=target.upper(),
        labelled=[scans[target][s] for s in test[target]],
        unlabelled=[scans[target][s].image for s in train[target]],
        upper_bound=[scans[target][s].label for s in train[target]],
    )


def cohort_toml(benchmark: Benchmark, folder: Path) -> str:
    """The text of a cohort.toml that lies in `folder`, with comments."""
    text = tomlkit.document()
    for line in benchmark.about:
        text.add(tomlkit.comment(line))
    text["name"] = benchmark.name
    if benchmark.subject:
        pattern = tomlkit.string(benchmark.subject, literal=True)
        pattern.comment("how a file name says whose scan it is")
        text["subject"] = pattern
    text["classes"] = _table(
        {name: _plain(value) for name, value in benchmark.classes.items()},
        "name = raw value in the label files, in the model's class order",
    )
    text["codes"] = _table(
        {name: [*code] for name, code in benchmark.codes.items()},
        "name = [scheme, value, meaning], for DICOM",
    )
    text["slices"] = _table(
        {
            "axis": benchmark.axis,
            "spacing_mm": _item(benchmark.spacing_mm, "in-plane grid of the network"),
            "background_values": _item(benchmark.background, "raw values that are no class"),
        }
    )
    source = _side(benchmark.source)
    source["labelled"] = _table(_pairs(benchmark.source.labelled, folder))
    if benchmark.source.unlabelled:
        source["unlabelled"] = _table({"images": _paths(benchmark.source.unlabelled, folder)})
    target = _side(benchmark.target)
    target["unlabelled"] = _table({"images": _paths(benchmark.target.unlabelled, folder)})
    if benchmark.target.upper_bound:
        labels = _paths(benchmark.target.upper_bound, folder)
        comment = "read by `--method supervised` alone"
        target["upper_bound"] = _table({"labels": labels}, comment)
    target["test"] = _table(
        _pairs(benchmark.target.labelled, folder),
        "never trained on, tuned on or used to choose a checkpoint",
    )
    text["source"], text["target"] = source, target
    return tomlkit.dumps(text)


def _side(side: Side) -> Table:
    table = _table({"modality": side.modality})
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


def _item(value: Value | PixelSize, comment: str) -> Item:
    made: Item = tomlkit.item(_plain(value))
    made.comment(comment)
    return made


def _plain(value: Value | PixelSize) -> Any:
    """Numbers, lists and inline tables of them, as tomlkit writes them on one line."""
    if isinstance(value, Mapping):
        inline = tomlkit.inline_table()
        inline.update({key: _plain(part) for key, part in value.items()})
        return inline
    return list(value) if isinstance(value, Sequence) else value
