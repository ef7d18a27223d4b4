"""scan -> labels on the scan's own grid, the whole way on one page.

The scan goes through in slabs of a few slices, and no score volume of the whole scan ever exists:

    images  (d, h, w) float32     thread 1   normalise, resample
    scores  (d, K, h, w) float32  thread 2   windows, network, blend
    labels  (d, H, W) uint8       caller     winning class on the scan's own pixels

The three work at once on successive slabs; each waits when it is one slab ahead. A 2D network
scores each slab by itself; for a 3D one, each slab completes a window.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from leuda_deploy.engines.engine import Float32, Scorer
from leuda_deploy.errors import ModelError
from leuda_deploy.inference.labels import Uncertainty, label_plane
from leuda_deploy.inference.pipelined import prefetch
from leuda_deploy.inference.slabs import (
    DEFAULT_SCORING,
    BlockScorer,
    ScanSlices,
    Scoring,
    SlabScorer,
)
from leuda_deploy.inference.sliding_window import mirrored, scoring_floor_once
from leuda_deploy.machine.clock import Clock
from leuda_deploy.machine.progress import Progress, no_progress
from leuda_deploy.scans.intensity import Intensity
from leuda_deploy.scans.stack import Stack
from leuda_deploy.scans.volume import Volume


@dataclass(frozen=True, kw_only=True)
class Segmentation:
    """What was found in one scan.

    Attributes:
        labels: (X, Y, Z) uint8 on the scan's grid, Fortran order as NIfTI files have it.
        uncertainty: (X, Y, Z) uint8 entropy of the softmax, 255 = all classes alike; or None.
        low_confidence: Share of the voxels labelled as a structure whose class has a probability
            below 0.7, on the model grid.
        intensity: Clip limits and normalisation fitted to this scan, in scanner units.
        seconds: Busy wall seconds by part of the work; the parts overlap.
        cleaned_ml: Millilitres of islands that were taken out of `labels`, by label value; None: it
            was not asked for, or the model's card has no rules.
    """

    labels: NDArray[np.uint8]
    uncertainty: NDArray[np.uint8] | None
    low_confidence: float
    intensity: Intensity
    seconds: dict[str, float]
    cleaned_ml: dict[int, float] | None = None


def segment(
    stack: Stack,
    engine: Scorer,
    scoring: Scoring = DEFAULT_SCORING,
    *,
    uncertainty: bool = False,
    progress: Progress = no_progress,
) -> Segmentation:
    """Label every voxel of a scan.

    Args:
        stack: The scan as the model's recipe has it.
        engine: (B, 1, h, w) float32 normalised windows -> (B, K, h, w) scores, background first;
            where the stack has a window depth, (d, h, w) in place of (h, w).
        scoring: How windows are laid, blended and mirrored, and how many are held at a time.
        uncertainty: Also make the entropy map.
        progress: Told how many of the slices are done.

    Raises:
        InputError: The scan cannot be normalised.
        ModelError: Scores are not finite.
    """
    clock = Clock()
    with clock("normalise"):
        fill = stack.outside
    if scoring.mirror:
        engine = mirrored(engine, scoring.tiling.mirror)
    if scoring.tiling.skip_floor:
        engine = scoring_floor_once(engine, stack.intensity.floor)
    scorer_type = BlockScorer if stack.window_slices > 1 else SlabScorer
    score = scorer_type(engine, stack, scoring, fill=fill)

    def images() -> Iterator[Float32]:
        for start, stop in pairwise([0, *score.cuts]):
            with clock("resample"):
                slices = stack.images(start, stop)
            yield slices

    def scores() -> Iterator[tuple[int, Float32]]:
        for slices in prefetch(images()):
            with clock("network"):
                start, found = score(slices)
                if not np.isfinite(found).all():
                    raise ModelError(
                        f"the model gives scores that are not finite on {stack.volume.name}, "
                        f"slices {start} to {start + len(found) - 1}; nothing was written"
                    )
            yield start, found

    labels = np.zeros(stack.volume.raw.shape, dtype=np.uint8, order="F")
    label_stack = stack.of_scan(labels)
    unsure = Uncertainty(stack, wanted=uncertainty, probabilities=scoring.probabilities)
    on_scan = ScanSlices(stack.depth, stack.scan_depth, stack.score_kernels[0])
    for grid_start, on_grid in prefetch(scores()):
        for start, found in on_scan(grid_start, on_grid):
            with clock("labels"):
                for index, plane in enumerate(found, start=start):
                    label_stack[index] = label_plane(
                        plane, stack.plane_shape, stack.score_kernels[1:]
                    )
            with clock("doubts"):
                unsure.add(start, found)
        progress(grid_start + len(on_grid), stack.depth, "")
    return Segmentation(
        labels=labels,
        uncertainty=unsure.entropy,
        low_confidence=unsure.low_share,
        intensity=stack.intensity,
        seconds=clock.seconds,
    )


def volumes_ml(labels: NDArray[np.uint8], volume: Volume, names: Sequence[str]) -> dict[str, float]:
    """Volume of each structure in millilitres; names[k] is the structure with label k + 1."""
    counts = np.zeros(256, dtype=np.int64)
    for part in np.moveaxis(labels, -1, 0):  # bincount widens what it counts to 8 bytes a voxel
        counts += np.bincount(part.ravel(order="K"), minlength=256)
    return {name: float(counts[k + 1]) * volume.voxel_ml for k, name in enumerate(names)}
