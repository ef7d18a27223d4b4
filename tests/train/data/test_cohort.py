"""Everything that can be wrong with a cohort is one clear line before any training starts."""

from __future__ import annotations

import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from support import tiny

from leuda_deploy.errors import GridMismatchError, InputError, UndeclaredLabelError
from leuda_train.data import cohort as cohort_module
from leuda_train.data.cohort import CohortSpec, read_cohort, read_spec
from leuda_train.data.file_names import subjects_of


@pytest.fixture
def cohort(tmp_path: Path) -> Path:
    return tiny.write_tiny_cohort(tmp_path / "data")


def edit(cohort: Path, old: str, new: str) -> None:
    text = cohort.read_text()
    assert text.count(old) == 1
    cohort.write_text(text.replace(old, new))


def refused(cohort: Path, match: str) -> None:
    with pytest.raises(InputError, match=match) as caught:
        read_cohort(cohort)
    assert "\n" not in str(caught.value)


def values(path: Path) -> np.ndarray:
    return np.asarray(nib.load(path).dataobj).copy()


def test_a_good_cohort_has_its_scans_by_role(cohort):
    found = read_cohort(cohort)
    roles = ("source labelled", "source unlabelled", "target unlabelled", "target test")
    names = [[(s.subject, s.label is not None) for s in found.role(role)] for role in roles]
    assert names == [
        [("m1", True), ("m2", True)],
        [("m3", False)],
        [("c1", True), ("c2", True)],
        [("c3", True)],
    ]
    assert found.structures == {"a": 1, "b": 2}
    assert found.spec.class_of_raw("source") == {30: 0, 10: 1, 20: 2}
    assert found.spec.class_of_raw("target") == {30: 0, 10: 1, 20: 2}


def test_optional_roles_may_be_absent(cohort):
    text = cohort.read_text().splitlines()
    lines = [line for line in text if not line.startswith(("upper_bound", "test"))]
    cohort.write_text("\n".join(lines))
    found = read_cohort(cohort)
    assert found.role("target test") == []
    assert all(scan.label is None for scan in found.role("target unlabelled"))


def test_a_missing_cohort_file_is_refused(tmp_path):
    refused(tmp_path / "cohort.toml", "no such cohort file: .*cohort.toml")
    refused(tmp_path, "is a folder; name its cohort file, e.g. .*cohort.toml")


@pytest.mark.parametrize("content", [b"name = ", b'name = "\xff"'])
def test_a_file_that_is_not_toml_is_refused(cohort, content):
    cohort.write_bytes(content)
    refused(cohort, "cohort.toml is not TOML")


