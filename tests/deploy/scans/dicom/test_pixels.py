"""Pixels as scanners and archives write them: many frames, phases, types, scales, compressions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from leuda_deploy.errors import ScanError

pytest.importorskip("pydicom", reason="the dicom extra is not installed")

from pydicom.dataset import Dataset
from pydicom.uid import (
    JPEG2000Lossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
    generate_uid,
)
from support.dicom_series import even, make_enhanced, make_slices, smooth, write_images

from leuda_deploy.scans.dicom import Series, find_series, read_series
from leuda_deploy.scans.volume import Volume

VALUES = smooth((6, 40, 36))
WANT = VALUES.transpose(2, 1, 0).astype(np.float64)


def real(volume: Volume) -> np.ndarray:
    return volume.raw * volume.slope + volume.inter


def series_of(folder: Path, images: list[Dataset]) -> Series:
    return read_series(write_images(folder / "s", images))


@pytest.mark.parametrize("modality", ["CT", "MR"])
def test_a_file_of_many_frames_is_a_series(tmp_path: Path, modality: str) -> None:
    made = make_enhanced(VALUES, even(6), modality=modality)
    series = series_of(tmp_path, [made])
    plain = read_series(write_images(tmp_path / "plain", make_slices(VALUES, even(6))))
    np.testing.assert_array_equal(series.volume.raw, plain.volume.raw)
    np.testing.assert_array_equal(series.volume.affine, plain.volume.affine)
    (path,) = (tmp_path / "s").iterdir()
    np.testing.assert_array_equal(read_series(path).volume.raw, plain.volume.raw)  # the file alone
    assert "PixelData" not in series.datasets[0]


def test_frames_in_any_order_lie_where_they_say(tmp_path: Path) -> None:
    order = [3, 0, 5, 1, 4, 2]
    made = make_enhanced(VALUES[order], [even(6)[k] for k in order])
    series = series_of(tmp_path, [made])
    np.testing.assert_array_equal(real(series.volume), WANT)
    labels = (series.volume.raw > 900).astype(np.uint8)
    np.testing.assert_array_equal(series.on_frames(labels), (VALUES[order] + 1024 > 900))


def test_phases_of_a_file_of_many_frames(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "s", [make_enhanced(VALUES, even(6), times=3)])
    (found,) = find_series(folder)
    assert found.as_dict()["phases"] == 3
    with pytest.raises(ScanError) as caught:
        read_series(found)
    assert caught.value.fault == "frames"
    assert "TemporalPositionIndex" in str(caught.value)
    for phase in range(3):
        series = read_series(found, phase=phase)
        np.testing.assert_array_equal(real(series.volume), WANT + 10 * phase)
        frames = series.on_frames(np.ones(series.volume.raw.shape, np.uint8))
        assert frames.shape == (18, 40, 36)
        assert [bool(frame.all()) for frame in frames] == [k % 3 == phase for k in range(18)]
    with pytest.raises(ScanError):
        read_series(found, phase=3)


PHASES = {
    "trigger times": ("TriggerTime", [0.0, 40.0, 80.0]),
    "echoes": ("EchoTime", [30.0, 20.0, 10.0]),
    "b values": ("DiffusionBValue", [0.0, 500.0, 1000.0]),
    "nothing but the order": (None, [0, 1, 2]),
}


@pytest.mark.parametrize("what", PHASES)
def test_phases_of_single_files(tmp_path: Path, what: str) -> None:
    key, values = PHASES[what]
    images = []
    for phase, value in enumerate(values):
        slices = make_slices(VALUES + 10 * phase, even(6))
        for k, image in enumerate(slices):
            image.InstanceNumber = 1 + (3 * k + phase if key else 6 * phase + k)
            if key:
                setattr(image, key, value + 0.01 * k)  # not the same in every slice
        images += slices
    (found,) = find_series(write_images(tmp_path / "s", images))
    for rank, phase in enumerate(np.argsort(values).tolist()):
        volume = read_series(found, phase=rank).volume
        np.testing.assert_array_equal(real(volume), WANT + 10 * phase)


def test_an_image_that_is_there_twice_is_no_phase(tmp_path: Path) -> None:
    images = make_slices(VALUES, even(6))
    images.append(make_slices(VALUES, even(6))[2])
    with pytest.raises(ScanError) as caught:
        series_of(tmp_path, images)
    assert caught.value.fault == "repeated slice"


def test_signed_and_unsigned_slices_are_one_scan(tmp_path: Path) -> None:
    with_sign, without = (make_slices(VALUES, even(6), signed=sign) for sign in (True, False))
    volume = series_of(tmp_path, with_sign[:3] + without[3:]).volume
    assert volume.raw.dtype == np.int32  # what there could be goes beyond int16
    np.testing.assert_array_equal(real(volume), WANT)


def test_each_slice_has_its_own_scale(tmp_path: Path) -> None:
    """As MR of some makers has; padding is found for what it is in each."""
    images = make_slices(VALUES, even(6), signed=True)
    for k, image in enumerate(images):
        image.RescaleSlope, image.RescaleIntercept = 0.5 + 0.25 * k, 3
    volume = series_of(tmp_path, images).volume
    assert volume.raw.dtype == np.float32
    np.testing.assert_allclose(real(volume), WANT * (0.5 + 0.25 * np.arange(6)) + 3, rtol=1e-6)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_pixels_may_be_floats(tmp_path: Path, dtype: type[np.floating]) -> None:
    images = make_slices(VALUES, even(6))
    for image, plane in zip(images, VALUES, strict=True):
        del image.PixelData, image.PixelRepresentation, image.HighBit, image.BitsStored
        image.BitsAllocated = np.dtype(dtype).itemsize * 8
        image.RescaleIntercept = 0
        name = "FloatPixelData" if dtype is np.float32 else "DoubleFloatPixelData"
        setattr(image, name, (plane / 7).astype(dtype).tobytes())
    series = series_of(tmp_path, images)
    assert series.volume.raw.dtype == dtype
    np.testing.assert_array_equal(series.volume.raw, (WANT / 7).astype(dtype))
    assert "FloatPixelData" not in series.datasets[0]


def test_a_table_of_values_is_applied(tmp_path: Path) -> None:
    images = make_slices(VALUES, even(6))
    for image in images:
        table = Dataset()
        table.LUTDescriptor, table.ModalityLUTType = [2048, 0, 16], "US"
        table.LUTData = (3 * np.arange(2048)).astype(np.uint16).tobytes()
        table["LUTData"].VR = "OW"
        image.ModalityLUTSequence = [table]
        del image.RescaleSlope, image.RescaleIntercept
    volume = series_of(tmp_path, images).volume
    np.testing.assert_array_equal(real(volume), 3 * (WANT + 1024))


def test_scouts_within_a_series_are_left_out(tmp_path: Path) -> None:
    images = make_slices(VALUES, even(6))
    scout = make_slices(VALUES[:1], [[0.0, 0.0, 0.0]])[0]
    scout.ImageOrientationPatient, scout.InstanceNumber = [1, 0, 0, 0, 0, -1], 7
    scout.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    np.testing.assert_array_equal(real(series_of(tmp_path, [scout, *images]).volume), WANT)


@pytest.mark.parametrize("syntax", [RLELossless, JPEGLSLossless, JPEG2000Lossless])
def test_compressed_pixels_are_unpacked(tmp_path: Path, syntax: str) -> None:
    pytest.importorskip("openjpeg", reason="pylibjpeg-openjpeg is not installed")
    images = make_slices(VALUES, even(6))
    for image in images:
        image.compress(syntax, generate_instance_uid=False)
    volume = series_of(tmp_path, images).volume
    assert volume.raw.dtype == np.uint16
    np.testing.assert_array_equal(real(volume), WANT)


@pytest.mark.parametrize("signed", [False, True])
def test_lossless_jpeg_is_unpacked(tmp_path: Path, signed: bool) -> None:
    """The old one, of which most archives are full; no package but gdcm writes it here."""
    gdcm = pytest.importorskip("gdcm", reason="python-gdcm is not installed")
    folder = write_images(tmp_path / "plain", make_slices(VALUES, even(6), signed=signed))
    (tmp_path / "s").mkdir()
    for path in folder.iterdir():
        reader, change, writer = gdcm.ImageReader(), gdcm.ImageChangeTransferSyntax(), None
        reader.SetFileName(str(path))
        assert reader.Read()
        change.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.JPEGLosslessProcess14_1))
        change.SetInput(reader.GetImage())
        assert change.Change()
        writer = gdcm.ImageWriter()
        writer.SetFileName(str(tmp_path / "s" / path.name))
        writer.SetFile(reader.GetFile())
        writer.SetImage(change.GetOutput())
        assert writer.Write()
    import pydicom

    first = pydicom.dcmread(next((tmp_path / "s").iterdir()), stop_before_pixels=True)
    assert first.file_meta.TransferSyntaxUID == JPEGLosslessSV1
    np.testing.assert_array_equal(real(read_series(tmp_path / "s").volume), WANT)


def test_pixels_are_read_in_the_order_of_their_places(tmp_path: Path) -> None:
    images = make_slices(VALUES, even(6))[::-1]
    for image in images:
        image.SOPInstanceUID = image.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    np.testing.assert_array_equal(real(series_of(tmp_path, images).volume), WANT)
