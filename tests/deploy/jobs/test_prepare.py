"""From a study to the labels of the series that is meant; what was mended is in the report."""

from __future__ import annotations

import json
import shutil
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
from support.dicom_series import even, make_slices, smooth, write_images

from leuda_deploy.jobs.prepare import scanner_modality
from leuda_deploy.scans.dicom import read_series

VALUES = smooth((5, 24, 20))


@pytest.fixture(scope="module")
def model(make_model: MakeModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("in") / "study"
    (root / "a").mkdir(parents=True)
    series = {
        "plain": (even(5), {"SeriesNumber": 1, "SeriesDescription": "plain"}),
        "tilted": (even(5, tilt_degrees=14), {"SeriesNumber": 2, "SeriesDescription": "tilted"}),
        "mr": (even(5), {"SeriesNumber": 3, "SeriesDescription": "mr", "Modality": "MR"}),
    }
    for k, (name, (positions, more)) in enumerate(series.items()):
        write_images(root / "a" / name, make_slices(VALUES, positions, f"1.2.5{k}", **more))
    phases = [
        image
        for time in range(2)
        for image in make_slices(
            VALUES + time, even(5), "1.2.59", SeriesNumber=4, TriggerTime=float(time)
        )
    ]
    for number, image in enumerate(phases, start=1):
        image.InstanceNumber = number
    write_images(root / "a" / "phases", phases)
    return root


def infer(model: Path, *arguments: object) -> Done:
    return leuda_here("infer", *arguments, "--model", model, "--batch", 4, "--no-overlay")


def report(path: Path) -> dict[str, Any]:
    said: dict[str, Any] = json.loads(path.read_text())
    return said


def test_a_series_of_a_study_is_labelled_by_hand_and_by_rules(
    study: Path, model: Path, tmp_path: Path
) -> None:
    by_hand = infer(model, study, "--series", 1, "-o", tmp_path / "hand.nii.gz")
    assert by_hand.returncode == 0
    (tmp_path / "rules.toml").write_text('description = ["pla*n"]\n')
    packed = shutil.make_archive(str(tmp_path / "s"), "zip", study)
    rules = ("--rules", tmp_path / "rules.toml")
    assert infer(model, packed, *rules, "-o", tmp_path / "rules.nii.gz").returncode == 0
    plain = read_series(study / "a" / "plain").volume
    for name in ("hand", "rules"):
        labels = nib.load(tmp_path / f"{name}.nii.gz")
        assert labels.shape == plain.raw.shape
        np.testing.assert_allclose(labels.affine, plain.affine, atol=1e-6)
        said = report(tmp_path / f"{name}.json")["series"]
        assert (said["uid"], said["number"], said["mended"]) == ("1.2.50", 1, None)
    assert (tmp_path / "hand.nii.gz").read_bytes() == (tmp_path / "rules.nii.gz").read_bytes()
    # each folder in a folder is a study; of this one several series are good
    done = infer(model, study, "-o", tmp_path / "out")
    assert done.returncode == 1
    assert "--series" in done.stderr
    assert infer(model, study, "--series", 9, "-o", tmp_path / "x.nii.gz").returncode == 2


def test_a_tilted_series_is_mended_and_said(study: Path, model: Path, tmp_path: Path) -> None:
    asked = (study, "--series", "1.2.51", "-o", tmp_path / "l.nii.gz")
    done = infer(model, *asked, "--dicom-seg", tmp_path / "seg.dcm")
    assert done.returncode == 0
    assert "14.0" in done.stdout
    mended = report(tmp_path / "l.json")["series"]["mended"]
    assert mended["tilt_degrees"] == pytest.approx(14, abs=0.01)
    series = read_series(study / "a" / "tilted")
    labels = nib.load(tmp_path / "l.nii.gz")
    np.testing.assert_allclose(labels.affine, series.volume.affine, atol=1e-6)
    on_slices = series.on_slices(np.asarray(labels.dataobj))
    seg = highdicom.seg.segread(tmp_path / "seg.dcm")
    sources = [image.uid for image in series.grid.images]
    found = seg.get_pixels_by_source_instance(sources, combine_segments=True)
    np.testing.assert_array_equal(found, on_slices.T)
    assert infer(model, *asked, "--strict").returncode == 2


def test_all_phases_are_frames(study: Path, model: Path, tmp_path: Path) -> None:
    asked = (study, "--series", 4, "-o", tmp_path)
    assert infer(model, *asked).returncode == 2
    assert infer(model, *asked, "--frame", "all").returncode == 0
    for phase in (0, 1):
        said = report(tmp_path / f"study_labels_frame{phase:03d}.json")
        assert said["series"]["phase"] == phase


def test_another_modality_is_said_or_refused(study: Path, model: Path, tmp_path: Path) -> None:
    asked = (study, "--series", 3, "-o", tmp_path / "l.nii.gz")
    done = infer(model, *asked)
    assert done.returncode == 0
    assert "the model is for CT" in done.stderr
    (tmp_path / "rules.toml").write_text('other_modality = "refuse"\n')
    refused = infer(model, *asked, "--rules", tmp_path / "rules.toml")
    assert refused.returncode == 2
    assert "the model is for CT" in refused.stderr


@pytest.mark.parametrize(
    ("said", "meant"),
    [("CT", "CT"), ("cardiac MRI", "MR"), ("LGE-MR", "MR"), ("b", None), ("CT or MR", None)],
)
def test_what_a_card_says_of_its_modality(said: str, meant: str | None) -> None:
    assert scanner_modality(said) == meant
