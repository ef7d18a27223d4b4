"""scan -> labels on the scan's own grid, the whole way on one page.

The scan goes through in slabs of a few slices, and no score volume of the whole scan ever exists:

    images  (d, h, w) float32     thread 1   normalise, resample
    scores  (d, K, h, w) float32  thread 2   windows, network, blend
    labels  (d, H, W) uint8       caller     winning class on the scan's own pixels

The three work at once on successive slabs; each waits when it is one slab ahead. A 2D network
scores each slab by itself; for a 3D one, each slab completes a window (`Blocks`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from leuda_deploy.engines.engine import Float32, Scorer
from leuda_deploy.errors import ModelError
from leuda_deploy.inference.labels import Doubts, label_plane
from leuda_deploy.inference.pipelined import ahead
from leuda_deploy.inference.slabs import Blocks, ScanSlices, Slabs
from leuda_deploy.inference.sliding_window import mirrored, scoring_floor_once
from leuda_deploy.machine.clock import Clock
from leuda_deploy.machine.progress import Progress, no_progress
from leuda_deploy.model.tiling import DEFAULT_TILING, Tiling
from leuda_deploy.scans.intensity import Intensity
from leuda_deploy.scans.recipe import Depth, Recipe
from leuda_deploy.scans.stack import Stack
from leuda_deploy.scans.volume import Volume


@dataclass(frozen=True, kw_only=True)
class Segmentation:
    """What was found in one scan.

    labels          (X, Y, Z) uint8 on the scan's grid, Fortran order as NIfTI files have it
    uncertainty     (X, Y, Z) uint8 entropy of the softmax, 255 = all classes alike; or None
    low_confidence  share of the voxels labelled as a structure whose class has a probability
                    below 0.7, on the model grid
    intensity       clip limits and normalisation fitted to this scan, in scanner units
    seconds         busy wall seconds by stage; the stages overlap
    """

    labels: NDArray[np.uint8]
    uncertainty: NDArray[np.uint8] | None
    low_confidence: float
    intensity: Intensity
    seconds: dict[str, float]


def segment(
    volume: Volume,
    engine: Scorer,
    recipe: Recipe,
    *,
    depth: Depth | None = None,
    pixel_spacing_mm: tuple[float, float] | None = None,
    slab: int | None = None,
    batch: int = 8,
    tiling: Tiling = DEFAULT_TILING,
    uncertainty: bool = False,
    progress: Progress = no_progress,
) -> Segmentation:
    """`segment_stack` for a scan as it was read."""
    stack = Stack(volume, recipe, window_depth=depth, pixel_spacing_mm=pixel_spacing_mm)
    return segment_stack(
        stack,
        engine,
        slab=slab,
        batch=batch,
        tiling=tiling,
        uncertainty=uncertainty,
        progress=progress,
    )


def segment_stack(
    stack: Stack,
    engine: Scorer,
    *,
    slab: int | None = None,
    batch: int = 8,
    tiling: Tiling = DEFAULT_TILING,
    mirror: bool = False,
    uncertainty: bool = False,
    probabilities: bool = False,
    progress: Progress = no_progress,
) -> Segmentation:
    """Label every voxel of a scan.

    engine    (B, 1, h, w) float32 normalised windows -> (B, K, h, w) scores, background first;
              where the stack has a depth, (d, h, w) in place of (h, w)
    slab      slices held at a time, by default as many as fill a batch; a 3D window has its own
    batch     windows given to the engine at a time
    tiling    how windows are laid and blended, and which are left out
    mirror    average over mirrored windows, along the axes that `tiling` allows
    probabilities  the engine's scores are after a softmax: doubts are worked out accordingly
    progress  called with (slices done, slices in all)
    """
    clock = Clock()
    with clock("normalise"):
        fill = stack.intensity.floor
    if mirror:
        engine = mirrored(engine, tiling.mirror)
    if tiling.skip_floor:
        engine = scoring_floor_once(engine, fill)
    score = (
        Blocks(engine, stack, fill=fill, tiling=tiling, batch=batch)
        if stack.window_slices > 1
        else Slabs(engine, stack, fill=fill, tiling=tiling, batch=batch, slab=slab)
    )

    def images() -> Iterator[Float32]:
        for start, stop in pairwise([0, *score.cuts]):
            with clock("resample"):
                slices = stack.images(start, stop)
            yield slices

    def scores() -> Iterator[tuple[int, Float32]]:
        for slices in ahead(images()):
            with clock("network"):
                start, found = score(slices)
                if not np.isfinite(found).all():
                    raise ModelError(
                        f"the model gives scores that are not finite on {stack.volume.name}, "
                        f"slices {start} to {start + len(found) - 1}; nothing was written"
                    )
            yield start, found

    labels = np.empty(stack.volume.raw.shape, dtype=np.uint8, order="F")
    label_stack = stack.of_scan(labels)
    doubts = Doubts(stack, wanted=uncertainty, probabilities=probabilities)
    on_scan = ScanSlices(stack.depth, stack.scan_depth)
    for grid_start, on_grid in ahead(scores()):
        for start, found in on_scan(grid_start, on_grid):
            with clock("labels"):
                for index, plane in enumerate(found, start=start):
                    label_stack[index] = label_plane(plane, stack.plane_shape)
            with clock("doubts"):
                doubts.add(start, found)
        progress(grid_start + len(on_grid), stack.depth, "")
    return Segmentation(
        labels=labels,
        uncertainty=doubts.entropy,
        low_confidence=doubts.low_share,
        intensity=stack.intensity,
        seconds=clock.seconds,
    )


def volumes_ml(labels: NDArray[np.uint8], volume: Volume, names: Sequence[str]) -> dict[str, float]:
    """Volume of each structure in millilitres; names[k] is the structure with label k + 1."""
    counts = np.zeros(256, dtype=np.int64)
    for part in np.moveaxis(labels, -1, 0):  # bincount widens what it counts to 8 bytes a voxel
        counts += np.bincount(part.ravel(order="K"), minlength=256)
    return {name: float(counts[k + 1]) * volume.voxel_ml for k, name in enumerate(names)}
