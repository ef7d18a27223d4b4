"""Label files of two folders -> a report: what is paired, what is refused, and what each holds."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from rich.console import Console

from leuda_deploy.errors import GridMismatchError, InputError, UndeclaredLabelError
from leuda_deploy.model.card import Pieces
from leuda_deploy.scans.volume import read_volume
from leuda_train.evaluation import label_files
from leuda_train.evaluation.label_files import evaluate_pairs, evaluate_paths, match_subjects
from leuda_train.evaluation.table import table

SPACING = (0.5, 1.0, 3.0)
ONE = {"A": 1}


def box(shape, *ranges):
    labels = np.zeros(shape, np.uint8)
    labels[tuple(slice(*r) for r in ranges)] = 1
    return labels


def save(path: Path, labels, affine=None, names=None, dtype=np.int16):
    path.parent.mkdir(parents=True, exist_ok=True)
    affine = np.diag([*SPACING, 1]) if affine is None else affine
    image = nib.Nifti1Image(np.asarray(labels, dtype), affine)
    if names:
        content = json.dumps({"leuda": {"labels": names}}).encode()
        image.header.extensions.append(nib.nifti1.Nifti1Extension(6, content))
    nib.save(image, path)
    return path


def test_folders_report_by_subject_is_json_and_a_table(tmp_path):
    true = np.zeros((6, 6, 6), int)
    true[1:4, 1:4, 1:4] = 205
    true[4, 1:4, 1:4] = 420
    true[0, 0, 0] = 900
    guess = np.zeros_like(true)
    guess[1:4, 1:4, 1:4] = 1
    guess[5, 5, 5] = 1
    names = {"1": "MYO", "2": "LV"}
    for subject in ("ct_1", "ct_2"):
        save(tmp_path / "pred" / f"{subject}_image_pred.nii.gz", guess, names=names)
        save(tmp_path / "truth" / f"{subject}_label.nii.gz", true)
        save(tmp_path / "truth" / f"{subject}_image.nii.gz", true)  # the scan beside its truth
    report = evaluate_paths(
        tmp_path / "pred", tmp_path / "truth", map_true={205: 1, 420: 2, 900: 0}
    )
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    assert report["structures"] == {"MYO": 1, "LV": 2}
    assert list(report["volumes"]) == ["ct_1", "ct_2"]
    myo, lv = report["volumes"]["ct_1"]["as_predicted"]
    assert (myo["structure"], myo["dice"]) == ("MYO", pytest.approx(54 / 55))
    assert (lv["dice"], lv["assd_mm"]) == (0.0, None)
    assert lv["true_ml"] == pytest.approx(9 * 1.5 / 1000)
    assert report["volumes"]["ct_1"]["largest_component"][0]["dice"] == 1.0
    assert report["summary"]["largest_component"]["structures"]["LV"]["n_missing_distance"] == 2

    shown = Console(width=120)
    with shown.capture() as text:
        shown.print(table(report))
    lines = text.get().splitlines()
    second = lines.index(next(line for line in lines if line.startswith("largest component")))
    row = next(line for line in lines[second:] if "LV" in line)
    assert [cell.strip() for cell in row.split("│")[1:-1]] == [
        "LV", "0.000", "0.000", "-", "-", "0.00", "2/2", "2",
    ]  # fmt: skip


def test_two_files_pair_whatever_their_names_and_spacing_comes_from_the_affine(tmp_path):
    """A rotated grid: spacing is the length of the affine's columns, not its diagonal."""
    affine = np.array([[0, -2.0, 0, 9], [0.5, 0, 0, 9], [0, 0, 3, 9], [0, 0, 0, 1]])
    a = box((6, 6, 6), (1, 2), (1, 5), (1, 5))
    predicted = save(tmp_path / "mine.nii", a, affine)
    true = save(tmp_path / "gold_manual.nii.gz", np.roll(a, 1, axis=0), affine)
    report = evaluate_paths(predicted, true)
    assert report["structures"] == {"1": 1}
    (row,) = report["volumes"]["mine"]["as_predicted"]
    assert (row["assd_mm"], row["true_ml"]) == pytest.approx((0.5, 16 * 3 / 1000))


@pytest.mark.parametrize(
    "name",
    [
        "s1.nii",
        "s1_label.nii.gz",
        "s1-labels.nii.gz",
        "s1_Manual.nii.gz",
        "s1_image_seg.NII.GZ",
        "s1_image.nii",
    ],
)
def test_subject_is_the_name_without_suffixes(tmp_path, name):
    predicted, true = tmp_path / "p" / "s1_pred.nii.gz", tmp_path / "t" / name
    for path in (predicted, true, tmp_path / "t" / "._s1.nii", tmp_path / "t" / "s1.nii.json"):
        path.parent.mkdir(exist_ok=True)
        path.touch()
    assert match_subjects(tmp_path / "p", tmp_path / "t") == {"s1": (predicted, true)}


