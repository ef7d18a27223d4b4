"""The `leuda` command: help at once, JSON alone on stdout, errors in one line with exit code 2."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from rich.console import Console
from support.command import leuda, leuda_here
from support.makers import MakeModel

from leuda_deploy.jobs.report import Report, show_report

# run after the command, in its process: which of these did it import?
HEAVY_IMPORTS = """
import atexit, sys
heavy = {"torch", "numpy", "scipy", "nibabel", "onnx", "onnxruntime", "openvino", "pydantic", "PIL"}
atexit.register(lambda: print("heavy:", sorted(heavy & set(sys.modules))))
"""


@pytest.fixture
def model(tmp_path: Path, make_model: MakeModel) -> Path:
    return make_model(tmp_path / "model")


def test_help_lists_the_commands_at_once_without_heavy_imports() -> None:
    done = leuda("--help", prelude=HEAVY_IMPORTS)
    assert done.returncode == 0, done.stderr
    for command in ("infer", "verify", "train", "export", "evaluate", "demo", "phantom"):
        assert f" {command} " in done.stdout
    assert "heavy: []" in done.stdout


def test_infer_prints_json_and_nothing_else_on_stdout(
    tmp_path: Path, scan_file: Path, model: Path
) -> None:
    output = tmp_path / "labels.nii.gz"
    asked = ("--engine", "ort-cpu", "--json")
    done = leuda_here("infer", scan_file, "--model", model, "-o", output, *asked)
    assert done.returncode == 0
    report = json.loads(done.stdout)
    assert report["labels"] == str(output)
    assert set(report["volumes_ml"]) == {"grey", "bright"}
    assert report["engine"].startswith("ONNX Runtime")
    assert (tmp_path / "labels.png").is_file()
    assert nib.load(output).shape == (19, 37, 6)


def test_infer_prints_a_table_for_people(tmp_path: Path, scan_file: Path, model: Path) -> None:
    output = tmp_path / "labels.nii.gz"
    done = leuda_here("infer", scan_file, "--model", model, "-o", output, "--no-overlay")
    assert done.returncode == 0
    shown = done.stdout
    assert "grey" in shown
    assert "bright" in shown
    assert not (tmp_path / "labels.png").exists()


def test_labels_go_into_the_working_folder_by_default(
    tmp_path: Path,
    scan_file: Path,
    model: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert leuda_here("infer", scan_file, "--model", model, "--no-overlay").returncode == 0
    names = {path.name for path in Path().iterdir()}
    assert names == {"scan_labels.nii.gz", "scan_labels.json"}


def bad_scan(folder: Path) -> Path:
    (folder / "bad.nii.gz").write_bytes(b"not a scan")
    return folder / "bad.nii.gz"


def scan_4d(folder: Path) -> Path:
    nib.save(nib.Nifti1Image(np.zeros((4, 4, 4, 2), np.int16), np.eye(4)), folder / "4d.nii.gz")
    return folder / "4d.nii.gz"


def constant_scan(folder: Path) -> Path:
    nib.save(nib.Nifti1Image(np.ones((4, 4, 4), np.int16), np.eye(4)), folder / "1.nii.gz")
    return folder / "1.nii.gz"


@pytest.mark.parametrize(
    ("make_scan", "message"),
    [
        (bad_scan, "cannot read"),
        (scan_4d, "--frame 0..1"),
        (constant_scan, "nothing to segment"),
        (lambda folder: folder / "none.nii", "no such scan"),
        (lambda folder: folder / "no\nscan.nii", "no such scan"),
    ],
)
def test_unusable_scan_is_one_line_and_exit_code_2(
    tmp_path: Path,
    model: Path,
    make_scan: Callable[[Path], Path],
    message: str,
) -> None:
    output = tmp_path / "labels.nii.gz"
    done = leuda_here("infer", make_scan(tmp_path), "--model", model, "-o", output)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert message in done.stderr
    assert not output.exists()


@pytest.mark.parametrize("name", ["labels.txt", "labels"])
def test_label_name_is_checked_before_the_work(
    tmp_path: Path,
    scan_file: Path,
    model: Path,
    name: str,
) -> None:
    done = leuda_here("infer", scan_file, "--model", model, "-o", tmp_path / name)
    assert done.returncode == 2
    said = done.stderr
    assert said.count("\n") == 1
    assert "labels are written as NIfTI" in said


def test_output_that_cannot_be_written_is_one_line(
    tmp_path: Path, scan_file: Path, model: Path
) -> None:
    (tmp_path / "file").write_text("")
    output = tmp_path / "file" / "labels.nii.gz"
    done = leuda_here("infer", scan_file, "--model", model, "-o", output)
    assert done.returncode == 2
    said = done.stderr
    assert said.startswith("error: cannot write")  # before the network ran: no plan, no trial
    assert said.count("\n") == 1


def test_model_from_elsewhere_is_one_line(tmp_path: Path, scan_file: Path) -> None:
    (tmp_path / "a.onnx").write_bytes(b"PK\x03\x04 something else")
    done = leuda_here("infer", scan_file, "--model", tmp_path / "a.onnx")
    assert done.returncode == 2
    assert (done.stdout, done.stderr.count("\n")) == ("", 1)


def test_installed_module_reports_errors_without_a_traceback(tmp_path: Path, model: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "leuda_deploy", "infer", bad_scan(tmp_path), "--model", model],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: cannot read")
    assert done.stderr.count("\n") == 1


def test_brackets_in_names_are_shown_as_they_are() -> None:
    report = Report(
        scan="a.nii",
        labels="out[/a].nii",
        overlay="study[ct].png",
        model="m",
        model_sha256="0" * 64,
        engine="e",
        feed="target",
        shape=(1, 1, 1),
        spacing_mm=(1.0, 1.0, 1.0),
        volumes_ml={"aorta [/wall]": 1.0},
        seconds={"read": 1.0},
        peak_memory_mb=1.0,
    )
    console = Console(width=120)
    with console.capture() as captured:
        show_report(report, console)
    shown = captured.get()
    for text in ("study[ct].png", "out[/a].nii", "aorta [/wall]"):
        assert text in shown
