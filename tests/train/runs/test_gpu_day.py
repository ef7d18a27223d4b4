"""benchmarks/gpu_day.py: its dry run does every part, and a day that is killed goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"
PARTS = ["tests", "pytorch", "onnx-runtime", "tensorrt", "throughput", "training"]


@pytest.fixture
def day(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The folder of the benchmarks on the path, as a script there has it."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def start(*options: object, **environment: str) -> subprocess.Popen[str]:
    # a process that has started others by itself keeps their safe path, which hides the script's
    own = {name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"}
    return subprocess.Popen(
        [sys.executable, str(BENCHMARKS / "gpu_day.py"), *map(str, options)],
        env={**own, "PYTHONPATH": str(BENCHMARKS.parent), **environment},
        stderr=subprocess.PIPE,
        text=True,
    )


def results_of(path: Path) -> Any:
    return json.loads(path.read_text()) if path.is_file() else {"parts": {}}


@pytest.mark.slow
def test_a_dry_run_does_every_part_and_goes_on_after_a_kill(tmp_path: Path) -> None:
    # minutes that also a busy machine does not need
    options = ("--dry-run", "--minutes", 120, "--out", tmp_path / "day")
    results, page = tmp_path / "day" / "gpu_day.json", tmp_path / "day" / "gpu_day.html"
    killed = start(*options)
    while "tests" not in results_of(results)["parts"]:
        assert killed.poll() is None
        time.sleep(0.05)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()

    again = start(*options)
    _, said = again.communicate()
    assert again.returncode == 0, said
    found = results_of(results)
    assert found["setting"] == {
        "dry_run": True,
        "gpu": None,
        "cohort": None,
        "method": "le-uda-plus-without-translated",
    }
    assert [*found["parts"]] == PARTS
    assert [part["session"] for part in found["parts"].values()] == [1, 2, 2, 2, 2, 2]
    statuses = {name: part["status"] for name, part in found["parts"].items()}
    assert statuses == dict.fromkeys(PARTS, "done") | {"tensorrt": "absent"}
    assert found["parts"]["tensorrt"]["reason"]

    tests = found["parts"]["tests"]["found"]
    assert tests["failed"] == []
    assert tests["skipped"]
    rows = {name: part["found"].get("rows", {}) for name, part in found["parts"].items()}
    engines = [*rows["pytorch"].values(), *rows["onnx-runtime"].values()]
    eager, amp, ort, half = engines
    assert [row["engine"] for row in (eager, amp, ort, half)] == [
        "PyTorch eager",
        "PyTorch AMP bf16",
        "ONNX Runtime CPU fp32",
        "ONNX Runtime CPU fp16",
    ]
    assert [row["meets"] for row in (eager, ort, half)] == ["fp32", "fp32", "fp16"]
    assert eager["max_abs"] <= ort["max_abs"] < half["max_abs"] < amp["max_abs"]
    assert all(row["latency"]["8"]["ms"]["p50"] > 0 for row in engines)
    assert [row["method"] for row in rows["throughput"].values()] == [
        "le-uda",
        "le-uda-plus",
        "le-uda",
    ]
    assert all(
        row["images_per_s"] > 0 and row["peak_mib"] > 0 for row in rows["throughput"].values()
    )
    training = found["parts"]["training"]["found"]
    assert training["finished"]
    assert training["stages"]["le-uda-plus-without-translated"]["steps"] == 10
    assert 0 <= training["mean_dice"] <= 1

    text = page.read_text()
    assert "A dry run" in text
    assert "<script" not in text
    assert "http-equiv" not in text


def test_without_a_gpu_it_refuses_in_one_line_and_writes_nothing(tmp_path: Path) -> None:
    refused = start("--out", tmp_path / "day", "--results", tmp_path / "r.json")
    _, said = refused.communicate()
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    assert refused.returncode == 1
    assert len(said.splitlines()) == 1
    assert "--dry-run" in said
    assert [*tmp_path.iterdir()] == []


@pytest.mark.usefixtures("day")
def test_a_part_that_takes_too_long_is_ended_with_what_it_started(tmp_path: Path) -> None:
    from parts.children import run_limited

    inner = "import time, pathlib, sys; time.sleep(3); pathlib.Path(sys.argv[1]).touch()"
    outer = (
        f"import subprocess, sys; subprocess.run([sys.executable, '-c', {inner!r}, sys.argv[1]])"
    )
    mark = tmp_path / "mark"
    command = [sys.executable, "-c", outer, str(mark)]
    ended = run_limited(command, tmp_path / "log", limit_s=0.5, environment={})
    assert ended.over_time
    assert ended.reason
    time.sleep(3.5)
    assert not mark.exists()


@pytest.mark.usefixtures("day")
@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("pass", None),
        ("print('so far'); raise SystemExit('no such thing')", "ended with code 1: no such thing"),
        ("import os; os.kill(os.getpid(), 11)", "killed by SIGSEGV; last it printed: "),
    ],
)
def test_the_reason_of_a_failure_is_kept(code: str, expected: str | None, tmp_path: Path) -> None:
    from parts.children import run_limited

    command = [sys.executable, "-c", code]
    ended = run_limited(command, tmp_path / "log", limit_s=60, environment={})
    assert not ended.over_time
    assert (ended.reason is None) == (expected is None)
    assert (ended.reason or "").startswith(expected or "")


@pytest.mark.usefixtures("day")
def test_a_row_that_fails_stops_no_other_and_is_tried_again(tmp_path: Path) -> None:
    from parts.rows import AbsentError, Rows, what_is_missing

    def fail() -> dict[str, Any]:
        raise ValueError("first line\nsecond")

    def lack() -> dict[str, Any]:
        raise AbsentError("not installed")

    rows = Rows(tmp_path / "part.json")
    rows.measure("a", fail, engine="A")
    rows.measure("b", lambda: {"ms": 1.0})
    rows.measure("c", lack)
    written = json.loads((tmp_path / "part.json").read_text())["rows"]
    assert written["a"] == {"engine": "A", "failed": "ValueError: first line second"}
    assert (what_is_missing(written) or "").startswith("2 of 3 ")
    again = Rows(tmp_path / "part.json")
    assert [*again.rows] == ["b"]
    again.measure("a", lambda: {"ms": 2.0})
    again.measure("b", fail)  # measured before: not called
    assert again.rows == {"b": {"ms": 1.0}, "a": {"ms": 2.0}}
    assert what_is_missing(again.rows) is None


@pytest.mark.usefixtures("day")
def test_results_of_another_setting_are_refused(tmp_path: Path) -> None:
    from dataclasses import asdict

    from parts.plan import Folder, Setting, refuse_other

    from leuda_deploy.errors import InputError

    one = Setting(dry_run=False, gpu="One", cohort=None, method="le-uda")
    other = Setting(dry_run=False, gpu="Other", cohort=None, method="le-uda")
    refuse_other(one, asdict(one), tmp_path, "--results")
    with pytest.raises(InputError, match="Other"):
        refuse_other(other, asdict(one), tmp_path, "--results")
    day = Folder(tmp_path)
    day.write(one, None)
    assert day.read() == (one, None)
    with pytest.raises(InputError, match="--out"):
        day.write(other, None)
