"""A scan as the network sees it, and the way back: orientation, slabs, labels."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from itertools import permutations, product
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from nibabel import orientations
from numpy.typing import NDArray
from scipy import ndimage
from support.makers import MakeAffine, MakeVolume

from leuda_deploy.scans.label_map import label_map_of
from leuda_deploy.scans.recipe import Depth, Recipe
from leuda_deploy.scans.stack import Stack
from leuda_deploy.scans.volume import Volume

WORLD_AXES = ("superior", "anterior", "right")
AXES = (*WORLD_AXES, "array-0", "array-1", "array-2")
SHAPE = (3, 5, 7)


def recipe(**other: Any) -> Recipe:
    fields: dict[str, Any] = {
        "slice_axis": "superior",
        "spacing_mm": "native",
        "window": (16, 16),
        "clip_percentiles": (0.0, 100.0),
        "normalisation": "minmax",
    }
    return Recipe(**(fields | other))


def numbered(shape: tuple[int, ...] = SHAPE) -> NDArray[np.int16]:
    """Every voxel holds another value."""
    return np.arange(np.prod(shape)).reshape(shape).astype(np.int16)


def all_48_orders() -> Iterator[NDArray[Any]]:
    """Every way to permute and flip the axes of an array, as nibabel's orientation arrays."""
    for order, flips in product(permutations(range(3)), product((1, -1), repeat=3)):
        yield np.column_stack([order, flips])


def stored_otherwise(volume: Volume, order: NDArray[Any]) -> Volume:
    """The same anatomy, its array permuted and flipped, its affine changed to match."""
    raw = orientations.apply_orientation(volume.raw, order)
    affine = volume.affine @ orientations.inv_ornt_aff(order, volume.raw.shape)
    return Volume(
        name="scan", raw=raw, slope=1.0, inter=0.0, affine=affine, header=None, shape=raw.shape
    )


def raw_stack(stack: Stack) -> NDArray[np.int64]:
    """The scanner values of a stack of `numbered` voxels, through the normalised images."""
    images = stack.images(0, stack.depth).astype(np.float64)
    values = images * stack.intensity.scale + stack.intensity.shift
    assert np.abs(values - values.round()).max() < 1e-2
    return values.round().astype(np.int64)


@pytest.fixture
def scan(make_volume: MakeVolume, oblique_affine: MakeAffine) -> Volume:
    return make_volume(numbered(), oblique_affine((0.8, 1.3, 5.0)))


@pytest.mark.parametrize("axis", AXES)
def test_writing_as_a_stack_is_the_exact_inverse_in_all_48_orders(scan: Volume, axis: str) -> None:
    seen = set()
    for order in all_48_orders():
        volume = stored_otherwise(scan, order)
        stack = Stack(volume, recipe(slice_axis=axis))
        # 105 voxels: each number fits in uint8
        on_scan = np.zeros(volume.raw.shape, np.uint8, order="F")
        stack.of_scan(on_scan)[...] = raw_stack(stack)
        np.testing.assert_array_equal(on_scan, volume.raw.astype(np.uint8))
        seen.add(volume.raw.tobytes())
    assert len(seen) == 48


@pytest.mark.parametrize("axis", WORLD_AXES)
def test_world_stack_is_the_same_however_the_scan_is_stored(scan: Volume, axis: str) -> None:
    first = Stack(scan, recipe(slice_axis=axis))
    for order in all_48_orders():
        stack = Stack(stored_otherwise(scan, order), recipe(slice_axis=axis))
        np.testing.assert_array_equal(stack.images(0, stack.depth), first.images(0, first.depth))
        assert stack.slice_spacing_mm == pytest.approx(first.slice_spacing_mm)
        assert stack.plane_spacing_mm == pytest.approx(first.plane_spacing_mm)


