"""An identity network gives back its input's labels, whatever the scan's geometry and storage."""

from __future__ import annotations

from itertools import permutations, product
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from nibabel import orientations
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from leuda_deploy.inference.segment import segment
from leuda_deploy.inference.slabs import Scoring
from leuda_deploy.scans.nifti import write_labels
from leuda_deploy.scans.recipe import Recipe
from leuda_deploy.scans.stack import Stack
from leuda_deploy.scans.volume import read_volume

CLASSES = 5
ORDERS = [
    np.column_stack(order) for order in product(permutations(range(3)), product((1, -1), repeat=3))
]
AXES = ["superior", "anterior", "right", "array-0", "array-1", "array-2"]
KINDS: list[tuple[Any, str]] = [
    (nib.Nifti1Image, ".nii"),
    (nib.Nifti1Image, ".nii.gz"),
    (nib.Nifti2Image, ".nii.gz"),
    (nib.Nifti1Pair, ".hdr"),
]


def identity(windows: NDArray[np.float32]) -> NDArray[np.float32]:
    """Scores that are largest for the class that the pixel's value, -1 to 1, stands for."""
    classes = np.linspace(-1, 1, CLASSES, dtype=np.float32)
    return -np.abs(windows - classes[:, None, None])


def recipe(axis: str) -> Recipe:
    return Recipe(
        slice_axis=axis,  # type: ignore[arg-type]
        spacing_mm="native",
        window=(8, 9),
        clip_percentiles=(0.0, 100.0),
        normalisation="minmax",
    )


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    shape=st.tuples(*[st.integers(1, 20)] * 3).filter(lambda shape: np.prod(shape) >= 2),
    order=st.sampled_from(ORDERS),
    spacing=st.tuples(*[st.floats(0.3, 6)] * 3),
    turn=st.tuples(*[st.floats(-180, 180)] * 3),
    axis=st.sampled_from(AXES),
    dtype=st.sampled_from(["u1", "i2", "i4", "f4", "f8"]),
    endian=st.sampled_from("<>"),
    scale=st.sampled_from([(1.0, 0.0), (0.5, -1024.0), (-2.0, 3.0), (0.0, 7.0), (np.nan, 0.0)]),
    kind=st.sampled_from(KINDS),
    seed=st.integers(0, 100),
)
def test_identity_network_gives_back_its_labels(
    tmp_path: Path,
    shape: tuple[int, int, int],
    order: NDArray[Any],
    spacing: tuple[float, float, float],
    turn: tuple[float, float, float],
    axis: str,
    dtype: str,
    endian: str,
    scale: tuple[float, float],
    kind: tuple[Any, str],
    seed: int,
) -> None:
    labels = np.random.default_rng(seed).integers(0, CLASSES, shape).astype(endian + dtype)
    labels.ravel()[[0, -1]] = 0, CLASSES - 1  # so that the range of values is known
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", turn, degrees=True).as_matrix() @ np.diag(spacing)
    affine[:3, 3] = (5, -60, 12)
    affine = affine @ orientations.inv_ornt_aff(order, shape)  # also mirrored ones
    make, ending = kind
    image = make(labels, affine, make.header_class(endianness=endian))
    image.header.set_slope_inter(1, 0)
    path = tmp_path / f"scan{ending}"
    nib.save(image, path)
    if ending == ".nii":
        content = bytearray(path.read_bytes())
        content[112:120] = np.array(scale, dtype=endian + "f4").tobytes()
        path.write_bytes(content)
    volume = read_volume(path)
    expected = labels.astype(np.uint8)
    if volume.slope < 0:
        expected = CLASSES - 1 - expected
    found = segment(Stack(volume, recipe(axis)), identity, Scoring(batch=3))
    np.testing.assert_array_equal(found.labels, expected)
    assert found.labels.flags.f_contiguous
    write_labels(tmp_path / "labels.nii.gz", found.labels, volume, {})
    written = nib.load(tmp_path / "labels.nii.gz")
    np.testing.assert_array_equal(np.asarray(written.dataobj), expected.reshape(written.shape))
    np.testing.assert_array_equal(written.affine, nib.load(path).affine)


@pytest.mark.parametrize("axis", AXES)
def test_all_48_orders_through_files(tmp_path: Path, axis: str) -> None:
    labels = np.random.default_rng(0).integers(0, CLASSES, (4, 5, 6)).astype(np.int16)
    labels[0, 0, :2] = 0, CLASSES - 1
    image = nib.Nifti1Image(labels, np.diag([0.7, 1.1, 3.0, 1.0]))
    signs = set()
    for order in ORDERS:
        turned = image.as_reoriented(order)
        nib.save(turned, tmp_path / "a.nii.gz")
        volume = read_volume(tmp_path / "a.nii.gz")
        signs.add(bool(np.linalg.det(volume.affine) > 0))
        found = segment(Stack(volume, recipe(axis)), identity)
        np.testing.assert_array_equal(found.labels, np.asarray(turned.dataobj))
    assert signs == {True, False}


def test_sform_is_believed_where_it_differs_from_the_qform(tmp_path: Path) -> None:
    labels = np.random.default_rng(0).integers(0, CLASSES, (4, 5, 6)).astype(np.int16)
    labels[0, 0, :2] = 0, CLASSES - 1
    image = nib.Nifti1Image(labels, None)
    image.set_sform(np.diag([1.0, 2.0, 3.0, 1.0]), 1)
    image.set_qform(np.diag([3.0, 2.0, 1.0, 1.0]), 2)
    nib.save(image, tmp_path / "a.nii")
    assert read_volume(tmp_path / "a.nii").spacing_mm == (1, 2, 3)
    image.set_sform(None, 0)
    nib.save(image, tmp_path / "b.nii")
    assert read_volume(tmp_path / "b.nii").spacing_mm == (3, 2, 1)


@pytest.mark.parametrize("hole", [np.nan, np.inf, -np.inf])
def test_voxels_that_are_not_finite_disturb_no_other(tmp_path: Path, hole: float) -> None:
    labels = np.random.default_rng(0).integers(0, CLASSES, (9, 8, 7)).astype(np.float32)
    labels[0, 0, :2] = 0, CLASSES - 1
    expected = labels.astype(np.uint8)
    labels[3, 4, 5] = hole
    expected[3, 4, 5] = CLASSES - 1 if hole == np.inf else 0
    nib.save(nib.Nifti1Image(labels, np.eye(4)), tmp_path / "a.nii.gz")
    found = segment(Stack(read_volume(tmp_path / "a.nii.gz"), recipe("superior")), identity)
    np.testing.assert_array_equal(found.labels, expected)
