"""one or two label files of a scan -> the same class numbers, volumes, Dice, and where they differ.

Label files come with numbers of their own. On the page a structure has one number, 1 to 255, and
one colour, whatever the files call it; structures are matched by name.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from leuda_deploy.errors import InputError
from leuda_deploy.model.card import PALETTE
from leuda_deploy.scans.label_map import check_same_grid, label_map_of, label_values
from leuda_deploy.scans.nifti import read_label_names
from leuda_deploy.scans.volume import Volume, read_volume

UInt8 = NDArray[np.uint8]
RGB = tuple[int, int, int]
ONLY_FIRST, ONLY_SECOND, OTHER = 1, 2, 3  # values of a difference; 0: both say the same


@dataclass(frozen=True, kw_only=True)
class Structure:
    """A row of the page's table.

    ml    in each label file
    dice  of the two label files; None if there is one, or none of them has the structure
    """

    value: int
    name: str
    colour: RGB
    ml: tuple[float, ...]
    dice: float | None = None


@dataclass(frozen=True, kw_only=True)
class LabelFiles:
    """The label files of one scan.

    labels      class numbers (X, Y, Z) uint8 of each file
    structures  what is in them, by number
    """

    labels: tuple[UInt8, ...]
    structures: tuple[Structure, ...]

    def difference(self) -> UInt8:
        """Where two files differ (X, Y, Z): ONLY_FIRST, ONLY_SECOND, OTHER structure in both."""
        first, second = self.labels
        found = np.full_like(first, OTHER)
        found[second == 0] = ONLY_FIRST
        found[first == 0] = ONLY_SECOND
        found[first == second] = 0
        return found


def read_label_files(
    paths: Sequence[Path],
    scan: Volume,
    *,
    names: Mapping[int, str],
    class_values: Mapping[str, int],
    colours: Mapping[str, RGB],
) -> LabelFiles:
    """Read the label files of a scan.

    Args:
        paths: At most two.
        scan: Its header is enough.
        names: Value -> structure in the first file, where its header does not say.
        class_values: Structure -> value in files whose header has no names. Other values of such
            a file are then background. Empty: not known.
        colours: Of structures by name; the palette has the others.

    Raises:
        InputError: A file cannot be read, is no label file, or has another grid than the scan.
    """
    numbers: dict[str, int] = {}
    maps, first_names = [], dict(names)
    for path in paths:
        volume = read_volume(path)
        values = [value for value in label_values(volume) if value != 0]
        said = _names_in_file(path, values, first_names, class_values)
        for value, name in said.items():
            if name not in numbers:
                numbers[name] = _free_number(value, numbers.values(), path)
        class_of_raw = {value: numbers[name] for value, name in said.items() if value in values}
        maps.append(_as_classes(volume, scan, class_of_raw, values))
        first_names = first_names or said
    joint = _joint_counts(maps)
    return LabelFiles(
        labels=tuple(maps),
        structures=tuple(
            Structure(
                value=number,
                name=name,
                colour=colours.get(name, PALETTE[(number - 1) % len(PALETTE)]),
                ml=tuple(float(n) * scan.voxel_ml for n in _voxels(joint, number, len(maps))),
                dice=_dice(joint, number) if len(maps) == 2 else None,
            )
            for name, number in sorted(numbers.items(), key=lambda item: item[1])
        ),
    )


def _as_classes(
    volume: Volume, scan: Volume, class_of_raw: Mapping[int, int], values: Sequence[int]
) -> UInt8:
    as_stored = volume.raw.dtype == np.uint8 and (volume.slope, volume.inter) == (1.0, 0.0)
    if as_stored and all(class_of_raw.get(value) == value for value in values):
        check_same_grid(scan, volume)
        return volume.raw  # most label files: nothing to do, which matters for 150 million voxels
    return label_map_of(volume, class_of_raw=class_of_raw, like=scan, others="background").labels


def _names_in_file(
    path: Path, values: list[int], first_names: Mapping[int, str], class_values: Mapping[str, int]
) -> dict[int, str]:
    """Value -> structure: from the header, else from `class_values`, else as in the first file."""
    if said := read_label_names(path):
        known = dict(said)
    elif class_values:
        return {value: name for name, value in class_values.items()}
    else:
        # numbers that the first file does not have at all mean that it counts in another way
        known = dict(first_names) if set(values) <= set(first_names) else {}
    return known | {value: f"label {value}" for value in values if value not in known}


def _free_number(value: int, taken: Iterable[int], path: Path) -> int:
    """The value itself if it can be, else the lowest number that is free."""
    used = set(taken)
    if 1 <= value <= 255 and value not in used:
        return value
    number = next(n for n in count(1) if n not in used)
    if number > 255:
        raise InputError(f"{path} holds more than 255 values: is it an image, not labels?")
    return number


def _joint_counts(maps: Sequence[UInt8]) -> NDArray[np.int64]:
    """(256, 256): voxels by their class in the first and in the second file, which may be one."""
    joint = np.zeros((256, 256), dtype=np.int64)
    if not maps:
        return joint
    first, second = maps[0], maps[-1]
    for z in range(first.shape[2]):  # slice by slice: no wide copy of the whole scan
        one, other = first[:, :, z], second[:, :, z]
        if not (one.any() or other.any()):  # so are most
            joint[0, 0] += one.size
        elif first is second:
            counts = np.bincount(one.ravel(order="K"), minlength=256)
            joint[np.diag_indices(256)] += counts
        else:
            pairs = one.astype(np.uint16) * np.uint16(256) + other
            joint += np.bincount(pairs.ravel(order="K"), minlength=joint.size).reshape(256, 256)
    return joint


def _voxels(joint: NDArray[np.int64], number: int, files: int) -> list[int]:
    return [int(joint[number].sum()), int(joint[:, number].sum())][:files]


def _dice(joint: NDArray[np.int64], number: int) -> float | None:
    both = int(joint[number].sum() + joint[:, number].sum())
    return 2 * int(joint[number, number]) / both if both else None
