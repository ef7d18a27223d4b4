"""a run, or scans by name -> whole target scans to prove things on, and what a model finds there.

Target scans are read here without their labels, if they have any.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from leuda_deploy.engines.engine import Scorer
from leuda_deploy.errors import InputError, TrainingError, reading
from leuda_deploy.inference.segment import segment
from leuda_deploy.inference.slabs import Scoring
from leuda_deploy.machine.outside import read_json
from leuda_deploy.machine.progress import Progress, no_progress
from leuda_deploy.scans.recipe import Depth, Recipe
from leuda_deploy.scans.stack import Stack
from leuda_deploy.scans.volume import read_volume
from leuda_train.loop.run_folder import RunFolder

MAX_SCANS_BYTES = 64 << 20
MOST_SCANS = 12  # that things are proven on, spread over all there are
NamedScan = tuple[str, Callable[[], Stack]]  # its name, and how it is opened


@dataclass(frozen=True, kw_only=True)
class FullPass:
    """What labelling a scan in full found.

    open_again        the scan
    counts            (D, 1 + K) voxels of each class in each slice
    packed            its labels (D, H, W), compressed
    slice_spacing_mm  from slice to slice
    voxel_ml          volume of a voxel
    """

    open_again: Callable[[], Stack]
    name: str
    counts: NDArray[np.int64]
    packed: bytes
    shape: tuple[int, int, int]
    slice_spacing_mm: float
    voxel_ml: float

    @property
    def labels(self) -> NDArray[np.uint8]:
        """(D, H, W)."""
        return np.frombuffer(zlib.decompress(self.packed), dtype=np.uint8).reshape(self.shape)

    @property
    def holds(self) -> NDArray[np.bool_]:
        """Which slices hold a structure, (D,)."""
        return np.asarray((self.counts[:, 1:] > 0).any(axis=1))


def target_scans(run: Path, recipe: Recipe) -> list[NamedScan]:
    """The unlabelled target scans that a run was trained on, those that are still there.

    Raises TrainingError if the run's list of them cannot be read.
    """
    path = RunFolder(run).scans
    if not path.is_file():
        return []
    with reading(lambda what: TrainingError(f"{path} is not what `leuda train` wrote: {what}")):
        rows = read_json(path, most=MAX_SCANS_BYTES)["scans"]
        found: list[NamedScan] = []
        for row in rows:
            image, (height, width) = Path(row["image"]), row["pixel_spacing_mm"]
            if row["role"] == "target unlabelled" and image.is_file():
                spacing_mm = (float(height), float(width))
                found.append((str(row["subject"]), partial(_open, image, recipe, spacing_mm)))
        return found


def named_scans(
    paths: Sequence[Path], recipe: Recipe, window_depth: Depth | None = None
) -> list[NamedScan]:
    """Scans that a user named, for a 2D or 3D graph. Raises InputError if one is not there."""
    for path in paths:
        if not path.is_file():
            raise InputError(f"no such scan: {path}")
    return [(path.name, partial(_open, path, recipe, None, window_depth)) for path in paths]


def _open(
    image: Path,
    recipe: Recipe,
    pixel_spacing_mm: tuple[float, float] | None,
    window_depth: Depth | None = None,
) -> Stack:
    volume = read_volume(image)
    return Stack(volume, recipe, window_depth=window_depth, pixel_spacing_mm=pixel_spacing_mm)


def label_in_full(
    scans: Sequence[NamedScan],
    engine: Scorer,
    scoring: Scoring,
    *,
    classes: int,
    progress: Progress = no_progress,
) -> list[FullPass]:
    """Label scans one after the other, at most MOST_SCANS of them, spread over all."""
    chosen = np.linspace(0, len(scans) - 1, min(MOST_SCANS, len(scans))).round().astype(int)
    passes = []
    for done, (name, opening) in enumerate(scans[k] for k in chosen):
        progress(done, len(chosen), name)
        stack = opening()
        labels = stack.of_scan(segment(stack, engine, scoring).labels)
        passes.append(
            FullPass(
                open_again=opening,
                name=name,
                counts=slice_counts(labels, classes),
                packed=zlib.compress(labels.tobytes(), 1),
                shape=(stack.scan_depth, *stack.plane_shape),
                slice_spacing_mm=stack.slice_spacing_mm,
                voxel_ml=stack.volume.voxel_ml,
            )
        )
    return passes


def slice_counts(label_stack: NDArray[np.uint8], classes: int) -> NDArray[np.int64]:
    """Class numbers (D, H, W) -> voxels of each class in each slice (D, classes)."""
    return np.stack([np.bincount(plane.ravel(), minlength=classes) for plane in label_stack])
