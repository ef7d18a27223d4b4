"""Any scale, stored type and numbering of a label file -> class numbers on a known grid."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from numpy.typing import NDArray

from leuda_deploy.errors import GridMismatchError, InputError, UndeclaredLabelError
from leuda_deploy.scans.label_map import label_map_of, label_values, read_label_map, same_grid
from leuda_deploy.scans.volume import read_volume

AFFINE = np.diag([0.5, 1.0, 3.0, 1.0])
CLASSES = np.arange(24).reshape(2, 3, 4) % 3
RAW_OF_CLASS = np.array([0, 205, 820])
CLASS_OF_RAW = {205: 1, 820: 2}


def write(
    path: Path,
    stored: NDArray[np.generic],
    *,
    scale: tuple[float, float] = (1, 0),
    affine: NDArray[np.float64] = AFFINE,
) -> Path:
    """A label file with these stored values and this scale."""
    image = nib.Nifti1Image(stored, affine)
    image.header.set_slope_inter(*scale)
    nib.save(image, path)
    return path


@pytest.mark.parametrize("dtype", [np.int16, np.uint16, np.float32, np.float64])
def test_raw_values_become_classes(tmp_path: Path, dtype: type) -> None:
    path = write(tmp_path / "l.nii.gz", RAW_OF_CLASS[CLASSES].astype(dtype))
    found = read_label_map(path, class_of_raw=CLASS_OF_RAW)
    assert found.labels.dtype == np.uint8
    np.testing.assert_array_equal(found.labels, CLASSES)
    assert (found.volume.slope, found.volume.inter) == (1, 0)
    np.testing.assert_array_equal(found.volume.affine, AFFINE)


def test_labels_may_be_stored_scaled(tmp_path: Path) -> None:
    path = write(tmp_path / "l.nii.gz", CLASSES.astype(np.uint8), scale=(0.1, 1.0))
    # 0.1 is a float32 in the file: 1.1, 1.2 are no labels, but ten steps of it are one
    with pytest.raises(InputError):
        read_label_map(path, class_of_raw={1: 1})
    path = write(tmp_path / "t.nii.gz", (10 * CLASSES).astype(np.uint8), scale=(0.1, 1.0))
    found = read_label_map(path, class_of_raw={1: 0, 2: 1, 3: 2})
    np.testing.assert_array_equal(found.labels, CLASSES)


@pytest.mark.parametrize("wrong", [0.5, 0.002, np.nan, np.inf])
def test_values_that_are_not_whole_are_no_labels(tmp_path: Path, wrong: float) -> None:
    stored = CLASSES.astype(np.float64)
    stored[0, 0, 0] = wrong
    with pytest.raises(InputError):
        read_label_map(write(tmp_path / "l.nii", stored), class_of_raw={1: 1, 2: 2})


def test_what_is_not_declared_is_refused_or_background_as_asked(tmp_path: Path) -> None:
    path = write(tmp_path / "l.nii", RAW_OF_CLASS[CLASSES].astype(np.int16))
    with pytest.raises(UndeclaredLabelError) as caught:
        read_label_map(path, class_of_raw={205: 1})
    assert (caught.value.name, caught.value.values) == ("l.nii", [820])
    assert caught.value.declared == [0, 205]
    found = read_label_map(path, class_of_raw={205: 1}, others="background")
    np.testing.assert_array_equal(found.labels, CLASSES == 1)


def test_zero_is_background_unless_it_is_declared(tmp_path: Path) -> None:
    path = write(tmp_path / "l.nii", CLASSES.astype(np.int16))
    found = read_label_map(path, class_of_raw={0: 7, 1: 0, 2: 0})
    np.testing.assert_array_equal(found.labels, np.where(CLASSES == 0, 7, 0))


def test_the_grid_of_the_scan_is_taken_and_no_other_allowed(tmp_path: Path) -> None:
    scan = read_volume(write(tmp_path / "scan.nii", CLASSES.astype(np.int16)))
    rounded, moved = AFFINE.copy(), AFFINE.copy()
    rounded[0, 3], moved[0, 3] = 0.004, 0.006  # a hundredth of the smallest voxel is 0.005 mm
    labels = CLASSES.astype(np.uint8)
    near = write(tmp_path / "near.nii", labels, affine=rounded)
    found = read_label_map(near, class_of_raw={1: 1, 2: 2}, like=scan)
    np.testing.assert_array_equal(found.volume.affine, AFFINE)
    far = write(tmp_path / "far.nii", labels, affine=moved)
    with pytest.raises(GridMismatchError) as caught:
        read_label_map(far, class_of_raw={1: 1, 2: 2}, like=scan)
    assert caught.value.names == ("scan.nii", "far.nii")
    assert caught.value.apart_mm == pytest.approx(0.006, rel=1e-3)
    cut = write(tmp_path / "cut.nii", labels[1:])
    with pytest.raises(GridMismatchError) as caught:
        read_label_map(cut, class_of_raw={1: 1, 2: 2}, like=scan)
    assert caught.value.shapes == ((2, 3, 4), (1, 3, 4))


def test_a_mirrored_or_turned_grid_is_another(tmp_path: Path) -> None:
    cube = np.zeros((4, 4, 4), np.uint8)
    here = read_volume(write(tmp_path / "a.nii", cube, affine=np.eye(4)))
    for turn in (np.diag([-1.0, 1, 1, 1]), np.eye(4)[[1, 0, 2, 3]]):
        there = read_volume(write(tmp_path / "b.nii", cube, affine=turn))
        assert not same_grid(here, there)
    assert same_grid(here, here)


def test_the_values_of_a_file_in_order(tmp_path: Path) -> None:
    stored = write(tmp_path / "l.nii", RAW_OF_CLASS[CLASSES].astype(np.float32))
    assert label_values(read_volume(stored)) == [0, 205, 820]


def test_the_labels_of_a_file_keep_its_order_in_memory(tmp_path: Path) -> None:
    volume = read_volume(write(tmp_path / "l.nii.gz", CLASSES.astype(np.int16)))
    assert label_map_of(volume, class_of_raw={1: 1, 2: 2}).labels.flags.f_contiguous
