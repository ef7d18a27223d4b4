"""What is written of one scan: labels on its grid, a picture, a report; and never over the scan."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from support.makers import MakeModel, make_card

from leuda_deploy.errors import InputError
from leuda_deploy.inference.segmenter import Segmenter
from leuda_deploy.inference.settings import Settings
from leuda_deploy.jobs.find_jobs import Job
from leuda_deploy.jobs.picture.flags import Flag
from leuda_deploy.jobs.run_jobs import run_job
from leuda_deploy.model.card import Anatomy, Pieces
from leuda_deploy.scans.nifti import read_label_names


@pytest.fixture
def segmenter(make_model: MakeModel, tmp_path: Path) -> Segmenter:
    return Segmenter(make_model(tmp_path / "model"), Settings(threads=1, batch=4))


def test_report_says_what_was_done(tmp_path: Path, scan_file: Path, segmenter: Segmenter) -> None:
    job = Job(scan=scan_file, output=tmp_path / "out" / "l.nii.gz")
    report = run_job(job, segmenter)
    assert report.overlay is not None
    assert Path(report.overlay).read_bytes().startswith(b"\x89PNG")
    assert report.shape == (19, 37, 6)
    assert report.spacing_mm == (0.8, 1.3, 5.0)
    labels = np.asarray(nib.load(report.labels).dataobj)
    voxel_ml = 0.8 * 1.3 * 5.0 / 1000
    for value, name in segmenter.card.label_names.items():
        expected = np.count_nonzero(labels == value) * voxel_ml
        assert report.volumes_ml[name] == pytest.approx(expected, abs=1e-3)
    assert read_label_names(report.labels) == {1: "grey", 2: "bright"}
    assert {"read", "network", "write", "overlay"} <= set(report.seconds)
    assert report.model_sha256 == segmenter.sha256
    assert report.asked == segmenter.asked | {"frame": None}
    written = json.loads((tmp_path / "out" / "l.json").read_text())
    assert written == json.loads(json.dumps(asdict(report)))


def test_scan_is_never_replaced_by_its_labels(scan_file: Path, segmenter: Segmenter) -> None:
    before = scan_file.read_bytes()
    with pytest.raises(InputError):
        run_job(Job(scan=scan_file, output=scan_file), segmenter)
    assert scan_file.read_bytes() == before


@pytest.mark.parametrize("asked", [True, False])
def test_islands_are_taken_away_as_the_card_says_and_reported(
    make_model: MakeModel, tmp_path: Path, asked: bool
) -> None:
    scan = np.zeros((20, 20, 6), np.int16)
    scan[2:10, 2:10, 1:5], scan[15, 15, 3], scan[18, 2, 2] = 1000, 1000, 500
    nib.save(nib.Nifti1Image(scan, np.diag([2.0, 2.0, 5.0, 1.0])), tmp_path / "scan.nii.gz")
    known = Anatomy(pieces=Pieces(largest_only=True), volume_ml=(9.0, 12.0))
    bare = make_card().structures
    structures = (bare[0], bare[1].model_copy(update={"anatomy": known}))
    model = make_model(tmp_path / "model", structures=structures)
    segmenter = Segmenter(model, Settings(threads=1, clean_up=asked))
    report = run_job(Job(scan=tmp_path / "scan.nii.gz", output=tmp_path / "l.nii.gz"), segmenter)
    labels = np.asarray(nib.load(report.labels).dataobj)
    assert labels[15, 15, 3] == (0 if asked else 2)
    assert labels[5, 5, 3] == 2
    assert labels[18, 2, 2] == 1  # it has no rule
    assert report.cleaned_ml == ({"bright": pytest.approx(0.02)} if asked else None)
    assert report.asked["clean_up"] is asked
    # 5.12 mL where training labels have at least 9
    assert Flag(structure="bright", flag="smaller than in the training labels") in report.flags
