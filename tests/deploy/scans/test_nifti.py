"""Labels on the scan's own grid, bit for bit, and nothing else of the scan in them."""

from __future__ import annotations

import gzip
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from nibabel.nifti1 import Nifti1Extension
from numpy.typing import NDArray

from leuda_deploy.errors import InputError
from leuda_deploy.scans.nifti import (
    check_label_path,
    read_label_names,
    write_labels,
    write_map,
    write_scan,
)
from leuda_deploy.scans.volume import read_volume

SHAPE = (3, 4, 5)
AFFINE = np.array([[0, 0, 2.5, -5], [-0.75, 0, 0, 6], [0, 1.5, 0, 7], [0, 0, 0, 1.0]])
OTHER_AFFINE = np.diag([0.8, 0.9, 3.0, 1.0])
GEOMETRY = (
    *("qform_code", "sform_code", "pixdim", "xyzt_units"),
    *("quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z"),
    *("srow_x", "srow_y", "srow_z"),
)
NAMES = {1: "left ventricle", 2: "aorta", 7: "Ösophagus"}


def ramp(dtype: str = "int16", shape: tuple[int, ...] = SHAPE) -> NDArray[Any]:
    return np.arange(np.prod(shape)).reshape(shape).astype(dtype)


def some_labels(shape: tuple[int, ...] = SHAPE) -> NDArray[np.uint8]:
    return (np.arange(np.prod(shape)).reshape(shape) % 3).astype(np.uint8)


def raw_header(path: Path) -> nib.Nifti1Header:
    """The header's own bytes, without anything nibabel mends when it loads an image."""
    content = path.read_bytes()
    if path.suffix == ".gz":
        content = gzip.decompress(content)
    wide = content[:4] in (b"\x1c\x02\x00\x00", b"\x00\x00\x02\x1c")  # 540, the NIfTI-2 size
    kind = nib.Nifti2Header if wide else nib.Nifti1Header
    return kind.from_fileobj(io.BytesIO(content), check=False)


@pytest.mark.parametrize("kind", [nib.Nifti1Pair, nib.Nifti2Pair])
@pytest.mark.parametrize("opened", ["a.hdr", "a.img"])
def test_pair_of_files_gives_labels_with_the_same_geometry(
    tmp_path: Path, kind: Any, opened: str
) -> None:
    image = kind(ramp(), AFFINE)
    image.set_qform(AFFINE, 1)
    image.set_sform(OTHER_AFFINE, 4)
    nib.save(image, tmp_path / "a.hdr")
    volume = read_volume(tmp_path / opened)
    np.testing.assert_array_equal(volume.raw, ramp())
    write_labels(tmp_path / "labels.nii.gz", some_labels(), volume, NAMES)
    for field in GEOMETRY:
        if field != "pixdim":  # its first entry, qfac, is compared with the rest below
            assert (
                raw_header(tmp_path / "labels.nii.gz")[field].tobytes()
                == image.header[field].tobytes()
            ), field
    written = raw_header(tmp_path / "labels.nii.gz")
    np.testing.assert_array_equal(written["pixdim"][:4], image.header["pixdim"][:4])


def save_unscaled(image: nib.Nifti1Image, path: Path, slope: float, inter: float) -> None:
    """Save, then set the scale in the file itself: nibabel would divide the voxels by it."""
    nib.save(image, path)
    content = bytearray(path.read_bytes())
    content[112:120] = np.array([slope, inter], dtype="<f4").tobytes()  # scl_slope, scl_inter
    path.write_bytes(content)


@pytest.mark.parametrize("shape", [(*SHAPE, 1), (*SHAPE, 1, 1), SHAPE, (7, 1, 1), (1, 1, 1)])
def test_labels_have_exactly_the_shape_on_disk(tmp_path: Path, shape: tuple[int, ...]) -> None:
    # single trailing axes below 4D are voxels, above they are empty axes
    nib.save(nib.Nifti1Image(ramp(shape=shape), AFFINE), tmp_path / "a.nii.gz")
    on_disk = nib.load(tmp_path / "a.nii.gz").shape
    volume = read_volume(tmp_path / "a.nii.gz")
    assert volume.raw.shape == shape[:3]
    write_labels(tmp_path / "l.nii.gz", some_labels(shape[:3]), volume, NAMES)
    written = nib.load(tmp_path / "l.nii.gz")
    assert written.shape == on_disk
    np.testing.assert_array_equal(
        np.asarray(written.dataobj), some_labels(shape[:3]).reshape(on_disk)
    )


