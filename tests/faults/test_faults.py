"""What a run leaves behind that is killed, or loses its disk, its folder or its scan under way.

The table in docs/explanation/faults.md says the same in words. Each run is in a process of its own;
the fault comes at a moment that a Python audit hook sees, so none depends on the clock.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from support.command import Done, leuda
from support.makers import MakeModel, oblique_affine

from leuda_deploy.export.verify import verify
from leuda_deploy.model.export_folder import CARD_FILE, MODEL_FILE, write_manifest
from leuda_deploy.model.model_file import ModelFile

# what happens; and when: just before a file takes this name, or when this one is opened
FAULT = """
import os, resource, shutil, signal, sys
FAULT, MOMENT = {fault!r}, {moment!r}
fired = []

def watch(event, arguments):
    if fired or event not in ("os.rename", "open") or not arguments:
        return
    name = arguments[1] if event == "os.rename" else arguments[0]
    if not isinstance(name, (str, bytes, os.PathLike)):
        return
    name = os.fsdecode(name)
    wanted = MOMENT[1]
    if (event, name) != (MOMENT[0], wanted):
        return
    fired.append(name)
    if FAULT == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    elif FAULT == "asked to stop":
        os.kill(os.getpid(), signal.SIGTERM)
    elif FAULT == "folder removed":
        shutil.rmtree(os.path.dirname(wanted))
    elif FAULT == "scan cut off":
        os.truncate(wanted, 1000)

if FAULT == "disk full":
    resource.setrlimit(resource.RLIMIT_FSIZE, (500, 500))
else:
    sys.addaudithook(watch)
"""
FAULTS = ("killed", "asked to stop", "disk full", "folder removed")


@pytest.fixture
def export(tmp_path: Path, make_model: MakeModel) -> Path:
    folder = tmp_path / "export"
    folder.mkdir()
    model = ModelFile.open(make_model(folder))
    (folder / CARD_FILE).write_text(model.card.to_json())
    write_manifest(folder)
    return folder


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    path = tmp_path / "scans" / "a.nii"
    path.parent.mkdir()
    values = np.random.default_rng(0).integers(0, 1001, (32, 40, 20)).astype(np.int16)
    nib.save(nib.Nifti1Image(values, oblique_affine((0.8, 1.3, 5.0))), path)
    return path


def run(
    *arguments: object, cache: Path, fault: str = "", moment: tuple[str, object] = ("", "")
) -> Done:
    when = (moment[0], str(moment[1]))
    prelude = FAULT.format(fault=fault, moment=when) if fault else ""
    return leuda(*arguments, prelude=prelude, LEUDA_CACHE=str(cache))


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("*") if path.is_file()} if folder.is_dir() else set()


def said_nothing_ugly(done: Done) -> None:
    assert "Traceback" not in done.stderr, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "target"),
    [("killed", "a_labels.nii.gz"), *((fault, "a_labels.json") for fault in FAULTS)],
)
def test_a_scan(fault: str, target: str, export: Path, scan: Path, tmp_path: Path) -> None:
    out, cache = tmp_path / "out", tmp_path / "cache"
    before = scan.read_bytes()
    command = ("infer", scan, "--model", export, "-o", out / "a_labels.nii.gz")
    broken = run(*command, cache=cache, fault=fault, moment=("os.rename", out / target))
    assert broken.returncode != 0
    said_nothing_ugly(broken)
    whole = {"a_labels.nii.gz", "a_labels.json", "a_labels.png"}
    left = {name for name in names(out) if not name.startswith(".")}
    assert left <= whole - {"a_labels.json"}, left
    if "a_labels.nii.gz" in left:  # what has its name is whole
        assert np.asarray(nib.load(out / "a_labels.nii.gz").dataobj).shape == (32, 40, 20)
    again = run(*command, cache=cache)
    assert again.returncode == 0, again.stderr
    assert {name for name in names(out) if not name.startswith(".tmp-")} == whole
    report = json.loads((out / "a_labels.json").read_text())
    written = hashlib.sha256((out / "a_labels.nii.gz").read_bytes()).hexdigest()
    assert report["written"]["labels"] == written
    assert scan.read_bytes() == before


def test_a_scan_that_is_cut_off_under_way(export: Path, scan: Path, tmp_path: Path) -> None:
    """It used to be mapped: the process died of SIGBUS."""
    out = tmp_path / "out" / "a.nii.gz"
    done = run(
        *("infer", scan, "--model", export, "-o", out),
        cache=tmp_path / "cache",
        fault="scan cut off",
        moment=("open", scan),
    )
    assert done.returncode == 2
    said_nothing_ugly(done)
    assert names(out.parent) == set()


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["killed", "disk full"])
def test_an_export(fault: str, export: Path, tmp_path: Path) -> None:
    out, cache = tmp_path / "exports" / "one", tmp_path / "cache"
    command = ("export", export / MODEL_FILE, "-o", out)
    assert run(*command, cache=cache).returncode == 0
    first = verify(out)
    moment = ("os.rename", out)
    broken = run(*command, cache=cache, fault=fault, moment=moment)
    assert broken.returncode != 0
    said_nothing_ugly(broken)
    assert verify(out) == first
    again = run(*command, cache=cache)
    assert again.returncode == 0, again.stderr
    assert verify(out) == first
    assert [path.name for path in out.parent.iterdir()] == ["one"]


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["killed", "disk full", "folder removed"])
def test_a_bench(fault: str, export: Path, tmp_path: Path) -> None:
    out, cache = tmp_path / "results" / "b.json", tmp_path / "cache"
    command = ("bench", "--model", export, "--engine", "ort-cpu", "--shape", "16x16x4")
    command = (*command, "--rounds", "1", "--save", out)
    broken = run(*command, cache=cache, fault=fault, moment=("os.rename", out))
    assert broken.returncode != 0
    said_nothing_ugly(broken)
    assert "b.json" not in names(out.parent)
    again = run(*command, cache=cache)
    assert again.returncode == 0, again.stderr
    assert json.loads(out.read_text())["shape"] == [16, 16, 4]


def test_two_at_once_with_one_output(export: Path, scan: Path, tmp_path: Path) -> None:
    out = tmp_path / "out" / "a.nii.gz"
    arguments = ["infer", str(scan), "--model", str(export), "-o", str(out)]
    code = (
        f"import sys; sys.argv = {['leuda', *arguments]!r}\n"
        "from leuda_train.cli import main\nmain()"
    )
    environment = {**os.environ, "LEUDA_CACHE": str(tmp_path / "cache")}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", code],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        for _ in range(2)
    ]
    said = [process.communicate(timeout=120)[1].decode() for process in started]
    assert not any("Traceback" in text for text in said), said
    assert 0 in [process.returncode for process in started]
    assert np.asarray(nib.load(out).dataobj).shape == (32, 40, 20)
    report = json.loads(out.with_name("a.json").read_text())
    assert report["written"]["labels"] == hashlib.sha256(out.read_bytes()).hexdigest()


def test_a_closed_output_is_found_before_the_work(export: Path, scan: Path, tmp_path: Path) -> None:
    """As root nothing is closed, so the folder is a file: no file can be made in it either."""
    (tmp_path / "file").write_text("mine")
    out = tmp_path / "file" / "a.nii.gz"
    done = run("infer", scan, "--model", export, "-o", out, cache=tmp_path / "cache")
    assert done.returncode == 2
    said_nothing_ugly(done)
    assert (tmp_path / "file").read_text() == "mine"
