"""a scan and its labels -> a small PNG: the axial slice that holds most of the labels."""

from __future__ import annotations

import io
from collections.abc import Mapping

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from leuda_deploy.scans.volume import Volume

SIDE = 112  # pixels
TINT = 0.5
RADIOLOGICAL = ("L", "P", "S")  # columns run to the patient's left, rows to the back


def draw_thumbnail(
    scan: Volume, labels: NDArray[np.uint8] | None, colours: Mapping[int, tuple[int, int, int]]
) -> bytes:
    """A PNG of at most SIDE by SIDE pixels, the patient's right on the left of the picture.

    Args:
        scan: With its voxels.
        labels: (X, Y, Z) on the scan's grid, or None.
        colours: By class number.
    """
    turn = nib.orientations.ornt_transform(
        nib.io_orientation(scan.affine), nib.orientations.axcodes2ornt(RADIOLOGICAL)
    )
    spacing = np.empty(3)
    spacing[turn[:, 0].astype(int)] = scan.spacing_mm
    values = nib.apply_orientation(scan.raw, turn)
    on_it = None if labels is None else nib.apply_orientation(labels, turn)
    index = values.shape[2] // 2
    if on_it is not None and on_it.any():
        index = int(np.count_nonzero(on_it, axis=(0, 1)).argmax())
    # (columns, rows) -> (rows, columns), in scanner units up to a shift: only contrast matters
    plane = values[:, :, index].T.astype(np.float32) * scan.slope
    finite = plane[np.isfinite(plane)]
    low, high = np.percentile(finite, (1, 99)) if finite.size else (0.0, 1.0)
    grey = np.nan_to_num(np.clip((plane - low) / (high - low or 1.0), 0, 1)) * 255
    picture = np.repeat(grey[..., None], 3, axis=2)
    if on_it is not None:
        marked = on_it[:, :, index].T
        for value, colour in colours.items():
            mask = marked == value
            picture[mask] = (1 - TINT) * picture[mask] + TINT * np.asarray(colour)
    size_mm = np.array([plane.shape[1] * spacing[0], plane.shape[0] * spacing[1]])
    width, height = (max(1, round(float(mm))) for mm in size_mm * SIDE / size_mm.max())
    stream = io.BytesIO()
    image = Image.fromarray(picture.astype(np.uint8)).resize((width, height))
    image.save(stream, format="PNG")
    return stream.getvalue()
