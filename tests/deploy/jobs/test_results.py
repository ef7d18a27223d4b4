"""Where results go, in which format, and the table of a folder."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import nibabel as nib
import nrrd
import numpy as np
import pytest
from support.command import Done, leuda_here
from support.makers import MakeModel

from leuda_deploy.scans.volume import read_volume

VALUES = np.random.default_rng(0).normal(size=(20, 18, 4)).astype(np.float32)


@pytest.fixture(scope="module")
def model(make_model: MakeModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    nib.save(nib.Nifti1Image(VALUES, np.diag([1, 1, 3, 1])), tmp_path / "in" / "a.nii.gz")
    header = {"space": "LPS", "space directions": np.diag([1.0, 1, 3]), "space origin": [0, 0, 0]}
    nrrd.write(str(tmp_path / "in" / "b.nrrd"), VALUES, header)
    (tmp_path / "in" / "c.mha").write_bytes(b"damaged")
    return tmp_path / "in"


def infer(model: Path, *arguments: object) -> Done:
    return leuda_here("infer", *arguments, "--model", model, "--batch", 4, "--no-overlay")


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_folder_has_a_table_of_volumes(scans: Path, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert infer(model, scans, "-o", out).returncode == 1  # c is damaged
    found = rows(out / "volumes.csv")
    assert [Path(row["scan"]).name for row in found] == ["a.nii.gz", "b.nrrd", "c.mha"]
    assert [row["state"] for row in found] == ["labelled", "labelled", "failed"]
    for name in "ab":
        report = json.loads((out / f"{name}_labels.json").read_text())
        row = found["ab".index(name)]
        volumes = {key: float(row[f"{key}_ml"]) for key in report["volumes_ml"]}
        assert volumes == report["volumes_ml"]
        assert row["model_sha256"] == report["model_sha256"]
    assert "c.mha" in found[2]["error"]
    # the same again: the volumes of what was done before are in it, too
    assert infer(model, scans, "-o", out).returncode == 1
    again = rows(out / "volumes.csv")
    assert [row["state"] for row in again] == ["was done", "was done", "failed"]
    assert [row["grey_ml"] for row in again] == [row["grey_ml"] for row in found]


def test_a_table_of_the_user_stays(scans: Path, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "volumes.csv").write_text("mine\n")
    assert infer(model, scans, "-o", out).returncode == 2
    assert (out / "volumes.csv").read_text() == "mine\n"
    assert not list(out.glob("*_labels*"))


def test_shards_have_tables_of_their_own(scans: Path, model: Path, tmp_path: Path) -> None:
    infer(model, scans, "-o", tmp_path / "out", "--shard", "1/3")
    assert len(rows(tmp_path / "out" / "volumes_1of3.csv")) == 1


def test_one_scan_may_go_to_a_folder(scans: Path, model: Path, tmp_path: Path) -> None:
    assert infer(model, scans / "b.nrrd", "-o", tmp_path / "new" / "er").returncode == 0
    assert (tmp_path / "new" / "er" / "b_labels.nii.gz").is_file()
    assert not (tmp_path / "new" / "er" / "volumes.csv").exists()


def test_labels_for_slicer_are_those_of_nifti(scans: Path, model: Path, tmp_path: Path) -> None:
    scan, out = scans / "a.nii.gz", tmp_path / "out"
    assert infer(model, scan, "-o", out).returncode == 0
    assert infer(model, scan, "-o", tmp_path / "s", "--format", "seg.nrrd").returncode == 0
    slicer = read_volume(tmp_path / "s" / "a_labels.seg.nrrd")
    plain = read_volume(out / "a_labels.nii.gz")
    np.testing.assert_array_equal(slicer.raw, plain.raw)
    np.testing.assert_allclose(slicer.affine, plain.affine)
    assert json.loads((tmp_path / "s" / "a_labels.json").read_text())["labels"].endswith(".nrrd")
    assert infer(model, scan, "-o", tmp_path / "l.seg.nrrd").returncode == 0
    # it is no scan, and it is done
    assert infer(model, tmp_path / "s", "-o", tmp_path / "x").returncode == 2