@pytest.mark.parametrize(
    ("predicted", "true", "named"),
    [
        (["s1.nii", "s2.nii"], ["s1.nii"], ["s2.nii"]),
        (["s1.nii"], ["s1.nii", "s2.nii"], ["s2.nii"]),
        (["s1.nii"], ["s1_label.nii", "s1_seg.nii"], ["s1_label.nii", "s1_seg.nii"]),
        (["s1.txt"], ["s1.png"], []),
    ],
)
def test_unpaired_and_ambiguous_files_are_refused_by_name(tmp_path, predicted, true, named):
    for folder, files in (("p", predicted), ("t", true)):
        (tmp_path / folder).mkdir()
        for name in files:
            (tmp_path / folder / name).touch()
    with pytest.raises(InputError) as refused:
        match_subjects(tmp_path / "p", tmp_path / "t")
    assert all(name in str(refused.value) for name in named)


def test_a_file_against_a_folder_or_nothing_is_refused(tmp_path):
    (tmp_path / "p.nii").touch()
    with pytest.raises(InputError):
        match_subjects(tmp_path / "p.nii", tmp_path)
    with pytest.raises(InputError, match=r"absent\.nii"):
        match_subjects(tmp_path / "p.nii", tmp_path / "absent.nii")


CUBE = box((4, 4, 4), (1, 3), (1, 3), (1, 3))


def test_other_grids_are_refused_and_rounding_is_not(tmp_path):
    affine = np.diag([*SPACING, 1.0])
    affine[:3, 3] = -200.1
    true = save(tmp_path / "t.nii", CUBE, affine)
    wider = np.pad(CUBE, ((0, 1), (0, 0), (0, 0)))
    moved, rounded, mirrored = affine.copy(), affine.copy(), affine * [-1, 1, 1, 1]
    moved[0, 3] += 0.01
    rounded[0, 3] += 0.0005
    with pytest.raises(GridMismatchError) as caught:
        evaluate_paths(save(tmp_path / "p.nii", wider, affine), true)
    assert caught.value.shapes == ((4, 4, 4), (5, 4, 4))
    for wrong in (moved, mirrored):
        with pytest.raises(GridMismatchError):
            evaluate_paths(save(tmp_path / "p.nii", CUBE, wrong), true)
    report = evaluate_paths(save(tmp_path / "p.nii", CUBE, rounded), true)
    assert report["summary"]["as_predicted"]["mean"]["dice"] == 1.0


def test_labels_declared_nowhere_are_refused(tmp_path):
    predicted = save(tmp_path / "p.nii", CUBE, names={"1": "MYO"})
    true = save(tmp_path / "t.nii", CUBE * 205)
    for mapping in (None, {420: 1}):
        with pytest.raises(UndeclaredLabelError) as caught:
            evaluate_paths(predicted, true, map_true=mapping)
        assert (caught.value.name, caught.value.values) == ("t.nii", [205])
    with pytest.raises(UndeclaredLabelError) as caught:
        evaluate_paths(save(tmp_path / "p.nii", CUBE * 3), true, structures=ONE, map_true={205: 1})
    assert (caught.value.name, caught.value.values) == ("p.nii", [3])


def test_values_beyond_255_are_scored_under_their_own_numbers(tmp_path):
    true = save(tmp_path / "t.nii", CUBE.astype(int) * 820)
    predicted = save(tmp_path / "p.nii", CUBE.astype(int) * 820)
    report = evaluate_paths(predicted, true)
    assert report["structures"] == {"820": 820}
    assert report["summary"]["as_predicted"]["structures"]["820"]["dice"] == 1.0
    ramp = np.arange(343).reshape(7, 7, 7)  # an image, not labels
    with pytest.raises(InputError):
        evaluate_paths(save(tmp_path / "i.nii", ramp), save(tmp_path / "j.nii", ramp))


def test_structures_come_from_the_caller_the_header_or_the_values(tmp_path):
    true = save(tmp_path / "t.nii", CUBE * 3)
    plain = save(tmp_path / "p.nii", CUBE)
    named = save(tmp_path / "n.nii", CUBE, names={"2": "LV", "1": "MYO", "3": "RV"})
    assert evaluate_paths(plain, true)["structures"] == {"1": 1, "3": 3}
    assert evaluate_paths(plain, true, map_true={3: 1})["structures"] == {"1": 1}
    assert list(evaluate_paths(named, true)["structures"].items()) == [
        ("MYO", 1), ("LV", 2), ("RV", 3),
    ]  # fmt: skip
    given = {"A": 1, "B": 3}
    assert evaluate_paths(plain, true, structures=given)["structures"] == given
    with pytest.raises(InputError, match=r"'MYO': 1.*'A': 1"):
        evaluate_paths(named, true, structures=given)


