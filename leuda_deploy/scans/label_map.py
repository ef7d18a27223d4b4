"""label file -> class numbers that know where they stand.

Label files come with any scale, any stored type and any numbering. All of that ends here: the rest
of the program sees class numbers (X, Y, Z) uint8, 0 for background, on a known grid.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from leuda_deploy.errors import GridMismatchError, InputError, UndeclaredLabelError
from leuda_deploy.scans.volume import Volume, read_volume

WHOLE_WITHIN = 1e-3  # a label times a float32 slope is no whole number to the last bit
GRID_TOLERANCE = 0.01  # of the smallest voxel edge, by which a corner of the same grid may be off


@dataclass(frozen=True, kw_only=True)
class LabelMap:
    """Labels of one scan as class numbers.

    volume  its `raw` are the class numbers (X, Y, Z) uint8; its geometry is that of the scan
            where the labels were read for one (`like`), else that of the label file
    """

    volume: Volume

    @property
    def labels(self) -> NDArray[np.uint8]:
        """Class numbers (X, Y, Z), 0 for background."""
        return self.volume.raw


def read_label_map(
    path: Path | str,
    *,
    class_of_raw: Mapping[int, int],
    like: Volume | None = None,
    others: Literal["refuse", "background"] = "refuse",
) -> LabelMap:
    """Read a label file. See `label_map_of`.

    Raises:
        InputError: As `read_volume` and `label_map_of` do.
    """
    return label_map_of(read_volume(path), class_of_raw=class_of_raw, like=like, others=others)


def label_map_of(
    label: Volume,
    *,
    class_of_raw: Mapping[int, int],
    like: Volume | None = None,
    others: Literal["refuse", "background"] = "refuse",
) -> LabelMap:
    """Values of a label file -> class numbers.

    Args:
        label: The label file as it was read.
        class_of_raw: Value in the file -> class number, 0 to 255. 0 is background unless declared.
        like: The scan that was labelled. Its grid must be the same, and it is taken: a label
            affine that differs by rounding must not turn the axes another way.
        others: What to do with a value that is not declared.

    Raises:
        GridMismatchError: The labels lie on another grid than `like`.
        UndeclaredLabelError: A value is not declared.
        InputError: The values are not whole numbers: these are no labels.
    """
    if like is not None:
        check_same_grid(like, label)
    stored, values = _distinct(label)
    classes = {0: 0, **class_of_raw}
    undeclared = [value for value in values if value not in classes]
    if undeclared and others == "refuse":
        raise UndeclaredLabelError(label.name, undeclared, sorted(classes))
    # stored values are compared: no scaled copy of the scan is made
    labels = np.zeros_like(label.raw, dtype=np.uint8)
    for raw, value in zip(stored, values, strict=True):
        if number := classes.get(value, 0):
            labels[label.raw == raw] = number
    return LabelMap(volume=(like or label).with_values(labels))


def label_values(label: Volume) -> list[int]:
    """The distinct values of a label file, rising. Raises InputError if they are not whole."""
    return sorted(set(_distinct(label)[1]))


def _distinct(label: Volume) -> tuple[NDArray[Any], list[int]]:
    """The distinct values as they are stored, and the whole numbers they stand for."""
    stored = _stored_values(label.raw)
    values = stored.astype(np.float64) * label.slope + label.inter
    whole = np.rint(values)
    finite = np.isfinite(values).all()  # of a huge number no one can say whether it is whole
    if not finite or np.abs(values - whole).max() > WHOLE_WITHIN or np.abs(whole).max() > 2**31:
        raise InputError(f"{label.name} holds values that are not whole numbers: not labels")
    return stored, [int(value) for value in whole]


def _stored_values(raw: NDArray[Any]) -> NDArray[Any]:
    """As np.unique; bytes are counted slice by slice, which does not sort millions of them."""
    if raw.dtype != np.uint8:
        return np.unique(raw)
    found = np.zeros(256, dtype=bool)
    for k in range(raw.shape[-1]):
        part = raw[..., k]
        if part.any():
            found |= np.bincount(part.ravel(order="K"), minlength=256) > 0
        else:  # as most slices of most label files
            found[0] = True
    return np.flatnonzero(found).astype(np.uint8)


def same_grid(a: Volume, b: Volume) -> bool:
    """Whether two volumes have one shape, and corners in the same places, within GRID_TOLERANCE."""
    return _apart_mm(a, b) <= GRID_TOLERANCE * min(a.spacing_mm)


def check_same_grid(scan: Volume, label: Volume) -> None:
    """Raises GridMismatchError unless both have the same grid."""
    if not same_grid(scan, label):
        raise GridMismatchError(
            (scan.name, label.name), (scan.raw.shape, label.raw.shape), _apart_mm(scan, label)
        )


def _apart_mm(a: Volume, b: Volume) -> float:
    """How far apart a corner of two grids lies at most, in mm; infinite if the shapes differ."""
    if a.raw.shape != b.raw.shape:
        return float("inf")
    corners = np.array([[i, j, k, 1] for i in (0, 1) for j in (0, 1) for k in (0, 1)], dtype=float)
    corners[:, :3] *= np.array(a.raw.shape) - 1
    return float(np.abs(corners @ (a.affine - b.affine).T).max())
