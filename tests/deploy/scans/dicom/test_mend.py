"""Slices that have no regular grid get one; each voxel is where DICOM says, and labels go back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from leuda_deploy.errors import ScanError

pytest.importorskip("pydicom", reason="the dicom extra is not installed")

from support.dicom_series import PIXEL_MM, even, make_slices, smooth, write_images

from leuda_deploy.scans.dicom import Series, read_series

VALUES = smooth((9, 30, 26))
UNEVEN = [0.0, 2.0, 4.0, 6.5, 9.0, 12.0, 15.0, 19.0, 23.0]
POSITIONS = {
    "tilted": even(9, tilt_degrees=17),
    "tilted the other way": even(9, tilt_degrees=-8),
    "uneven": [[-10.0, -20.0, 30.0 + z] for z in UNEVEN],
    "tilted and uneven": [[-10.0, -20.0 + 0.2 * z, 30.0 + z] for z in UNEVEN],
}


def mended(folder: Path, what: str) -> Series:
    return read_series(write_images(folder / "s", make_slices(VALUES, POSITIONS[what])))


def true_values(series: Series, what: str) -> NDArray[np.float64]:
    """What DICOM's rule says of each voxel (X, Y, Z); NaN where no slice is."""
    places = np.array(POSITIONS[what])
    x, y, z = np.meshgrid(*map(np.arange, series.volume.raw.shape), indexing="ij")
    world = np.stack([x, y, z, np.ones_like(x)], -1) @ series.volume.affine.T
    lps = world[..., :3] * [-1, -1, 1]
    k = np.interp(lps[..., 2], places[:, 2], np.arange(len(places)))
    low = np.minimum(np.floor(k + 1e-9).astype(int), len(places) - 2)
    found = np.zeros(x.shape)
    for plane, share in ((low, 1 - (k - low)), (low + 1, k - low)):
        i = (lps[..., 0] - places[plane, 0]) / PIXEL_MM[1]
        j = (lps[..., 1] - places[plane, 1]) / PIXEL_MM[0]
        inside = (i > -1e-6) & (i < 25 + 1e-6) & (j > -1e-6) & (j < 29 + 1e-6)
        i0, j0 = (np.clip(np.floor(a + 1e-9).astype(int), 0, n) for a, n in ((i, 24), (j, 28)))
        value = sum(
            VALUES[plane, j0 + dj, i0 + di]
            * (di * (i - i0) + (1 - di) * (1 - i + i0))
            * (dj * (j - j0) + (1 - dj) * (1 - j + j0))
            for di in (0, 1)
            for dj in (0, 1)
        )
        found += np.where(share < 1e-6, 0, np.where(inside, value * share, np.nan))
    return found


@pytest.mark.parametrize("what", POSITIONS)
def test_each_voxel_is_where_dicom_says(tmp_path: Path, what: str) -> None:
    series = mended(tmp_path, what)
    volume = series.volume
    axes = volume.affine[:3, :3] / volume.spacing_mm
    np.testing.assert_allclose(axes.T @ axes, np.eye(3), atol=1e-9)
    want = true_values(series, what)
    inside = np.isfinite(want)
    assert inside.mean() > 0.6
    # half a unit of rounding
    np.testing.assert_allclose((volume.raw * volume.slope + volume.inter)[inside], want[inside],
                               atol=0.51)  # fmt: skip
    if not inside.all():
        assert volume.padding is not None
        assert set(np.unique(volume.raw[~inside])) == {int(volume.padding[0])}


@pytest.mark.parametrize("what", POSITIONS)
def test_labels_go_back_to_their_slices(tmp_path: Path, what: str) -> None:
    series = mended(tmp_path, what)
    labels = (series.volume.raw > 1024 - 200).astype(np.uint8)  # of the body, on the mended grid
    back = series.on_slices(labels)
    assert back.shape == (26, 30, 9)
    want = (VALUES > -200).transpose(2, 1, 0)
    overlap = 2 * (back.astype(bool) & want).sum() / (back.sum() + want.sum())
    assert overlap > 0.94
    np.testing.assert_array_equal(series.on_frames(labels), back.T)


def test_what_was_done_is_said_and_can_be_refused(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "s", make_slices(VALUES, POSITIONS["tilted and uneven"]))
    said = read_series(folder).mended
    assert said is not None
    assert said["tilt_degrees"] == pytest.approx(np.degrees(np.arctan(0.2)), abs=0.01)
    assert (said["uneven"], said["slice_distances_mm"]) == (True, [2.0, 4.0])
    assert said["resampled_to"][2] == 12  # every 2 mm of 23
    for what, fault in (("tilted", "sheared"), ("uneven", "uneven")):
        series = make_slices(VALUES, POSITIONS[what])
        with pytest.raises(ScanError) as caught:
            read_series(write_images(tmp_path / what, series), strict=True)
        assert caught.value.fault == fault


def test_headers_alone_say_the_same_shape(tmp_path: Path) -> None:
    series = mended(tmp_path, "tilted and uneven")
    header = read_series(tmp_path / "s", voxels=False).volume
    assert header.raw.shape == series.volume.raw.shape
    np.testing.assert_array_equal(header.affine, series.volume.affine)


@pytest.mark.parametrize("step", [0.625, 0.4, 2.5])
def test_rounded_positions_are_no_uneven_slices(tmp_path: Path, step: float) -> None:
    positions = [[-10.0, -20.0, round(30 + step * k, 1)] for k in range(9)]
    series = read_series(write_images(tmp_path / "s", make_slices(VALUES, positions)), strict=True)
    assert series.mended is None
    assert series.volume.spacing_mm[2] == pytest.approx(step, abs=0.012)
    np.testing.assert_array_equal(series.volume.raw - 1024.0, VALUES.transpose(2, 1, 0))


def test_slices_that_are_missing_are_filled_only_if_asked(tmp_path: Path) -> None:
    images = make_slices(VALUES, even(9))
    folder = write_images(tmp_path / "s", images[:3] + images[4:])
    with pytest.raises(ScanError) as caught:
        read_series(folder)
    assert caught.value.fault == "missing slice"
    series = read_series(folder, allow_partial=True)
    assert series.volume.raw.shape == (26, 30, 9)
    assert series.mended is not None
    assert series.mended["missing_slices"] == 1
    between = (VALUES[2].astype(float) + VALUES[4]) / 2
    np.testing.assert_allclose(series.volume.raw[..., 3].T - 1024.0, between, atol=0.51)
