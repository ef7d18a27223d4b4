"""Series are found wherever they lie, described as they are, and chosen by rules or by hand."""

from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
from support.command import leuda_here

from leuda_deploy.errors import InputError, ScanError

pytest.importorskip("pydicom", reason="the dicom extra is not installed")

from pydicom import config
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MediaStorageDirectoryStorage
from support.dicom_series import COLUMNS, DEPTH, ROWS, VALUES, make_image, make_series, write_images

from leuda_deploy.scans.dicom import (
    FoundSeries,
    SeriesRules,
    choose_series,
    find_series,
    read_rules,
    read_series,
)

SCOUT = {"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"], "SeriesDescription": "Scout"}


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders within folders: a scan, a scout, thick slices of the scan, and a text."""
    root = tmp_path_factory.mktemp("study")
    (root / "deep" / "er").mkdir(parents=True)
    thin = {"SeriesDescription": "Abdomen portal venous", "ContrastBolusAgent": "iodine"}
    write_images(root / "deep" / "thin", make_series(**thin))
    write_images(root / "scout", [make_image(k, "1.2.6", SeriesNumber=2, **SCOUT) for k in (0, 1)])
    thick = {"SeriesNumber": 3, "SeriesDescription": "Abdomen MPR", "SliceThickness": 5}
    slices = [
        make_image(k, "1.2.7", **thick, ImagePositionPatient=[-10, -20, 30 + 5 * k])
        for k in range(DEPTH)
    ]
    write_images(root / "deep" / "er" / "thick", slices)
    report = make_image(0, "1.2.8", SeriesNumber=4, Modality="SR", SeriesDescription="Dose")
    report.SOPClassUID = report.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.88.67"
    del report.PixelData, report.Rows
    write_images(root / "scout", [report])
    (root / "deep" / "notes.txt").write_text("no image")
    return root


def test_files_beside_the_images_are_not_passed_over_in_silence(
    study: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO"):
        find_series(study)
    assert [(record.args or ())[1] for record in caplog.records] == [1]  # the text
    caplog.clear()
    with caplog.at_level("INFO"):
        find_series(study / "scout")
    assert not caplog.records


def test_series_are_found_and_described(study: Path) -> None:
    found = find_series(study)
    assert [each.number for each in found] == [1, 2, 3, 4]
    thin, scout, thick, report = found
    assert thin.as_dict()["shape"] == [COLUMNS, ROWS, DEPTH]
    assert thin.as_dict()["spacing_mm"] == [0.8, 0.7, 2.5]
    assert (thin.modality, thin.orientation, thin.contrast) == ("CT", "axial", "iodine")
    assert (scout.is_localiser, thin.is_localiser) == (True, False)
    assert thick.slice_thickness_mm == 5
    assert thin.fault is None
    assert (len(report.files), len(report.images)) == (1, 0)
    assert report.fault is not None


RULES: dict[str, tuple[SeriesRules, int | str]] = {
    "none": (SeriesRules(), "several series"),
    "description": (SeriesRules(description=("portal",)), 1),
    "description with anything in between": (SeriesRules(description=("ABD*venous",)), 1),
    "excluded": (SeriesRules(not_description=("mpr",)), 1),
    "thickness": (SeriesRules(slice_thickness_mm=(4, 6)), 3),
    "contrast": (SeriesRules(contrast=True), 1),
    "no contrast": (SeriesRules(contrast=False), 3),
    "preferred": (SeriesRules(prefer="thinnest"), 1),
    "last": (SeriesRules(prefer="last"), 3),
    "other modality": (SeriesRules(modality=("MR",)), "missing"),
    "other plane": (SeriesRules(orientation=("coronal",)), "missing"),
    "too few images": (SeriesRules(min_images=6), "missing"),
}


@pytest.mark.parametrize("what", RULES)
def test_rules_choose(study: Path, what: str) -> None:
    rules, wanted = RULES[what]
    found = find_series(study)
    if isinstance(wanted, int):
        assert choose_series(found, rules).number == wanted
        return
    with pytest.raises(ScanError) as caught:
        choose_series(found, rules)
    assert caught.value.fault == wanted


def test_scouts_are_taken_only_if_they_may_be(study: Path) -> None:
    found = find_series(study)
    assert choose_series(found, SeriesRules(localisers=True, description=("scout",))).number == 2


def test_a_series_is_named_by_hand(study: Path) -> None:
    found = find_series(study)
    assert choose_series(found, wanted="3").uid == "1.2.7"
    assert choose_series(found, wanted="1.2.7").number == 3
    for wrong in ("9", "1.2", "x"):
        with pytest.raises(ScanError) as caught:
            choose_series(found, wanted=wrong)
        assert caught.value.fault == "missing"


def test_rules_are_read_from_toml(tmp_path: Path) -> None:
    path = tmp_path / "rules.toml"
    path.write_text('modality = ["CT"]\nslice_thickness_mm = [1, 3]\nprefer = "most images"\n')
    assert read_rules(path).slice_thickness_mm == (1, 3)
    path.write_text('modalty = ["CT"]\n')
    with pytest.raises(InputError, match="modalty"):
        read_rules(path)


def described(found: list[FoundSeries]) -> list[dict[str, object]]:
    """Without the sentence that names the source."""
    return [each.as_dict() | {"why_not": None} for each in found]


def test_a_zip_holds_what_its_folder_holds(study: Path, tmp_path: Path) -> None:
    packed = shutil.make_archive(str(tmp_path / "study"), "zip", study)
    assert described(find_series(packed)) == described(find_series(study))
    inside, outside = (choose_series(find_series(each), wanted="1") for each in (packed, study))
    volumes = [read_series(each).volume for each in (inside, outside)]
    np.testing.assert_array_equal(volumes[0].raw, volumes[1].raw)
    np.testing.assert_array_equal(volumes[0].affine, volumes[1].affine)
    assert list(tmp_path.iterdir()) == [Path(packed)]  # nothing was unpacked


def test_a_zip_is_read_whatever_its_names_point_at(study: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "study.zip", "w") as packed:
        for path in sorted(study.rglob("*")):
            if path.is_file():
                packed.write(path, f"../../{path.relative_to(study)}")
    inside = find_series(tmp_path / "study.zip")
    assert [each.uid for each in inside] == [each.uid for each in find_series(study)]
    assert [path.name for path in tmp_path.parent.glob("*.dcm")] == []  # nothing is unpacked


def test_a_zip_that_unpacks_to_far_more_is_refused(tmp_path: Path) -> None:
    head = bytes(128) + b"DICM"
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("a.dcm", head + bytes(1 << 27))
    with pytest.raises(ScanError) as caught:
        find_series(tmp_path / "bomb.zip")
    assert caught.value.fault == "damaged"


def test_a_dicomdir_says_which_files_there_should_be(tmp_path: Path) -> None:
    (tmp_path / "disk" / "A").mkdir(parents=True)
    records = [Dataset()]  # that of the patient refers to no file
    for k, made in enumerate(make_series()):
        made.save_as(tmp_path / "disk" / "A" / f"IM{k}", enforce_file_format=True)
        records.append(Dataset())
        records[-1].ReferencedFileID = ["A", f"IM{k}"]
    records.append(Dataset())
    elsewhere = DataElement("ReferencedFileID", "CS", ["..", "ELSE"], validation_mode=config.IGNORE)
    records[-1].add(elsewhere)
    listed = Dataset()
    listed.file_meta = FileMetaDataset()
    listed.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    listed.file_meta.MediaStorageSOPClassUID = MediaStorageDirectoryStorage
    listed.file_meta.MediaStorageSOPInstanceUID = "1.2.9"
    listed.DirectoryRecordSequence = records
    listing = tmp_path / "disk" / "DICOMDIR"
    listed.save_as(listing, enforce_file_format=True)
    (found,) = find_series(listing)
    assert len(found.images) == DEPTH
    assert found.fault is None
    assert len(find_series(tmp_path / "disk")) == 1
    found.files[2].path.unlink()
    (found,) = find_series(listing)
    assert found.fault is not None
    assert found.fault.fault == "partial"
    assert read_series(found, allow_partial=True).grid.missing == 1


def test_copies_count_once(tmp_path: Path) -> None:
    write_images(tmp_path / "s", make_series())
    shutil.copytree(tmp_path / "s", tmp_path / "s" / "again")
    (found,) = find_series(tmp_path / "s")
    assert len(found.images) == len(found.files) == DEPTH
    assert found.fault is None
    np.testing.assert_array_equal(read_series(found).volume.raw, VALUES.transpose(2, 1, 0))


def test_the_command_lists_and_marks(study: Path, tmp_path: Path) -> None:
    done = leuda_here("series", study, "--json")
    assert done.returncode == 0
    said = json.loads(done.stdout)
    assert [each["number"] for each in said["series"]] == [1, 2, 3, 4]
    assert not any(each["chosen"] for each in said["series"])
    (tmp_path / "rules.toml").write_text('description = ["portal"]')
    said = json.loads(
        leuda_here("series", study, "--json", "--rules", tmp_path / "rules.toml").stdout
    )
    assert [each["chosen"] for each in said["series"]] == [True, False, False, False]
    assert "A^B" not in leuda_here("series", study).stdout  # the patient's name
    assert leuda_here("series", tmp_path).returncode == 2
