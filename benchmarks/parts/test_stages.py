"""Micro timings of what is not the network, on eight slices of a made CT.

    pytest benchmarks --benchmark-only [--benchmark-compare]

512 x 512 pixels, network at 256 x 256, 5 classes. The network's share is in benchmarks/runtime.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from leuda_deploy.inference.labels import entropy, label_plane
from leuda_deploy.inference.sliding_window import score_slices
from leuda_deploy.scans.intensity import fit_intensity
from leuda_deploy.scans.nifti import write_labels
from leuda_deploy.scans.recipe import Recipe
from leuda_deploy.scans.stack import Stack
from leuda_deploy.scans.volume import Volume, read_volume

SLICES, SIZE, GRID, CLASSES = 8, 512, 256, 5
RECIPE = Recipe(slice_axis="superior", spacing_mm=(1.5, 1.5), window=(GRID, GRID))


@pytest.fixture(scope="module")
def volume() -> Volume:
    """A body in air, int16."""
    rng = np.random.default_rng(0)
    y, x = (np.mgrid[:SIZE, :SIZE] - SIZE / 2) / SIZE
    plane = np.where(np.hypot(x, y) < 0.4, 40.0, -1000.0)[..., None]
    raw = (plane + rng.normal(0, 20, (SIZE, SIZE, SLICES))).astype(np.int16, order="F")
    return Volume(
        name="made",
        raw=raw,
        slope=1.0,
        inter=0.0,
        affine=np.diag([-0.75, -0.75, 1.0, 1.0]),
        header=None,
        shape=raw.shape,
    )


@pytest.fixture(scope="module")
def labels() -> np.ndarray:
    """Five classes in discs."""
    y, x = (np.mgrid[:SIZE, :SIZE] - SIZE / 2) / SIZE
    rings = np.minimum((np.hypot(x, y) * 12).astype(np.uint8), 5) % CLASSES
    return np.asfortranarray(np.repeat(rings[..., None], SLICES, axis=2))


@pytest.fixture(scope="module")
def scores() -> np.ndarray:
    """(K, 256, 256): smooth, with borders between the classes."""
    y, x = np.mgrid[:GRID, :GRID] / GRID
    return np.stack([np.cos(7 * x + k) * np.sin(5 * y - k) for k in range(CLASSES)]).astype("f4")


@pytest.fixture(scope="module")
def scan(volume: Volume, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The volume as .nii.gz."""
    path = tmp_path_factory.mktemp("scan") / "scan.nii.gz"
    nib.save(nib.Nifti1Image(volume.raw, volume.affine), path)
    return path


def test_decode(benchmark: Any, scan: Path) -> None:
    benchmark(read_volume, scan)


def test_histogram_and_percentiles(benchmark: Any, volume: Volume) -> None:
    benchmark(fit_intensity, volume, RECIPE)


def test_normalise_and_resample(benchmark: Any, volume: Volume) -> None:
    stack = Stack(volume, RECIPE)
    stack.images(0, 1)
    benchmark(stack.images, 0, SLICES)


def test_windows_and_blend(benchmark: Any) -> None:
    images = np.zeros((1, 384, 384), np.float32)
    some = np.zeros((9, CLASSES, GRID, GRID), np.float32)
    benchmark(
        score_slices, lambda windows: some[: len(windows)], images, window=(GRID, GRID), fill=0.0
    )


def test_labels_of_a_slice(benchmark: Any, scores: np.ndarray) -> None:
    benchmark(label_plane, scores, (SIZE, SIZE))


def test_entropy_of_a_slice(benchmark: Any, scores: np.ndarray) -> None:
    benchmark(entropy, scores)


def test_encode(benchmark: Any, volume: Volume, labels: np.ndarray, tmp_path: Path) -> None:
    benchmark(write_labels, tmp_path / "labels.nii.gz", labels, volume, {})


def test_plain_copy_of_the_slices(benchmark: Any, volume: Volume) -> None:
    """What memory alone takes: the yardstick of the others."""
    target = np.empty_like(volume.raw)
    benchmark(np.copyto, target, volume.raw)
