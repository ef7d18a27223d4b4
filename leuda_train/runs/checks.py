"""what a run is about to do -> said or refused before hours of training."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from leuda_deploy.errors import InputError

_log = logging.getLogger(__name__)


def check_classes(
    labels: NDArray[np.uint8], rows: NDArray[np.int64], structures: Mapping[str, int]
) -> None:
    """Say which classes have no labelled pixel in what is trained on.

    Args:
        labels: (N, H, W) classes of the slices as the network sees them.
        rows: Which of the slices are labelled.
        structures: Name -> class.

    Raises:
        InputError: No class has one.
    """
    counts = np.zeros(256, dtype=np.int64)
    for row in rows.tolist():
        counts += np.bincount(labels[row].ravel(), minlength=256)
    empty = [name for name, number in structures.items() if counts[number] == 0]
    if len(empty) == len(structures):
        raise InputError(
            f"none of the {len(rows)} labelled slices has a labelled pixel inside the window; "
            "look at [classes] and the labels of the cohort"
        )
    if empty:
        _log.warning(
            "no labelled slice has a pixel of %s: the network cannot learn it", ", ".join(empty)
        )
