"""The same field of view on another grid; cut or padded about the centre."""

from __future__ import annotations

import numpy as np
import pytest

from leuda_deploy.scans.resample import fit_to_window, resize


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