@pytest.mark.parametrize(
    ("old", "new", "match"),
    [
        ('name = "tiny"', 'name = "tiny"\ncolour = "red"', "unknown key 'colour'"),
        ('modality = "CT"', 'modality = "CT"\nspacing = 1', "unknown key 'target.spacing'"),
        ('name = "tiny"\n', "", "'name' is missing"),
        ("b = 20", "b = 10", "must differ from each other and from 0"),
        ("b = 20", "b = 0", "must differ from each other and from 0"),
        ("a = 10\nb = 20", "", "'classes'"),
        ("b = 20", "b = [20, 10]", "must differ from each other and from 0"),
        ("b = 20", "b = []", "class b has no raw label value in the source"),
        ("b = 20", "b = { source = 20 }", "class b has no raw label value in the target"),
        ("b = 20", "b = { source = 20, target = 10 }", "must differ from each other"),
        ("b = 20", "b = { source = 20, elsewhere = 10 }", "'classes.b' = .*source = ..., t"),
        ("b = 20", 'b = "20"', "'classes.b' = 20: must be a whole number, a list"),
        ('"mr_more/*_image.nii.gz"', "[]", "images' = ..: must be a glob or a list of globs"),
        ('"mr_more/*_image.nii.gz"', '["mr_more/*", "mr_x/*"]', "images = 'mr_x/.' matches no"),
        ("values = [30]", "values = [20]", "label value 20 is in .classes. and in background"),
        ("[slices]", '[codes]\nc = ["SCT", "1", "C"]\n[slices]', "names c, which is not in"),
        ("[slices]", '[codes]\nb = ["SCT", "1"]\n[slices]', "'codes.b' = .*must be .scheme, value"),
        ('axis = "superior"', 'axis = "up"', "'slices.axis' = up"),
        ('spacing_mm = "native"', "spacing_mm = [1.0, 0.0]", "'slices.spacing_mm"),
        ('name = "tiny"', 'name = "tiny"\nsubject = "m"', "exactly one group"),
        ('name = "tiny"', 'name = "tiny"\nsubject = "(m"', "not a regular expression"),
        ('name = "tiny"', 'name = "tiny"\nsubject = "(x+)"', r"finds no subject in m1_image.nii"),
        ("mr_more/*_image", "elsewhere/*_image", "source.unlabelled.images = .* matches no scan"),
        ("mr_more/*_image.nii.gz", "", "source.unlabelled.images = '' is not a glob"),
        ("mr_more/*_image", "mr/*_image", "is both source labelled and source unlabelled"),
        ("mr/*_label", "mr/*_image", "is both image and labels of source labelled"),
        ("mr_more/*_image", "mr*/*_image", "is both source labelled and source unlabelled"),
        ("ct_test/*_label", "ct_labels/*_label", "target.test: c3_image.nii.gz .* has no labels"),
        ("mr/*_label", "mr/*", "are both subject 'm1'"),
    ],
)
def test_a_wrong_line_is_one_clear_error(cohort, old, new, match):
    edit(cohort, old, new)
    refused(cohort, match)


def test_codes_are_kept_and_change_no_training(cohort):
    before = read_cohort(cohort)
    edit(cohort, "[slices]", '[codes]\nb = ["SCT", "10200004", "Liver"]\n[slices]')
    found = read_cohort(cohort)
    assert found.spec.codes == {"b": ("SCT", "10200004", "Liver")}
    assert found.sha256 == before.sha256


def test_more_classes_than_a_label_byte_can_tell_from_unlabelled_are_refused():
    spec = {
        "name": "many",
        "slices": {"axis": "superior", "spacing_mm": "native"},
        "source": {"modality": "MR", "labelled": {"images": "a", "labels": "b"}},
        "target": {"modality": "CT", "unlabelled": {"images": "c"}},
    }
    CohortSpec.model_validate({**spec, "classes": {f"c{i}": i for i in range(1, 255)}})
    with pytest.raises(ValueError, match="at most 254"):
        CohortSpec.model_validate({**spec, "classes": {f"c{i}": i for i in range(1, 256)}})


def test_label_values_may_differ_between_the_domains(cohort):
    edit(
        cohort,
        "a = 10\nb = 20",
        "a = { source = 10, target = [20, 21] }\nb = { source = 20, target = 10 }",
    )
    edit(cohort, "[30]", "{ source = 30, target = [30, 31] }")
    spec = read_cohort(cohort).spec
    assert spec.structures == {"a": 1, "b": 2}
    assert spec.class_of_raw("source") == {30: 0, 10: 1, 20: 2}
    assert spec.class_of_raw("target") == {30: 0, 31: 0, 20: 1, 21: 1, 10: 2}


def test_a_value_of_the_other_domain_is_refused(cohort):
    edit(cohort, "b = 20", "b = { source = 20, target = 21 }")
    with pytest.raises(UndeclaredLabelError) as caught:
        read_cohort(cohort)
    assert (caught.value.name, caught.value.values) == ("c1_label.nii.gz", [20])


def test_images_and_labels_may_be_lists_of_globs_and_paths(cohort):
    whole = read_cohort(cohort)
    edit(
        cohort,
        '"mr/*_image.nii.gz"',
        '["mr/m1_image.nii.gz", "mr/m[2-9]_image.nii.gz", "mr/m1_i*"]',
    )
    edit(cohort, '"mr/*_label.nii.gz"', '["mr/m2_label.nii.gz", "mr/m1_label.nii.gz"]')
    edit(cohort, '"ct_test/*_image.nii.gz"', '["ct_test/c3_image.nii.gz"]')
    assert read_cohort(cohort).scans == whole.scans


