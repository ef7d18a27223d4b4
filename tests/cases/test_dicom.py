"""Cases of DICOM series: whole and right, or refused in one line; labels never hang on a SEG."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from support.command import Done, leuda_here
from support.makers import MakeModel

pytest.importorskip("pydicom", reason="the dicom extra is not installed")
pytest.importorskip("highdicom", reason="the dicom extra is not installed")

import highdicom
import onnx
from onnx import numpy_helper
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid
from support.dicom_series import COLUMNS, DEPTH, ROWS, VALUES, make_image, make_series, write_images

from leuda_deploy.errors import ScanError
from leuda_deploy.model.model_file import ModelFile, write_model
from leuda_deploy.scans.dicom import read_series
from leuda_deploy.scans.intensity import fit_intensity
from leuda_deploy.scans.recipe import Recipe

RECIPE = Recipe(
    slice_axis="superior", spacing_mm="native", window=(16, 16), clip_percentiles=(0.0, 100.0)
)


@pytest.fixture(scope="module")
def model(make_model: MakeModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model"))


def infer(model: Path, *arguments: object) -> Done:
    return leuda_here("infer", *arguments, "--model", model, "--batch", 4, "--no-overlay")


def numbered(folder: Path) -> Path:
    """A series whose files are named by their number."""
    folder.mkdir(parents=True)
    for k, made in enumerate(make_series(), start=1):
        made.save_as(folder / f"IM{k:04d}.dcm", enforce_file_format=True)
    return folder


def cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(bytes(path.stat().st_size)),
        lambda path: path.write_bytes(path.read_bytes()[132:]),
        lambda path: path.rename(path.with_name(path.name + ".part")).write_bytes(b"half"),
        lambda path: (path.unlink(), path.symlink_to(path.parent / "nowhere.dcm")),
    ],
)
def test_a_series_with_unreadable_files_is_refused(
    tmp_path: Path, damage: Callable[[Path], object]
) -> None:
    """Row 4."""
    folder = numbered(tmp_path / "s")
    damage(folder / "IM0005.dcm")
    with pytest.raises(ScanError) as caught:
        read_series(folder)
    assert caught.value.fault == "partial"
    assert "1 of 5" in str(caught.value)
    assert "IM0005.dcm" in str(caught.value)
    assert read_series(folder, allow_partial=True).volume.raw.shape == (COLUMNS, ROWS, DEPTH - 1)


def test_a_series_of_every_second_number_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Slices are as evenly spaced as in a whole series, and only the numbers tell."""
    folder = numbered(tmp_path / "s")
    assert read_series(folder)
    assert not any("numbered" in line for line in caplog.messages)
    for number in (2, 4):
        (folder / f"IM{number:04d}.dcm").unlink()
    read_series(folder)
    assert any("1, 3, 5" in line for line in caplog.messages)


def test_pixels_that_are_cut_off_are_refused(tmp_path: Path) -> None:
    folder = numbered(tmp_path / "s")
    cut_off(folder / "IM0003.dcm")
    with pytest.raises(ScanError, match=r"IM0003\.dcm"):
        read_series(folder)


@pytest.mark.parametrize(
    "images",
    [
        lambda: make_series(ImagesInAcquisition=9),
        lambda: make_series()[2:],
        lambda: [make_image(k, "1.2.5", InstanceNumber=k + 40) for k in range(4)],
    ],
)
def test_a_series_that_misses_an_end_is_refused(
    tmp_path: Path, images: Callable[[], list[Dataset]]
) -> None:
    folder = write_images(tmp_path / "s", images())
    with pytest.raises(ScanError) as caught:
        read_series(folder)
    assert caught.value.fault == "partial"
    assert read_series(folder, allow_partial=True).volume.raw.shape[:2] == (COLUMNS, ROWS)


def test_series_beside_a_bad_one_are_labelled(tmp_path: Path, model: Path) -> None:
    """Rows 6 and 10: each good one has its labels and its SEG; the bad one is a line."""
    (tmp_path / "in").mkdir()
    for k, name in enumerate("abc"):
        images = [make_image(slot, f"1.2.{5 + k}") for slot in range(DEPTH)]
        if name == "b":
            del images[2].ImagePositionPatient
        write_images(tmp_path / "in" / name, images)
    out = tmp_path / "out"
    done = infer(model, tmp_path / "in", "-o", out, "--dicom-seg", tmp_path / "seg", "--json")
    assert done.returncode == 1
    outcomes = json.loads(done.stdout)
    assert [each["error"] is None for each in outcomes] == [True, False, True]
    assert "ImagePositionPatient" in outcomes[1]["error"]
    assert done.stderr.count("error: ") == 1
    assert "Traceback" not in done.stderr
    for name in "ac":
        assert (out / f"{name}_labels.nii.gz").is_file()
        assert highdicom.seg.segread(tmp_path / "seg" / f"{name}_seg.dcm").number_of_segments == 2


