"""Folders of scans become a cohort: what nobody said is what the files say."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from support.command import leuda_here

from leuda_deploy.errors import InputError
from leuda_train.data.cohort import Cohort, read_cohort
from leuda_train.data.layouts.cohort_plan import write_plan
from leuda_train.data.layouts.folders import DomainGlobs, Wishes, parse_names, plan

MM = (1.0, 1.0, 4.0)
GLOBS = DomainGlobs(images="mr/*_image.nii.gz", labels="mr/*_label.nii.gz")
TARGET = DomainGlobs(images="ct/*_image.nii.gz", labels="ct/*_label.nii.gz")


def write(path: Path, values: np.ndarray, mm: tuple[float, ...] = MM) -> None:
    path.parent.mkdir(exist_ok=True)
    nib.save(nib.Nifti1Image(values.astype(np.int16), np.diag([*mm, 1.0])), path)


def write_pair(stem: Path, *values: int, dark: int = 0, mm: tuple[float, ...] = MM) -> None:
    """A scan, and labels of which each value takes 10 voxels; no values: no labels."""
    labels = np.zeros((8, 8, 4))
    labels.flat[: 10 * len(values)] = np.repeat(values, 10)
    write(stem.with_name(f"{stem.name}_image.nii.gz"), 100 * labels + dark, mm)
    if values:
        write(stem.with_name(f"{stem.name}_label.nii.gz"), labels, mm)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_pair(tmp_path / "mr/a", 3, 7)
    write_pair(tmp_path / "mr/b", 3)
    write_pair(tmp_path / "mr/c")
    write_pair(tmp_path / "ct/d", dark=-1000, mm=(0.8, 0.8, 4.0))
    write_pair(tmp_path / "ct/e", 3, 9, dark=-1000, mm=(0.8, 0.8, 4.0))
    write_pair(tmp_path / "ct/f", dark=-1000, mm=(0.8, 0.8, 4.0))
    return tmp_path


def made(
    root: Path, source: DomainGlobs = GLOBS, target: DomainGlobs = TARGET, **wishes: object
) -> tuple[Cohort, str]:
    out = root / "cohort.toml"
    write_plan(plan(source, target, Wishes(**wishes), root=root, name="ours"), out)
    return read_cohort(out), out.read_text()


def subjects(cohort: Cohort, role: str) -> list[str]:
    return [scan.subject for scan in cohort.role(role)]


def test_roles_classes_grid_and_modality_are_what_the_files_say(root):
    cohort, text = made(root, names={7: "LVC"})
    assert subjects(cohort, "source labelled") == ["a", "b"]
    assert subjects(cohort, "source unlabelled") == ["c"]
    assert subjects(cohort, "target unlabelled") == ["d", "f"]
    assert subjects(cohort, "target test") == ["e"]
    spec = cohort.spec
    assert spec.structures == {"value_3": 1, "LVC": 2}
    assert spec.class_of_raw("target") == {9: 0, 3: 1, 7: 2}
    assert (spec.source.modality, spec.target.modality) == ("MR", "CT")
    assert spec.slices.axis == "superior"
    assert spec.slices.spacing_mm == (0.9, 0.9)  # three scans of 1.0 mm, three of 0.8
    # 10 voxels of 4 mm3
    assert "value_3 = 3 # in 2 of 2 label files, 0.04 ml" in text
    assert "LVC = 7 # in 1 of 2 label files, 0.04 ml; in none of the target" in text


def test_wishes_come_before_what_was_found(root):
    source = DomainGlobs(images=GLOBS.images, labels=GLOBS.labels, modality="T2")
    cohort, _ = made(root, source, labelled=1, test=0, axis="array-0", spacing_mm=(2.0, 2.0))
    assert subjects(cohort, "source labelled") == ["a"]
    assert subjects(cohort, "source unlabelled") == ["b", "c"]
    assert sorted(subjects(cohort, "target unlabelled")) == ["d", "e", "f"]
    assert cohort.role("target test") == []
    assert cohort.spec.source.modality == "T2"
    assert (cohort.spec.slices.axis, cohort.spec.slices.spacing_mm) == ("array-0", (2.0, 2.0))


def test_labels_among_the_images_are_no_images(root):
    everything = DomainGlobs(images="ct/*.nii.gz", labels="ct/*_label.nii.gz")
    cohort, _ = made(root, target=everything)
    assert subjects(cohort, "target unlabelled") == ["d", "f"]


def test_names_that_differ_by_more_than_a_suffix_are_paired_by_their_numbers(root):
    for number in (1, 2):
        write_pair(root / f"x{number}", 3)
        for kind, name in (("image", "img"), ("label", "lab")):
            (root / f"x{number}_{kind}.nii.gz").rename(root / f"{name}{number:04}.nii.gz")
    for number, path in enumerate(sorted((root / "ct").glob("*_image.nii.gz")), start=11):
        path.rename(root / "ct" / f"scan{number}.nii.gz")
    cohort, text = made(
        root,
        DomainGlobs(images="img*.nii.gz", labels="lab*.nii.gz"),
        DomainGlobs(images="ct/scan*.nii.gz"),
    )
    assert subjects(cohort, "source labelled") == ["0001", "0002"]
    assert "subject = '" in text


def test_where_all_target_scans_have_labels_a_fifth_is_held_out_and_the_rest_is_the_bound(root):
    for name in ("d", "f"):
        write_pair(root / "ct" / name, 3, dark=-1000, mm=(0.8, 0.8, 4.0))
    cohort, _ = made(root)
    assert subjects(cohort, "target test") == ["f"]
    assert [scan.label is not None for scan in cohort.role("target unlabelled")] == [True, True]


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"names": {8: "LVC"}}, "8=LVC.*holds 8; there are 3, 7"),
        ({"names": {3: "x", 7: "x"}}, "'x': 3 and 7"),
        ({"labelled": 3}, "--labelled 3: 2"),
        ({"test": 2}, "--test 2: 1"),
        ({"target": DomainGlobs(images="pet/*.nii.gz")}, "pet.*matches no scan"),
        ({"target": DomainGlobs(images="ct/e*", labels="ct/e_label.nii.gz")}, "--test"),
        ({"subject": "(x)"}, "--subject"),
        ({"source": DomainGlobs(images="mr/*_image.nii.gz")}, "--source-labels"),
    ],
)
def test_what_does_not_fit_is_one_line_and_nothing_is_written(root, change, what):
    with pytest.raises(InputError, match=what):
        made(root, **change)
    assert not (root / "cohort.toml").exists()


def test_an_image_given_as_labels_is_seen(root):
    write(root / "mr" / "c_label.nii.gz", np.arange(256).reshape(8, 8, 4))
    with pytest.raises(InputError, match=r"c_label.*is it an image"):
        made(root)


def test_structures_are_value_and_name():
    assert parse_names(["205=MYO", "-1=a=b"]) == {205: "MYO", -1: "a=b"}
    for wrong in ("MYO=205", "205", "205="):
        with pytest.raises(InputError, match="VALUE=NAME"):
            parse_names([wrong])


def test_the_command_writes_beside_the_scans_and_replaces_nothing(root, monkeypatch):
    monkeypatch.chdir(root)
    command = ["cohort", "folders", "--source-images", GLOBS.images]
    command += ["--source-labels", GLOBS.labels, "--target-images", TARGET.images]
    done = leuda_here(*command, "--structure", "3=MYO", "--spacing", "1.5")
    assert (done.returncode, done.stdout) == (0, "cohort.toml\n")
    cohort = read_cohort(root / "cohort.toml")
    assert [*cohort.structures] == ["MYO", "value_7"]
    assert cohort.spec.slices.spacing_mm == (1.5, 1.5)
    again = leuda_here(*command)
    assert again.returncode == 2
    assert "cohort.toml exists" in again.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
def test_a_name_that_is_not_utf8_is_one_line(root: Path) -> None:
    for path in (root / "mr").glob("a_*"):
        path.rename(path.with_name(os.fsdecode(b"\xff") + path.name))
    with pytest.raises(InputError, match="UTF-8"):
        made(root)
    assert not (root / "cohort.toml").exists()
