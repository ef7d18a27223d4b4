"""The `leuda` command: help without heavy imports, JSON alone on stdout, errors in one line."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args, get_type_hints

import nibabel as nib
import numpy as np
import pytest
from rich.console import Console
from support.command import Done, leuda, leuda_here
from support.makers import MakeModel

from leuda_deploy.cli.infer import infer
from leuda_deploy.cli.log import log_to_stderr
from leuda_deploy.cli.show import show_outcomes, show_report
from leuda_deploy.engines.engine import EngineName, PrecisionChoice
from leuda_deploy.jobs.find_jobs import Job
from leuda_deploy.jobs.picture.flags import Flag
from leuda_deploy.jobs.report import Report
from leuda_deploy.jobs.run_jobs import Outcome

# run after the command, in its process: which of these did it import?
HEAVY_IMPORTS = """
import atexit, sys
heavy = {"torch", "numpy", "scipy", "nibabel", "onnx", "onnxruntime", "openvino", "pydantic", "PIL"}
atexit.register(lambda: print("heavy:", sorted(heavy & set(sys.modules))))
"""


@pytest.fixture
def model(tmp_path: Path, make_model: MakeModel) -> Path:
    return make_model(tmp_path / "model")


def refused(done: Done) -> bool:
    """Whether a command ended as it does for bad input: one line on stderr and exit code 2."""
    one_line = done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    return done.returncode == 2 and done.stdout == "" and one_line


def test_help_lists_the_commands_without_heavy_imports() -> None:
    done = leuda("--help", prelude=HEAVY_IMPORTS)
    assert done.returncode == 0, done.stderr
    for command in ("infer", "verify", "bench", "train", "export", "evaluate", "demo", "phantom"):
        assert f" {command} " in done.stdout
    assert done.stdout.splitlines()[-1] == "heavy: []"


def test_options_are_the_engines_and_precisions_that_there_are() -> None:
    options = get_type_hints(infer)
    assert set(get_args(options["engine"])) == {"auto", *get_args(EngineName)}
    assert set(get_args(options["precision"])) == set(get_args(PrecisionChoice))


def test_infer_prints_json_and_nothing_else_on_stdout(
    tmp_path: Path, scan_file: Path, model: Path
) -> None:
    output = tmp_path / "labels.nii.gz"
    done = leuda_here("infer", scan_file, "--model", model, "-o", output, "--json")
    assert done.returncode == 0
    report = json.loads(done.stdout)
    assert set(report) == {
        "scan", "labels", "overlay", "model", "model_sha256", "engine", "feed", "shape",
        "spacing_mm", "volumes_ml", "seconds", "peak_memory_mb", "uncertainty", "scan_sha256",
        "asked", "flags", "low_confidence", "intensity", "domain", "total_seconds",
        "predicted_peak_mb", "slab", "batch", "dicom_seg", "dicom_sr", "rtstruct",
        "written", "not_written", "implausible", "slices", "cleaned_ml",
        "threads", "series", "windows", "channels", "regions", "predicted_dice", "same_bytes",
    }  # fmt: skip
    assert report["labels"] == str(output)
    assert set(report["volumes_ml"]) == {"grey", "bright"}
    assert json.loads((tmp_path / "labels.json").read_text()) == report
    assert (tmp_path / "labels.png").is_file()
    assert nib.load(output).shape == (19, 37, 6)


def test_infer_prints_a_table_for_people(tmp_path: Path, scan_file: Path, model: Path) -> None:
    output = tmp_path / "labels.nii.gz"
    done = leuda_here("infer", scan_file, "--model", model, "-o", output, "--no-overlay")
    assert done.returncode == 0
    for text in ("grey", "bright", str(output)):
        assert text in done.stdout
    assert not (tmp_path / "labels.png").exists()


def test_labels_go_into_the_working_folder_by_default(
    tmp_path: Path, scan_file: Path, model: Path, monkeypatch: pytest.MonkeyPatch
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
    ("make_scan", "fact"),
    [
        (bad_scan, "bad.nii.gz"),
        (scan_4d, "--frame 0..1"),
        (constant_scan, "1.nii.gz"),
        (lambda folder: folder / "none.nii", "none.nii"),
        (lambda folder: folder / "no\nscan.nii", "scan.nii"),
    ],
)
def test_a_scan_that_cannot_be_used_is_one_line(
    tmp_path: Path, model: Path, make_scan: Callable[[Path], Path], fact: str
) -> None:
    output = tmp_path / "labels.nii.gz"
    done = leuda_here("infer", make_scan(tmp_path), "--model", model, "-o", output)
    assert refused(done)
    assert fact in done.stderr
    assert not output.exists()


@pytest.mark.parametrize("name", ["labels.txt", "file/labels.nii.gz"])
def test_the_output_is_checked_before_the_work(
    tmp_path: Path, scan_file: Path, model: Path, name: str
) -> None:
    (tmp_path / "file").write_text("")
    done = leuda_here("infer", scan_file, "--model", model, "-o", tmp_path / name)
    assert refused(done)  # and no line of a plan or a trial
    assert name in done.stderr


def test_a_model_from_elsewhere_is_one_line(tmp_path: Path, scan_file: Path) -> None:
    (tmp_path / "a.onnx").write_bytes(b"PK\x03\x04 something else")
    assert refused(leuda_here("infer", scan_file, "--model", tmp_path / "a.onnx"))


def test_the_runtime_alone_reports_errors_without_a_traceback(tmp_path: Path, model: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "leuda_deploy", "infer", bad_scan(tmp_path), "--model", model],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert refused(done)


def test_memory_that_runs_out_is_one_line(
    scan_file: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(*given: Any, **more: Any) -> None:
        raise MemoryError

    monkeypatch.setattr("leuda_deploy.jobs.prepare.read_volume", read)
    output = tmp_path / "labels.nii.gz"
    done = leuda_here("infer", scan_file, "--model", model, "-o", output)
    assert refused(done)
    assert "MemoryError" in done.stderr


def test_log_is_one_line_a_record_with_its_level_if_it_matters(
    capfd: pytest.CaptureFixture[str],
) -> None:
    log_to_stderr()
    log_to_stderr()  # once more, and still one line each
    logging.getLogger("leuda_deploy.jobs.run_jobs").info("plan\n[x]")
    logging.getLogger("leuda_train.stages.adapt").warning("odd")
    logging.getLogger("leuda_deploy").debug("nothing")
    assert capfd.readouterr().err == "plan [x]\nwarning: odd\n"


def a_report(**other: Any) -> Report:
    report = Report(
        scan="a.nii",
        labels="out[/a].nii",
        overlay="study[ct].png",
        uncertainty=None,
        model="m",
        model_sha256="0" * 64,
        engine="e",
        feed="target",
        shape=(1, 1, 1),
        spacing_mm=(1.0, 1.0, 1.0),
        volumes_ml={"aorta [/wall]": 1.0},
        seconds={"read": 1.0},
        peak_memory_mb=1.0,
        scan_sha256="1" * 64,
        dicom_seg=None,
        series=None,
        dicom_sr=None,
        rtstruct=None,
        written={},
        not_written={},
        implausible=(),
        asked={},
        flags=(),
        low_confidence=0.5,
        predicted_dice={"aorta [/wall]": 0.81},
        same_bytes=True,
        intensity={},
        domain=None,
        total_seconds=1.0,
        predicted_peak_mb=2.0,
        cleaned_ml=None,
        channels=None,
        regions=None,
        threads=2,
        windows={"slice": (9, 8), "part": (9, 8), "window": (4, 4), "count": (4, 3)},
        slices={"all": 9, "scored": 4, "searched": 2, "full_because": None},
        slab=1,
        batch=1,
    )
    return replace(report, **other)


def test_brackets_in_names_are_shown_as_they_are() -> None:
    console = Console(width=120)
    with console.capture() as captured:
        show_report(a_report(), console)
    shown = captured.get()
    for text in ("study[ct].png", "out[/a].nii", "aorta [/wall]", "0.81"):
        assert text in shown


def test_a_folder_ends_with_what_is_odd_and_where_to_look() -> None:
    reports = {
        "usual": a_report(domain={"fits": True, "z": 1.0}),
        "odd": a_report(
            domain={"fits": False, "z": 9.0}, flags=(Flag(structure="a", flag="not found"),)
        ),
    }
    outcomes = [
        Outcome(job=Job(scan=Path(f"{name}.nii"), output=Path("my out") / name), report=report)
        for name, report in reports.items()
    ]
    console = Console(width=140)
    with console.capture() as captured:
        show_outcomes(outcomes, console)
    shown = captured.get()
    usual, odd = (line for line in shown.splitlines() if ".nii" in line)
    assert "NOT" not in usual
    assert "NOT like the scans of training; a: not found" in odd
    assert shown.rstrip().endswith("leuda view 'my out'")
