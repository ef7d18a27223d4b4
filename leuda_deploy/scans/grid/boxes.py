"""a scan -> the box of it that is looked at."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from leuda_deploy.scans.volume import Volume

Box = tuple[slice, ...]
ALL: Box = (slice(None),) * 3


def around(boxes: Sequence[Box]) -> Box:
    """The smallest box that holds all of them; `slice(None)` is the whole axis."""
    if any(side.start is None for box in boxes for side in box):
        return ALL
    x, y, z = (
        slice(min(box[axis].start for box in boxes), max(box[axis].stop for box in boxes))
        for axis in range(3)
    )
    return x, y, z


def nonzero_box(volume: Volume) -> Box:
    """The smallest box that holds all voxels of a value other than 0; of none, the whole scan."""
    zero = -volume.inter / volume.slope
    lit = np.zeros(volume.raw.shape[:2], dtype=bool)
    deep = np.zeros(volume.raw.shape[2], dtype=bool)
    for place, plane in enumerate(np.moveaxis(volume.raw, -1, 0)):
        marked = plane != zero
        deep[place] = marked.any()
        lit |= marked
    if not deep.any():
        return ALL
    found = (np.flatnonzero(line) for line in (lit.any(axis=1), lit.any(axis=0), deep))
    return tuple(slice(int(places[0]), int(places[-1]) + 1) for places in found)
