"""Scans are read as they lie on disk, or refused for a reason that is a fact."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from numpy.typing import NDArray
from support.makers import MakeVolume

from leuda_deploy.errors import ScanError
from leuda_deploy.scans.volume import read_volume

SHAPE = (3, 4, 5)
AFFINE = np.array([[0, 0, 2.5, -5], [-0.75, 0, 0, 6], [0, 1.5, 0, 7], [0, 0, 0, 1.0]])
DTYPES = ("int8", "uint8", "int16", "uint16", "int32", "uint32", "float32", "float64")
# as a user of a 64-bit volume would have it
WIDE = ("int64", "uint64")


def ramp(dtype: str = "int16", shape: tuple[int, ...] = SHAPE) -> NDArray[Any]:
    return np.arange(np.prod(shape)).reshape(shape).astype(dtype)


@pytest.mark.parametrize("dtype", [*DTYPES, *WIDE])
@pytest.mark.parametrize("order", ["<", ">"])
def test_reads_every_dtype_and_byte_order_as_stored(tmp_path: Path, dtype: str, order: str) -> None:
    header = nib.Nifti1Header(endianness=order)
    header.set_data_dtype(dtype)
    nib.save(nib.Nifti1Image(ramp(dtype), AFFINE, header), tmp_path / "a.nii")
    volume = read_volume(tmp_path / "a.nii")
    assert volume.raw.dtype == np.dtype(dtype).newbyteorder(order)
    np.testing.assert_array_equal(volume.raw, ramp(dtype))
    np.testing.assert_array_equal(volume.affine, AFFINE)


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_reads_single_files(tmp_path: Path, kind: Any, name: str) -> None:
    nib.save(kind(ramp(), AFFINE), tmp_path / name)
    volume = read_volume(tmp_path / name)
    np.testing.assert_array_equal(volume.raw, ramp())
    assert volume.shape == SHAPE
    assert volume.name == name


@pytest.mark.parametrize(("slope", "inter"), [(2.0, -1024.0), (-0.5, 10.0), (1.0, 0.0)])
def test_scaled_scan_keeps_its_integers_and_its_scale(
    tmp_path: Path, slope: float, inter: float
) -> None:
    image = nib.Nifti1Image(ramp(), AFFINE)
    image.header.set_slope_inter(slope, inter)
    image.header.set_data_dtype(np.int16)
    save_unscaled(image, tmp_path / "a.nii", slope, inter)
    volume = read_volume(tmp_path / "a.nii")
    assert volume.raw.dtype == np.int16
    np.testing.assert_array_equal(volume.raw, ramp())
    assert (volume.slope, volume.inter) == (slope, inter)
    seen = nib.load(tmp_path / "a.nii").get_fdata()
    np.testing.assert_allclose(volume.raw * volume.slope + volume.inter, seen)


def save_unscaled(image: nib.Nifti1Image, path: Path, slope: float, inter: float) -> None:
    """Save, then set the scale in the file itself: nibabel would divide the voxels by it."""
    nib.save(image, path)
    content = bytearray(path.read_bytes())
    content[112:120] = np.array([slope, inter], dtype="<f4").tobytes()  # scl_slope, scl_inter
    path.write_bytes(content)


@pytest.mark.parametrize(("slope", "inter"), [(0.0, 5.0), (np.nan, 5.0), (0.0, np.nan)])
def test_slope_that_is_zero_or_nan_means_unscaled(
    tmp_path: Path, slope: float, inter: float
) -> None:
    save_unscaled(nib.Nifti1Image(ramp(), AFFINE), tmp_path / "a.nii", slope, inter)
    volume = read_volume(tmp_path / "a.nii")
    assert (volume.slope, volume.inter) == (1.0, 0.0)


def test_format_with_its_own_scaling_is_scaled_by_its_own_rule() -> None:
    path = Path(nib.__file__).parent / "tests" / "data" / "scaled+tlrc.HEAD"
    if not path.is_file():
        pytest.skip("this nibabel comes without its AFNI test file")
    volume = read_volume(path)
    seen = nib.load(path).get_fdata()[..., 0]
    np.testing.assert_allclose(volume.raw * volume.slope + volume.inter, seen)


def test_4d_scan_needs_a_frame(tmp_path: Path) -> None:
    data = ramp(shape=(*SHAPE, 3))
    nib.save(nib.Nifti1Image(data, AFFINE), tmp_path / "a.nii.gz")
    with pytest.raises(ScanError) as caught:
        read_volume(tmp_path / "a.nii.gz")
    for frame in range(3):
        volume = read_volume(tmp_path / "a.nii.gz", frame=frame)
        np.testing.assert_array_equal(volume.raw, data[..., frame])
        assert volume.shape == SHAPE
    assert caught.value.fault == "frames"
    for frame in (-1, 3):
        with pytest.raises(ScanError) as caught:
            read_volume(tmp_path / "a.nii.gz", frame=frame)
        assert caught.value.fault == "frames"


def save(data: NDArray[Any]) -> Callable[[Path], None]:
    return lambda path: nib.save(nib.Nifti1Image(data, AFFINE), path)


def truncated(path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 30000, (20, 20, 20)).astype(np.int16)
    nib.save(nib.Nifti1Image(noise, AFFINE), path)
    path.write_bytes(path.read_bytes()[:2000])


def rgb(path: Path) -> None:
    voxels = np.zeros(SHAPE, dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    nib.save(nib.Nifti1Image(voxels, AFFINE), path)


def larger_than_memory(path: Path) -> None:
    nib.save(nib.Nifti1Image(ramp(), AFFINE), path)
    content = bytearray(gzip.decompress(path.read_bytes()))
    content[40:56] = np.array([7, *[32767] * 7], dtype="<i2").tobytes()  # dim
    path.write_bytes(gzip.compress(bytes(content)))


def with_sform(affine: NDArray[np.float64]) -> Callable[[Path], None]:
    """Write an affine that nibabel itself would not."""

    def write(path: Path) -> None:
        image = nib.Nifti1Image(ramp(), None)
        image.header["sform_code"] = 1
        for field, row in zip(("srow_x", "srow_y", "srow_z"), affine, strict=False):
            image.header[field] = row
        nib.save(image, path)

    return write


def with_axis(column: NDArray[np.float64] | list[float]) -> NDArray[np.float64]:
    affine = np.eye(4)
    affine[:3, 1] = column
    return affine


BAD = {
    "2D": (save(ramp(shape=(4, 5))), "axes"),
    "rgb": (rgb, "no real numbers"),
    "complex": (save(np.zeros(SHAPE, dtype=np.complex64)), "no real numbers"),
    "truncated": (truncated, "damaged"),
    "junk": (lambda path: path.write_bytes(bytes(range(256)) * 4), "damaged"),
    "empty": (lambda path: path.write_bytes(b""), "damaged"),
    "text": (lambda path: path.write_text("a\nb\n"), "damaged"),
    "missing": (lambda path: None, "missing"),
    "folder": (lambda path: path.mkdir(), "missing"),
    "larger than memory": (larger_than_memory, "frames"),
    "flat affine": (with_sform(with_axis([0, 0, 0])), "degenerate"),
    "affine not finite": (with_sform(with_axis([0, np.nan, 0])), "degenerate"),
    "parallel axes": (with_sform(with_axis([1, 0, 0])), "sheared"),
    "gantry tilt": (with_sform(with_axis([0, 1, np.tan(np.radians(12))])), "sheared"),
}


@pytest.mark.parametrize("what", BAD)
def test_unusable_scan_is_one_line_that_names_the_file(tmp_path: Path, what: str) -> None:
    write, fault = BAD[what]
    path = tmp_path / "a.nii.gz"
    write(path)
    with pytest.raises(ScanError) as caught:
        read_volume(path)
    assert caught.value.fault == fault
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_file_that_says_it_is_larger_than_it_is_cannot_be_read(tmp_path: Path) -> None:
    nib.save(nib.Nifti1Image(ramp(), AFFINE), tmp_path / "a.nii")
    content = bytearray((tmp_path / "a.nii").read_bytes())
    for dims in ([3, 32767, 32767, 32767], [7, *[32767] * 7]):
        content[40 : 40 + 2 * len(dims)] = np.array(dims, dtype="<i2").tobytes()
        (tmp_path / "a.nii").write_bytes(content)
        with pytest.raises(ScanError) as caught:
            read_volume(tmp_path / "a.nii", frame=0)
        assert caught.value.fault == "damaged"


def test_damaged_headers_are_read_or_refused_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nib.imageglobals.logger, "disabled", True)
    path = tmp_path / "a.nii"
    nib.save(nib.Nifti1Image(ramp(), AFFINE), path)
    sound, rng, refused = path.read_bytes(), np.random.default_rng(0), 0
    for _ in range(400):
        content = bytearray(sound)
        for place in rng.integers(0, 348, 3):
            content[place] = rng.integers(0, 256)
        path.write_bytes(content)
        try:
            read_volume(path, frame=0)
        except ScanError as error:
            refused += 1
            assert "\n" not in str(error)  # noqa: PT017
    assert 0 < refused < 400


def test_shear_below_a_degree_is_accepted(tmp_path: Path) -> None:
    with_sform(with_axis([0, 1, np.tan(np.radians(0.9))]))(tmp_path / "a.nii")
    assert read_volume(tmp_path / "a.nii").raw.shape == SHAPE


def test_voxel_size_and_volume_come_from_the_affine(make_volume: MakeVolume) -> None:
    volume = make_volume(ramp(), AFFINE)
    assert volume.spacing_mm == (0.75, 1.5, 2.5)
    assert volume.voxel_ml == pytest.approx(0.75 * 1.5 * 2.5 / 1000)


def test_gzip_with_a_wrong_checksum_is_refused(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 30000, (20, 20, 20)).astype(np.int16)
    nib.save(nib.Nifti1Image(noise, AFFINE), tmp_path / "a.nii.gz")
    content = bytearray((tmp_path / "a.nii.gz").read_bytes())
    content[-6] ^= 1  # the checksum of the unpacked bytes
    (tmp_path / "a.nii.gz").write_bytes(content)
    with pytest.raises(ScanError) as caught:
        read_volume(tmp_path / "a.nii.gz")
    assert caught.value.fault == "damaged"


def test_only_the_chosen_frame_is_held(tmp_path: Path) -> None:
    data = ramp(shape=(*SHAPE, 5, 2))
    for name in ("a.nii", "a.nii.gz"):
        nib.save(nib.Nifti1Image(data, AFFINE), tmp_path / name)
        volume = read_volume(tmp_path / name, frame=7)  # counted as they lie on disk
        np.testing.assert_array_equal(volume.raw, data[..., 2, 1])
    assert volume.raw.base is None or volume.raw.base.nbytes == volume.raw.nbytes
    assert volume.raw.flags.f_contiguous
