"""Tiny trees laid out like the downloads become cohorts; what is missing or flipped is one line."""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from nibabel.affines import apply_affine
from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff
from PIL import Image
from support.command import leuda_here

from leuda_deploy.errors import (
    InputError,
    MissingExtraError,
    ScanError,
    UndeclaredLabelError,
)
from leuda_deploy.scans.recipe import Recipe
from leuda_train.data.cohort import Cohort, read_cohort
from leuda_train.data.layouts.public import chaos_btcv, mmwhs, write_benchmark
from leuda_train.data.layouts.public.anatomy import check_anatomy
from leuda_train.data.layouts.public.benchmark import take_labelled
from leuda_train.data.phantom.phantom_cohort import write_cohort
from leuda_train.data.slices import load_slices

MSCMR = Path(__file__).parents[6] / "shared/data/mscmr"
# Centres of organs in RAS+ mm, in a scan whose middle is the origin.
HEART = {205: (-20, 5, -10), 420: (5, -30, 10), 500: (-20, 10, -10), 550: (35, 0, 0)}
HEART |= {600: (20, 30, -15), 820: (5, 5, 35), 850: (-5, 15, 35)}
ABDOMEN = {"liver": (30, 20, 30), "right_kidney": (25, -30, -10)}
ABDOMEN |= {"left_kidney": (-25, -30, -5), "spleen": (-40, -10, 30)}
SIZE, STEP_MM = 24, 5.0


def patient(organs: Mapping[int, tuple[float, ...]], codes: str = "RAS") -> nib.Nifti1Image:
    """Labels with a 15 mm cube at each centre; voxel axes along `codes`."""
    labels = np.zeros((SIZE,) * 3, dtype=np.int16)
    affine = np.diag([STEP_MM, STEP_MM, STEP_MM, 1.0])
    affine[:3, 3] = -STEP_MM * (SIZE - 1) / 2
    for value, centre in organs.items():
        x, y, z = np.rint((np.array(centre) - affine[:3, 3]) / STEP_MM).astype(int)
        labels[x - 1 : x + 2, y - 1 : y + 2, z - 1 : z + 2] = value
    turn = nib.orientations.ornt_transform(axcodes2ornt("RAS"), axcodes2ornt(codes))
    turned = apply_orientation(labels, turn)
    return nib.Nifti1Image(turned, affine @ inv_ornt_aff(turn, labels.shape))


def write_pair(image: Path, label: Path, marks: nib.Nifti1Image) -> None:
    for path in (image, label):
        path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(marks, label)
    values = np.asarray(marks.dataobj) + np.arange(SIZE, dtype=np.int16)
    nib.save(nib.Nifti1Image(values.astype(np.int16), marks.affine), image)


def flip(label: Path, axis: int) -> None:
    """Turn the voxels of a file round and leave its affine."""
    image = nib.load(label)
    values = np.flip(np.asarray(image.dataobj), axis).copy()
    nib.save(nib.Nifti1Image(values, image.affine), label)


def numbers(cohort: Cohort, *roles: str) -> list[int]:
    return sorted(int("".join(filter(str.isdigit, s.subject))) for s in cohort.role(*roles))


