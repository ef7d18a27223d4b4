"""The phantom cohort: what is written, that it is reproducible, and that it looks like a heart."""

from __future__ import annotations

import tomllib
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from nibabel.affines import apply_affine
from numpy.typing import NDArray
from scipy.ndimage import binary_dilation, distance_transform_edt

from leuda_deploy.errors import InputError
from leuda_train.data.phantom.anatomy import Tissue, draw_anatomy
from leuda_train.data.phantom.phantom_cohort import write_cohort
from leuda_train.data.phantom.scanner import render_ct, render_mr

COUNTS = {"source_labelled": 2, "source_unlabelled": 1, "target_unlabelled": 1, "target_test": 2}
# Plausible volumes in mL, generous at both ends.
VOLUME_ML = {
    205: (80, 240),
    420: (25, 110),
    500: (50, 180),
    820: (22, 75),
    550: (30, 130),
    600: (30, 160),
    850: (25, 120),
}


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cohort(tmp_path_factory.mktemp("cohort"), **COUNTS)


def files(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def labels(cohort: Path) -> list[tuple[NDArray[np.int16], NDArray[np.float64]]]:
    images = [nib.load(p) for p in sorted(cohort.parent.glob("*/*_label.nii.gz"))]
    assert images
    return [(np.asarray(i.dataobj), i.affine) for i in images]


def test_writes_the_planned_files_and_no_other(cohort: Path) -> None:
    assert set(files(cohort.parent)) == {
        "cohort.toml",
        *(f"mr_labelled/mr_100{i}_{kind}.nii.gz" for i in (1, 2) for kind in ("image", "label")),
        "mr_unlabelled/mr_1501_image.nii.gz",
        "ct_unlabelled/ct_2001_image.nii.gz",
        "ct_upper_bound/ct_2001_label.nii.gz",
        *(f"ct_test/ct_250{i}_{kind}.nii.gz" for i in (1, 2) for kind in ("image", "label")),
    }


def test_cohort_patterns_find_the_scans(cohort: Path) -> None:
    said = tomllib.loads(cohort.read_text(encoding="utf-8"))

    def count(role: dict[str, str]) -> list[int]:
        return [len(list(cohort.parent.glob(pattern))) for pattern in role.values()]

    assert count(said["source"]["labelled"]) == [2, 2]
    assert count(said["source"]["unlabelled"]) == [1]
    assert count(said["target"]["unlabelled"]) == [1]
    assert count(said["target"]["upper_bound"]) == [1]
    assert count(said["target"]["test"]) == [2, 2]
    declared = {*said["classes"].values(), *said["slices"]["background_values"]}
    for label, _ in labels(cohort):
        assert set(np.unique(label).tolist()) == declared


def test_same_seed_same_bytes(cohort: Path, tmp_path: Path) -> None:
    again = write_cohort(tmp_path, **COUNTS)
    assert files(again.parent) == files(cohort.parent)


def test_another_seed_other_scans(cohort: Path, tmp_path: Path) -> None:
    only = dict.fromkeys(COUNTS, 0) | {"source_labelled": 1}
    other = files(write_cohort(tmp_path, seed=1, **only).parent)
    name = "mr_labelled/mr_1001_image.nii.gz"
    assert other[name] != files(cohort.parent)[name]


def test_a_role_s_size_changes_no_other_role(cohort: Path, tmp_path: Path) -> None:
    few = write_cohort(tmp_path, **dict.fromkeys(COUNTS, 0) | {"target_test": 1})
    kept = files(few.parent)
    assert len(kept) == 3
    assert kept.items() <= files(cohort.parent).items()


def test_refuses_to_mix_with_another_cohort(cohort: Path, tmp_path: Path) -> None:
    none = dict.fromkeys(COUNTS, 0)
    write_cohort(tmp_path, **none | {"source_unlabelled": 1})
    with pytest.raises(InputError, match="mr_1501"):
        write_cohort(tmp_path, **none | {"target_test": 1})
    with pytest.raises(InputError, match="subjects"):
        write_cohort(tmp_path, **none | {"target_test": -1})


def test_reports_progress(tmp_path: Path) -> None:
    lines: list[tuple[int, int, str]] = []
    none = dict.fromkeys(COUNTS, 0)
    write_cohort(
        tmp_path, **none | {"source_unlabelled": 1}, progress=lambda *line: lines.append(line)
    )
    assert lines == [(1, 1, "mr_1501")]


def test_subjects_differ(cohort: Path) -> None:
    volumes = [
        tuple((label == v).sum() * abs(np.linalg.det(a[:3, :3])) for v in VOLUME_ML)
        for label, a in labels(cohort)
    ]
    assert len(set(volumes)) == len(volumes)


def test_headers(cohort: Path) -> None:
    for path in cohort.parent.glob("*/*.nii.gz"):
        image = nib.load(path)
        assert image.header["qform_code"] == image.header["sform_code"] == 1
        np.testing.assert_allclose(image.get_qform(), image.affine, atol=1e-3)
        tilt = nib.affines.obliquity(image.affine)
        assert 0.01 < tilt.max() < np.deg2rad(10.5)
        allowed = (np.int16, np.float32) if "mr_" in path.name else (np.int16,)
        assert image.get_data_dtype() in allowed
        if path.name.endswith("label.nii.gz"):
            assert image.get_data_dtype() == np.int16


def test_labels_lie_on_their_images(cohort: Path) -> None:
    for path in cohort.parent.glob("*/*_label.nii.gz"):
        folder = path.parent.name.replace("upper_bound", "unlabelled")
        image = nib.load(path.parents[1] / folder / path.name.replace("label", "image"))
        label = nib.load(path)
        assert image.shape == label.shape
        np.testing.assert_array_equal(image.affine, label.affine)


def test_ct_is_in_hounsfield_units(cohort: Path) -> None:
    for path in cohort.parent.glob("ct_test/*_image.nii.gz"):
        hu = nib.load(path).get_fdata()
        label = np.asarray(nib.load(str(path).replace("image", "label")).dataobj)
        assert hu.min() >= -1024
        assert 600 < hu.max() <= 3071
        assert (hu < -700).mean() > 0.1  # lungs and air
        assert 60 < np.median(hu[label == 205]) < 150
        assert 280 < np.median(hu[label == 500]) < 450


def test_mr_blood_is_brighter_than_myocardium_and_fat_brighter_still(cohort: Path) -> None:
    for path in cohort.parent.glob("mr_labelled/*_image.nii.gz"):
        image = nib.load(path).get_fdata()
        label = np.asarray(nib.load(str(path).replace("image", "label")).dataobj)
        assert 0 <= image.min() < image.max() < 2000
        blood, muscle = np.median(image[label == 500]), np.median(image[label == 205])
        assert blood > 1.5 * muscle
        assert np.percentile(image, 99) > 1.2 * blood  # fat, which is darker than blood in CT


def test_volumes_are_plausible(cohort: Path) -> None:
    for label, affine in labels(cohort):
        voxel_ml = abs(np.linalg.det(affine[:3, :3])) / 1000
        for value, (low, high) in VOLUME_ML.items():
            assert low < (label == value).sum() * voxel_ml < high, value


def test_myocardium_encloses_the_left_ventricle(cohort: Path) -> None:
    for label, affine in labels(cohort):
        cavity = label == 500
        rim = label[binary_dilation(cavity) & ~cavity]
        assert (rim == 205).mean() > 0.6
        assert np.isin(rim, (205, 420, 820)).mean() > 0.9
        # the septum is there, and thick
        depth = distance_transform_edt(~cavity, sampling=nib.affines.voxel_sizes(affine))
        assert (depth[label == 600] < 7).mean() < 0.05


def test_the_heart_is_the_right_way_round_in_the_world(cohort: Path) -> None:
    orientations = set()
    for label, affine in labels(cohort):
        orientations.add(nib.aff2axcodes(affine))
        at = {v: apply_affine(affine, np.argwhere(label == v)).mean(0) for v in VOLUME_ML}
        assert at[500][0] < at[550][0] - 25  # left ventricle left of right atrium
        assert at[420][1] < at[600][1] - 20  # left atrium behind right ventricle
        assert at[820][2] > at[500][2] + 20  # aorta above left ventricle
    assert len(orientations) > 1


def test_rendering_keeps_the_grid_and_type() -> None:
    rng = np.random.default_rng(0)
    spacing = np.array([5.0, 5.0, 6.0])
    tissue = draw_anatomy(rng, (32, 32, 20), np.diag([*spacing, 1.0]))
    assert tissue.dtype == np.uint8
    assert set(np.unique(tissue).tolist()) <= set(Tissue)
    mr, ct = render_mr(tissue, rng, spacing), render_ct(tissue, rng, spacing)
    assert mr.shape == ct.shape == tissue.shape
    assert (mr.dtype, ct.dtype) == (np.float32, np.int16)
