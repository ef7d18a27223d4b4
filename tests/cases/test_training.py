"""Cases of cohorts: what a later stage would refuse is refused, or said, before training."""

from __future__ import annotations

import logging
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from support import tiny

from leuda_deploy.errors import InputError
from leuda_deploy.scans.label_map import read_label_map
from leuda_train.config.load import load_config
from leuda_train.data.cohort import read_cohort
from leuda_train.loop.run_folder import RunFolder
from leuda_train.runs.checks import check_classes
from leuda_train.runs.resume import claimed


@pytest.fixture
def cohort(tmp_path: Path) -> Path:
    return tiny.write_tiny_cohort(tmp_path / "data")


@pytest.mark.parametrize("role", ["mr/m1", "ct_test/c3"])
@pytest.mark.parametrize(("apart_mm", "fits"), [(0.004, True), (0.05, False)])
def test_one_tolerance_of_grids_in_training_and_test(
    cohort: Path, role: str, apart_mm: float, fits: bool
) -> None:
    """Row 16."""
    path = cohort.parent / f"{role}_label.nii.gz"
    label = nib.load(path)
    affine = label.affine.copy()
    affine[0, 3] += apart_mm
    nib.save(nib.Nifti1Image(np.asarray(label.dataobj), affine), path)
    if fits:
        assert read_cohort(cohort).scans
    else:
        with pytest.raises(InputError):
            read_cohort(cohort)


@pytest.mark.parametrize("fill", [7, np.nan])
def test_a_test_scan_with_nothing_in_it_is_refused_before_training(
    cohort: Path, fill: float
) -> None:
    """Row 17."""
    values = np.full((18, 16, 3), fill, np.float32)
    tiny.write_scan(cohort.parent / "ct_test" / "c3_image.nii.gz", values)
    with pytest.raises(InputError, match="c3_image"):
        read_cohort(cohort)


def test_a_class_without_a_labelled_pixel_is_said(caplog: pytest.LogCaptureFixture) -> None:
    """Row 18."""
    labels = np.zeros((3, 8, 8), np.uint8)
    labels[0, :2], labels[2, :2] = 1, 2  # the third slice is not labelled
    structures, rows = {"a": 1, "b": 2}, np.array([0, 1])
    with caplog.at_level(logging.WARNING):
        check_classes(labels, rows, structures)
        assert "b" in caplog.text
        caplog.clear()
        check_classes(labels, np.array([0, 2]), structures)
        assert caplog.text == ""
    with pytest.raises(InputError):
        check_classes(labels, np.array([1]), structures)


@pytest.mark.parametrize(
    ("stored", "slope"), [(np.float32(9.9999), None), (np.int16(1), 10.0001), (np.int16(20), 0.5)]
)
def test_labels_are_rounded(tmp_path: Path, stored: np.generic, slope: float | None) -> None:
    """Row 19."""
    values = np.zeros((4, 4, 4), stored.dtype)
    values[1:3] = stored
    image = nib.Nifti1Image(values, np.eye(4))
    if slope is not None:
        image.header.set_slope_inter(slope, 0)
    nib.save(image, tmp_path / "l.nii")
    raw = nib.load(tmp_path / "l.nii")
    if slope is not None:  # nibabel scales on saving: write what is stored, with the slope
        body = bytearray((tmp_path / "l.nii").read_bytes())
        start = int(raw.dataobj.offset)
        body[start:] = values.tobytes(order="F")
        body[112:116] = np.float32(slope).tobytes()
        (tmp_path / "l.nii").write_bytes(body)
    found = read_label_map(tmp_path / "l.nii", class_of_raw={10: 1})
    assert np.unique(found.labels).tolist() == [0, 1]
    assert np.count_nonzero(found.labels) == 32


def test_a_run_folder_has_one_trainer(tmp_path: Path) -> None:
    """Row 27."""
    folder = RunFolder(tmp_path / "run")
    with claimed(folder), pytest.raises(InputError), claimed(folder):
        pass
    with claimed(folder):
        assert folder.path.is_dir()
    assert list(folder.path.iterdir()) == []


def test_a_byte_order_mark_and_the_shadows_of_macos_are_no_trouble(
    cohort: Path, tmp_path: Path
) -> None:
    """Row 29."""
    cohort.write_text("\ufeff" + cohort.read_text(), encoding="utf-8")
    (cohort.parent / "mr" / "._m1_image.nii.gz").write_bytes(b"a shadow")
    assert len(read_cohort(cohort).scans) == 6
    import tomli_w

    config = tmp_path / "mine.toml"
    content = tiny.content()
    content.pop("method")
    config.write_bytes(b"\xef\xbb\xbf" + tomli_w.dumps(content).encode())
    assert load_config(str(config), "le-uda").name == "tiny"
