"""label maps of training scans -> how long each structure is along the slice axis, at least."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from leuda_deploy.scans.stack import Stack
from leuda_train.export.shortcuts.whole_scans import slice_counts


def extents_mm(labelled: Sequence[Stack], structures: Mapping[str, int]) -> dict[str, float]:
    """The smallest extent of each structure along the slice axis, in training labels.

    The extent in a scan is that of the most slices in a row that hold the structure. Where the
    scan's end cuts it, the structure may be longer: it counts only if no scan holds it whole.

    Args:
        labelled: Label maps of training scans, class numbers, as stacks.
        structures: Name -> class number.

    Returns:
        Structure -> mm. A structure that no scan shows is not there.
    """
    whole: dict[str, list[float]] = {}
    cut: dict[str, list[float]] = {}
    for stack in labelled:
        counts = slice_counts(stack.of_scan(stack.volume.raw), 1 + max(structures.values()))
        for name, number in structures.items():
            first, stop = _longest_row(counts[:, number] > 0)
            if first < stop:
                ends = first == 0 or stop == stack.scan_depth
                (cut if ends else whole).setdefault(name, []).append(
                    (stop - first) * stack.slice_spacing_mm
                )
    return {
        name: min(whole[name]) if name in whole else max(cut[name])
        for name in structures
        if name in whole or name in cut
    }


def _longest_row(holds: NDArray[np.bool_]) -> tuple[int, int]:
    """First and end of the most slices in a row that hold something; equal if none does."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], holds.astype(np.int8), [0]])))
    rows = list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))
    return max(rows, key=lambda row: row[1] - row[0], default=(0, 0))
