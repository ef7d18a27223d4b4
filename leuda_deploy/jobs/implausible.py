"""geometry of a scan -> what is odd about it, in words with numbers; volumes depend on it."""

from __future__ import annotations

import nibabel as nib
import numpy as np

from leuda_deploy.scans.volume import Volume

LEAST_MM, MOST_MM = 0.05, 20.0  # edge of a voxel
MOST_FIELD_MM = 2000.0
SAME_SHARE = 0.02  # by which two statements of a voxel's size may differ


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
