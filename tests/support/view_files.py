"""A small scan with two label files, a map and a report, as `leuda view` is given them.

The patient's right half is known: class 1 lies there, class 2 on the left.
"""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from leuda_deploy.scans.nifti import write_labels, write_map, write_scan
from leuda_deploy.scans.volume import read_volume

SHAPE = (40, 44, 24)
NAMES = {1: "right blob", 2: "left blob"}


def turned_affine(codes: str, degrees: float = 0.0) -> NDArray[np.float64]:
    """Array axes along these directions, turned by some degrees about the third world axis."""
    turn = nib.orientations.axcodes2ornt(tuple(codes))
    affine = np.zeros((4, 4))
    for axis, (world, sign) in enumerate(turn):
        affine[int(world), axis] = sign * (2.0, 2.0, 3.0)[axis]
    angle = np.deg2rad(degrees)
    spin = np.eye(4)
    spin[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    affine[3, 3] = 1.0
    affine = spin @ affine
    affine[:3, 3] = -affine[:3, :3] @ ((np.array(SHAPE) - 1) / 2)  # the middle is 0, 0, 0
    return affine


def blobs(affine: NDArray[np.float64], shift_mm: float = 0.0) -> NDArray[np.uint8]:
    """Two balls of 12 mm, 20 mm to the right (class 1) and to the left (class 2) of the middle."""
    voxels = np.stack(np.indices(SHAPE), axis=-1) @ affine[:3, :3].T + affine[:3, 3]
    labels = np.zeros(SHAPE, np.uint8)
    for value, x in ((1, 20.0), (2, -20.0)):
        centre = np.array([x, shift_mm, 0.0])
        labels[np.linalg.norm(voxels - centre, axis=-1) < 12.0] = value
    return labels


def write_case(
    folder: Path, name: str = "case", *, codes: str = "LPS", degrees: float = 0.0, unsure: float = 0
) -> Path:
    """NAME.nii.gz, NAME_labels.nii.gz with its report, NAME_truth.nii.gz, NAME_uncertainty.nii.gz.

    Returns:
        The scan.
    """
    affine = turned_affine(codes, degrees)
    labels = blobs(affine)
    scan = folder / f"{name}.nii.gz"
    noise = np.random.default_rng(0).integers(0, 40, SHAPE)
    write_scan(scan, (labels * 100 + noise).astype(np.int16), affine)
    volume = read_volume(scan)
    write_labels(folder / f"{name}_labels.nii.gz", labels, volume, NAMES)
    write_labels(folder / f"{name}_truth.nii.gz", blobs(affine, 4.0), volume, NAMES)
    write_map(folder / f"{name}_uncertainty.nii.gz", (labels * 90).astype(np.uint8), volume)
    report = {
        "scan": str(scan),
        "labels": str(folder / f"{name}_labels.nii.gz"),
        "uncertainty": str(folder / f"{name}_uncertainty.nii.gz"),
        "model": "gone/model.onnx",
        "engine": "a test",
        "volumes_ml": {},
        "low_confidence": unsure,
        "domain": {"fits": unsure < 0.5, "z": 1.0, "figure": "low", "value": 0.0, "usual": -999.0},
        "flags": [{"structure": "left blob", "flag": "not found"}],
        "seconds": {"network": 1.5},
        "total_seconds": 2.0,
    }
    (folder / f"{name}_labels.json").write_text(json.dumps(report))
    return scan
