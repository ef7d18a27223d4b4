"""Many scans, one engine: what fails stops no other, what is done is not done again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from numpy.typing import NDArray
from support.command import Done, leuda_here
from support.makers import MakeModel, ThresholdLabels

from leuda_deploy.inference.segmenter import Segmenter
from leuda_deploy.inference.settings import Settings
from leuda_deploy.jobs.find_jobs import Wanted, find_jobs
from leuda_deploy.jobs.run_jobs import run_jobs
from leuda_deploy.model.tiling import Tiling

Captured = pytest.CaptureFixture[str]
AFFINE = np.diag([0.8, 1.3, 5.0, 1.0])


@pytest.fixture(scope="session")
def model(make_model: MakeModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def segmenter(model: Path) -> Segmenter:
    return Segmenter(model, Settings(engine="ort-cpu", threads=1, batch=4))


def values(seed: int, shape: tuple[int, int, int] = (19, 37, 6)) -> NDArray[np.int16]:
    found = np.random.default_rng(seed).integers(0, 1001, shape).astype(np.int16)
    found[0, 0, :2] = 0, 1000
    return found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    for k in range(4):
        nib.save(nib.Nifti1Image(values(k), AFFINE), tmp_path / "in" / f"s{k}.nii.gz")
    return tmp_path / "in"


def labels_of(path: Path) -> NDArray[np.uint8]:
    return np.asarray(nib.load(path).dataobj)


def infer(*arguments: object) -> Done:
    return leuda_here("infer", *arguments)


# --- folders


def test_folder_is_labelled_and_a_bad_scan_stops_no_other(
    folder: Path, model: Path,
    threshold_labels: ThresholdLabels,
) -> None:  # fmt: skip
    (folder / "s1.nii.gz").write_bytes(b"not a scan")
    (folder / "notes.txt").write_text("no scan")
    out = folder.parent / "out"
    asked = (folder, "--model", model, "-o", out, "--engine", "ort-cpu", "--batch", 4)
    said = infer(*asked, "--json")
    assert said.returncode == 1
    outcomes = {Path(outcome["scan"]).name: outcome for outcome in json.loads(said.stdout)}
    assert [outcome["error"] is None for outcome in outcomes.values()] == [True, False, True, True]
    assert not any(outcome["skipped"] for outcome in outcomes.values())
    assert said.stderr.count("error: ") == 1
    assert str(folder / "s1.nii.gz") in outcomes["s1.nii.gz"]["error"]
    for k in (0, 2, 3):
        np.testing.assert_array_equal(
            labels_of(out / f"s{k}_labels.nii.gz"), threshold_labels(values(k))
        )
        report = json.loads((out / f"s{k}_labels.json").read_text())
        assert report["scan_sha256"]
        assert report["low_confidence"] >= 0
        assert {"read", "network", "labels", "write"} <= set(report["seconds"])
    assert not (out / "s1_labels.nii.gz").exists()


def test_what_is_done_is_skipped_until_scan_or_model_changes(
    folder: Path, segmenter: Segmenter, make_model: MakeModel
) -> None:
    jobs = find_jobs(folder, Wanted(output=folder.parent / "out"))

    def run(with_: Segmenter, **settings: Any) -> list[bool]:
        done = run_jobs(jobs, with_, overlay=False, **settings)
        return [outcome.skipped for outcome in done]

    assert run(segmenter) == [False] * 4
    assert run(segmenter) == [True] * 4
    assert run(segmenter, skip_done=False) == [False] * 4
    nib.save(nib.Nifti1Image(values(9), AFFINE), folder / "s2.nii.gz")
    jobs[3].output.unlink()
    assert run(segmenter) == [True, True, False, False]
    other = make_model(folder.parent / "other", name="another")
    assert run(Segmenter(other, Settings(engine="ort-cpu", batch=4))) == [False] * 4


def test_what_was_done_otherwise_is_done_again(
    tmp_path: Path, make_model: MakeModel, threshold_labels: ThresholdLabels
) -> None:
    (tmp_path / "in").mkdir()
    frames = np.stack([values(k) for k in range(2)], axis=-1)
    nib.save(nib.Nifti1Image(frames, AFFINE), tmp_path / "in" / "f.nii.gz")
    model = make_model(tmp_path / "model", tiling=Tiling(mirror=("rows",)))
    labels, report = (tmp_path / "out" / f"f_labels.{end}" for end in ("nii.gz", "json"))

    def skipped(frame: str, **asked: Any) -> bool:
        jobs = find_jobs(tmp_path / "in", Wanted(output=tmp_path / "out"), frames=frame)
        segmenter = Segmenter(model, Settings(threads=1, batch=4, **asked))
        (outcome,) = run_jobs(jobs, segmenter, overlay=False)
        assert outcome.error is None
        return outcome.skipped

    assert not skipped("0")
    assert not skipped("1")
    np.testing.assert_array_equal(labels_of(labels), threshold_labels(values(1)))
    assert skipped("1")
    assert not skipped("1", mirror=True)
    assert skipped("1", mirror=True)
    assert not skipped("1", precision="fp32")
    assert not skipped("1", engine="auto")
    assert skipped("1", engine="auto")  # whatever it chose was what was asked for
    said = json.loads(report.read_text())
    assert said.pop("asked") == {
        "engine": "auto", "precision": "auto", "mirror": False, "clean_up": True, "frame": 1,
    }  # fmt: skip
    report.write_text(json.dumps(said))  # as an earlier leuda wrote it
    assert not skipped("1", engine="auto")


def test_uncertainty_map_lies_on_the_scans_grid(
    scan_file: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = scan_file.parent
    asked = ("--uncertainty", out / "u.nii.gz", "--engine", "ort-cpu", "--no-overlay")
    assert infer(scan_file, "--model", model, "-o", out / "l.nii.gz", *asked).returncode == 0
    doubt, scan = nib.load(out / "u.nii.gz"), nib.load(scan_file)
    assert doubt.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(doubt.affine, scan.affine)
    x = np.asarray(scan.dataobj, dtype=np.float64) / 500 - 1
    low, high = (-0.3001, 0.2503)
    logits = np.stack([0 * x, x - low, 2 * x - low - high])
    p = np.exp(logits) / np.exp(logits).sum(axis=0)
    expected = -(p * np.log(p)).sum(axis=0) / np.log(3) * 255
    np.testing.assert_allclose(np.asarray(doubt.dataobj), expected, atol=0.6)


def test_one_frame_or_all_of_a_4d_scan(
    tmp_path: Path, model: Path,
    threshold_labels: ThresholdLabels,
) -> None:  # fmt: skip
    frames = np.stack([values(k) for k in range(3)], axis=-1)
    nib.save(nib.Nifti1Image(frames, AFFINE), tmp_path / "f.nii.gz")
    asked = (tmp_path / "f.nii.gz", "--model", model, "--engine", "ort-cpu", "--no-overlay")
    assert infer(*asked, "-o", tmp_path / "l.nii.gz", "--frame", "all").returncode == 0
    for k in range(3):
        found = labels_of(tmp_path / f"l_frame{k:03d}.nii.gz")
        np.testing.assert_array_equal(found, threshold_labels(values(k)))
    assert infer(*asked, "-o", tmp_path / "one.nii.gz", "--frame", 2).returncode == 0
    np.testing.assert_array_equal(labels_of(tmp_path / "one.nii.gz"), threshold_labels(values(2)))
    for wrong in ("3", "-1", "some"):
        said = infer(*asked, "--frame", wrong)
        assert said.returncode == 2
        assert "--frame" in said.stderr


# --- memory


def test_budget_that_cannot_be_met_is_refused_with_the_least_that_would_do(
    scan_file: Path, model: Path
) -> None:
    asked = (scan_file, "--model", model, "-o", scan_file.parent / "l.nii.gz")
    settings = ("--engine", "ort-cpu", "--batch", 2)
    said = infer(*asked, *settings, "--max-memory", "20M")
    assert said.returncode == 2
    # alone, but for a trial of the engine if this is the first scan here
    assert said.stderr.splitlines()[-1].startswith("error: ")
    assert said.stderr.count("error: ") == 1
    least = said.stderr.split("--max-memory ")[1].split()[0]
    assert not (scan_file.parent / "l.nii.gz").exists()
    assert infer(*asked, *settings, "--max-memory", least).returncode == 0