def test_world_stacks_are_seen_as_a_radiologist_sees_them(make_volume: MakeVolume) -> None:
    raw = numbered()  # axes: right, anterior, superior
    volume = make_volume(raw, np.diag([1.0, 2.0, 3.0, 1.0]))
    looks = {
        # depth, rows downwards, columns to the right; patient's right is on the picture's left
        "superior": (raw.transpose(2, 1, 0)[:, ::-1, ::-1], 3.0, (2.0, 1.0)),
        "anterior": (raw.transpose(1, 2, 0)[:, ::-1, ::-1], 2.0, (3.0, 1.0)),
        "right": (raw.transpose(0, 2, 1)[:, ::-1, ::-1], 1.0, (3.0, 2.0)),
    }
    for axis, (expected, slice_mm, plane_mm) in looks.items():
        stack = Stack(volume, recipe(slice_axis=axis))
        np.testing.assert_array_equal(raw_stack(stack), expected)
        assert stack.slice_spacing_mm == slice_mm
        assert stack.plane_spacing_mm == plane_mm
        assert stack.voxel_spacing_mm == (1.0, 2.0, 3.0)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_array_axis_leaves_order_and_direction_alone(scan: Volume, axis: int) -> None:
    for order in all_48_orders():
        volume = stored_otherwise(scan, order)
        stack = Stack(volume, recipe(slice_axis=f"array-{axis}"))
        np.testing.assert_array_equal(raw_stack(stack), np.moveaxis(volume.raw, axis, 0))
        spacing = [volume.spacing_mm[k] for k in (axis, *(k for k in range(3) if k != axis))]
        assert [stack.slice_spacing_mm, *stack.plane_spacing_mm] == spacing


def test_slabs_together_are_the_whole(scan: Volume) -> None:
    stack = Stack(scan, recipe(spacing_mm=(1.0, 1.0)))
    whole = stack.images(0, stack.depth)
    parts = [stack.images(d, d + 1) for d in range(stack.depth)]
    np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_given_pixel_spacing_replaces_that_of_the_header(make_volume: MakeVolume) -> None:
    volume = make_volume(numbered((4, 6, 8)), np.diag([1.0, 1.0, 5.0, 1.0]))
    stack = Stack(volume, recipe(spacing_mm=(1.0, 1.0)), pixel_spacing_mm=(2.0, 0.5))
    assert stack.plane_shape == (6, 4)
    assert stack.grid_shape == (12, 2)
    assert stack.voxel_spacing_mm == (0.5, 2.0, 5.0)
    assert Stack(volume, recipe(spacing_mm=(100.0, 100.0))).grid_shape == (1, 1)


def test_orientation_agrees_with_nibabels_canonical_form(scan: Volume) -> None:
    for order in all_48_orders():
        volume = stored_otherwise(scan, order)
        canonical = nib.as_closest_canonical(nib.Nifti1Image(volume.raw, volume.affine))
        expected = np.asarray(canonical.dataobj).transpose(2, 1, 0)[:, ::-1, ::-1]
        np.testing.assert_array_equal(raw_stack(Stack(volume, recipe())), expected)


def test_label_gets_the_class_that_covers_most_of_the_pixel(make_volume: MakeVolume) -> None:
    plane = np.zeros((4, 6), np.int16)
    plane[:2, :2] = 500  # a whole pixel of the coarse grid
    plane[:2, 2] = 820  # half of a pixel, the other half is 500
    plane[0, 3], plane[1, 3] = 500, 820
    plane[2:, :] = 9999  # a value that is none of the structures
    label = label_map_of(
        make_volume(plane[:, :, None]), class_of_raw={500: 1, 820: 2}, others="background"
    )
    stack = Stack(label.volume, recipe(slice_axis="array-2", spacing_mm=(2.0, 2.0)))
    found = stack.labels(0, 1, classes=2)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, [[[1, 2, 0], [0, 0, 0]]])
    native = Stack(label.volume, recipe(slice_axis="array-2")).labels(0, 1, classes=2)
    np.testing.assert_array_equal(native[0], np.select([plane == 500, plane == 820], [1, 2], 0))


