"""Several processes label what one does, and a bad scan or a killed process stops no other."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from support.command import leuda
from support.makers import MakeModel

from leuda_deploy.errors import InputError
from leuda_deploy.inference.segmenter import Segmenter
from leuda_deploy.inference.settings import Settings
from leuda_deploy.jobs import workers
from leuda_deploy.jobs.find_jobs import Job, Wanted, find_jobs
from leuda_deploy.jobs.run_jobs import run_jobs
from leuda_deploy.jobs.workers import Orders, run_in_processes, share_of
from leuda_deploy.model.model_file import ModelFile


@pytest.fixture(scope="module")
def folder(make_model: MakeModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, three scans, and one file that is none."""
    root = tmp_path_factory.mktemp("many")
    make_model(root / "model")
    (root / "in").mkdir()
    for k in range(3):
        values = np.random.default_rng(k).integers(0, 1001, (19, 37, 6)).astype(np.int16)
        nib.save(nib.Nifti1Image(values, np.eye(4)), root / "in" / f"s{k}.nii.gz")
    (root / "in" / "bad.nii.gz").write_bytes(b"not a scan")
    return root


def orders(folder: Path, **changes: Any) -> Orders:
    """Two threads, two windows at a time, no pictures; changes to the settings."""
    settings = Settings(**({"threads": 2, "batch": 2} | changes))
    return Orders(model=ModelFile.open(folder / "model"), settings=settings, overlay=False)


def test_two_processes_label_as_one_does(folder: Path) -> None:
    one, two = folder / "one", folder / "two"
    segmenter = Segmenter(folder / "model", orders(folder).settings)
    list(run_jobs(find_jobs(folder / "in", Wanted(output=one)), segmenter, overlay=False))
    asked = ("--model", folder / "model", "-o", two, "--batch", 2, "--no-overlay", "--json")
    done = leuda("infer", folder / "in", *asked, "--jobs", 2)
    assert done.returncode == 1, done.stderr
    assert done.stderr.count("error: ") == 1
    outcomes = json.loads(done.stdout)
    assert len(outcomes) == 4
    failed = [Path(outcome["scan"]) for outcome in outcomes if outcome["error"] is not None]
    assert failed == [folder / "in" / "bad.nii.gz"]
    for k in range(3):
        name = f"s{k}_labels.nii.gz"
        assert (one / name).read_bytes() == (two / name).read_bytes()


def test_processes_share_cores_and_the_budget_that_this_one_leaves(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert share_of(Settings(threads=8), 3).threads == 2
    assert share_of(Settings(threads=1), 4).threads == 1
    held = 200 << 20
    monkeypatch.setattr(workers, "resident_bytes", lambda: held)
    assert share_of(Settings(max_bytes=held + (300 << 20)), 3).max_bytes == 100 << 20
    with pytest.raises(InputError):
        share_of(Settings(max_bytes=held // 2), 1)


def test_what_cannot_run_is_refused_before_anything_is_started(
    folder: Path, tmp_path: Path
) -> None:
    jobs = find_jobs(folder / "in", Wanted(output=tmp_path / "none"))
    for wrong in (orders(folder, engine="ort-cuda"), orders(folder, mirror=True)):
        with pytest.raises(InputError):
            list(run_in_processes(jobs, wrong, 2))
    assert multiprocessing.active_children() == []
    assert not (tmp_path / "none").exists()


def scan(path: Path, slices: int = 4) -> Job:
    """A scan of so many slices of 256 windows each, and its job."""
    values = np.zeros((256, 256, slices), np.uint8)
    values[::7] = 100
    nib.save(nib.Nifti1Image(values, np.eye(4)), path)
    return Job(scan=path, output=path.parent / "out" / path.name)


def test_a_process_that_dies_fails_its_scan_and_no_other(folder: Path, tmp_path: Path) -> None:
    jobs = [scan(tmp_path / f"{k}.nii", slices=1000 if k == 1 else 4) for k in range(8)]
    coming = run_in_processes(jobs, orders(folder), 2)
    outcomes = [next(coming), next(coming)]  # now the second job, a long one, is under way
    assert [outcome.job for outcome in outcomes] == [jobs[0], jobs[2]]
    children = multiprocessing.active_children()
    assert len(children) == 2
    for child in children:  # one works on the long scan, the other waits for its next
        child.kill()
    for child in children:
        child.join()
    outcomes += coming
    assert {outcome.job.output for outcome in outcomes} == {job.output for job in jobs}
    failed = [outcome.job for outcome in outcomes if outcome.error is not None]
    assert jobs[1] in failed
    assert len(failed) <= 2  # and at most the one that was handed out before the kill was seen
    for outcome in outcomes:
        assert outcome.job.output.is_file() == (outcome.report is not None)


def test_trials_are_made_once_where_the_first_scans_cannot_be_read(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LEUDA_CACHE", str(tmp_path / "cache"))
    jobs = [Job(scan=tmp_path / f"{k}.nii", output=tmp_path / "o.nii") for k in range(2)]
    jobs += [scan(tmp_path / f"{k}.nii") for k in range(2, 6)]
    outcomes = list(run_in_processes(jobs, orders(folder), 2))
    # one by one until a trial is made
    assert [outcome.job for outcome in outcomes[:3]] == jobs[:3]
    assert sum(outcome.error is not None for outcome in outcomes) == 2
    trials = [path.name.rpartition("-")[0] for path in (tmp_path / "cache").iterdir()]
    assert trials
    assert len(set(trials)) == len(trials)  # one an engine


@pytest.mark.parametrize("how", ["the group, as a terminal does", "alone", "killed"])
def test_interrupted_all_processes_stop_and_nothing_is_half_written(
    folder: Path, tmp_path: Path, how: str
) -> None:
    scan(tmp_path / "0.nii")
    long = scan(tmp_path / "1.nii", slices=1000).scan
    for k in range(2, 16):
        (tmp_path / f"{k}.nii").hardlink_to(long)
    running = subprocess.Popen(
        [
            sys.executable, "-m", "leuda_deploy", "infer", tmp_path, "--model", folder / "model",
            "-o", tmp_path / "out", "--jobs", "2", "--threads", "2", "--batch", "2", "--no-overlay",
        ],
        stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, start_new_session=True,
        # a test runner in the background of a shell ignores Ctrl-C, and so would its children
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    try:
        assert running.stderr is not None
        for _ in range(3):  # the first is done, two are under way, the others are waiting
            while not running.stderr.readline().startswith("plan"):
                assert running.poll() is None
        if how == "killed":
            running.kill()
        elif how == "alone":
            running.send_signal(signal.SIGINT)
        else:
            os.killpg(running.pid, signal.SIGINT)
        _, said = running.communicate(timeout=120)  # ends when no process holds stderr any more
    finally:
        with suppress(ProcessLookupError):
            os.killpg(running.pid, signal.SIGKILL)
    assert running.returncode != 0
    assert "Traceback" not in said
    assert "error" not in said
    left = sorted((tmp_path / "out").iterdir())
    assert [path for path in left if path.name.startswith(".")] == []
    assert len([path for path in left if path.suffix == ".json"]) <= 6
