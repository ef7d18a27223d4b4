"""voxels and where they lie -> a gzipped NIfTI file, the same bytes every time."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from leuda_deploy.machine.files import atomic_path


def write_nifti(
    path: Path,
    stored: NDArray[Any],
    affine: NDArray[np.floating],
    *,
    scale: tuple[float, float] | None = None,
) -> None:
    """Write a scan or its labels, over what is there, whole or not at all.

    Args:
        path: Ends in .nii.gz.
        stored: (X, Y, Z), as it is to lie in the file.
        affine: (4, 4), voxel index -> RAS+ world in mm.
        scale: Slope and intercept of the header, value = slope * stored + intercept; without it
            the header has none.
    """
    image = nib.Nifti1Image(stored, affine)
    if scale is not None:
        image.header.set_slope_inter(*scale)
    image.header.set_xyzt_units("mm")
    image.set_qform(affine, code=1)
    image.set_sform(affine, code=1)
    with atomic_path(path) as temporary:
        temporary.write_bytes(gzip.compress(image.to_bytes(), compresslevel=3, mtime=0))
