"""scan -> labels on the scan's own grid, the whole way on one page.

Slices do not interact (in-plane resampling, a 2D network), so the scan goes through in slabs of a
few slices and no score volume of the whole scan ever exists.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from leuda_deploy.errors import ModelError
from leuda_deploy.recipe import Recipe, Stack
from leuda_deploy.sliding_window import Engine, score_slices
from leuda_deploy.timing import Clock
from leuda_deploy.volume import Volume


@dataclass(frozen=True, kw_only=True)
class Segmentation:
    """Labels (X, Y, Z) uint8 on the scan's grid, and the seconds spent by stage."""

    labels: NDArray[np.uint8]
    seconds: dict[str, float]


def segment(
    volume: Volume,
    engine: Engine,
    recipe: Recipe,
    *,
    pixel_spacing_mm: tuple[float, float] | None = None,
    slab: int = 8,
    batch: int = 8,
    progress: Callable[[int, int], None] | None = None,
) -> Segmentation:
    """Label every voxel of a scan.

    engine    (B, 1, h, w) float32 normalised windows -> (B, K, h, w) scores, background first
    slab      slices held at a time; batch: windows given to the engine at a time
    progress  called with (slices done, slices in all)
    """
    clock = Clock()
    with clock("normalise"):
        stack = Stack(volume, recipe, pixel_spacing_mm=pixel_spacing_mm)
        fill = stack.intensity.floor
    labels = np.empty((stack.depth, *stack.plane_shape), dtype=np.uint8)
    for start in range(0, stack.depth, slab):
        stop = min(start + slab, stack.depth)
        with clock("resample"):
            images = stack.images(start, stop)
        with clock("network"):
            scores = score_slices(engine, images, window=recipe.window, fill=fill, batch=batch)
            if not np.isfinite(scores).all():
                raise ModelError(
                    f"the model gives scores that are not finite on {volume.name}, "
                    f"slices {start} to {stop - 1}; nothing was written"
                )
        with clock("labels"):
            labels[start:stop] = stack.to_plane(scores).argmax(axis=1)
        if progress is not None:
            progress(stop, stack.depth)
    with clock("labels"):
        on_scan = stack.to_scan(labels)
    return Segmentation(labels=on_scan, seconds=clock.seconds)


def volumes_ml(labels: NDArray[np.uint8], volume: Volume, names: Sequence[str]) -> dict[str, float]:
    """Volume of each structure in millilitres; names[k] is the structure with label k + 1."""
    counts = np.bincount(labels.ravel(order="K"), minlength=len(names) + 1)
    return {name: float(counts[k + 1]) * volume.voxel_ml for k, name in enumerate(names)}
