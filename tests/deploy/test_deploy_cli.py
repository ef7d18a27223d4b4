"""The `leuda` command: help at once, JSON alone on stdout, errors in one line with exit code 2."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from rich.console import Console
from support.makers import MakeModel

from leuda_deploy.cli import main
from leuda_deploy.jobs.report import Report, show_report

Captured = pytest.CaptureFixture[str]
LEUDA = "from leuda_train.cli import main; main()"


@pytest.fixture
def model(tmp_path: Path, make_model: MakeModel) -> Path:
    return make_model(tmp_path / "model")


@pytest.fixture
def leuda(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Run a command line in this process; returns the exit code."""

    def run(*arguments: object) -> int:
        monkeypatch.setattr(sys, "argv", ["leuda", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            main()
        code = stopped.value.code
        return code if isinstance(code, int) else int(code is not None)

    return run


def child_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def test_help_lists_the_commands_at_once_without_heavy_imports() -> None:
    program = (
        "import sys\n"
        "sys.argv = ['leuda', '--help']\n"
        "try:\n"
        f"    {LEUDA}\n"
        "finally:\n"
        "    heavy = {'torch', 'numpy', 'nibabel', 'onnx', 'onnxruntime', 'pydantic'}\n"
        "    print('heavy:', sorted(heavy & set(sys.modules)))\n"
    )
    seconds = []
    for _ in range(3):  # processor time, which a busy machine does not stretch much
        began = child_seconds()
        done = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, check=False
        )
        seconds.append(child_seconds() - began)
        assert done.returncode == 0, done.stderr
    for command in ("infer", "verify", "train", "export", "evaluate", "demo", "phantom"):
        assert f" {command} " in done.stdout
    assert "heavy: []" in done.stdout
    assert min(seconds) < 0.5


def test_infer_prints_json_and_nothing_else_on_stdout(
    tmp_path: Path, scan_file: Path, model: Path, leuda: Callable[..., int], capfd: Captured
) -> None:
    output = tmp_path / "labels.nii.gz"
    asked = ("--engine", "ort-cpu", "--json")
    assert leuda("infer", scan_file, "--model", model, "-o", output, *asked) == 0
    report = json.loads(capfd.readouterr().out)
    assert report["labels"] == str(output)
    assert set(report["volumes_ml"]) == {"grey", "bright"}
    assert report["engine"].startswith("ONNX Runtime")
    assert (tmp_path / "labels.png").is_file()
    assert nib.load(output).shape == (19, 37, 6)


def test_infer_prints_a_table_for_people(
    tmp_path: Path, scan_file: Path, model: Path, leuda: Callable[..., int], capfd: Captured
) -> None:
    output = tmp_path / "labels.nii.gz"
    assert leuda("infer", scan_file, "--model", model, "-o", output, "--no-overlay") == 0
    shown = capfd.readouterr().out
    assert "grey" in shown
    assert "bright" in shown
    assert not (tmp_path / "labels.png").exists()


def test_labels_go_into_the_working_folder_by_default(
    tmp_path: Path,
    scan_file: Path,
    model: Path,
    leuda: Callable[..., int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert leuda("infer", scan_file, "--model", model, "--no-overlay") == 0
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
    leuda: Callable[..., int],
    capfd: Captured,
    make_scan: Callable[[Path], Path],
    message: str,
) -> None:
    output = tmp_path / "labels.nii.gz"
    assert leuda("infer", make_scan(tmp_path), "--model", model, "-o", output) == 2
    said = capfd.readouterr()
    assert said.out == ""
    assert said.err.startswith("error: ")
    assert said.err.count("\n") == 1
    assert message in said.err
    assert not output.exists()


@pytest.mark.parametrize("name", ["labels.txt", "labels"])
def test_label_name_is_checked_before_the_work(
    tmp_path: Path,
    scan_file: Path,
    model: Path,
    leuda: Callable[..., int],
    capfd: Captured,
    name: str,
) -> None:
    assert leuda("infer", scan_file, "--model", model, "-o", tmp_path / name) == 2
    said = capfd.readouterr().err
    assert said.count("\n") == 1
    assert "labels are written as NIfTI" in said


def test_output_that_cannot_be_written_is_one_line(
    tmp_path: Path, scan_file: Path, model: Path, leuda: Callable[..., int], capfd: Captured
) -> None:
    (tmp_path / "file").write_text("")
    output = tmp_path / "file" / "labels.nii.gz"
    assert leuda("infer", scan_file, "--model", model, "-o", output) == 2
    said = capfd.readouterr().err
    assert said.startswith("error: cannot write")  # before the network ran: no plan, no trial
    assert said.count("\n") == 1


def test_model_from_elsewhere_is_one_line(
    tmp_path: Path, scan_file: Path, leuda: Callable[..., int], capfd: Captured
) -> None:
    (tmp_path / "a.onnx").write_bytes(b"PK\x03\x04 something else")
    assert leuda("infer", scan_file, "--model", tmp_path / "a.onnx") == 2
    said = capfd.readouterr()
    assert (said.out, said.err.count("\n")) == ("", 1)


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