def test_an_image_without_label_is_refused(cohort):
    (cohort.parent / "mr" / "m1_label.nii.gz").unlink()
    refused(cohort, r"source.labelled: m1_image.nii.gz \(subject 'm1'\) has no labels")


def test_a_label_without_image_is_refused(cohort):
    (cohort.parent / "mr" / "m1_image.nii.gz").unlink()
    refused(cohort, r"source.labelled: m1_label.nii.gz \(subject 'm1'\) has no image")


def test_upper_bound_labels_are_paired_with_the_target_images(cohort):
    (cohort.parent / "ct_labels" / "c1_label.nii.gz").unlink()
    refused(cohort, "target.upper_bound: c1_image.nii.gz .* has no labels")


def test_a_subject_in_training_and_test_is_refused(cohort):
    for kind in ("image", "label"):
        scan = cohort.parent / "ct_test" / f"c3_{kind}.nii.gz"
        shutil.copy(scan, scan.with_name(f"m3_{kind}.nii.gz"))
    refused(cohort, r"'m3' is in training \(m3_image.nii.gz, source unlabelled\) and in test")


def test_a_link_to_a_file_of_another_role_is_refused(cohort):
    scan = cohort.parent / "ct" / "c9_image.nii.gz"
    scan.symlink_to(cohort.parent / "ct_test" / "c3_image.nii.gz")
    edit(cohort, 'upper_bound = { labels = "ct_labels/*_label.nii.gz" }\n', "")
    refused(cohort, "is both target unlabelled and target test")


@pytest.mark.parametrize("label", ["mr/m1", "ct_test/c3", "ct_labels/c2"])
def test_an_undeclared_label_value_is_refused(cohort, label):
    path = cohort.parent / f"{label}_label.nii.gz"
    marks = values(path)
    marks[0, 0, 0] = 77
    tiny.write_scan(path, marks)
    with pytest.raises(UndeclaredLabelError) as caught:
        read_cohort(cohort)
    assert (caught.value.name, caught.value.values) == (path.name, [77])


