"""The way from scan to model grid and back: orientation, intensity, resampling, windows."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import permutations, product
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from nibabel import orientations
from numpy.typing import NDArray
from pydantic import ValidationError
from support.makers import MakeAffine, MakeVolume

from leuda_deploy.errors import InputError
from leuda_deploy.scans.intensity import fit_intensity
from leuda_deploy.scans.label_map import label_map_of
from leuda_deploy.scans.recipe import Recipe
from leuda_deploy.scans.resample import fit_to_window, resize
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


# --- intensity


def scans(make_volume: MakeVolume) -> dict[str, Volume]:
    rng = np.random.default_rng(0)
    ct = rng.integers(-1024, 3000, (6, 7, 8)).astype(np.int16)
    mr = rng.gamma(2.0, 100.0, (6, 7, 8))
    wide = rng.integers(-(2**31), 2**31, (6, 7, 8)).astype(np.int32)
    holes = mr.copy()
    holes[0, :3, 0] = np.nan, np.inf, -np.inf
    return {
        "integer": make_volume(ct),
        "one byte": make_volume(rng.integers(-128, 128, (6, 7, 8)).astype(np.int8)),
        "big-endian": make_volume(ct.astype(">i2")),
        "wide integer": make_volume(wide),
        "float": make_volume(mr.astype(np.float32)),
        "double": make_volume(mr),
        "scaled": make_volume(ct, slope=0.25, inter=-1000.0),
        "negative slope": make_volume(ct, slope=-2.0, inter=7.0),
        "negative slope, float": make_volume(mr, slope=-0.5),
        "holes": make_volume(holes),
        "few values": make_volume((ct > 2900).astype(np.uint8) + (ct > 0)),
    }


KINDS = list(scans(lambda raw, **other: raw))  # type: ignore[arg-type, return-value]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("percent", [(0.0, 100.0), (0.0, 98.0), (1.5, 97.3), (40.0, 60.1)])
def test_clip_values_are_numpys_percentiles(
    make_volume: MakeVolume, kind: str, percent: tuple[float, float]
) -> None:
    volume = scans(make_volume)[kind]
    values = volume.raw.astype(np.float64) * volume.slope + volume.inter
    low, high = np.percentile(values[np.isfinite(values)], percent)
    if low == high:
        low, high = values.min(), values.max()
    found = fit_intensity(volume, recipe(clip_percentiles=percent))
    np.testing.assert_allclose([found.low, found.high], [low, high], rtol=1e-12)


def whole_images(volume: Volume, **settings: Any) -> NDArray[np.float32]:
    stack = Stack(volume, recipe(slice_axis="array-2", **settings))
    return stack.images(0, stack.depth)


@pytest.mark.parametrize("kind", KINDS)
def test_minmax_fills_minus_one_to_one(make_volume: MakeVolume, kind: str) -> None:
    images = whole_images(scans(make_volume)[kind], clip_percentiles=(5.0, 95.0))
    assert images.dtype == np.float32
    assert images.min() == pytest.approx(-1, abs=1e-5)
    assert images.max() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "holes"])
def test_zscore_has_mean_zero_and_deviation_one_over_the_clipped_scan(
    make_volume: MakeVolume, kind: str
) -> None:
    volume = scans(make_volume)[kind]
    images = whole_images(volume, clip_percentiles=(0.0, 98.0), normalisation="zscore")
    assert images.mean(dtype=np.float64) == pytest.approx(0, abs=1e-4)
    assert images.std(dtype=np.float64) == pytest.approx(1, abs=1e-4)


def test_image_is_the_clipped_and_scaled_scan(make_volume: MakeVolume) -> None:
    volume = scans(make_volume)["negative slope"]
    values = volume.raw.astype(np.float64) * volume.slope + volume.inter
    clipped = np.clip(values, *np.percentile(values, (0, 98)))
    expected = np.moveaxis((clipped - clipped.mean()) / clipped.std(), -1, 0)
    images = whole_images(volume, clip_percentiles=(0.0, 98.0), normalisation="zscore")
    np.testing.assert_allclose(images, expected, atol=1e-5)


def test_voxels_that_are_not_finite_become_the_nearest_limit(make_volume: MakeVolume) -> None:
    volume = scans(make_volume)["holes"]
    stack = Stack(volume, recipe(slice_axis="array-2"))
    image = stack.images(0, 1)[0]
    np.testing.assert_allclose(image[0, :3], [-1, 1, -1], atol=1e-6)
    assert np.isfinite(stack.images(0, stack.depth)).all()
    assert stack.intensity.floor == pytest.approx(-1)


def test_scan_is_not_changed_by_looking_at_it(make_volume: MakeVolume) -> None:
    for volume in scans(make_volume).values():
        before = volume.raw.copy()
        whole_images(volume)
        np.testing.assert_array_equal(volume.raw, before)


@pytest.mark.parametrize(
    "raw",
    [
        np.full(SHAPE, 7, np.int16),
        np.full(SHAPE, 7.5),
        np.full(SHAPE, np.nan),
        np.full(SHAPE, -(2**31), np.int32),
    ],
)
def test_scan_in_which_nothing_differs_is_refused(
    make_volume: MakeVolume, raw: NDArray[Any]
) -> None:
    with pytest.raises(InputError, match=r"every voxel of scan is|no finite voxel"):
        fit_intensity(make_volume(raw), recipe())


def test_scan_that_is_nearly_all_air_uses_its_whole_range(make_volume: MakeVolume) -> None:
    raw = np.full((10, 10, 10), -1000, np.int16)
    raw[0, 0, 0] = 500
    found = fit_intensity(make_volume(raw), recipe(clip_percentiles=(0.0, 98.0)))
    assert (found.low, found.high) == (-1000, 500)


# --- resampling


@pytest.mark.parametrize(
    ("shape", "wanted"),
    [((20, 30), (11, 13)), ((20, 30), (45, 64)), ((20, 30), (7, 64)), ((20, 30), (20, 29)),
     ((1, 1), (5, 4)), ((9, 8), (1, 1)), ((64, 5), (3, 50))],
)  # fmt: skip
def test_resize_is_torchs_antialiased_bilinear(
    shape: tuple[int, int], wanted: tuple[int, int]
) -> None:
    torch = pytest.importorskip("torch", reason="the reference needs PyTorch")
    images = np.random.default_rng(0).normal(size=(2, 3, *shape)).astype(np.float32)
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(images), size=wanted, mode="bilinear", antialias=True, align_corners=False
    )
    np.testing.assert_allclose(resize(images, wanted), expected.numpy(), atol=1e-5)


@pytest.mark.parametrize("wanted", [(1, 1), (7, 64), (33, 3), (20, 31)])
def test_resize_keeps_constants_type_and_leading_axes(wanted: tuple[int, int]) -> None:
    found = resize(np.full((2, 3, 20, 30), 3.25, np.float32), wanted)
    assert found.shape == (2, 3, *wanted)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, 3.25, rtol=1e-6)


def test_resize_to_the_same_shape_is_the_identity() -> None:
    images = np.random.default_rng(0).normal(size=(2, 20, 30)).astype(np.float32)
    np.testing.assert_array_equal(resize(images, (20, 30)), images)


def test_resize_keeps_the_field_of_view() -> None:
    ramp = np.broadcast_to((np.arange(40) + 0.5) / 40, (10, 40)).astype(np.float32)
    for width in (10, 20, 80):
        inside = slice(width // 10, -width // 10)  # the rim has no values beyond it
        expected = (np.arange(width) + 0.5) / width
        np.testing.assert_allclose(
            resize(ramp, (10, width))[0][inside], expected[inside], atol=1e-6
        )


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


# --- windows


@pytest.mark.parametrize("shape", [(10, 10), (7, 13), (13, 7), (9, 10), (1, 40)])
def test_fitting_crops_or_pads_about_the_centre_and_back(shape: tuple[int, int]) -> None:
    images = np.random.default_rng(0).normal(size=(2, *shape)).astype(np.float32)
    fitted = fit_to_window(images, (10, 10), -7.0)
    assert fitted.shape == (2, 10, 10)
    kept = tuple(min(size, 10) for size in shape)
    assert np.count_nonzero(fitted != -7.0) == 2 * kept[0] * kept[1]
    back = fit_to_window(fitted, shape, -7.0)
    kept_place = (slice(None), *(slice((n - k) // 2, (n - k) // 2 + k) for n, k in zip(shape, kept, strict=True)))  # fmt: skip # noqa: E501
    np.testing.assert_array_equal(back[kept_place], images[kept_place])
    for n, window in zip(shape, (10, 10), strict=True):
        if n > window:
            assert np.count_nonzero(back == -7.0) == 2 * (shape[0] * shape[1] - kept[0] * kept[1])


# --- the recipe itself


def test_recipe_round_trips_through_json() -> None:
    for settings in ({}, {"spacing_mm": (1.5, 0.8), "normalisation": "zscore"}):
        made = recipe(**settings)
        assert Recipe.model_validate_json(made.model_dump_json()) == made


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"spacing": (1, 1)}, "spacing"),
        ({"clip_percentiles": (98.0, 2.0)}, "must rise"),
        ({"clip_percentiles": (50.0, 50.0)}, "must rise"),
        ({"clip_percentiles": (0.0, 100.1)}, "less than or equal to 100"),
        ({"window": (0, 16)}, "window"),
        ({"window": (16, 100_000)}, "window"),
        ({"spacing_mm": (0.0, 1.0)}, "greater than 0"),
        ({"spacing_mm": (1.0, float("nan"))}, "spacing_mm"),
        ({"slice_axis": "left"}, "slice_axis"),
        ({"normalisation": "histogram"}, "normalisation"),
    ],
)
def test_recipe_refuses(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        recipe(**settings)


def test_recipe_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        recipe().window = (8, 8)


def test_orientation_agrees_with_nibabels_canonical_form(scan: Volume) -> None:
    for order in all_48_orders():
        volume = stored_otherwise(scan, order)
        canonical = nib.as_closest_canonical(nib.Nifti1Image(volume.raw, volume.affine))
        expected = np.asarray(canonical.dataobj).transpose(2, 1, 0)[:, ::-1, ::-1]
        np.testing.assert_array_equal(raw_stack(Stack(volume, recipe())), expected)