def no_form(image: nib.Nifti1Image) -> None:
    image.header["qform_code"] = image.header["sform_code"] = 0
    image.header["pixdim"][1:4] = (0.7, 0.8, 3.0)


def qform_only(image: nib.Nifti1Image) -> None:
    image.set_qform(AFFINE, 1)
    image.set_sform(None, 0)


def sform_only(image: nib.Nifti1Image) -> None:
    image.set_qform(None, 0)
    image.set_sform(AFFINE, 3)


def both_differ(image: nib.Nifti1Image) -> None:
    image.set_qform(OTHER_AFFINE, 1)
    image.set_sform(AFFINE, 4)


@pytest.mark.parametrize("forms", [no_form, qform_only, sform_only, both_differ])
@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("order", ["<", ">"])
def test_labels_keep_the_scans_geometry_bit_for_bit(
    tmp_path: Path, forms: Callable[[nib.Nifti1Image], None], kind: Any, order: str
) -> None:
    image = kind(ramp(), None, kind.header_class(endianness=order))
    image.header.set_xyzt_units("mm", "sec")
    image.header["pixdim"][4:] = (2.5, 0, 0, 0)
    forms(image)
    nib.save(image, tmp_path / "a.nii.gz")
    volume = read_volume(tmp_path / "a.nii.gz")
    write_labels(tmp_path / "l.nii.gz", some_labels(), volume, NAMES)
    scan, written = raw_header(tmp_path / "a.nii.gz"), raw_header(tmp_path / "l.nii.gz")
    assert type(written) is type(scan)
    for field in GEOMETRY:
        assert written[field].tobytes() == scan[field].tobytes(), field
    labels = nib.load(tmp_path / "l.nii.gz")
    np.testing.assert_array_equal(labels.affine, volume.affine)
    assert labels.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(np.asarray(labels.dataobj), some_labels())


def test_scale_and_display_range_of_the_scan_do_not_reach_the_labels(tmp_path: Path) -> None:
    image = nib.Nifti1Image(ramp(), AFFINE)
    image.header["cal_max"] = 400
    save_unscaled(image, tmp_path / "a.nii", 3.0, -1024.0)
    write_labels(tmp_path / "l.nii", some_labels(), read_volume(tmp_path / "a.nii"), NAMES)
    header = raw_header(tmp_path / "l.nii")
    assert (header["scl_slope"], header["scl_inter"], header["cal_max"]) == (1, 0, 0)
    np.testing.assert_array_equal(nib.load(tmp_path / "l.nii").get_fdata(), some_labels())


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
def test_nothing_that_may_name_the_patient_reaches_the_labels(tmp_path: Path, kind: Any) -> None:
    image = kind(ramp(), AFFINE)
    texts = [name for name in image.header if image.header[name].dtype.kind == "S"]
    assert {"descrip", "aux_file", "intent_name"} < set(texts)
    for name in set(texts) - {"magic", "regular"}:  # data_type, db_name, unused_str, ... too
        image.header[name] = b"DOE^JANE"
    image.header.extensions.extend(Nifti1Extension(code, b"DOE^JANE") for code in (2, 6, 44))
    nib.save(image, tmp_path / "a.nii")
    assert (tmp_path / "a.nii").read_bytes().count(b"DOE^JANE") >= 6
    volume = read_volume(tmp_path / "a.nii")
    write_labels(tmp_path / "l.nii", some_labels(), volume, NAMES)
    write_map(tmp_path / "m.nii", some_labels(), volume)
    assert b"DOE^JANE" not in (tmp_path / "m.nii").read_bytes()
    assert b"DOE^JANE" not in (tmp_path / "l.nii").read_bytes()
    assert len(nib.load(tmp_path / "l.nii").header.extensions) == 1
    assert len(volume.header.extensions) == 3  # the scan in memory is left alone


