"""labels and geometry of a scan -> what is odd about them, for the report and the picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from leuda_deploy.model.card import Structure
from leuda_deploy.scans.volume import Volume


@dataclass(frozen=True, kw_only=True)
class Flag:
    """What is odd about a structure. One that the border cuts is not whole, nor is its volume."""

    structure: str
    flag: Literal[
        "not found",
        "cut by the border of the scan",
        "smaller than in the training labels",
        "larger than in the training labels",
    ]


LEAST_MM, MOST_MM = 0.05, 20.0  # edge of a voxel
MOST_FIELD_MM = 2000.0
SAME_SHARE = 0.02  # by which two statements of a voxel's size may differ
# how far outside the volumes of the training labels one is before it is odd: people differ
MARGIN = 1.5


def flags_of(
    labels: NDArray[np.uint8], structures: Sequence[Structure], voxel_ml: float
) -> list[Flag]:
    """The flags of the labels (X, Y, Z), in the structures' order; voxel_ml is a voxel's volume."""
    ends = [np.unique(np.take(labels, end, axis=axis)) for axis in range(3) for end in (0, -1)]
    on_border = {value for end in ends for value in end.tolist()}
    counts = _counts(labels)
    flags = []
    for structure in structures:
        volume_ml = float(counts[structure.value]) * voxel_ml
        if not volume_ml:
            flags.append(Flag(structure=structure.name, flag="not found"))
        elif structure.value in on_border:
            flags.append(Flag(structure=structure.name, flag="cut by the border of the scan"))
        elif structure.anatomy is not None and structure.anatomy.volume_ml is not None:
            smallest, largest = structure.anatomy.volume_ml
            if volume_ml * MARGIN < smallest:
                flags.append(
                    Flag(structure=structure.name, flag="smaller than in the training labels")
                )
            elif volume_ml > largest * MARGIN:
                flags.append(
                    Flag(structure=structure.name, flag="larger than in the training labels")
                )
    return flags


def _counts(labels: NDArray[np.uint8]) -> NDArray[np.int64]:
    counts = np.zeros(256, dtype=np.int64)
    for part in np.moveaxis(labels, -1, 0):  # bincount widens what it counts to 8 bytes a voxel
        counts += np.bincount(part.ravel(order="K"), minlength=256)
    return counts


def implausible_geometry(volume: Volume) -> list[str]:
    """What no scanner would write. Empty for a sound scan."""
    spacing = volume.spacing_mm
    sizes = " x ".join(f"{size:.4g}" for size in spacing)
    found = []
    if min(spacing) < LEAST_MM or max(spacing) > MOST_MM:
        found.append(
            f"its voxels are {sizes} mm; scanners make {LEAST_MM:g} to {MOST_MM:g} mm, so volumes "
            "may be wrong"
        )
    field = [n * size for n, size in zip(volume.raw.shape, spacing, strict=True)]
    if max(field) > MOST_FIELD_MM:
        found.append(
            f"it is {' x '.join(f'{side:.4g}' for side in field)} mm large, more than "
            f"{MOST_FIELD_MM / 1000:g} m"
        )
    return found + _said_by_its_header(volume, sizes)


def _said_by_its_header(volume: Volume, sizes: str) -> list[str]:
    header = volume.header
    if not isinstance(header, nib.Nifti1Header):
        return []
    stated = np.abs(np.asarray(header["pixdim"][1:4], dtype=np.float64))
    stated_sizes = " x ".join(f"{size:.4g}" for size in stated)
    found = []
    if int(header["sform_code"]) == 0 and int(header["qform_code"]) == 0:
        found.append(
            "it does not say where it lies (sform and qform codes are 0); its axes are taken for "
            f"right-left, back-front, feet-head, its voxels for {sizes} mm (pixdim {stated_sizes})"
        )
    elif (np.abs(stated - volume.spacing_mm) > SAME_SHARE * np.array(volume.spacing_mm)).any():
        found.append(
            f"its header contradicts itself: voxels of {sizes} mm by its affine, which is used, "
            f"and {stated_sizes} mm by its pixdim"
        )
    return found
