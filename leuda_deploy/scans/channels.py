"""several scans of one grid, or one 4D scan -> one Volume with channels, in the order of the card.

CASE_0000.nii.gz, CASE_0001.nii.gz, ...    as nnU-Net names the channels of a case
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from leuda_deploy.errors import ScanError
from leuda_deploy.scans.label_map import check_same_grid
from leuda_deploy.scans.volume import Volume, count_frames, read_volume, volume_of

NUMBERED = re.compile(r"_(\d{4})(\.[^/\\]+)$")  # the channel in a file's name, and its ending


def read_channels(
    scan: Path, others: Sequence[Path], names: Sequence[str], *, voxels: bool = True
) -> Volume:
    """The channels of a card, from as many files, or the frames of one.

    Args:
        scan: The first channel, or a 4D file of all.
        others: The other channels, in order.
        names: What the card calls them all.
        voxels: As for `read_volume`.

    Raises:
        ScanError: There are more or fewer, or one of them cannot be used.
        GridMismatchError: Two of them lie on different grids.
    """
    if others or (frames := count_frames(scan)) == 1:
        _check_count(str(scan), 1 + len(others), names)
        return together([read_volume(path, voxels=voxels) for path in (scan, *others)], names)
    _check_count(f"the 4D file {scan}", frames, names)
    return together([read_volume(scan, frame=k, voxels=voxels) for k in range(frames)], names)


def channels_of(scans: Any, affine: Any, names: Sequence[str]) -> Volume:
    """The same of what is in memory: (X, Y, Z, C) with its affine, or a list of scans or files."""
    if isinstance(scans, str | Path):
        path = Path(scans)
        return read_channels(path, sibling_channels(path), names)
    if isinstance(scans, Sequence):
        each = [
            read_volume(scan) if isinstance(scan, str | Path) else volume_of(scan, affine)
            for scan in scans
        ]
        return together(each, names)
    count = int(np.prod(scans.shape[3:]))
    _check_count("the scan", count, names)
    return together([volume_of(scans, affine, frame=k) for k in range(count)], names)


def together(volumes: Sequence[Volume], names: Sequence[str]) -> Volume:
    """One Volume of several. Raises ScanError unless they are as many, GridMismatchError."""
    _check_count("the scan", len(volumes), names)
    first = volumes[0]
    for volume in volumes[1:]:
        check_same_grid(first, volume)
    return replace(first, more=tuple(volumes[1:]))


def sibling_channels(scan: Path) -> list[Path]:
    """Of CASE_0000.nii.gz, those of the same case that lie beside it, in order; else none."""
    found = NUMBERED.search(scan.name)
    if found is None or int(found[1]) != 0:
        return []
    start, ending = scan.name[: found.start()], found[2]
    return sorted(
        path
        for path in scan.parent.glob(f"*{ending}")
        if (other := NUMBERED.search(path.name))
        and (path.name[: other.start()], other[2]) == (start, ending)
        and int(other[1]) > 0
    )


def _check_count(what: str, count: int, names: Sequence[str]) -> None:
    if count != len(names):
        raise ScanError(
            "channels",
            f"{what} has {count} channel(s), the model reads {len(names)}: {', '.join(names)}; "
            "give a 4D file, CASE_0000 beside CASE_0001 and so on, or the others with --channel",
        )
