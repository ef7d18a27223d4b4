"""What the page is given: the same voxels at the same place, whatever the file is."""

from __future__ import annotations

import gzip
import io
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image
from support.view_files import blobs, write_case

from leuda_deploy.errors import InputError
from leuda_deploy.scans.volume import Volume, read_volume
from leuda_deploy.view.content import Content, as_nifti, coarser, served_as_it_lies
from leuda_deploy.view.label_files import ONLY_FIRST
from leuda_deploy.view.scene import make_scene


def opened(sent: Path | bytes) -> nib.Nifti1Image:
    data = sent.read_bytes() if isinstance(sent, Path) else sent
    packed = data[:2] == b"\x1f\x8b"
    return nib.Nifti1Image.from_bytes(gzip.decompress(data) if packed else data)


def content(scan: Path, *labels: Path) -> Content:
    return Content([make_scene(scan, labels)], {})


def saved(path: Path, values: np.ndarray, affine: np.ndarray, sform: int, qform: int) -> Path:
    image = nib.Nifti1Image(values, affine)
    image.set_sform(affine, sform)
    image.set_qform(affine, qform)
    nib.save(image, path)
    return path


def test_a_plain_scan_is_sent_as_it_lies_on_disk(tmp_path: Path) -> None:
    scan = write_case(tmp_path)
    assert content(scan).file(0, "scan") == scan


@pytest.mark.parametrize(
    ("dtype", "sform", "qform"),
    [(np.int16, 0, 0), (np.float64, 1, 1), (np.int64, 1, 1), (np.int16, 0, 1)],
)
def test_what_browsers_read_otherwise_is_sent_anew(
    tmp_path: Path, dtype: type, sform: int, qform: int
) -> None:
    values = np.random.default_rng(0).integers(-9, 999, (5, 6, 7)).astype(dtype)
    affine = np.diag([2.0, 2.0, 3.0, 1.0])
    path = tmp_path / "scan.nii.gz"
    image = nib.Nifti1Image(values, affine, dtype=dtype)
    image.set_sform(affine, sform)
    image.set_qform(affine, qform)
    nib.save(image, path)
    if sform == 0:
        assert not served_as_it_lies(make_scene(path))
    sent, volume = opened(content(path).file(0, "scan")), read_volume(path)
    np.testing.assert_allclose(sent.affine, volume.affine, atol=1e-5)
    np.testing.assert_array_equal(sent.get_fdata(), np.asarray(nib.load(path).dataobj))
    assert sent.get_data_dtype().itemsize <= 8
    assert sent.header["sform_code"] == 1


def test_a_frame_of_a_4d_scan_is_sent_alone(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 99, (5, 6, 7, 3)).astype(np.int16)
    path = saved(tmp_path / "cine.nii.gz", values, np.eye(4), 1, 1)
    with pytest.raises(InputError):
        content(path).facts(0)
    sent = opened(Content([make_scene(path, frame=2)], {}).file(0, "scan"))
    np.testing.assert_array_equal(np.asarray(sent.dataobj), values[..., 2])


def test_labels_and_their_difference_lie_on_the_scans_grid(tmp_path: Path) -> None:
    scan = write_case(tmp_path, codes="PIR", degrees=17)
    both = content(scan, tmp_path / "case_labels.nii.gz", tmp_path / "case_truth.nii.gz")
    volume = read_volume(scan)
    sent = opened(both.file(0, "labels-0"))
    np.testing.assert_array_equal(np.asarray(sent.dataobj), blobs(volume.affine))
    np.testing.assert_allclose(sent.affine, volume.affine, atol=1e-5)
    difference = np.asarray(opened(both.file(0, "difference")).dataobj)
    assert (difference == ONLY_FIRST).any()
    for missing in ("labels-2", "../secret", "marks"):
        with pytest.raises(KeyError):
            both.file(0, missing)


def test_labels_that_cannot_be_used_are_a_note(tmp_path: Path) -> None:
    scan = write_case(tmp_path)
    other = tmp_path / "other"
    other.mkdir()
    write_case(other, codes="RAS")
    wrong = content(scan, other / "case_labels.nii.gz")
    assert wrong.structures(0)["structures"] == []
    assert wrong.structures(0)["note"]
    assert wrong.facts(0)["shape"] == (40, 44, 24)


@pytest.mark.parametrize("codes", ["LPS", "RAS", "PIR", "SAL"])
def test_thinned_voxels_stay_where_they_are(tmp_path: Path, codes: str) -> None:
    volume = read_volume(write_case(tmp_path, codes=codes))
    thin = coarser(volume, (2, 3, 1))
    np.testing.assert_array_equal(thin.raw, volume.raw[::2, ::3])
    for voxel in ([0, 0, 0, 1], [4, 5, 6, 1]):
        there = volume.affine @ (np.array(voxel) * [2, 3, 1, 1])
        np.testing.assert_allclose(thin.affine @ voxel, there)


@pytest.mark.parametrize("codes", ["LPS", "PIR"])
@pytest.mark.parametrize("degrees", [0, 17, -30])
def test_the_tilt_is_told(tmp_path: Path, codes: str, degrees: float) -> None:
    scan = write_case(tmp_path, codes=codes, degrees=degrees)
    assert content(scan).facts(0)["tilt_degrees"] == pytest.approx(abs(degrees), abs=0.1)


def test_scaled_values_keep_their_scale() -> None:
    raw = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
    volume = Volume(
        name="x", raw=raw, slope=0.5, inter=-10.0, affine=np.eye(4), header=None, shape=raw.shape
    )
    plain, packed = as_nifti(volume, level=None), as_nifti(volume, level=1)
    assert gzip.decompress(packed) == plain
    np.testing.assert_allclose(opened(plain).get_fdata(), raw * 0.5 - 10)


def test_files_of_one_name_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    scan, files = write_case(tmp_path), []
    for folder in ("truth", "labels"):
        (tmp_path / folder).mkdir()
        written = tmp_path / f"case_{folder}.nii.gz"
        files.append(written.rename(tmp_path / folder / "case.nii.gz"))
    said = content(scan, *files).facts(0)["labels"]
    assert said == ["truth/case.nii.gz", "labels/case.nii.gz"]


@pytest.mark.parametrize("codes", ["LPS", "RAS", "PIR", "SAL"])
def test_a_thumbnail_has_the_patients_right_on_its_left(tmp_path: Path, codes: str) -> None:
    picture = content(write_case(tmp_path, codes=codes)).thumbnail(0)
    pixels = np.asarray(Image.open(io.BytesIO(picture))).astype(int)
    # class 1, the right blob, is tinted orange (230, 159, 0); class 2 blue (86, 180, 233)
    orange, blue = pixels[..., 0] - pixels[..., 2] > 60, pixels[..., 2] - pixels[..., 0] > 60
    assert orange.any()
    assert np.nonzero(orange)[1].max() < np.nonzero(blue)[1].min()
