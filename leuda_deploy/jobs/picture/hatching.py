"""a grey picture + labels -> structures that are told apart by colour, and by lines without it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from leuda_deploy.model.card import Structure

TINT, HATCH = 0.3, 0.7  # how much of a structure's colour there is within it, and on its lines
PATCH = (19, 30)  # pixels: height and width
GREY = 90


def tinted(
    picture: NDArray[np.uint8], labels: NDArray[np.uint8], structures: Sequence[Structure]
) -> NDArray[np.uint8]:
    """A picture (H, W, 3) with its structures tinted, hatched and outlined."""
    found = picture.astype(np.float32)
    for structure in structures:
        mask = labels == structure.value
        rim = mask & ~ndimage.binary_erosion(mask, border_value=0)
        colour = np.asarray(structure.colour, dtype=np.float32)
        lines = mask & _hatching(structure.value, labels.shape)
        found[mask] = (1 - TINT) * found[mask] + TINT * colour
        found[lines] = (1 - HATCH) * picture[lines] + HATCH * colour
        found[rim] = colour
    return found.astype(np.uint8)


def _hatching(value: int, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """Lines that tell structures apart without colour, as in print. The first has none."""
    row, column = np.indices(shape, sparse=True)
    rising, falling = (row + column) % 9 == 0, (row - column) % 9 == 0
    level, upright = row % 7 == 0, column % 7 == 0
    nothing = np.zeros(shape, dtype=bool)
    kinds = (nothing, rising, falling, level, upright, rising | falling, level & upright)
    return np.broadcast_to(kinds[(value - 1) % len(kinds)], shape)


def patch(structure: Structure) -> Image.Image:
    """How a structure looks on grey."""
    grey, labels = np.full((*PATCH, 3), GREY, np.uint8), np.full(PATCH, structure.value, np.uint8)
    return Image.fromarray(tinted(grey, labels, [structure]))
