"""The same field of view on another grid; cut or padded about the centre."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from leuda_deploy.scans.grid.resample import fit_to_window, left_alone, resize, taps


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


@pytest.mark.parametrize(("kernel", "order"), [("spline", 3), ("linear", 1)])
@pytest.mark.parametrize(
    ("shape", "wanted"),
    [((50, 70), (35, 100)), ((20, 30), (7, 64)), ((20, 30), (20, 29)), ((2, 3), (5, 4))],
)
def test_splines_and_plain_linear_are_scipys_zoom(kernel, order, shape, wanted) -> None:
    image = np.random.default_rng(0).normal(size=shape)
    zoom = np.divide(wanted, shape)
    expected = ndimage.zoom(image, zoom, order=order, mode="nearest", grid_mode=True)
    found = resize(image.astype(np.float32), wanted, (kernel, kernel))
    np.testing.assert_allclose(found, expected, atol=5e-6)


@pytest.mark.parametrize(("have", "want"), [(10, 23), (23, 10), (40, 41), (7, 21)])
def test_the_nearest_is_scipys(have: int, want: int) -> None:
    centres = have / want * (np.arange(want) + 0.5) - 0.5
    values = np.random.default_rng(0).normal(size=have)
    expected = ndimage.map_coordinates(values, [centres], order=0, mode="nearest")
    index, weight = taps(have, want, "nearest")
    np.testing.assert_array_equal(values[index[0]], expected)
    assert (weight == 1).all()


@pytest.mark.parametrize(
    ("have", "want", "alone"),
    [
        ((5.0, 1.0, 1.0), (5.0, 1.5, 1.5), (True, False, False)),
        ((1.0, 1.0, 1.0), (2.0, 0.5, 0.5), (True, False, False)),  # the grid's voxels are long
        ((3.0, 1.0, 1.0), (3.0, 1.0, 1.0), (False, False, False)),  # not over three times
        ((0.2, 1.0, 1.0), (1.0, 1.0, 1.0), (False, False, False)),  # two are the longest
        ((1.0, 4.0, 1.0), (5.0, 1.0, 1.0), (False, True, False)),  # the scan's come first
    ],
)
def test_the_longest_axis_is_left_alone_by_splines(have, want, alone) -> None:
    assert left_alone(have, want) == alone
