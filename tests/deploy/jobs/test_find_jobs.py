"""Which entries of a folder are scans, and where their results go."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from leuda_deploy.errors import InputError
from leuda_deploy.jobs.find_jobs import (
    Job,
    Wanted,
    find_jobs,
    picture_path,
    report_path,
    with_frames,
)


@pytest.mark.parametrize(
    ("output", "stem"),
    [("a.nii.gz", "a"), ("a.nii", "a"), ("a.img.nii.gz", "a.img"), ("a.b.c.nii", "a.b.c")],
)
def test_report_and_picture_lie_beside_the_labels(output: str, stem: str) -> None:
    assert report_path(Path("x") / output) == Path("x") / f"{stem}.json"
    assert picture_path(Path("x") / output) == Path("x") / f"{stem}.png"


def test_frames_are_numbered_behind_the_whole_name(tmp_path: Path) -> None:
    scan = tmp_path / "s.nii"
    nib.save(nib.Nifti1Image(np.zeros((2, 2, 2, 2), np.uint8), np.eye(4)), scan)
    jobs = with_frames(Job(scan=scan, output=tmp_path / "a.img.nii.gz"), "all")
    assert [(job.frame, job.output.name) for job in jobs] == [
        (0, "a.img_frame000.nii.gz"),
        (1, "a.img_frame001.nii.gz"),
    ]
    for wrong in ("-1", "some", "1.5"):
        with pytest.raises(InputError):
            with_frames(Job(scan=scan, output=tmp_path / "a.nii"), wrong)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four scans; and labels, a hidden file and a text that are none."""
    names = ("a.nii.gz", "b.nii", "c.mgz", "d.hdr")
    others = ("a_label.nii.gz", "b-x_seg.nii", ".e.nii.gz", "notes.txt", "f_MASK.nii")
    (tmp_path / "in").mkdir()
    for name in (*names, *others):
        (tmp_path / "in" / name).touch()
    return tmp_path / "in"


def test_scans_are_found_in_order_and_nothing_else(folder: Path, tmp_path: Path) -> None:
    jobs = find_jobs(folder, Wanted(output=tmp_path / "out", uncertainty=tmp_path / "unsure"))
    assert [job.scan.name for job in jobs] == ["a.nii.gz", "b.nii", "c.mgz", "d.hdr"]
    assert [job.output for job in jobs] == [tmp_path / "out" / f"{k}_labels.nii.gz" for k in "abcd"]
    assert jobs[0].uncertainty == tmp_path / "unsure" / "a_uncertainty.nii.gz"


def test_shards_share_the_scans_out_and_cover_them(folder: Path, tmp_path: Path) -> None:
    parts = [find_jobs(folder, Wanted(output=tmp_path / "out"), shard=f"{i}/3") for i in (1, 2, 3)]
    assert [len(part) for part in parts] == [2, 1, 1]
    every = sorted(job.scan for part in parts for job in part)
    assert every == [job.scan for job in find_jobs(folder, Wanted(output=tmp_path / "out"))]
    for wrong in ("0/3", "4/3", "1", "a/b", "1/0"):
        with pytest.raises(InputError) as caught:
            find_jobs(folder, Wanted(output=tmp_path / "out"), shard=wrong)
        assert repr(wrong) in str(caught.value)


def test_scans_that_would_share_an_output_are_refused(folder: Path, tmp_path: Path) -> None:
    (folder / "a.nii").touch()
    with pytest.raises(InputError) as caught:
        find_jobs(folder, Wanted(output=folder))
    for name in ("a.nii", "a.nii.gz"):
        assert str(folder / name) in str(caught.value)
    with pytest.raises(InputError):  # a folder of folders
        find_jobs(tmp_path, Wanted(output=folder))
