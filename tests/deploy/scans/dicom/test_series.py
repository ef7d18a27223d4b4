"""A DICOM series is read where it lies, or refused for what makes it no regular grid."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from leuda_deploy.errors import ScanError

pytest.importorskip("pydicom", reason="the dicom extra is not installed")
pytest.importorskip("highdicom", reason="the dicom extra is not installed")

from pydicom.dataset import Dataset
from support.dicom_series import (
    COLUMNS,
    DEPTH,
    ROWS,
    VALUES,
    make_image,
    make_series,
    write_images,
)

from leuda_deploy.scans.dicom import read_series


def test_series_is_read_in_the_order_of_its_places(tmp_path: Path) -> None:
    (write_images(tmp_path / "s", make_series()) / "notes.txt").write_text("no image")
    volume = read_series(tmp_path / "s").volume
    assert volume.raw.shape == (COLUMNS, ROWS, DEPTH)
    assert volume.raw.dtype == np.int16
    assert (volume.slope, volume.inter) == (2, -1024)
    np.testing.assert_allclose(volume.spacing_mm, (0.8, 0.7, 2.5))
    inverse = np.linalg.inv(volume.affine)
    for k, j, i in ((0, 0, 0), (4, 5, 7), (2, 3, 1)):
        # DICOM's own rule for where a pixel is, then from LPS to RAS
        lps = np.array([-10 + 0.8 * i, -20 + 0.7 * j, 30 + 2.5 * k])
        place = inverse @ [-lps[0], -lps[1], lps[2], 1]
        x, y, z = place[:3].round().astype(int)
        np.testing.assert_allclose(place[:3], (x, y, z), atol=1e-6)
        assert volume.raw[x, y, z] == VALUES[k, j, i]


def moved(index: int, by: list[float]) -> list[Dataset]:
    images = make_series()
    place = np.asarray(images[index].ImagePositionPatient, float) + by
    images[index].ImagePositionPatient = place.tolist()
    return images


def other_series(index: int) -> Dataset:
    return make_image(index, "1.2.6")


BAD: dict[str, tuple[Callable[[], list[Dataset]], str]] = {
    "two series": (lambda: [*make_series(), *map(other_series, range(3))], "several series"),
    "missing slice": (lambda: make_series()[:2] + make_series()[3:], "missing slice"),
    "repeated slice": (lambda: moved(2, [0, 0, -2.5]), "repeated slice"),
    "one slice": (lambda: make_series()[:1], "axes"),
    "localiser": (
        lambda: [
            *make_series()[1:],
            make_image(0, "1.2.5", ImageOrientationPatient=[1, 0, 0, 0, 0, -1]),
        ],
        "unlike slices",
    ),
    "other modality": (lambda: make_series(Modality="US"), "modality"),
    "multi-frame": (lambda: make_series(NumberOfFrames=3), "frames"),
    "nothing": (list, "missing"),
}


@pytest.mark.parametrize("what", BAD)
def test_series_that_is_no_grid_is_one_line(tmp_path: Path, what: str) -> None:
    make, fault = BAD[what]
    with pytest.raises(ScanError) as caught:
        read_series(write_images(tmp_path / "s", make()))
    assert caught.value.fault == fault
    assert "\n" not in str(caught.value)
