"""One or two label files -> one numbering, volumes, Dice and the difference."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from support.view_files import NAMES, write_case

from leuda_deploy.errors import InputError
from leuda_deploy.scans.volume import read_volume
from leuda_deploy.view.label_files import (
    ONLY_FIRST,
    ONLY_SECOND,
    OTHER,
    LabelFiles,
    read_label_files,
)


def read(scan: Path, *labels: Path, class_values: dict[str, int] | None = None) -> LabelFiles:
    return read_label_files(
        labels, read_volume(scan), names={}, class_values=class_values or {}, colours={}
    )


def renumbered(path: Path, new: Path, values: dict[int, int]) -> Path:
    """A copy of a label file with other numbers and no names."""
    image = nib.load(path)
    old = np.asarray(image.dataobj)
    made = np.zeros(old.shape, np.int16)
    for value, number in values.items():
        made[old == value] = number
    nib.save(nib.Nifti1Image(made, image.affine), new)
    return new


def test_volumes_dice_and_difference_of_two_files(tmp_path: Path) -> None:
    scan = write_case(tmp_path)
    found = read(scan, tmp_path / "case_labels.nii.gz", tmp_path / "case_truth.nii.gz")
    first, second = (
        np.asarray(nib.load(tmp_path / f"case_{name}.nii.gz").dataobj)
        for name in ("labels", "truth")
    )
    for structure in found.structures:
        a, b = first == structure.value, second == structure.value
        assert structure.ml == pytest.approx((a.sum() * 0.012, b.sum() * 0.012))
        assert structure.dice == pytest.approx(2 * (a & b).sum() / (a.sum() + b.sum()))
    assert {s.value: s.name for s in found.structures} == NAMES
    difference = found.difference()
    np.testing.assert_array_equal(difference == ONLY_FIRST, (first > 0) & (second == 0))
    np.testing.assert_array_equal(difference == ONLY_SECOND, (first == 0) & (second > 0))


def test_another_structure_in_both_files_is_a_difference_of_its_own(tmp_path: Path) -> None:
    scan = write_case(tmp_path)
    labels = tmp_path / "case_labels.nii.gz"
    swapped = renumbered(labels, tmp_path / "swapped.nii.gz", {1: 2, 2: 1})
    found = read(scan, labels, swapped)
    values = np.asarray(nib.load(labels).dataobj)
    np.testing.assert_array_equal(found.difference() == OTHER, values > 0)
    assert [s.dice for s in found.structures] == [0.0, 0.0]


def test_raw_values_are_matched_by_the_names_of_a_table(tmp_path: Path) -> None:
    scan = write_case(tmp_path)
    labels = tmp_path / "case_labels.nii.gz"
    raw = renumbered(labels, tmp_path / "raw.nii.gz", {1: 205, 2: 500})
    table = {"left blob": 500, "right blob": 205}
    found = read(scan, labels, raw, class_values=table)
    assert [s.dice for s in found.structures] == [1.0, 1.0]
    assert not found.difference().any()


def test_values_without_a_name_stay_apart_from_those_of_the_first_file(tmp_path: Path) -> None:
    scan = write_case(tmp_path)
    labels = tmp_path / "case_labels.nii.gz"
    raw = renumbered(labels, tmp_path / "raw.nii.gz", {1: 205, 2: 500})
    found = read(scan, labels, raw)
    assert {s.name: s.value for s in found.structures} == {
        "right blob": 1,
        "left blob": 2,
        "label 205": 205,
        "label 500": 3,  # the lowest that is free: a number on the page is at most 255
    }


def test_an_image_and_another_grid_are_refused(tmp_path: Path) -> None:
    scan = write_case(tmp_path)
    image = tmp_path / "image.nii.gz"
    values = np.arange(40 * 44 * 24, dtype=np.int16).reshape(40, 44, 24) % 999
    nib.save(nib.Nifti1Image(values, nib.load(scan).affine), image)
    with pytest.raises(InputError):
        read(scan, image)
    other = tmp_path / "other"
    other.mkdir()
    write_case(other, codes="RAS")
    with pytest.raises(InputError):
        read(scan, other / "case_labels.nii.gz")