def test_labels_are_read_slice_by_slice_in_bounded_memory(make_volume: MakeVolume) -> None:
    classes, shape = 12, (48, 40, 64)
    numbers = np.random.default_rng(0).integers(0, classes + 1, size=shape).astype(np.uint8)
    stack = Stack(make_volume(numbers), recipe(slice_axis="array-2", spacing_mm=(2.0, 1.5)))
    tracemalloc.start()
    found = stack.labels(0, stack.depth, classes=classes)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    slice_by_class = 4 * (classes + 1) * shape[0] * shape[1]
    assert peak < found.nbytes + 4 * slice_by_class  # all slices at once are 64 of these
    for k in (0, 17, 63):
        np.testing.assert_array_equal(stack.labels(k, k + 1, classes=classes)[0], found[k])


def test_a_crop_is_the_box_around_all_that_is_not_zero(make_volume: MakeVolume) -> None:
    raw = np.zeros((9, 8, 7), dtype=np.int16)
    raw[2:6, 3:7, 1:5] = np.random.default_rng(0).integers(500, 900, (4, 4, 4))
    raw[4, 4, 2] = 0  # a hole stays in it
    scaled = make_volume(raw + 100, slope=2.0, inter=-200.0)
    for axis in AXES:
        stack = Stack(scaled, recipe(slice_axis=axis, crop="nonzero"))
        whole = Stack(make_volume(raw[2:6, 3:7, 1:5]), recipe(slice_axis=axis))
        assert (stack.scan_depth, stack.plane_shape) == (whole.scan_depth, whole.plane_shape)
        np.testing.assert_allclose(stack.images(0, 4), whole.images(0, 4), atol=1e-6)
        labels = np.zeros(raw.shape, dtype=np.uint8)
        stack.of_scan(labels)[:] = 1
        assert labels.sum() == 4**3
        assert (labels[2:6, 3:7, 1:5] == 1).all()


def test_a_scan_of_nothing_is_not_cropped(make_volume: MakeVolume) -> None:
    stack = Stack(make_volume(np.zeros((3, 4, 5), np.int16)), recipe(crop="nonzero"))
    assert (stack.scan_depth, *stack.plane_shape) == (5, 4, 3)


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.2), (1.0, 1.0, 5.0)])
def test_splines_go_through_all_three_axes_unless_slices_are_thick(
    make_volume: MakeVolume, spacing: tuple[float, float, float]
) -> None:
    raw = np.random.default_rng(0).normal(size=(12, 14, 9)).astype(np.float32)
    wanted = recipe(slice_axis="array-2", spacing_mm=(1.5, 0.8), resampling="spline")
    stack = Stack(
        make_volume(raw, np.diag([*spacing, 1.0])),
        wanted,
        window_depth=Depth(slices=4, spacing_mm=2.0),
    )
    images = stack.intensity(np.moveaxis(raw, 2, 0).copy())
    grid = (stack.depth, *stack.grid_shape)
    zoom = np.divide(grid, images.shape)
    if spacing[2] > 3:
        planes = ndimage.zoom(images, (1, *zoom[1:]), order=3, mode="nearest", grid_mode=True)
        planes = np.clip(planes, *(f(images, axis=(1, 2), keepdims=True) for f in (np.min, np.max)))
        centres = (np.arange(grid[0]) + 0.5) / zoom[0] - 0.5
        expected = planes[np.clip(np.floor(centres + 0.5), 0, 8).astype(int)]
    else:
        expected = ndimage.zoom(images, zoom, order=3, mode="nearest", grid_mode=True)
    np.testing.assert_allclose(
        np.concatenate([stack.images(0, 3), stack.images(3, stack.depth)]),
        np.clip(expected, images.min(), images.max()),
        atol=1e-5,
    )
    assert stack.slices_read(3) >= 3 * 9 // stack.depth
