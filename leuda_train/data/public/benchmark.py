"""which volume of a benchmark plays which role -> the text of its cohort.toml."""

from __future__ import annotations

import glob
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from leuda_deploy.errors import InputError
from leuda_deploy.scans.recipe import SliceAxis
from leuda_train.data.cohort_file import PixelSize

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
    background: Value
    axis: SliceAxis
    spacing_mm: PixelSize
    source: Side
    target: Side
    subject: str | None = None


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
    source, target = benchmark.source, benchmark.target
    lines = [*(f"# {line}".rstrip() for line in benchmark.about), f"name = {_toml(benchmark.name)}"]
    if benchmark.subject:
        lines.append(f"subject = '{benchmark.subject}'   # how a file name says whose scan it is")
    lines += ["", "[classes]   # name = raw value in the label files, in the model's class order"]
    lines += [f"{name} = {_toml(value)}" for name, value in benchmark.classes.items()]
    lines += ["", "[slices]", f"axis = {_toml(benchmark.axis)}"]
    lines += [f"spacing_mm = {_toml(benchmark.spacing_mm)}   # in-plane grid of the network"]
    lines += [f"background_values = {_toml(benchmark.background)}   # raw values that are no class"]
    lines += ["", *_side("source", source), "", "[source.labelled]"]
    lines += _pairs(source.labelled, folder)
    if source.unlabelled:
        lines += ["", "[source.unlabelled]", *_paths("images", source.unlabelled, folder)]
    lines += ["", *_side("target", target), "", "[target.unlabelled]"]
    lines += _paths("images", target.unlabelled, folder)
    if target.upper_bound:
        lines += ["", "[target.upper_bound]   # read by `--method supervised` alone"]
        lines += _paths("labels", target.upper_bound, folder)
    lines += ["", "[target.test]   # never trained on, tuned on or used to choose a checkpoint"]
    lines += _pairs(target.labelled, folder)
    return "\n".join(lines) + "\n"


def _side(name: str, side: Side) -> list[str]:
    lines = [f"[{name}]", f"modality = {_toml(side.modality)}"]
    if side.pixel_spacing_mm:
        size = _toml(side.pixel_spacing_mm)
        lines.append(f"pixel_spacing_mm = {size}   # instead of the headers', which are wrong")
    return lines


def _pairs(pairs: Sequence[Pair], folder: Path) -> list[str]:
    images = _paths("images", [pair.image for pair in pairs], folder)
    return images + _paths("labels", [pair.label for pair in pairs], folder)


def _paths(key: str, paths: Sequence[Path], folder: Path) -> list[str]:
    """Relative to the cohort's folder where they lie in it, absolute elsewhere."""
    shown = [
        (path.relative_to(folder) if path.is_relative_to(folder) else path).as_posix()
        for path in paths
    ]
    # they are globs to the reader: a bracket in a folder's name must mean itself
    return [f"{key} = [", *(f"  {_toml(glob.escape(path))}," for path in shown), "]"]


def _toml(value: object) -> str:
    """Strings, numbers, lists and tables of them as TOML; JSON's strings are TOML's."""
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{key} = {_toml(part)}" for key, part in value.items()) + " }"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return json.dumps(value, ensure_ascii=False)
