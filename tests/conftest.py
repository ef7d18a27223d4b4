"""Fixtures that many tests share; what they hand out is made in `support`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from support import makers
from support.makers import MakeAffine, MakeCard, MakeModel, MakeVolume, ThresholdLabels


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Trials of engines are kept in a folder of the test session's own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LEUDA_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def make_volume() -> MakeVolume:
    """A Volume in memory; keyword arguments replace the defaults."""
    return makers.make_volume


@pytest.fixture(scope="session")
def make_card() -> MakeCard:
    """A valid card for two structures; keyword arguments replace its fields."""
    return makers.make_card


@pytest.fixture(scope="session")
def make_model() -> MakeModel:
    """Write the threshold model with its card into a folder; returns the model file."""
    return makers.make_model


@pytest.fixture(scope="session")
def threshold_labels() -> ThresholdLabels:
    """What the threshold model must say of a scan at native spacing, worked out directly."""
    return makers.threshold_labels


@pytest.fixture(scope="session")
def oblique_affine() -> MakeAffine:
    """The affine of an oblique scan, by voxel size in mm."""
    return makers.oblique_affine


@pytest.fixture
def scan_file(tmp_path: Path) -> Path:
    """A CT-like int16 scan, oblique and anisotropic."""
    values = np.random.default_rng(0).integers(0, 1001, (19, 37, 6)).astype(np.int16)
    values[0, 0, :2] = 0, 1000
    path = tmp_path / "scan.nii.gz"
    nib.save(nib.Nifti1Image(values, makers.oblique_affine((0.8, 1.3, 5.0))), path)
    return path
