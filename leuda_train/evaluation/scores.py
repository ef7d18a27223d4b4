"""predicted labels, true labels -> Dice and surface distances in mm, per structure and volume.

Every volume is scored twice: as predicted, and with only the largest connected component of each
predicted structure (the truth is never changed). A distance to an empty mask does not exist: it
is None and counted as missing, never 0, so a mean distance is always read with its count.

Definitions: Dice = 2|P∩T| / (|P| + |T|) (Dice, Ecology 1945); ASSD, the average symmetric surface
distance (Heimann et al., IEEE TMI 2009); HD95, the 95th percentile Hausdorff distance taken as the
larger of the two directed percentiles (Maier-Hein et al., Metrics Reloaded, Nature Methods 2024).
Distances run between the centres of border voxels, along orthogonal axes `spacing_mm` apart.

The paper protocol, to stand beside published figures: MedPy's `assd`, the mean of the two directed
means and not of all distances pooled, in voxels of the scan's grid, and 0 where a structure was
missed altogether or found where there is none, as in the released MT-UDA code.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial import KDTree

from leuda_deploy.errors import InputError

Labels = NDArray[np.integer]
Mask = NDArray[np.bool_]
Spacing = tuple[float, float, float]
Names = Mapping[str, int]  # structure -> class number

VARIANTS = {"as_predicted": False, "largest_component": True}


@dataclass(frozen=True, kw_only=True)
class StructureScore:
    """One structure in one volume."""

    structure: str
    dice: float | None  # None: in neither volume, nothing to score; 0: in one of the two only
    assd_mm: float | None  # None: either side is empty, no distance exists
    hd95_mm: float | None  # None: likewise
    paper_assd_voxels: float | None  # 0: either side is empty; None: both
    predicted_ml: float
    true_ml: float


def score_volume(
    predicted: Labels,
    true: Labels,
    spacing_mm: Spacing,
    structures: Names,
    *,
    largest_component: bool = False,
) -> list[StructureScore]:
    """Scores of each structure; labels (X, Y, Z), spacing in mm per axis, structures name -> label.

    `largest_component` filters the prediction alone. Raises InputError where the shapes differ.
    """
    if predicted.shape != true.shape or predicted.ndim != 3:
        raise InputError(f"labels {predicted.shape} and {true.shape} must share one (X, Y, Z)")
    if largest_component:
        predicted = keep_largest_component(predicted, structures.values())
    return [
        _score(name, predicted == label, true == label, spacing_mm)
        for name, label in structures.items()
    ]


def _score(name: str, predicted: Mask, true: Mask, spacing_mm: Spacing) -> StructureScore:
    n_predicted, n_true = int(np.count_nonzero(predicted)), int(np.count_nonzero(true))
    n_both = int(np.count_nonzero(predicted & true))
    distances: list[NDArray[np.float64]] = []
    paper = 0.0 if n_predicted or n_true else None
    if n_predicted and n_true:
        borders = _borders(predicted, true)
        distances = _distances(*(border * spacing_mm for border in borders))
        paper = fmean(float(d.mean()) for d in _distances(*borders))
    voxel_ml = float(np.prod(spacing_mm)) / 1000
    return StructureScore(
        structure=name,
        dice=2 * n_both / (n_predicted + n_true) if n_predicted or n_true else None,
        assd_mm=float(np.concatenate(distances).mean()) if distances else None,
        hd95_mm=float(max(np.percentile(d, 95) for d in distances)) if distances else None,
        paper_assd_voxels=paper,
        predicted_ml=n_predicted * voxel_ml,
        true_ml=n_true * voxel_ml,
    )


def _borders(a: Mask, b: Mask) -> list[NDArray[np.float64]]:
    """Places (n, 3) of the border voxels of two masks (X, Y, Z) that both hold a voxel.

    A border voxel has a 6-neighbour outside its mask, and beyond the array is outside. Where both
    masks lie in one and the same slice, the 4 neighbours within it count alone: else all would be
    border. Only the box around the two masks is computed on; places are counted from its corner.
    """
    box = ndimage.find_objects((a | b).astype(np.uint8))[0]
    neighbours = ndimage.generate_binary_structure(3, 1)
    flat = [axis for axis, size in enumerate(a[box].shape) if size == 1]
    if len(flat) == 1:
        ends = np.moveaxis(neighbours, flat[0], 0)  # a view
        ends[[0, 2]] = False
    return [
        np.argwhere(
            mask[box] & ~ndimage.binary_erosion(mask[box], structure=neighbours, border_value=0)
        ).astype(float)
        for mask in (a, b)
    ]


def _distances(a: NDArray[np.float64], b: NDArray[np.float64]) -> list[NDArray[np.float64]]:
    """From each place (n, 3) of `a` to the nearest of `b`, and the other way round."""
    return [np.asarray(KDTree(there).query(here)[0]) for here, there in ((a, b), (b, a))]


def keep_largest_component(labels: Labels, structures: Iterable[int]) -> Labels:
    """Labels (X, Y, Z) with the largest 26-connected component per structure; ties: the first."""
    kept = labels.copy()
    for label in structures:
        mask = labels == label
        for box in ndimage.find_objects(mask.astype(np.uint8)):  # one box, or none if absent
            components, _ = ndimage.label(mask[box], structure=np.ones((3, 3, 3)))
            largest = 1 + np.bincount(components.ravel())[1:].argmax()
            kept[box][mask[box] & (components != largest)] = 0
    return kept


def summarise(volumes: Mapping[str, list[StructureScore]]) -> dict[str, Any]:
    """Statistics over volumes, JSON-able: `{"structures": {name: ...}, "mean": ...}`.

    Every volume lists the same structures. Of `n_volumes` a structure has a Dice in `n_scored` (it
    is in prediction or truth); of those, `n_missing_distance` have no distance and are left out of
    the distance means. `dice_std` is the sample's (n - 1), so None for one volume. `mean` averages
    the structures' means and sums their missing distances. A statistic over nothing is None.
    """
    rows = {s[0].structure: _statistics(s) for s in zip(*volumes.values(), strict=True)}
    mean: dict[str, Any] = {
        key: _mean(row[key] for row in rows.values())
        for key in ("dice", "assd_mm", "hd95_mm", "paper_assd_voxels")
    }
    mean["n_missing_distance"] = sum(row["n_missing_distance"] for row in rows.values())
    return {"structures": rows, "mean": mean}


def _statistics(scores: Sequence[StructureScore]) -> dict[str, Any]:
    dice = [score.dice for score in scores if score.dice is not None]
    return {
        "dice": _mean(dice),
        "dice_std": stdev(dice) if len(dice) > 1 else None,
        "assd_mm": _mean(score.assd_mm for score in scores),
        "hd95_mm": _mean(score.hd95_mm for score in scores),
        "paper_assd_voxels": _mean(score.paper_assd_voxels for score in scores),
        "n_volumes": len(scores),
        "n_scored": len(dice),
        "n_missing_distance": len(dice) - sum(score.assd_mm is not None for score in scores),
    }


def _mean(values: Iterable[float | None]) -> float | None:
    present = [value for value in values if value is not None]
    return fmean(present) if present else None
