"""Where the results of a scan go, and when it counts as done."""

from __future__ import annotations

from pathlib import Path

import pytest

from leuda_deploy.jobs.find_jobs import Job, is_done, picture_path, report_path, with_frames
from leuda_deploy.machine.files import write_json

ASKED = {"engine": "auto", "frame": None}


@pytest.mark.parametrize(
    ("output", "stem"),
    [("a.nii.gz", "a"), ("a.nii", "a"), ("a.img.nii.gz", "a.img"), ("a.b.c.nii", "a.b.c")],
)
def test_report_and_picture_lie_beside_the_labels(output: str, stem: str) -> None:
    assert report_path(Path("x") / output) == Path("x") / f"{stem}.json"
    assert picture_path(Path("x") / output) == Path("x") / f"{stem}.png"


@pytest.mark.parametrize("name", ["a.nii.gz", "a.img.nii.gz", "a.hdr.nii"])
def test_a_scan_is_done_if_its_report_says_so_and_its_files_are_there(
    tmp_path: Path, name: str
) -> None:
    job = Job(scan=tmp_path / "s.nii.gz", output=tmp_path / name, uncertainty=tmp_path / "u.nii")
    report = {"scan_sha256": "s", "model_sha256": "m", "asked": ASKED}
    write_json(report_path(job.output), report)
    assert not is_done(job, "s", "m", ASKED)
    for path in (job.output, tmp_path / "u.nii"):
        path.touch()
    assert is_done(job, "s", "m", ASKED)
    assert not is_done(job, "another scan", "m", ASKED)
    assert not is_done(job, "s", "another model", ASKED)
    assert not is_done(job, "s", "m", ASKED | {"frame": 1})
    (tmp_path / "u.nii").unlink()
    assert not is_done(job, "s", "m", ASKED)
    report_path(job.output).write_text("[]")
    assert not is_done(job, "s", "m", ASKED)


def test_frames_are_numbered_behind_the_whole_name(tmp_path: Path) -> None:
    import nibabel as nib
    import numpy as np

    scan = tmp_path / "s.nii"
    nib.save(nib.Nifti1Image(np.zeros((2, 2, 2, 2), np.uint8), np.eye(4)), scan)
    jobs = with_frames(Job(scan=scan, output=tmp_path / "a.img.nii.gz"), "all")
    assert [(job.frame, job.output.name) for job in jobs] == [
        (0, "a.img_frame000.nii.gz"),
        (1, "a.img_frame001.nii.gz"),
    ]
