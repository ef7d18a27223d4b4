"""A DICOM series is read where it lies; labels go back as a SEG that refers to it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from support.command import leuda_here
from support.makers import MakeCard, MakeModel

from leuda_deploy.errors import InputError

pydicom = pytest.importorskip("pydicom", reason="the dicom extra is not installed")
highdicom = pytest.importorskip("highdicom", reason="the dicom extra is not installed")

from pydicom.dataset import Dataset, FileMetaDataset  # noqa: E402
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid  # noqa: E402

from leuda_deploy.scans.dicom import read_series, write_seg  # noqa: E402

DEPTH, ROWS, COLUMNS = 5, 6, 8
VALUES = np.arange(DEPTH * ROWS * COLUMNS).reshape(DEPTH, ROWS, COLUMNS).astype(np.int16) - 100
ORIENTATION = [1, 0, 0, 0, 1, 0]


def image(index: int, series: str, **other: Any) -> Dataset:
    made = Dataset()
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    made.file_meta.MediaStorageSOPClassUID = made.SOPClassUID = CTImageStorage
    made.SOPInstanceUID = made.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    made.PatientID, made.PatientName, made.PatientBirthDate, made.PatientSex = "1", "A^B", "", ""
    made.StudyInstanceUID, made.SeriesInstanceUID = "1.2.3", series
    made.StudyDate = made.StudyTime = made.AccessionNumber = made.StudyID = ""
    made.ReferringPhysicianName = made.PositionReferenceIndicator = ""
    made.FrameOfReferenceUID, made.Modality, made.SeriesDescription = "1.2.4", "CT", series
    made.Rows, made.Columns, made.PixelSpacing = ROWS, COLUMNS, [0.7, 0.8]
    made.SeriesNumber, made.InstanceNumber, made.SliceThickness = 1, index + 1, 2.5
    made.ImageOrientationPatient = ORIENTATION
    made.ImagePositionPatient = [-10.0, -20.0, 30.0 + 2.5 * index]
    made.SamplesPerPixel, made.PhotometricInterpretation = 1, "MONOCHROME2"
    made.BitsAllocated, made.BitsStored, made.HighBit, made.PixelRepresentation = 16, 16, 15, 1
    made.RescaleSlope, made.RescaleIntercept = 2, -1024
    made.PixelData = VALUES[index].tobytes()
    for name, value in other.items():
        setattr(made, name, value)
    return made


def write(folder: Path, images: list[Dataset]) -> Path:
    folder.mkdir(exist_ok=True)
    for made in images:
        name = f"{np.random.default_rng(abs(hash(made.SOPInstanceUID))).integers(1 << 40)}.dcm"
        made.save_as(folder / name, enforce_file_format=True)
    return folder


def series(**other: Any) -> list[Dataset]:
    return [image(k, "1.2.5", **other) for k in range(DEPTH)]


def test_series_is_read_in_the_order_of_its_places(tmp_path: Path) -> None:
    (write(tmp_path / "s", series()) / "notes.txt").write_text("no image")
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
    images = series()
    place = np.asarray(images[index].ImagePositionPatient, float) + by
    images[index].ImagePositionPatient = place.tolist()
    return images


def tilted() -> list[Dataset]:
    images = series()
    for k, made in enumerate(images):
        made.ImagePositionPatient = [-10, -20 + 2.5 * k * np.tan(np.radians(15)), 30 + 2.5 * k]
    return images


BAD: dict[str, tuple[Callable[[], list[Dataset]], str]] = {
    "two series": (lambda: [*series(), image(0, "1.2.6")], "holds 2 series"),
    "missing slice": (lambda: series()[:2] + series()[3:], "misses about 1 slice"),
    "repeated slice": (lambda: moved(2, [0, 0, -2.5]), "same place"),
    "gantry tilt": (tilted, r"15\.0 degrees \(gantry tilt\)"),
    "one slice": (lambda: series()[:1], "one slice"),
    "localiser": (
        lambda: [*series()[1:], image(0, "1.2.5", ImageOrientationPatient=[1, 0, 0, 0, 0, -1])],
        "different ImageOrientationPatient",
    ),
    "other modality": (lambda: series(Modality="US"), "is US"),
    "multi-frame": (lambda: series(NumberOfFrames=3), "multi-frame"),
    "two scales": (lambda: [*series()[1:], image(0, "1.2.5", RescaleSlope=3)], "2 ways"),
    "nothing": (list, "neither NIfTI files nor DICOM"),
}


@pytest.mark.parametrize("fault", BAD)
def test_series_that_is_no_grid_is_one_line(tmp_path: Path, fault: str) -> None:
    make, message = BAD[fault]
    with pytest.raises(InputError, match=message) as caught:
        read_series(write(tmp_path / "s", make()))
    assert "\n" not in str(caught.value)


def test_seg_refers_to_the_series_and_lies_on_it(tmp_path: Path, make_card: MakeCard) -> None:
    found = read_series(write(tmp_path / "s", series()))
    labels = np.zeros(found.volume.raw.shape, np.uint8)
    labels[found.volume.raw > 50], labels[found.volume.raw > 100] = 1, 2
    write_seg(tmp_path / "seg.dcm", labels, found, make_card())
    seg = highdicom.seg.segread(tmp_path / "seg.dcm")
    assert seg.StudyInstanceUID == "1.2.3"
    assert seg.FrameOfReferenceUID == "1.2.4"
    assert [s.segment_label for s in (seg.get_segment_description(k) for k in (1, 2))] == [
        "grey",
        "bright",
    ]
    uids = [
        image.SOPInstanceUID for image in sorted(found.datasets, key=lambda d: d.InstanceNumber)
    ]
    back = seg.get_pixels_by_source_instance(uids, combine_segments=True)
    np.testing.assert_array_equal(back, np.select([VALUES > 100, VALUES > 50], [2, 1], 0))
    with pytest.raises(InputError, match="nothing was found"):
        write_seg(tmp_path / "none.dcm", labels * np.uint8(0), found, make_card())


def test_infer_reads_a_series_and_writes_seg(tmp_path: Path, make_model: MakeModel) -> None:
    (tmp_path / "in").mkdir()
    write(tmp_path / "in" / "a", series())
    model = make_model(tmp_path / "model")
    asked = ["--model", str(model), "--engine", "ort-cpu", "--batch", "4", "--no-overlay"]

    def infer(*arguments: object) -> int:
        return leuda_here("infer", *arguments, *asked).returncode

    out, seg = tmp_path / "l.nii.gz", tmp_path / "seg.dcm"
    assert infer(tmp_path / "in" / "a", "-o", out, "--dicom-seg", seg) == 0
    assert nib.load(out).shape == (COLUMNS, ROWS, DEPTH)
    assert highdicom.seg.segread(seg).number_of_segments == 2
    assert infer(tmp_path / "in", "-o", tmp_path / "out") == 0  # a folder of series
    np.testing.assert_array_equal(
        np.asarray(nib.load(out).dataobj),
        np.asarray(nib.load(tmp_path / "out" / "a_labels.nii.gz").dataobj),
    )
    assert infer(out, "-o", tmp_path / "x.nii.gz", "--dicom-seg", seg) == 2  # no series
