"""Clip limits and normalisation are those of the whole scan, however it is stored."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from support.makers import MakeVolume

from leuda_deploy.errors import ScanError
from leuda_deploy.scans.intensity import fit_intensity
from leuda_deploy.scans.recipe import Recipe
from leuda_deploy.scans.stack import Stack
from leuda_deploy.scans.volume import Volume

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
    with pytest.raises(ScanError) as caught:
        fit_intensity(make_volume(raw), recipe())
    assert caught.value.fault == "nothing in it"


def test_scan_that_is_nearly_all_air_uses_its_whole_range(make_volume: MakeVolume) -> None:
    raw = np.full((10, 10, 10), -1000, np.int16)
    raw[0, 0, 0] = 500
    found = fit_intensity(make_volume(raw), recipe(clip_percentiles=(0.0, 98.0)))
    assert (found.low, found.high) == (-1000, 500)


@pytest.mark.parametrize("kind", ["integer", "float", "double", "wide integer", "negative slope"])
def test_padding_enters_no_statistic(make_volume: MakeVolume, kind: str) -> None:
    volume = scans(make_volume)[kind]
    pad = volume.raw.dtype.type(-2000)
    padded = np.pad(volume.raw, ((3, 3), (3, 3), (0, 0)), constant_values=pad)
    asked = recipe(clip_percentiles=(1.0, 98.0), normalisation="zscore")
    wanted = fit_intensity(volume, asked)
    said = make_volume(padded, slope=volume.slope, inter=volume.inter)
    found = fit_intensity(said.with_padding(-2000, -2000), asked)
    for name in ("low", "high", "shift", "scale", "quartiles"):
        assert getattr(found, name) == pytest.approx(getattr(wanted, name), rel=1e-9)
    without = fit_intensity(said, asked)
    # darker than any CT: outside the circle that was scanned
    assert (without == found) is (volume.slope > 0)


def test_the_background_of_an_mr_scan_is_no_padding(make_volume: MakeVolume) -> None:
    values = np.zeros((8, 8, 8), np.int16)
    values[2:6, 2:6, 2:6] = np.random.default_rng(0).integers(100, 900, (4, 4, 4))
    found = fit_intensity(make_volume(values), recipe(clip_percentiles=(0.0, 98.0)))
    assert found.low == 0
    assert found.quartiles == (0, 0, 0)
    with pytest.raises(ScanError):
        fit_intensity(make_volume(values * 0 - 2000), recipe())
    with pytest.raises(ScanError):
        fit_intensity(make_volume(values * 0).with_padding(0, 0), recipe())


def test_a_fixed_normalisation_is_the_same_for_every_scan(make_volume: MakeVolume) -> None:
    fixed = {"low": -100, "high": 300, "shift": 50, "scale": 40}
    raw = np.array([-1000, 0, 130, 5000], dtype=np.int16).reshape(1, 2, 2)
    volume = make_volume(raw)
    found = Stack(volume, recipe(normalisation="fixed", fixed=fixed)).intensity
    np.testing.assert_allclose(
        found(raw.astype(np.float32)).ravel(), [-150 / 40, -50 / 40, 2, 250 / 40], rtol=1e-6
    )
    flat = make_volume(np.full((2, 2, 2), 7, dtype=np.int16))
    assert Stack(flat, recipe(normalisation="fixed", fixed=fixed)).intensity.shift == 50