@pytest.fixture(scope="module")
def mmwhs_tree(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("mmwhs")
    codes = ("RAS", "LPS", "ASR", "PIR")
    for modality in ("mr", "ct"):
        for s in range(1001, 1021):
            organs = {421: (5, -25, 15), **HEART} if (modality, s) == ("mr", 1010) else HEART
            stem = root / f"{modality}_train" / f"{modality}_train_{s}"
            image, label = Path(f"{stem}_image.nii.gz"), Path(f"{stem}_label.nii.gz")
            write_pair(image, label, patient(organs, codes[s % 4]))
    return root


@pytest.fixture
def mmwhs_copy(mmwhs_tree, tmp_path) -> Path:
    return Path(shutil.copytree(mmwhs_tree, tmp_path / "copy [of] it"))


def test_mmwhs_mr_to_ct_has_the_papers_split(mmwhs_tree, tmp_path):
    write_benchmark("mmwhs", mmwhs_tree, tmp_path / "cohort.toml")
    cohort = read_cohort(tmp_path / "cohort.toml")
    assert numbers(cohort, "source labelled") == [1005, 1010, 1011, 1012]
    assert numbers(cohort, "target test") == [1003, 1008, 1014, 1019]
    source = numbers(cohort, "source labelled", "source unlabelled")
    assert source == sorted({*range(1001, 1021)} - {1007, 1009, 1018, 1019})
    assert numbers(cohort, "target unlabelled") == sorted(
        {*range(1001, 1021)} - {1003, 1008, 1014, 1019}
    )
    assert all(scan.label is None for scan in cohort.role("source unlabelled"))
    assert all(scan.label is not None for scan in cohort.role("target unlabelled"))
    assert cohort.structures == {"MYO": 1, "LAC": 2, "LVC": 3, "AA": 4}
    assert cohort.spec.slices.axis == "anterior"
    assert cohort.spec.codes.keys() == cohort.spec.classes.keys()
    raw = cohort.spec.class_of_raw("source")
    assert (raw[421], raw[420], raw[550], raw[850]) == (2, 2, 0, 0)


def test_mmwhs_ct_to_mr_tests_on_the_mr_ids(mmwhs_tree, tmp_path):
    out = tmp_path / "cohort.toml"
    write_benchmark("mmwhs", mmwhs_tree, out, direction="ct-to-mr", labelled="1")
    cohort = read_cohort(out)
    assert (cohort.spec.source.modality, cohort.spec.target.modality) == ("CT", "MR")
    assert numbers(cohort, "source labelled") == [1012]
    assert numbers(cohort, "target test") == [1007, 1009, 1018, 1019]


def test_all_labelled_leaves_no_unlabelled_source(mmwhs_tree, tmp_path):
    write_benchmark("mmwhs", mmwhs_tree, tmp_path / "cohort.toml", labelled="all")
    cohort = read_cohort(tmp_path / "cohort.toml")
    assert len(cohort.role("source labelled")) == 16
    assert cohort.role("source unlabelled") == []
    # so that fewer shots of this cohort are the published shorter lists
    four = [int(s.subject[-4:]) for s in cohort.with_labelled(4).role("source labelled")]
    assert tuple(four) == mmwhs.LABELLED_ORDER["mr"][:4]


def test_paths_are_relative_where_the_download_lies_beside_the_cohort(mmwhs_copy, tmp_path):
    out = tmp_path / "cohort.toml"
    write_benchmark("mmwhs", mmwhs_copy, out)
    assert str(tmp_path) not in out.read_text()
    before = read_cohort(out).sha256
    tmp_path.rename(tmp_path.with_name("moved"))
    assert read_cohort(tmp_path.with_name("moved") / "cohort.toml").sha256 == before


@pytest.mark.parametrize(("axis", "found"), [(0, "RA lies"), (1, "RV lies"), (2, "AA lies")])
@pytest.mark.parametrize("scan", ["mr_train_1004", "ct_train_1008", "ct_train_1001"])
def test_a_flipped_axis_of_a_heart_is_caught(mmwhs_copy, tmp_path, scan, axis, found):
    path = mmwhs_copy / scan[:8] / f"{scan}_label.nii.gz"  # voxel axes along R, A, S or L, P, S
    flip(path, axis)
    out = tmp_path / "cohort.toml"
    with pytest.raises(InputError, match=f"{scan}_label.nii.gz: {found}") as caught:
        write_benchmark("mmwhs", mmwhs_copy, out)
    assert "\n" not in str(caught.value)
    assert not out.exists()


def test_phantom_hearts_lie_as_the_rules_say(tmp_path):
    few = {"source_labelled": 2, "source_unlabelled": 0, "target_unlabelled": 0, "target_test": 2}
    write_cohort(tmp_path, **few)
    labels = sorted(tmp_path.glob("*/*_label.nii.gz"))
    assert len(labels) == 4
    for label in labels:
        check_anatomy(label, mmwhs.VALUES, mmwhs.RULES)
        for axis in range(3):
            flip(label, axis)
            with pytest.raises(InputError, match=label.name):
                check_anatomy(label, mmwhs.VALUES, mmwhs.RULES)
            flip(label, axis)


def test_an_undeclared_value_leaves_no_cohort_behind(mmwhs_copy, tmp_path):
    stem = mmwhs_copy / "ct_train" / "ct_train_1003"
    marks = patient({**HEART, 777: (0, 0, 0)})
    write_pair(Path(f"{stem}_image.nii.gz"), Path(f"{stem}_label.nii.gz"), marks)
    with pytest.raises(UndeclaredLabelError) as caught:
        write_benchmark("mmwhs", mmwhs_copy, tmp_path / "cohort.toml")
    assert (caught.value.name, caught.value.values) == ("ct_train_1003_label.nii.gz", [777])
    assert [path.name for path in tmp_path.iterdir()] == [mmwhs_copy.name]


def test_a_missing_file_and_a_wrong_root_say_what_was_expected(mmwhs_copy, tmp_path):
    out = tmp_path / "cohort.toml"
    (mmwhs_copy / "ct_train" / "ct_train_1007_label.nii.gz").unlink()
    with pytest.raises(InputError, match=r"ct_train_1007_label.nii.gz"):
        write_benchmark("mmwhs", mmwhs_copy, out)
    for name in ("mmwhs", "chaos-btcv", "mscmr"):
        with pytest.raises(InputError, match=r"MM-WHS|CHAOS|MS-CMRSeg"):
            write_benchmark(name, tmp_path, out)
        with pytest.raises(InputError, match="nowhere"):
            write_benchmark(name, tmp_path / "nowhere", out)


def test_an_option_that_cannot_be_is_refused(mmwhs_tree, tmp_path):
    out = tmp_path / "cohort.toml"
    with pytest.raises(InputError, match="mr2ct"):
        write_benchmark("mmwhs", mmwhs_tree, out, direction="mr2ct")
    for labelled in ("0", "17", "-1", "few"):
        with pytest.raises(InputError, match=f"--labelled {labelled}"):
            write_benchmark("mmwhs", mmwhs_tree, out, labelled=labelled)
    out.write_text("by hand")
    with pytest.raises(InputError, match=out.name):
        write_benchmark("mmwhs", mmwhs_tree, out)


@pytest.mark.parametrize("module", [mmwhs, chaos_btcv])
@pytest.mark.parametrize("modality", ["mr", "ct"])
def test_the_published_lists_are_the_draw_that_is_documented(module, modality):
    subjects = module.SUBJECTS[modality] if module is chaos_btcv else module.SUBJECTS
    rest = [s for s in subjects if s not in module.TEST[modality]]
    order = module.LABELLED_ORDER[modality]
    assert order == tuple(random.Random(2022).sample(rest, len(rest)))
    assert take_labelled(order, None) == order[: len(rest) // 4]
    assert take_labelled(order, "1") == order[:1]


# CHAOS and BTCV

TILT = np.radians(10)
UPRIGHT = (1, 0, 0, 0, 1, 0)
TILTED = (1, 0, 0, 0, np.cos(TILT), np.sin(TILT))


def write_chaos(folder: Path, orientation: tuple[float, ...], reverse: bool) -> None:
    """A T2SPIR series in DICOM's LPS mm. File numbers fall or rise with the height of the slice."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid

    row, column = np.array(orientation, float).reshape(2, 3)
    normal = np.cross(row, column)
    rows, columns, depth, down_mm, along_mm, apart_mm = 26, 22, 20, 5.0, 6.0, 6.0
    middle = row * along_mm * (columns - 1) + column * down_mm * (rows - 1)
    start = -(middle + normal * apart_mm * (depth - 1)) / 2
    for name in ("DICOM_anon", "Ground"):
        (folder / "T2SPIR" / name).mkdir(parents=True)
    study, series, frame = generate_uid(), generate_uid(), generate_uid()
    for k in range(depth):
        position = np.round(start + normal * apart_mm * k, 4)
        stem = f"IMG-0001-{(depth - k if reverse else k + 1):05}"
        grey = np.zeros((rows, columns), np.uint8)
        for organ, (x, y, z) in ABDOMEN.items():
            offset = np.array([-x, -y, z]) - position  # RAS -> LPS
            i, j = round(offset @ column / down_mm), round(offset @ row / along_mm)
            if abs(offset @ normal) < 1.5 * apart_mm:
                grey[i - 1 : i + 2, j - 1 : j + 2] = chaos_btcv.ORGANS["mr"][organ]
        Image.fromarray(grey).save(folder / "T2SPIR" / "Ground" / f"{stem}.png")
        slice_ = Dataset()
        slice_.file_meta = FileMetaDataset()
        slice_.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        slice_.file_meta.MediaStorageSOPClassUID = slice_.SOPClassUID = MRImageStorage
        slice_.file_meta.MediaStorageSOPInstanceUID = slice_.SOPInstanceUID = generate_uid()
        slice_.StudyInstanceUID, slice_.SeriesInstanceUID = study, series
        slice_.FrameOfReferenceUID, slice_.Modality = frame, "MR"
        slice_.ImagePositionPatient = [f"{v:.4f}" for v in position]
        slice_.ImageOrientationPatient = [f"{v:.6f}" for v in orientation]
        slice_.PixelSpacing = [down_mm, along_mm]
        slice_.Rows, slice_.Columns, slice_.SamplesPerPixel = rows, columns, 1
        slice_.BitsAllocated, slice_.BitsStored, slice_.HighBit = 16, 12, 11
        slice_.PixelRepresentation, slice_.PhotometricInterpretation = 0, "MONOCHROME2"
        pixels = grey.astype(np.uint16) + 1000 * (np.arange(columns) == 0) + 10 * k
        slice_.PixelData = pixels.astype(np.uint16).tobytes()
        slice_.save_as(folder / "T2SPIR/DICOM_anon" / f"{stem}.dcm", enforce_file_format=True)


@pytest.fixture(scope="module")
def abdomen_tree(tmp_path_factory) -> Path:
    pytest.importorskip("highdicom", reason="the dicom extra is not installed")
    root = tmp_path_factory.mktemp("abdomen")
    for s in chaos_btcv.SUBJECTS["mr"]:
        write_chaos(root / "MR" / str(s), TILTED if s % 3 == 0 else UPRIGHT, reverse=s % 2 == 0)
    organs = {chaos_btcv.ORGANS["ct"][name]: centre for name, centre in ABDOMEN.items()}
    for s in chaos_btcv.SUBJECTS["ct"]:
        label = root / "Training" / "label" / f"label{s:04}.nii.gz"
        image = root / "Training" / "img" / f"img{s:04}.nii.gz"
        write_pair(image, label, patient({**organs, 7: (0, 25, 0)}, ("LAS", "RAS")[s % 2]))
    return root


@pytest.fixture
def abdomen_copy(abdomen_tree, tmp_path) -> Path:
    return Path(shutil.copytree(abdomen_tree, tmp_path / "copy"))


def test_chaos_btcv_mr_to_ct_has_the_papers_split(abdomen_tree, tmp_path):
    write_benchmark("chaos-btcv", abdomen_tree, tmp_path / "cohort.toml")
    cohort = read_cohort(tmp_path / "cohort.toml")
    assert numbers(cohort, "source labelled") == [10, 20, 21, 22]
    assert len(cohort.role("source labelled", "source unlabelled")) == 16
    assert len(cohort.role("target unlabelled")) == 24
    assert numbers(cohort, "target test") == [1, 9, 30, 32, 33, 39]
    assert cohort.structures == {"liver": 1, "right_kidney": 2, "left_kidney": 3, "spleen": 4}
    assert cohort.spec.codes["right_kidney"] == ("SCT", "9846003", "Right kidney")
    assert cohort.spec.class_of_raw("source") == {63: 1, 126: 2, 189: 3, 252: 4}
    truth = cohort.spec.class_of_raw("target")
    assert {raw: truth[raw] for raw in (6, 2, 3, 1, 7, 13)} == {6: 1, 2: 2, 3: 3, 1: 4, 7: 0, 13: 0}


def test_chaos_btcv_ct_to_mr_and_its_slices_have_one_set_of_classes(abdomen_tree, tmp_path):
    out = tmp_path / "cohort.toml"
    write_benchmark("chaos-btcv", abdomen_tree, out, direction="ct-to-mr")
    cohort = read_cohort(out)
    assert len(cohort.role("source labelled")) == 6
    assert numbers(cohort, "target test") == [1, 13, 32, 38]
    recipe = Recipe(slice_axis="superior", spacing_mm=(5.0, 5.0), window=(24, 24))
    slices = load_slices(cohort, recipe, tmp_path / "cache", target_labels=True)
    for labels in (slices.source_labels[slices.labelled_rows], slices.target_labels):
        assert np.unique(labels).tolist() == [0, 1, 2, 3, 4]
        # stacks are turned to the viewing convention: the patient's right is on the left
        liver, spleen = (np.argwhere(labels == n)[:, 2].mean() for n in (1, 4))
        assert liver < spleen


@pytest.mark.parametrize("number", [2, 3, 5, 36])  # both tilts, both orders of file names
def test_a_converted_chaos_scan_lies_where_its_dicom_says(abdomen_tree, tmp_path, number):
    write_benchmark("chaos-btcv", abdomen_tree, tmp_path / "cohort.toml")
    folder = tmp_path / "chaos_t2spir"
    label = nib.load(folder / f"chaos_{number:02}_label.nii.gz")
    marks = np.asarray(label.dataobj)
    for organ, centre in ABDOMEN.items():
        value = chaos_btcv.ORGANS["mr"][organ]
        found = apply_affine(label.affine, np.argwhere(marks == value).mean(axis=0))
        np.testing.assert_allclose(found, centre, atol=4.0)
    image = nib.load(folder / f"chaos_{number:02}_image.nii.gz")
    values = np.asarray(image.dataobj)
    assert values.shape == (22, 26, 20)  # columns, rows, slices
    np.testing.assert_array_equal(image.affine, label.affine)
    np.testing.assert_allclose(nib.affines.voxel_sizes(image.affine), (6, 5, 6), atol=1e-3)
    # the first DICOM column is the patient's right here, the lowest slice the darkest
    np.testing.assert_array_equal(values[0] > 900, True)
    np.testing.assert_array_equal(values[1:] > 900, False)
    assert np.diff(values[-1, -1]).tolist() == [10] * 19


def test_converting_again_gives_the_same_bytes(abdomen_tree, tmp_path):
    hashes = []
    for name in ("a", "b"):
        write_benchmark("chaos-btcv", abdomen_tree, tmp_path / name / "cohort.toml", labelled="4")
        hashes.append(read_cohort(tmp_path / name / "cohort.toml").sha256)
    assert hashes[0] == hashes[1]


def test_a_mirrored_chaos_label_is_caught(abdomen_copy, tmp_path):
    for path in (abdomen_copy / "MR" / "8" / "T2SPIR" / "Ground").glob("*.png"):
        mirrored = np.asarray(Image.open(path))[:, ::-1]
        Image.fromarray(np.ascontiguousarray(mirrored)).save(path)
    with pytest.raises(InputError, match=r"chaos_08_label.nii.gz: liver .* spleen"):
        write_benchmark("chaos-btcv", abdomen_copy, tmp_path / "cohort.toml")


def test_a_flipped_axis_of_an_abdomen_is_caught(abdomen_copy, tmp_path):
    flip(abdomen_copy / "Training" / "label" / "label0033.nii.gz", 2)
    with pytest.raises(InputError, match=r"label0033.nii.gz: liver .* right_kidney"):
        write_benchmark("chaos-btcv", abdomen_copy, tmp_path / "cohort.toml")


def test_a_broken_chaos_series_is_one_clear_line(abdomen_copy, tmp_path):
    series = abdomen_copy / "MR" / "5" / "T2SPIR"
    out = tmp_path / "cohort.toml"
    png, dicom = (
        series / "Ground" / "IMG-0001-00007.png",
        series / "DICOM_anon" / "IMG-0001-00007.dcm",
    )
    good = png.read_bytes()
    png.unlink()
    with pytest.raises(InputError, match=r"IMG-0001-00007.dcm"):
        write_benchmark("chaos-btcv", abdomen_copy, out)
    Image.fromarray(np.full((26, 22), 77, np.uint8)).save(png)
    with pytest.raises(InputError, match=r"00007.png .*\[77\]"):
        write_benchmark("chaos-btcv", abdomen_copy, out)
    Image.fromarray(np.zeros((22, 26), np.uint8)).save(png)
    with pytest.raises(InputError, match=r"00007.png .*\(22, 26\).*\(26, 22\)"):
        write_benchmark("chaos-btcv", abdomen_copy, out)
    png.write_bytes(good)
    (series / "Ground" / "IMG-0001-00099.png").write_bytes(good)
    with pytest.raises(InputError, match=r"DICOM_anon .*20.*21"):
        write_benchmark("chaos-btcv", abdomen_copy, out)
    (series / "Ground" / "IMG-0001-00099.png").unlink()
    for content, fault in ((None, "missing slice"), (b"not DICOM", "partial")):
        dicom.unlink()
        if content is not None:
            dicom.write_bytes(content)
        with pytest.raises(ScanError) as caught:
            write_benchmark("chaos-btcv", abdomen_copy, out)
        assert caught.value.fault == fault
        dicom.touch()


def test_without_the_dicom_extra_that_is_what_is_missing(abdomen_tree, tmp_path, monkeypatch):
    monkeypatch.setattr("leuda_deploy.scans.dicom.series.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError):
        write_benchmark("chaos-btcv", abdomen_tree, tmp_path / "cohort.toml")


# MS-CMRSeg


@pytest.fixture
def mscmr_tree(tmp_path) -> Path:
    """RV and LV in a plane of array axes 0 and 1 (codes PSR), as in the real scans."""
    root = tmp_path / "mscmr"
    marks = patient({200: (-20, 0, 0), 500: (-20, 0, 15), 600: (20, 25, 0)}, "PSR")
    for folder, sequence, count in (("bssfp", "C0", 25), ("lge", "LGE", 30)):
        for n in range(1, count + 1):
            stem = root / folder / f"patient{n}_{sequence}"
            write_pair(Path(f"{stem}.nii.gz"), Path(f"{stem}_manual.nii.gz"), marks)
            if folder == "lge" and n < 26:
                Path(f"{stem}_manual.nii.gz").unlink()
    return root


def check_mscmr(root: Path, folder: Path) -> None:
    write_benchmark("mscmr", root, folder / "forward.toml")
    cohort = read_cohort(folder / "forward.toml")
    assert numbers(cohort, "source labelled") == [1, 2, 3, 4]
    assert numbers(cohort, "source unlabelled") == [*range(5, 26)]
    assert numbers(cohort, "target unlabelled") == [*range(1, 26)]
    assert numbers(cohort, "target test") == [*range(26, 31)]
    assert cohort.role("source labelled")[0].pixel_spacing_mm == (0.75, 0.75)
    assert cohort.role("target test")[0].pixel_spacing_mm is None
    assert cohort.spec.slices.axis == "array-2"
    assert cohort.spec.codes.keys() == cohort.spec.classes.keys()

    write_benchmark("mscmr", root, folder / "back.toml", direction="lge-to-bssfp")
    cohort = read_cohort(folder / "back.toml")
    assert numbers(cohort, "source labelled") == [26, 27, 28, 29]
    assert numbers(cohort, "source unlabelled") == [*range(1, 21), 30]
    assert numbers(cohort, "target unlabelled") == [*range(1, 21)]
    assert numbers(cohort, "target test") == [*range(21, 26)]
    assert cohort.role("target test")[0].pixel_spacing_mm == (0.75, 0.75)


def test_mscmr_is_split_by_patient(mscmr_tree, tmp_path):
    check_mscmr(mscmr_tree, tmp_path)
    write_benchmark("mscmr", mscmr_tree, tmp_path / "one.toml", labelled="1")
    assert numbers(read_cohort(tmp_path / "one.toml"), "source labelled") == [1]
    six = {"direction": "lge-to-bssfp", "labelled": "6"}
    with pytest.raises(InputError, match="--labelled 6"):
        write_benchmark("mscmr", mscmr_tree, tmp_path / "six.toml", **six)


@pytest.mark.skipif(not MSCMR.is_dir(), reason=f"the MS-CMRSeg scans are not at {MSCMR}")
def test_the_real_mscmr_scans_pass(tmp_path):
    check_mscmr(MSCMR, tmp_path)


def test_a_flipped_short_axis_scan_is_caught(mscmr_tree, tmp_path):
    flip(mscmr_tree / "bssfp" / "patient7_C0_manual.nii.gz", 0)
    with pytest.raises(InputError, match=r"patient7_C0_manual.nii.gz: RV .* LV"):
        write_benchmark("mscmr", mscmr_tree, tmp_path / "cohort.toml")


def test_a_short_axis_scan_that_is_stored_the_other_way_round_is_caught(mscmr_tree, tmp_path):
    # right in world coordinates, but slices along an array axis are fed as they are stored
    path = mscmr_tree / "lge" / "patient28_LGE_manual.nii.gz"
    image = nib.load(path)
    nib.save(image.as_reoriented([[0, -1], [1, 1], [2, 1]]), path)
    with pytest.raises(InputError, match=r"patient28_LGE.*600"):
        write_benchmark("mscmr", mscmr_tree, tmp_path / "cohort.toml")


def test_the_adapters_need_no_torch():
    code = "import sys; sys.modules['torch'] = None; import leuda_train.data.layouts"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_command_writes_the_file_and_says_where(mscmr_tree, tmp_path):
    out = tmp_path / "cohorts" / "hearts.toml"
    done = leuda_here("cohort", "mscmr", mscmr_tree, "-o", out)
    assert done.returncode == 0, done.stderr
    assert str(out) in done.stdout
    assert len(read_cohort(out).role("source labelled")) == 4