def test_files_that_hold_no_labels_are_refused(tmp_path):
    true = save(tmp_path / "t.nii", CUBE)
    with pytest.raises(InputError):
        evaluate_paths(save(tmp_path / "p.nii", CUBE * 0.5, dtype=np.float32), true)
    empty = save(tmp_path / "e.nii", CUBE * 0)
    with pytest.raises(InputError):
        evaluate_paths(empty, empty)
    (tmp_path / "junk.nii.gz").write_bytes(b"not an image")
    with pytest.raises(InputError, match=r"junk\.nii\.gz"):
        evaluate_paths(tmp_path / "junk.nii.gz", true)


def test_whole_numbers_stored_as_floats_are_labels(tmp_path):
    predicted = save(tmp_path / "p.nii", CUBE, dtype=np.float64)
    report = evaluate_paths(predicted, save(tmp_path / "t.nii", CUBE))
    assert report["summary"]["as_predicted"]["structures"]["1"]["dice"] == 1.0


@pytest.mark.parametrize("names", [None, {"1": "MYO", "3": "RV"}])
def test_each_file_is_read_once_whether_its_labels_are_named_or_not(tmp_path, monkeypatch, names):
    for subject, label in (("a", 1), ("b", 3)):
        save(tmp_path / "p" / f"{subject}.nii", CUBE * label, names=names)
        save(tmp_path / "t" / f"{subject}.nii", CUBE * label)
    read: list[str] = []

    def counting(path):
        read.append(f"{path.parent.name}/{path.name}")
        return read_volume(path)

    monkeypatch.setattr(label_files, "read_volume", counting)
    report = evaluate_paths(tmp_path / "p", tmp_path / "t")
    assert sorted(read) == ["p/a.nii", "p/b.nii", "t/a.nii", "t/b.nii"]
    assert list(report["structures"].values()) == [1, 3]
    by_subject = {
        subject: [score["dice"] for score in scored["as_predicted"]]
        for subject, scored in report["volumes"].items()
    }
    assert by_subject == {"a": [1.0, None], "b": [None, 1.0]}


def test_cleaned_up_predictions_are_a_variant_of_their_own(tmp_path):
    true = box((8, 8, 8), (0, 4), (0, 4), (0, 4)).astype(int) * 205
    guess = np.where(true == 205, 7, 0)
    guess[6, 6, 6] = guess[6, 0, 0] = 7
    pairs = {
        "ct_1": (save(tmp_path / "pred.nii.gz", guess), save(tmp_path / "true.nii.gz", true)),
    }
    asked = {"structures": {"MYO": 7}, "map_true": {205: 7}}
    assert "cleaned_up" not in evaluate_pairs(pairs, **asked)["summary"]
    report = evaluate_pairs(pairs, **asked, clean_up={7: Pieces(largest_only=True)})
    dice = {variant: report["summary"][variant]["mean"]["dice"] for variant in report["summary"]}
    assert dice == {
        "as_predicted": pytest.approx(128 / 130),
        "largest_component": 1.0,
        "cleaned_up": 1.0,
    }
    kept = evaluate_pairs(
        pairs, **asked, clean_up={7: Pieces(largest_only=False, smallest_ml=0.001)}
    )
    assert kept["volumes"]["ct_1"]["cleaned_up"][0]["dice"] == pytest.approx(128 / 130)


def test_one_bad_file_stops_no_other_and_is_named(tmp_path):
    labels = box((6, 6, 6), (1, 4), (1, 4), (1, 4))
    for subject in ("s1", "s2", "s3"):
        save(tmp_path / "p" / f"{subject}.nii.gz", labels, names={"1": "A"})
        save(tmp_path / "t" / f"{subject}.nii.gz", labels)
    (tmp_path / "p" / "s2.nii.gz").write_bytes(b"no scan")
    save(tmp_path / "t" / "s3.nii.gz", labels[:5])
    report = evaluate_paths(tmp_path / "p", tmp_path / "t", structures=ONE)
    assert list(report["volumes"]) == ["s1"]
    assert set(report["failed"]) == {"s2", "s3"}
    assert "s2.nii.gz" in report["failed"]["s2"]
    assert report["summary"]["as_predicted"]["mean"]["dice"] == 1.0
    for path in (tmp_path / "p" / "s1.nii.gz", tmp_path / "p" / "s3.nii.gz"):
        path.write_bytes(b"no scan")
    with pytest.raises(InputError, match="not one of 3"):
        evaluate_paths(tmp_path / "p", tmp_path / "t", structures=ONE)
