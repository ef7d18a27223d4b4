"""What leuda wrote it knows again, by its hash; what it did not write, it leaves alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from support.makers import MakeModel

from leuda_deploy.errors import InputError
from leuda_deploy.inference.segmenter import Segmenter
from leuda_deploy.inference.settings import Settings
from leuda_deploy.jobs import outputs as outputs_module
from leuda_deploy.jobs import run_jobs as run_jobs_module
from leuda_deploy.jobs.find_jobs import Job, report_path
from leuda_deploy.jobs.outputs import JobWriter, is_done, plan_job_outputs, scan_sha256
from leuda_deploy.jobs.prepare import Wishes
from leuda_deploy.jobs.run_jobs import run_job, run_jobs

ASKED = {"engine": "auto", "frame": None}


def done(job: Job, *, overlay: bool = False, asked: dict[str, object] = ASKED) -> bool:
    return is_done(job, "s", "m", asked, overlay=overlay)


@pytest.fixture
def job(tmp_path: Path) -> Job:
    """Labels and an entropy map, written with their report."""
    job = Job(scan=tmp_path / "s.nii.gz", output=tmp_path / "a.nii", uncertainty=tmp_path / "u.nii")
    writer = JobWriter(job)
    writer.write("labels", job.output, lambda path: path.write_text("labels") and None)
    writer.write("uncertainty", tmp_path / "u.nii", lambda path: path.write_text("map") and None)
    report = {"scan": "s", "labels": "a", "volumes_ml": {}, "scan_sha256": "s", "asked": ASKED}
    writer.finish({**report, "model_sha256": "m", "written": writer.written})
    return job


def test_a_scan_is_done_if_all_that_is_wanted_stands_as_it_was_written(job: Job) -> None:
    assert done(job)
    assert not done(job, asked=ASKED | {"frame": 1})
    assert not is_done(job, "another scan", "m", ASKED)
    assert not is_done(job, "s", "another model", ASKED)
    assert not done(job, overlay=True)  # a picture that is asked for later is drawn
    assert job.uncertainty is not None
    for path in (job.output, job.uncertainty):
        before = path.read_text()
        path.write_text("changed")
        assert not done(job)
        path.unlink()
        assert not done(job)
        path.write_text(before)
    assert done(job)
    said = json.loads(report_path(job.output).read_text())
    del said["written"]
    report_path(job.output).write_text(json.dumps(said))
    assert not done(job)
    report_path(job.output).write_text("[]")
    assert not done(job)


def test_own_files_may_be_replaced_and_changed_ones_not(job: Job) -> None:
    plan_job_outputs([job], overlay=True)
    job.output.write_text("mended by a reader")
    with pytest.raises(InputError) as caught:
        plan_job_outputs([job], overlay=True)
    assert str(job.output) in str(caught.value)
    plan_job_outputs([job], overlay=True, force=True)


@pytest.mark.parametrize("name", ["a.json", "a.png", "u.nii"])
def test_files_of_others_beside_the_labels_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("of the user")
    job = Job(scan=tmp_path / "s.nii.gz", output=tmp_path / "a.nii", uncertainty=tmp_path / "u.nii")
    with pytest.raises(InputError):
        plan_job_outputs([job], overlay=True)
    (tmp_path / name).unlink()
    plan_job_outputs([job], overlay=True)


def test_an_output_is_no_output_of_another_job_and_no_scan(tmp_path: Path) -> None:
    one = Job(scan=tmp_path / "1.nii", output=tmp_path / "a.nii")
    for other in (
        Job(scan=tmp_path / "2.nii", output=tmp_path / "a.nii.gz"),  # one report for both
        Job(scan=tmp_path / "a.nii", output=tmp_path / "b.nii"),
        Job(scan=tmp_path / "2.nii", output=tmp_path / "b.nii", uncertainty=tmp_path / "1.nii"),
    ):
        for name in ("1.nii", "a.nii"):
            (tmp_path / name).touch()
        with pytest.raises(InputError):
            plan_job_outputs([one, other], overlay=False, force=True)


def test_the_other_half_of_a_pair_is_an_input_and_counts_in_the_hash(tmp_path: Path) -> None:
    nib.save(nib.Nifti1Pair(np.zeros((3, 3, 3), np.int16), np.eye(4)), tmp_path / "a.hdr")
    for name, other in (("a.hdr", "a.img"), ("a.img", "a.hdr")):
        job = Job(
            scan=tmp_path / name, output=tmp_path / "l.nii", dicom={"dicom_seg": tmp_path / other}
        )
        with pytest.raises(InputError):
            plan_job_outputs([job], overlay=False, force=True)
    before = scan_sha256(job)
    voxels = bytearray((tmp_path / "a.img").read_bytes())
    voxels[-1] ^= 1
    (tmp_path / "a.img").write_bytes(voxels)
    assert scan_sha256(job) != before


def test_a_run_killed_between_labels_and_report_leaves_no_false_report(
    scan_file: Path, tmp_path: Path, make_model: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = Job(scan=scan_file, output=tmp_path / "out" / "l.nii.gz")
    settings = Settings(threads=1, batch=4)
    first = Segmenter(make_model(tmp_path / "a"), settings)
    second = Segmenter(make_model(tmp_path / "b", name="another"), settings)
    run_job(job, first)
    before = job.output.read_bytes()

    class Killed(BaseException):
        pass

    def die(*arguments: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(JobWriter, "finish", die)
        with pytest.raises(Killed):
            run_job(job, second)
    assert not report_path(job.output).exists()
    (outcome,) = run_jobs([job], first)  # neither done before, nor refused as another's
    assert (outcome.error, outcome.skipped) == (None, False)
    assert job.output.read_bytes() == before
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "l.json",
        "l.nii.gz",
        "l.png",
    ]
    assert run_job(job, second).written["labels"]
    assert outputs_module.outputs_of(job, overlay=True)["overlay"].is_file()


def test_a_picture_of_earlier_labels_goes_with_them(
    scan_file: Path, tmp_path: Path, make_model: MakeModel
) -> None:
    job = Job(scan=scan_file, output=tmp_path / "l.nii.gz")
    segmenter = Segmenter(make_model(tmp_path / "a"), Settings(threads=1, batch=4))
    run_job(job, segmenter, overlay=True)
    run_job(job, segmenter, overlay=False)
    assert not (tmp_path / "l.png").exists()
    (tmp_path / "l.png").write_text("of the user")
    run_job(job, segmenter, overlay=False)
    assert (tmp_path / "l.png").read_text() == "of the user"


@pytest.mark.parametrize("name", ["l.nii.gz", "l.json", "l.png"])
def test_what_somebody_wrote_while_the_network_ran_stays(
    scan_file: Path,
    tmp_path: Path,
    make_model: MakeModel,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    job = Job(scan=scan_file, output=tmp_path / "out" / "l.nii.gz")
    segmenter = Segmenter(make_model(tmp_path / "a"), Settings(threads=1, batch=4))
    label = run_jobs_module._label

    def slowly(*arguments: Any, **more: Any) -> Any:
        (tmp_path / "out").mkdir(exist_ok=True)
        (tmp_path / "out" / name).write_text("by hand")
        return label(*arguments, **more)

    monkeypatch.setattr(run_jobs_module, "_label", slowly)
    with pytest.raises(InputError, match="did not write"):
        run_job(job, segmenter)
    (outcome,) = run_jobs([job], segmenter)
    assert outcome.error is not None
    assert [path.name for path in (tmp_path / "out").iterdir()] == [name]
    assert (tmp_path / "out" / name).read_text() == "by hand"
    assert run_job(job, segmenter, wishes=Wishes(force=True)).written["labels"]