PLACING = ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SeriesInstanceUID")
SCALING = ("RescaleSlope", "RescaleIntercept", "NumberOfFrames", "InstanceNumber")


@pytest.mark.parametrize("how", ["missing", "empty"])
@pytest.mark.parametrize("name", [*PLACING, *SCALING])
def test_attributes_that_are_missing_or_empty(tmp_path: Path, name: str, how: str) -> None:
    """Row 7: what places a slice is needed, and named; the rest has a meaning when it is absent."""
    images = make_series()
    for made in images:
        if how == "empty":
            setattr(made, name, None)
        elif name in made:
            delattr(made, name)
    folder = write_images(tmp_path / "s", images)
    if name in PLACING:
        with pytest.raises(ScanError, match=name) as caught:
            read_series(folder)
        assert "\n" not in str(caught.value)
    else:
        volume = read_series(folder).volume
        assert volume.slope == (1 if name == "RescaleSlope" else 2)
        assert volume.inter == (0 if name == "RescaleIntercept" else -1024)


ANONYMISED = (
    "StudyID", "StudyDate", "StudyTime", "AccessionNumber", "PatientID", "PatientName",
    "PatientBirthDate", "PatientSex", "ReferringPhysicianName", "PositionReferenceIndicator",
)  # fmt: skip


def test_an_anonymised_series_has_labels_and_a_seg(tmp_path: Path, model: Path) -> None:
    """Row 8."""
    images = make_series()
    for made in images:
        for name in ANONYMISED:
            delattr(made, name)
    folder = write_images(tmp_path / "s", images)
    seg, out = tmp_path / "seg.dcm", tmp_path / "l.nii.gz"
    assert infer(model, folder, "-o", out, "--dicom-seg", seg).returncode == 0
    assert highdicom.seg.segread(seg).StudyInstanceUID == "1.2.3"
    assert nib.load(out).shape == (COLUMNS, ROWS, DEPTH)


def test_a_seg_that_cannot_be_made_costs_no_labels(tmp_path: Path, model: Path) -> None:
    images = make_series()
    for made in images:
        del made.FrameOfReferenceUID
    folder = write_images(tmp_path / "s", images)
    seg, out = tmp_path / "seg.dcm", tmp_path / "l.nii.gz"
    done = infer(model, folder, "-o", out, "--dicom-seg", seg)
    assert done.returncode == 1
    assert "FrameOfReferenceUID" in done.stderr
    assert out.is_file()
    assert not seg.exists()
    assert "dicom_seg" in json.loads((tmp_path / "l.json").read_text())["not_written"]


def test_nothing_found_is_empty_labels_and_an_empty_seg(
    tmp_path: Path, make_model: MakeModel
) -> None:
    """Row 9."""
    written = make_model(tmp_path / "model")
    graph = onnx.load(written)
    background_alone = numpy_helper.from_array(np.array([99, 0, 0], np.float32), "bias")
    next(w for w in graph.graph.initializer if w.name == "bias").CopyFrom(background_alone)
    model = tmp_path / "blind.onnx"
    write_model(graph, ModelFile.open(written).card, model)
    folder, out = write_images(tmp_path / "s", make_series()), tmp_path / "l.nii.gz"
    done = infer(model, folder, "-o", out, "--dicom-seg", tmp_path / "seg.dcm")
    assert done.returncode == 0
    assert not np.asarray(nib.load(out).dataobj).any()
    found = json.loads((tmp_path / "l.json").read_text())
    assert found["not_written"] == {}
    assert not highdicom.seg.segread(found["dicom_seg"]).pixel_array.any()


def test_a_seg_in_the_series_folder_is_no_input(tmp_path: Path, model: Path) -> None:
    """Row 3."""
    folder = write_images(tmp_path / "s", make_series())
    asked = (folder, "-o", tmp_path / "l.nii.gz", "--dicom-seg", folder / "seg.dcm")
    assert infer(model, *asked).returncode == 0
    before = (tmp_path / "l.nii.gz").read_bytes()
    sha256 = json.loads((tmp_path / "l.json").read_text())["scan_sha256"]
    assert infer(model, *asked).returncode == 0
    assert (tmp_path / "l.nii.gz").read_bytes() == before
    assert json.loads((tmp_path / "l.json").read_text())["scan_sha256"] == sha256