def test_label_values_are_read_through_the_files_scale(cohort):
    path = cohort.parent / "mr" / "m1_label.nii.gz"
    image = nib.Nifti1Image(values(path).astype(np.int16) // 10, tiny.AFFINE)
    image.header.set_slope_inter(10.0, 0.0)
    nib.save(image, path)
    assert read_cohort(cohort)


def test_labels_of_another_shape_are_refused(cohort):
    path = cohort.parent / "mr" / "m1_label.nii.gz"
    tiny.write_scan(path, values(path)[:, :, :2])
    with pytest.raises(GridMismatchError) as caught:
        read_cohort(cohort)
    assert caught.value.names == ("m1_image.nii.gz", "m1_label.nii.gz")
    assert caught.value.shapes == ((18, 16, 3), (18, 16, 2))


def test_labels_that_lie_elsewhere_are_refused(cohort):
    path = cohort.parent / "mr" / "m1_label.nii.gz"
    affine = tiny.AFFINE.copy()
    affine[0, 3] = 1.5
    tiny.write_scan(path, values(path), affine)
    with pytest.raises(GridMismatchError) as caught:
        read_cohort(cohort)
    assert caught.value.apart_mm == pytest.approx(1.5)


def test_affines_that_differ_by_rounding_are_accepted(cohort):
    path = cohort.parent / "mr" / "m1_label.nii.gz"
    tiny.write_scan(path, values(path), tiny.AFFINE + np.eye(4) * 1e-5)
    assert read_cohort(cohort)


def test_a_damaged_scan_is_refused(cohort):
    path = cohort.parent / "mr_more" / "m3_image.nii.gz"
    path.write_bytes(path.read_bytes()[:100])
    refused(cohort, "m3_image.nii.gz")


@pytest.mark.parametrize("scan", ["ct_test/c3_image", "ct_test/c3_label", "mr/m1_label"])
def test_voxels_that_are_cut_off_are_found_where_nobody_would_read_them_soon(cohort, scan):
    path = cohort.parent / f"{scan}.nii.gz"
    plain = path.with_suffix("")  # not gzipped: the header stays whole
    tiny.write_scan(plain, values(path))
    path.unlink()
    plain.write_bytes(plain.read_bytes()[:-100])
    cohort.write_text(cohort.read_text().replace(".nii.gz", ".nii*"))
    refused(cohort, plain.name)


@pytest.mark.parametrize(
    ("name", "pattern", "subject"),
    [
        ("mr_1001_image.nii.gz", None, "mr_1001"),
        ("mr_1001_LABEL.nii", None, "mr_1001"),
        ("img0001-seg.mgz", None, "img0001"),
        ("image_7.nii.gz", None, "image_7"),
        ("ct_train_1003_image.nii.gz", r"(\d{4})", "1003"),
        ("a.b_mask.hdr", None, "a.b"),
    ],
)
def test_the_subject_is_found_in_the_file_name(name, pattern, subject):
    assert subjects_of([name], pattern) == [subject]


def test_a_subject_pattern_pairs_files_that_are_named_differently(cohort):
    for number in (1, 2):
        path = cohort.parent / "mr" / f"m{number}_label.nii.gz"
        path.rename(path.with_name(f"manual-of-m{number}-v2_label.nii.gz"))
    refused(cohort, "has no labels")
    edit(cohort, 'name = "tiny"', 'name = "tiny"\nsubject = "([mc][0-9])"')
    assert [scan.subject for scan in read_cohort(cohort).role("source labelled")] == ["m1", "m2"]


def test_absolute_globs_are_allowed(cohort, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    (cohort.parent / "mr_more").rename(elsewhere)
    edit(cohort, "mr_more/", f"{elsewhere.as_posix()}/")
    assert [scan.subject for scan in read_cohort(cohort).role("source unlabelled")] == ["m3"]


@pytest.mark.parametrize("scan", ["mr/m1_image", "mr/m1_label", "ct_test/c3_image"])
def test_the_checksum_follows_the_bytes_of_every_scan(cohort, scan):
    before = read_cohort(cohort).sha256
    path = cohort.parent / f"{scan}.nii.gz"
    changed = values(path)
    changed[0, 0, 0] = 10
    tiny.write_scan(path, changed)
    assert read_cohort(cohort).sha256 != before


def test_the_checksum_follows_the_meaning_of_the_file_and_not_its_comments(cohort):
    before = read_cohort(cohort).sha256
    cohort.write_text("# a comment\n" + cohort.read_text())
    assert read_cohort(cohort).sha256 == before
    edit(cohort, "background_values = [30]", "background_values = [30, 40]")
    assert read_cohort(cohort).sha256 != before


def test_the_checksum_stays_when_the_folder_moves(cohort, tmp_path):
    before = read_cohort(cohort).sha256
    cohort.parent.rename(tmp_path / "moved")
    assert read_cohort(tmp_path / "moved" / "cohort.toml").sha256 == before


def test_the_spec_can_be_read_where_the_scans_are_not(tmp_path):
    (tmp_path / "cohort.toml").write_text(tiny.COHORT)
    assert read_spec(tmp_path / "cohort.toml").structures == {"a": 1, "b": 2}


def test_a_cohort_that_was_checked_is_not_read_again_until_a_file_changes(
    cohort, tmp_path, monkeypatch
):
    cache = tmp_path / "cache"
    first = read_cohort(cohort, cache=cache)
    assert first == read_cohort(cohort)
    with monkeypatch.context() as patch:
        for reads in ("read_volume", "read_label_map", "_sha256"):
            patch.delattr(cohort_module, reads)
        assert read_cohort(cohort, cache=cache) == first
        (scan,) = first.role("target test")
        scan.image.touch()  # as large as before, and maybe another
        with pytest.raises(NameError):
            read_cohort(cohort, cache=cache)
    assert read_cohort(cohort, cache=cache) == first
    path = first.role("source labelled")[0].label
    values = np.zeros((18, 16, 3), np.int16)
    values[0, 0, 0] = 77
    tiny.write_scan(path, values)
    with pytest.raises(InputError, match="77"):
        read_cohort(cohort, cache=cache)
