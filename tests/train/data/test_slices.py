"""Slices: written once, named after what they are made of, and blind to labels."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from support import tiny

from leuda_deploy.errors import InputError
from leuda_deploy.scans.intensity import fit_intensity
from leuda_deploy.scans.recipe import Recipe
from leuda_deploy.scans.volume import read_volume
from leuda_train.data.cohort import read_cohort
from leuda_train.data.slices import UNLABELLED, hold_out, load_slices

RECIPE = Recipe(slice_axis="superior", spacing_mm="native", window=(12, 20))


@pytest.fixture
def cohort_file(tmp_path: Path) -> Path:
    return tiny.write_tiny_cohort(tmp_path / "data")


def times(cache: Path) -> dict[str, int]:
    return {p.relative_to(cache).as_posix(): p.stat().st_mtime_ns for p in cache.rglob("*")}


def test_slices_have_the_windows_shape_and_the_cohorts_rows(cohort_file, tmp_path):
    slices = load_slices(read_cohort(cohort_file), RECIPE, tmp_path / "cache")
    assert slices.source.shape == slices.source_labels.shape == (9, 12, 20)
    assert slices.target.shape == (6, 12, 20)
    assert slices.source.dtype == np.float32
    assert slices.labelled_rows.tolist() == [0, 1, 2, 3, 4, 5]
    assert set(np.unique(slices.source_labels[:6])) == {0, 1, 2}
    assert (slices.source_labels[6:] == UNLABELLED).all()
    assert isinstance(slices.source, np.memmap)


def test_images_and_labels_are_cropped_alike(cohort_file, tmp_path):
    # make the image say what the label says
    for name in ("m1", "m2"):
        label = np.asarray(nib.load(cohort_file.parent / f"mr/{name}_label.nii.gz").dataobj)
        image = np.where(label == 30, 0, label).astype(np.int16)
        tiny.write_scan(cohort_file.parent / f"mr/{name}_image.nii.gz", image)
    slices = load_slices(read_cohort(cohort_file), RECIPE, tmp_path / "cache")
    for row in slices.labelled_rows:
        image, label = slices.source[row], slices.source_labels[row]
        means = [image[label == k].mean() for k in range(3)]
        assert all(np.allclose(image[label == k], means[k], atol=1e-5) for k in range(3))
        assert means[0] < means[1] < means[2]


def test_crops_do_not_look_at_labels(cohort_file, tmp_path):
    before = load_slices(read_cohort(cohort_file), RECIPE, tmp_path / "cache")
    path = cohort_file.parent / "mr/m1_label.nii.gz"
    marks = np.zeros((18, 16, 3), dtype=np.int16)
    marks[0, 0, 0] = 10
    tiny.write_scan(path, marks)
    after = load_slices(read_cohort(cohort_file), RECIPE, tmp_path / "cache")
    assert after.key != before.key
    np.testing.assert_array_equal(after.source, before.source)
    np.testing.assert_array_equal(after.target, before.target)
    assert not np.array_equal(after.source_labels, before.source_labels)


def test_slices_are_written_once_and_reused(cohort_file, tmp_path):
    cache = tmp_path / "cache"
    first = load_slices(read_cohort(cohort_file), RECIPE, cache)
    written = times(cache)
    second = load_slices(read_cohort(cohort_file), RECIPE, cache)
    assert times(cache) == written
    assert second.key == first.key
    np.testing.assert_array_equal(first.source, second.source)


@pytest.mark.parametrize(
    "change",
    [{"window": (16, 16)}, {"clip_percentiles": (1.0, 99.0)}, {"normalisation": "minmax"}],
)
def test_another_recipe_has_another_key(cohort_file, tmp_path, change):
    cohort, cache = read_cohort(cohort_file), tmp_path / "cache"
    first = load_slices(cohort, RECIPE, cache)
    other = load_slices(cohort, RECIPE.model_copy(update=change), cache)
    assert other.key != first.key
    assert len(tiny.made(cache)) == 2


def test_test_scans_are_not_among_the_slices(cohort_file, tmp_path):
    cohort = read_cohort(cohort_file)
    before = load_slices(cohort, RECIPE, tmp_path / "cache")
    index = json.loads((tmp_path / f"cache/slices-{before.key}/index.json").read_text())
    assert [row["subject"] for row in index] == ["m1", "m2", "m3", "c1", "c2"]
    for scan in cohort.role("target test"):
        scan.image.unlink()
        scan.label.unlink()
    again = load_slices(cohort, RECIPE, tmp_path / "elsewhere")
    np.testing.assert_array_equal(again.target, before.target)


def test_target_labels_are_stored_only_when_asked_for(cohort_file, tmp_path):
    cohort, cache = read_cohort(cohort_file), tmp_path / "cache"
    for scan in cohort.role("target unlabelled"):
        scan.label.rename(scan.label.with_suffix(".away"))
    plain = load_slices(cohort, RECIPE, cache)  # would fail if it opened one
    assert plain.target_labels is None
    assert not list(cache.rglob("target_labels*"))
    for scan in cohort.role("target unlabelled"):
        scan.label.with_suffix(".away").rename(scan.label)
    bound = load_slices(cohort, RECIPE, cache, target_labels=True)
    assert bound.key != plain.key
    assert set(np.unique(bound.target_labels)) == {0, 1, 2}
    np.testing.assert_array_equal(bound.target, plain.target)


def test_a_failure_leaves_no_half_written_cache(cohort_file, tmp_path):
    cohort = read_cohort(cohort_file)
    gone = cohort.role("target unlabelled")[1].image
    gone.unlink()
    with pytest.raises(InputError, match=gone.name):
        load_slices(cohort, RECIPE, tmp_path / "cache")
    assert tiny.made(tmp_path / "cache") == []


def test_the_intensities_of_the_target_are_those_of_its_scans_and_kept(cohort_file, tmp_path):
    cohort, cache = read_cohort(cohort_file), tmp_path / "cache"
    scans = [read_volume(scan.image) for scan in cohort.role("target unlabelled")]
    expected = tuple(fit_intensity(scan, RECIPE) for scan in scans)
    slices = load_slices(cohort, RECIPE, cache)
    assert slices.target_intensities == expected
    # an index from before they were kept: they are fitted anew, and the slices are not
    index = cache / f"slices-{slices.key}" / "index.json"
    rows = json.loads(index.read_text())
    index.write_text(json.dumps([{k: v for k, v in r.items() if k != "intensity"} for r in rows]))
    assert load_slices(cohort, RECIPE, cache).target_intensities == expected
    # with it, no scan is read again
    index.write_text(json.dumps(rows))
    for scan in cohort.scans:
        scan.image.unlink()
    assert load_slices(cohort, RECIPE, cache).target_intensities == expected


def test_progress_counts_the_scans(cohort_file, tmp_path):
    seen: list[tuple[int, int]] = []
    progress = lambda done, total, note: seen.append((done, total))
    load_slices(read_cohort(cohort_file), RECIPE, tmp_path / "cache", progress=progress)
    assert seen == [(i, 5) for i in range(1, 6)]


def test_of_many_scans_whole_ones_are_held_out_of_few_a_fold_of_each():
    rows, scans = np.arange(40), np.repeat(np.arange(8), 10)  # four of eight scans are labelled
    trained, held = hold_out(rows, scans, 0.2, seed=0)
    assert sorted([*trained, *held]) == rows.tolist()
    assert np.bincount(scans[held]).tolist() == [2, 2, 2, 2]
    for scan in range(4):
        own = held[scans[held] == scan]
        assert own[1] == own[0] + 1
        assert 2 <= own[0] % 10 <= 6  # away from the ends
    rows = np.arange(80)
    trained, held = hold_out(rows, scans, 0.2, seed=0)
    assert sorted([*trained, *held]) == rows.tolist()
    assert len(held) == 20
    assert len(np.unique(scans[held])) == 2
    assert hold_out(rows, scans, 0.2, seed=1)[1].tolist() != held.tolist()
    assert hold_out(np.arange(1), scans, 0.5, seed=0)[0].tolist() == [0]


def test_the_images_key_knows_images_alone(cohort_file, tmp_path):
    """More or fewer labels, other labels, other names and other test scans: the same key."""
    cohort = read_cohort(cohort_file)
    key = load_slices(cohort, RECIPE, tmp_path / "cache").images_key
    same = {load_slices(cohort.with_labelled(1), RECIPE, tmp_path / "cache").images_key}
    marks = np.zeros((18, 16, 3), dtype=np.int16)
    marks[3:5, 3:5, 1] = 20
    tiny.write_scan(cohort_file.parent / "mr/m1_label.nii.gz", marks)
    tiny.write_scan(cohort_file.parent / "ct_test/c3_image.nii.gz", marks)
    cohort_file.write_text(cohort_file.read_text().replace('name = "tiny"', 'name = "other"'))
    same.add(load_slices(read_cohort(cohort_file), RECIPE, tmp_path / "cache").images_key)
    assert same == {key}
    rng = np.random.default_rng(7)
    image = rng.integers(0, 1000, size=(18, 16, 3), dtype=np.int16)
    tiny.write_scan(cohort_file.parent / "ct/c2_image.nii.gz", image)
    assert load_slices(read_cohort(cohort_file), RECIPE, tmp_path / "cache").images_key != key