def test_label_names_come_back(tmp_path: Path) -> None:
    nib.save(nib.Nifti1Image(ramp(), AFFINE), tmp_path / "a.nii")
    volume = read_volume(tmp_path / "a.nii")
    for name in ("l.nii", "l.nii.gz"):
        write_labels(tmp_path / name, some_labels(), volume, NAMES)
        assert read_label_names(tmp_path / name) == NAMES


@pytest.mark.parametrize("comment", [b"hello", b"[]", b'{"leuda": 3}', b"\xff\xfe\xfd", b"{"])
def test_comments_of_others_are_not_label_names(tmp_path: Path, comment: bytes) -> None:
    image = nib.Nifti1Image(ramp(), AFFINE)
    assert not image.header.extensions
    image.header.extensions.append(Nifti1Extension(6, comment))
    nib.save(image, tmp_path / "a.nii")
    assert read_label_names(tmp_path / "a.nii") == {}


def test_scan_without_nifti_header_gives_labels_on_its_grid(tmp_path: Path) -> None:
    nib.save(nib.MGHImage(ramp("float32"), AFFINE), tmp_path / "a.mgz")
    volume = read_volume(tmp_path / "a.mgz")
    assert volume.header is None
    write_labels(tmp_path / "l.nii.gz", some_labels(), volume, NAMES)
    written = nib.load(tmp_path / "l.nii.gz")
    np.testing.assert_allclose(written.affine, nib.load(tmp_path / "a.mgz").affine, atol=1e-6)
    np.testing.assert_array_equal(np.asarray(written.dataobj), some_labels())
    assert written.header.get_xyzt_units()[0] == "mm"


def test_failed_write_leaves_the_old_file_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nib.save(nib.Nifti1Image(ramp(), AFFINE), tmp_path / "a.nii")
    (tmp_path / "l.nii").write_bytes(b"the old labels")

    def half_a_file(image: Any, stream: io.BytesIO) -> None:
        stream.write(b"half")
        raise OSError("no space left")

    monkeypatch.setattr(nib.Nifti1Image, "to_stream", half_a_file)
    with pytest.raises(OSError, match="no space left"):
        write_labels(tmp_path / "l.nii", some_labels(), read_volume(tmp_path / "a.nii"), NAMES)
    assert (tmp_path / "l.nii").read_bytes() == b"the old labels"
    assert {path.name for path in tmp_path.iterdir()} == {"a.nii", "l.nii"}


def test_labels_go_to_nifti_and_never_over_the_scan(tmp_path: Path) -> None:
    scan = tmp_path / "a.nii"
    scan.write_bytes(b"")
    with pytest.raises(InputError):
        check_label_path(tmp_path / "l.mgz", scan)
    with pytest.raises(InputError):
        check_label_path(tmp_path / "." / "a.nii", scan)
    check_label_path(tmp_path / "l.nii.gz", scan)


def test_labels_are_the_same_bytes_every_time_and_name_no_file(tmp_path: Path) -> None:
    nib.save(nib.Nifti1Image(ramp(), AFFINE), tmp_path / "a.nii")
    volume = read_volume(tmp_path / "a.nii")
    for name in ("one.nii.gz", "other.nii.gz"):
        write_labels(tmp_path / name, some_labels(), volume, NAMES)
    one = (tmp_path / "one.nii.gz").read_bytes()
    assert one == (tmp_path / "other.nii.gz").read_bytes()
    assert b"one" not in one
    assert b"tmp" not in one


def test_a_scan_is_the_same_bytes_every_time_and_keeps_its_scale(tmp_path: Path) -> None:
    for name in ("one.nii.gz", "other.nii.gz"):
        write_scan(tmp_path / name, ramp(), AFFINE, scale=(2.0, -1024.0))
    assert (tmp_path / "one.nii.gz").read_bytes() == (tmp_path / "other.nii.gz").read_bytes()
    volume = read_volume(tmp_path / "one.nii.gz")
    np.testing.assert_array_equal(volume.raw, ramp())
    assert (volume.slope, volume.inter) == (2.0, -1024.0)
    np.testing.assert_allclose(volume.affine, AFFINE, atol=1e-6)
    assert volume.header.get_xyzt_units()[0] == "mm"
    write_scan(tmp_path / "plain.nii.gz", ramp(), AFFINE)
    assert read_volume(tmp_path / "plain.nii.gz").slope == 1