def test_an_output_on_a_slice_is_refused(tmp_path: Path, model: Path) -> None:
    """Row 2, also with --force."""
    folder = numbered(tmp_path / "s")
    before = {path: path.read_bytes() for path in folder.iterdir()}
    for force in ((), ("--force",)):
        asked = ("-o", tmp_path / "l.nii.gz", "--dicom-seg", folder / "IM0002.dcm")
        assert infer(model, folder, *asked, *force).returncode == 2
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_padding_is_no_tissue(tmp_path: Path) -> None:
    """Row 12: with the padding said, the statistics are those of the tissue."""
    whole = read_series(write_images(tmp_path / "whole", make_series())).volume
    images = make_series(PixelPaddingValue=-2000)
    for made, values in zip(images, VALUES, strict=True):
        padded = values.copy()
        padded[:, :2] = -2000
        made.PixelData = padded.tobytes()
    found = read_series(write_images(tmp_path / "padded", images)).volume
    assert found.padding == (-2000, -2000)
    kept = whole.raw[2:]
    wanted = fit_intensity(whole.with_values(kept).with_scale("w", 2, -1024), RECIPE)
    intensity = fit_intensity(found, RECIPE)
    for name in ("low", "high", "shift", "scale", "quartiles"):
        assert getattr(intensity, name) == pytest.approx(getattr(wanted, name), rel=1e-9)


def wide(**other: Any) -> list[Dataset]:
    images = make_series(BitsAllocated=32, BitsStored=32, HighBit=31, **other)
    for made, values in zip(images, VALUES, strict=True):
        made.PixelData = (values.astype(np.int32) * 70_000).tobytes()
    return images


def test_wide_pixels_are_not_wrapped(tmp_path: Path) -> None:
    """Row 15."""
    volume = read_series(write_images(tmp_path / "s", wide())).volume
    assert volume.raw.dtype == np.int32
    assert {int(volume.raw.min()), int(volume.raw.max())} == {
        70_000 * int(VALUES.min()),
        70_000 * int(VALUES.max()),
    }


def with_table() -> list[Dataset]:
    table = Dataset()
    table.LUTDescriptor, table.ModalityLUTType = [2, 0, 16], "US"
    images = make_series()
    for made in images:
        made.ModalityLUTSequence = [table]
    return images


def test_a_table_without_values_is_refused(tmp_path: Path) -> None:
    """Row 15."""
    with pytest.raises(ScanError):
        read_series(write_images(tmp_path / "s", with_table()))


def test_more_dicom_than_nifti_is_a_series(tmp_path: Path, model: Path) -> None:
    """Row 11, the other way round: a NIfTI file in a series' folder."""
    folder = write_images(tmp_path / "s", make_series())
    nib.save(nib.Nifti1Image(VALUES, np.eye(4)), folder / "converted.nii.gz")
    assert infer(model, folder, "-o", tmp_path / "l.nii.gz").returncode == 0
    assert nib.load(tmp_path / "l.nii.gz").shape == (COLUMNS, ROWS, DEPTH)


def test_pixels_are_held_once(tmp_path: Path) -> None:
    """Row 31: the data sets that a SEG refers to have none."""
    series = read_series(
        write_images(
            tmp_path / "s", make_series(SOPInstanceUID=generate_uid())[:1] + make_series()[1:]
        )
    )
    assert all("PixelData" not in dataset for dataset in series.datasets)
    header = read_series(tmp_path / "s", voxels=False).volume
    assert header.raw.strides == (0, 0, 0)
    np.testing.assert_array_equal(header.affine, series.volume.affine)


@pytest.mark.filterwarnings("ignore")
def test_no_warning_quotes_what_a_file_says(tmp_path: Path) -> None:
    write_images(tmp_path / "s", make_series(PatientBirthDate="Secret 1950"))
    code = "from pydicom import dcmread; print(len(str(dcmread(sys.argv[1]).PatientBirthDate)))"
    prelude = "import sys; from leuda_deploy.cli.log import log_to_stderr; log_to_stderr()\n"
    file = next((tmp_path / "s").iterdir())
    done = subprocess.run(
        [sys.executable, "-c", prelude + code, file], capture_output=True, text=True, check=True
    )
    assert (done.stdout, done.stderr) == ("11\n", "")
