"""Several processes label what one does, and a bad scan or a killed process stops no other."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from leuda_deploy.errors import InputError, ModelError
from leuda_deploy.jobs import Job, find_jobs
from leuda_deploy.parallel import Settings, _outcome, spread
from leuda_deploy.scans import run_jobs

MakeModel = Callable[..., Path]


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


def settings(folder: Path, **changes: object) -> Settings:
    asked = {
        "model": folder / "model",
        "engine": "ort-cpu",
        "precision": "auto",
        "threads": 2,
        "batch": 2,
        "max_bytes": None,
        "max_gpu_bytes": None,
        "mirror": False,
    }
    return Settings(**(asked | changes))  # type: ignore[arg-type]


def test_two_processes_label_as_one_does(folder: Path) -> None:
    one, two = folder / "one", folder / "two"
    segmenter = settings(folder).segmenter(lambda line: None)
    list(run_jobs(find_jobs(folder / "in", one), segmenter, overlay=False, say=lambda line: None))
    done = subprocess.run(
        [
            sys.executable, "-m", "leuda_deploy", "infer", folder / "in", "--model",
            folder / "model", "-o", two, "--jobs", "2", "--batch", "2", "--no-overlay", "--json",
        ],
        capture_output=True, text=True, check=False, env=os.environ,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert done.stderr.count("error: ") == 1
    assert "cannot read" in done.stderr
    outcomes = json.loads(done.stdout)
    assert len(outcomes) == 4
    assert sum(outcome["error"] is not None for outcome in outcomes) == 1
    for k in range(3):
        name = f"s{k}_labels.nii.gz"
        assert (one / name).read_bytes() == (two / name).read_bytes()


def test_processes_share_cores_and_budget(folder: Path) -> None:
    share = settings(folder, threads=8, max_bytes=4000).share(3)
    assert (share.threads, share.max_bytes) == (2, 1333)
    assert settings(folder, threads=1).share(4).threads == 1


def test_what_cannot_run_is_said_before_anything_is_started(folder: Path) -> None:
    jobs = find_jobs(folder / "in", folder / "none")
    with pytest.raises(InputError, match="for engines on the CPU, not for ort-cuda"):
        list(spread(jobs, settings(folder, engine="ort-cuda"), 2, overlay=False, skip_done=True))
    with pytest.raises(ModelError, match="no model at"):
        list(spread(jobs, settings(folder, model=folder), 2, overlay=False, skip_done=True))


def test_killed_process_is_the_error_of_its_scan() -> None:
    job, future = Job(scan=Path("a.nii"), output=Path("b.nii")), Future()
    future.set_exception(BrokenProcessPool())
    assert "a.nii: a process was killed" in str(_outcome(future, job).error)
