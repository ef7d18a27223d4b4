"""Cases of geometry: a warning that names the numbers, or a limit; never a silent guess."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from cases.odd_scans import tissue, write_nifti
from support.makers import make_volume

from leuda_deploy.errors import ScanError
from leuda_deploy.jobs.prepare import implausible_geometry
from leuda_deploy.scans.recipe import Recipe
from leuda_deploy.scans.stack import Stack
from leuda_deploy.scans.volume import read_volume

SOUND = np.diag([1.0, 1.0, 2.0, 1.0])


def test_a_sound_scan_has_no_remark(tmp_path: Path) -> None:
    path = write_nifti(tmp_path / "a.nii", tissue(), qform_code=1, sform_code=1, sform=SOUND)
    assert implausible_geometry(read_volume(path)) == []


def test_a_header_that_says_nothing_is_named(tmp_path: Path) -> None:
    """Row 13: codes 0 and pixdim 0."""
    volume = read_volume(write_nifti(tmp_path / "a.nii", tissue(), pixdim=(0, 0, 0)))
    (line,) = implausible_geometry(volume)
    assert "codes are 0" in line
    assert "1 x 1 x 1 mm" in line


@pytest.mark.parametrize("size", [0.001, 83.0])
def test_voxels_that_no_scanner_makes_are_named(tmp_path: Path, size: float) -> None:
    """Row 13."""
    affine = np.diag([size, size, 2.0, 1.0])
    path = write_nifti(
        tmp_path / "a.nii", tissue(), pixdim=(size, size, 2.0), sform_code=1, sform=affine
    )
    assert any(f"{size:g}" in line for line in implausible_geometry(read_volume(path)))


def test_a_header_that_contradicts_itself_is_named(tmp_path: Path) -> None:
    path = write_nifti(tmp_path / "a.nii", tissue(), pixdim=(3, 3, 3), sform_code=1, sform=SOUND)
    (line,) = implausible_geometry(read_volume(path))
    assert "1 x 1 x 2" in line
    assert "3 x 3 x 3" in line


@pytest.mark.parametrize("shape", [(300, 300, 2), (100, 100, 2)])
def test_a_grid_that_would_take_for_ever_is_refused(shape: tuple[int, int, int]) -> None:
    """Row 13: 83 mm on a grid of 1 mm."""
    volume = make_volume(np.zeros(shape, np.int16), np.diag([83.0, 83.0, 2.0, 1.0]))
    recipe = Recipe(slice_axis="superior", spacing_mm=(1.0, 1.0), window=(16, 16))
    with pytest.raises(ScanError) as caught:
        Stack(volume, recipe)
    assert caught.value.fault == "too large a grid"


def test_a_flat_sform_gives_way_to_a_good_qform(tmp_path: Path) -> None:
    """Row 14. Labels are then written where the qform says."""
    flat = np.diag([1.0, 1.0, 0.0, 1.0])
    path = write_nifti(
        tmp_path / "a.nii", tissue(), pixdim=(1, 1, 2), qform_code=1, sform_code=1, sform=flat
    )
    volume = read_volume(path)
    np.testing.assert_allclose(volume.spacing_mm, (1, 1, 2))
    np.testing.assert_allclose(volume.header.get_sform(), volume.affine)
    with pytest.raises(ScanError):  # neither is sound
        read_volume(write_nifti(tmp_path / "b.nii", tissue(), sform_code=1, sform=flat))
