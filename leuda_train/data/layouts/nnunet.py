"""two datasets as nnU-Net keeps them -> CohortPlan.

    DatasetXXX_Name/dataset.json            channels, labels, ending of the files
                    imagesTr/CASE_0000.nii.gz, labelsTr/CASE.nii.gz
                    imagesTs/CASE_0000.nii.gz, labelsTs/CASE.nii.gz    if there are any

The older dataset.json (of nnU-Net 1 and the Decathlon) is read, too.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from leuda_deploy.errors import InputError, printable, reading
from leuda_deploy.machine.outside import read_json
from leuda_deploy.scans.recipe import SliceAxis
from leuda_train.data.cohort_file import PixelSize
from leuda_train.data.file_names import EXTENSIONS, is_scan_name
from leuda_train.data.layouts.cohort_plan import CohortPlan, Value
from leuda_train.data.layouts.found import Found, grid_of, source_side, target_side

MOST_BYTES = 64 << 20  # of a dataset.json, which may list every file
CHANNEL = re.compile(r"_(\d{4})$")
SUBJECT = r"^(.+?)(?:_\d{4})?\.(?:nii|hdr|img|mgz|mgh)"


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """A folder of nnU-Net: what its dataset.json says, and the cases that lie in it."""

    folder: Path
    modality: str
    classes: Mapping[str, int]
    train: Found
    more: Found


def read_dataset(folder: Path, channel: int | None = None) -> Dataset:
    """Read dataset.json and list the cases. channel: which one, where a case has several.

    Raises InputError for what is missing, and for labels that one number a voxel cannot hold.
    """
    folder = folder.resolve()
    path = folder / "dataset.json"
    if not path.is_file():
        raise InputError(f"{folder} has no dataset.json: not a dataset of nnU-Net")
    with reading(lambda what: InputError(f"{path} is not as nnU-Net writes it: {what}")):
        said = read_json(path, most=MOST_BYTES)
        channels = {int(k): str(v) for k, v in _either(said, "channel_names", "modality").items()}
        classes = _classes(said["labels"], path)
        ending = str(said.get("file_ending", ".nii.gz"))
    if ending not in EXTENSIONS:
        raise InputError(f"{path} says its files end in {ending!r}; leuda reads {EXTENSIONS}")
    if channel is None:
        if len(channels) != 1:
            names = ", ".join(f"{k} {v}" for k, v in sorted(channels.items()))
            raise InputError(
                f"{path} has {len(channels)} channels ({names}); a network here reads one: "
                "say which with --source-channel or --target-channel"
            )
        channel = next(iter(channels))
    if channel not in channels:
        raise InputError(f"{path} has no channel {channel}; there are {sorted(channels)}")
    train = _found(folder, "Tr", ending, channel)
    if not train.images:
        raise InputError(f"{folder / 'imagesTr'} holds no *_{channel:04}{ending}")
    return Dataset(
        folder=folder,
        modality=channels[channel],
        classes=classes,
        train=train,
        more=_found(folder, "Ts", ending, channel),
    )


def plan(  # noqa: PLR0913  (an option of the command each)
    source: Dataset,
    target: Dataset,
    *,
    name: str,
    labelled: int | None = None,
    test: int | None = None,
    axis: SliceAxis | None = None,
    spacing_mm: PixelSize | None = None,
) -> CohortPlan:
    """Source and target become a cohort; classes are the structures that both name alike.

    The source's imagesTr with labelsTr are labelled, its other images unlabelled. The target's
    imagesTs with labelsTs are test; without these, so are the last `test` with labelsTr. All other
    target images are unlabelled. Raises InputError.
    """
    if not source.train.labels:
        raise InputError(f"{source.folder / 'labelsTr'} holds no labels")
    source_found = Found(
        images={**source.train.images, **source.more.images}, labels=source.train.labels
    )
    classes, others, note = _common(source, target)
    if target.more.labels and test is None:
        target_found = Found(
            images={**target.train.images, **target.more.images}, labels=target.more.labels
        )
    else:
        target_found = Found(
            images={**target.train.images, **target.more.images},
            labels={**target.train.labels, **target.more.labels},
        )
    sides = (
        source_side(source_found, source.modality, labelled),
        target_side(target_found, target.modality, test),
    )
    grid = grid_of([*source_found.images.values(), *target_found.images.values()], axis)
    return CohortPlan(
        name=name,
        about=(
            f"Source: {printable(source.folder.name)}, target: {printable(target.folder.name)},",
            f"two datasets of nnU-Net. {note}",
        ),
        classes=classes,
        background=others,
        axis=grid.axis,
        spacing_mm=spacing_mm or (grid.pixel_mm, grid.pixel_mm),
        source=sides[0],
        target=sides[1],
        subject=SUBJECT,
        notes={"axis": grid.axis_note, "spacing_mm": grid.pixel_note},
    )


def _common(source: Dataset, target: Dataset) -> tuple[dict[str, Value], Value, str]:
    """Classes, values that are none, and what becomes of structures that only one of them names."""
    if not (target.train.labels or target.more.labels):
        return dict(source.classes), (), "The target has no labels: classes are the source's."
    known = {name.lower(): value for name, value in target.classes.items()}
    both = [name for name in source.classes if name.lower() in known]
    if not both:
        raise InputError(
            f"{source.folder.name} and {target.folder.name} name no structure alike: "
            f"{', '.join(source.classes)} and {', '.join(target.classes)}; rename them in a "
            "dataset.json"
        )
    classes: dict[str, Value] = {}
    for name in both:
        values = source.classes[name], known[name.lower()]
        classes[name] = (
            values[0] if values[0] == values[1] else {"source": values[0], "target": values[1]}
        )
    lower = {name.lower() for name in both}
    alone = {
        domain: [value for name, value in one.classes.items() if name.lower() not in lower]
        for domain, one in (("source", source), ("target", target))
    }
    names = [name for one in (source, target) for name in one.classes if name.lower() not in lower]
    note = f"Only one of them has {', '.join(names)}: background." if names else ""
    return classes, alone if names else (), note


def _found(folder: Path, part: str, ending: str, channel: int) -> Found:
    """The cases of imagesTr and labelsTr, or of imagesTs and labelsTs."""
    images = {}
    for path in _files(folder / f"images{part}", ending):
        stem = path.name.removesuffix(ending)
        number = CHANNEL.search(stem)
        if number is None or int(number[1]) == channel:
            images[CHANNEL.sub("", stem)] = path
    labels = {
        path.name.removesuffix(ending): path for path in _files(folder / f"labels{part}", ending)
    }
    lone = sorted(labels.keys() - images.keys())
    if lone:
        raise InputError(f"{labels[lone[0]]} has no image {lone[0]}_{channel:04}{ending}")
    return Found(images=images, labels=labels)


def _files(folder: Path, ending: str) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(
        path for path in folder.iterdir() if is_scan_name(path.name) and path.name.endswith(ending)
    )


def _classes(labels: Mapping[Any, Any], path: Path) -> dict[str, int]:
    """Structure -> value: of {"liver": 1}, or {"1": "liver"} as nnU-Net 1 wrote it."""
    if all(str(key).isdigit() for key in labels):
        labels = {str(name): int(value) for value, name in labels.items()}
    for name, value in labels.items():
        if not isinstance(value, int):
            raise InputError(
                f"{path}: {printable(repr(name), 80)} is a region of the labels "
                f"{printable(str(value), 80)}; leuda trains on one label a voxel: name each label "
                "by itself"
            )
        if name == "ignore":
            raise InputError(
                f'{path} has voxels to ignore ("ignore": {value}); leuda trains on whole labels: '
                "leave those scans out"
            )
    return {str(name): value for name, value in labels.items() if value != 0}


def _either(said: Mapping[str, Any], new: str, old: str) -> Mapping[str, Any]:
    found: Mapping[str, Any] = said[new] if new in said else said[old]
    return found
