"""A day with a CUDA GPU: everything that can be measured on one alone, in one command.

    python benchmarks/gpu_day.py --minutes 25
    python benchmarks/gpu_day.py --dry-run       # on the CPU, with tiny sizes, without TensorRT

tests         pytest -m gpu
pytorch       networks of paper size, trained for a moment and exported; PyTorch eager and AMP
onnx-runtime  CUDA: how far it is off PyTorch, and how fast it is beside it
tensorrt      the same of each TensorRT that is installed
throughput    images/s and peak memory of a training step: le-uda, le-uda-plus, CycleGAN
training      paper-abdominal on phantoms, or on a --cohort, for the minutes that are left

Each part is a process of its own with a limit of its own, a share of the minutes. One that fails
is written down with its reason and stops no other. Started again, the command does what is missing
or failed, and the training goes on. Writes benchmarks/results/gpu_day.json and gpu_day.html.
Without a CUDA GPU it refuses. On Linux. Needs: pip install 'leuda[train,gpu,dev]', for TensorRT
also [trt] or [rtx].
"""

from __future__ import annotations

import argparse
import math
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import Any
from xml.etree import ElementTree

from filelock import FileLock, Timeout
from parts.children import Ended, run_limited
from parts.page import check_page, write_day
from parts.plan import PARTS, TRAINING, Folder, Part, Setting, day_config, refuse_other
from parts.rows import Rows, what_is_missing
from parts.train import reached

from leuda_deploy.bench.doctor import installed, usable_memory
from leuda_deploy.engines.threads import usable_cores
from leuda_deploy.errors import InputError, LeudaError
from leuda_deploy.machine.files import write_json
from leuda_deploy.machine.gpu import driver_version, find_gpu
from leuda_deploy.machine.outside import read_json
from leuda_train.data.cohort import read_spec

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "gpu_day.json"
MAX_RESULTS_BYTES = 16 << 20
LEAST_SECONDS = 5.0  # a part that has less is not begun
Record = dict[str, Any]


# --- in a process of its own


def work(name: str, day: Folder) -> None:
    """Do a part; what it finds stands in its file as soon as it is known."""
    part: Callable[[Folder, Setting, Rows], None]
    if name in ("pytorch", "onnx-runtime", "tensorrt"):
        from parts import engines

        part = getattr(engines, name.replace("-", "_"))
    elif name == "throughput":
        from parts.speed import throughput as part
    else:
        from parts.train import training as part
    rows = Rows(day.found(name))
    rows.write()
    part(day, day.read()[0], rows)


# --- the day


def do_part(part: Part, day: Folder, setting: Setting, limit_s: float) -> Record:
    """Run a part within its limit: status, reason, seconds, what was found."""
    if setting.dry_run and part.name == "tensorrt":
        reason = "TensorRT runs on NVIDIA GPUs alone: of a dry run it is no part"
        return {"status": "absent", "reason": reason, "seconds": 0.0, "found": {"rows": {}}}
    hidden = {"CUDA_VISIBLE_DEVICES": ""} if setting.dry_run else {}
    environment = hidden | {"PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path[1:]])}
    command = [sys.executable, str(Path(__file__)), "--part", part.name, "--out", str(day.path)]
    if part.name == "tests":
        command = tests_command(day)
    ended = run_limited(command, day.log(part.name), limit_s=limit_s, environment=environment)
    try:
        return judge(part, day, setting, ended) | {"seconds": ended.seconds}
    except LeudaError as error:  # what it left cannot be read
        return {"status": "failed", "reason": str(error), "seconds": ended.seconds, "found": {}}


def judge(part: Part, day: Folder, setting: Setting, ended: Ended) -> Record:
    """What became of a part: done; partly: some rows have no figures; over time; failed."""
    status, reason = "done" if ended.reason is None else "failed", ended.reason
    status = "over time" if ended.over_time else status
    if part.name == "tests":
        found = tests_found(day)
        if status == "done" and not found["passed"] and not setting.dry_run:
            status, reason = "failed", "no test ran: all were skipped"
        elif status == "failed" and found["failed"]:
            reason = f"failed: {', '.join(test['name'] for test in found['failed'])}"
    elif part.name == TRAINING:
        found = reached(day, setting)
        if ended.over_time:  # as it is meant to end
            status, reason = "stopped", "the minutes were over; the run goes on next time"
    else:
        path = day.found(part.name)
        found = read_json(path, most=MAX_RESULTS_BYTES) if path.is_file() else {"rows": {}}
        missing = what_is_missing(found["rows"])
        if status == "done" and missing is not None:
            status, reason = "partly", missing
    return {"status": status, "reason": reason, "found": found}


def tests_command(day: Folder) -> list[str]:
    """pytest on the files that have a test with the marker; collecting all takes longer."""
    files = [path for path in (ROOT / "tests").rglob("test_*.py") if marked(path)]
    report = day.found("tests").with_suffix(".xml")
    report.unlink(missing_ok=True)
    options = ["-m", "gpu", "-q", "-p", "no:cacheprovider", f"--rootdir={ROOT}"]
    options += ["-c", str(ROOT / "pyproject.toml"), f"--junitxml={report}"]
    return [sys.executable, "-m", "pytest", *options, *map(str, sorted(files))]


def marked(path: Path) -> bool:
    """Whether a file has a test that needs a GPU."""
    return "@pytest.mark.gpu" in path.read_text(encoding="utf-8")


def tests_found(day: Folder) -> Record:
    """What pytest wrote: how many passed, and the names and reasons of the others."""
    report = day.found("tests").with_suffix(".xml")
    cases = list(ElementTree.parse(report).iter("testcase")) if report.is_file() else []
    others: dict[str, list[dict[str, str]]] = {"failure": [], "error": [], "skipped": []}
    passed = 0
    for case in cases:
        passed += not any(case.findall(kind) for kind in others)
        for kind, own in others.items():
            reasons = [found.get("message", "") for found in case.findall(kind)]
            own += [{"name": case.get("name", ""), "reason": " ".join(r.split())} for r in reasons]
    failed = [*others["failure"], *others["error"]]
    return {"passed": passed, "failed": failed, "skipped": others["skipped"]}


def do_day(
    results: Record, setting: Setting, day: Folder, ends: float, save: Callable[[], None]
) -> None:
    """What is not done yet, part by part, until the day ends."""
    session, minutes_s = len(results["sessions"]), 60 * results["sessions"][-1]["minutes"]
    for part in PARTS:
        record = results["parts"].get(part.name)
        if record is not None and record["status"] == "done":
            say(f"{part.name}: done before, in session {record['session']}")
            continue
        left = ends - time.monotonic()
        limit_s = min(left, part.share * minutes_s)
        if left < LEAST_SECONDS:
            say(f"{part.name}: no time is left")
            continue
        say(f"{part.name}: {part.title}, at most {limit_s:.0f} s")
        found = do_part(part, day, setting, limit_s)
        results["parts"][part.name] = {**found, "limit_s": round(limit_s), "session": session}
        save()
        why = f": {found['reason']}" if found["reason"] else ""
        say(f"  {found['status']} after {found['seconds']:.0f} s{why}")


def this_session(minutes: float) -> Record:
    """What the figures of a session depend on."""
    gpu, memory = find_gpu(), usable_memory()
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    cpu = next((x.split(":")[1].strip() for x in lines if x.startswith("model name")), "")
    commit = subprocess.run(
        ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"],
        capture_output=True,
        text=True,
        check=False,
    )
    return {
        "date": time.strftime("%Y-%m-%d"),
        "minutes": minutes,
        "gpu": f"{gpu.name}, compute capability {gpu.capability}" if gpu else None,
        "driver": driver_version(),
        "cpu": cpu or platform.processor(),
        "cores": usable_cores(),
        "memory_gb": round(memory / 1e9, 1) if memory else None,
        "load_average": [round(value, 2) for value in os.getloadavg()],
        "python": platform.python_version(),
        "versions": installed(),
        "commit": commit.stdout.strip() or None,
    }


def gpu_name() -> str:
    """Of the GPU that torch sees. Raises InputError without one."""
    try:
        import torch
    except ImportError as error:
        raise InputError("gpu_day needs torch: pip install 'leuda[train,gpu]'") from error
    if not torch.cuda.is_available():
        raise InputError(
            f"gpu_day needs a CUDA GPU, and torch {torch.__version__} sees none; --dry-run does "
            "every part on the CPU with tiny sizes"
        )
    return str(torch.cuda.get_device_name(0))


def say(line: str) -> None:
    """How far it is."""
    print(line, file=sys.stderr, flush=True)


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=25.0, help="this session's (default: 25)")
    parser.add_argument("--cohort", type=Path, help="cohort.toml to train on; default: phantoms")
    parser.add_argument(
        "--method",
        default="le-uda-plus-without-translated",
        help="that is trained; default: le-uda-plus-without-translated, whose minutes go into the "
        "segmentation: le-uda first trains a CycleGAN for hours",
    )
    parser.add_argument("--out", type=Path, help="models, logs, the run; default: runs/gpu_day")
    parser.add_argument("--results", type=Path, help=f"default: {RESULTS.relative_to(ROOT)}")
    parser.add_argument("--dry-run", action="store_true", help="on the CPU, with tiny sizes")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if not (math.isfinite(given.minutes) and given.minutes > 0):
        parser.error(f"--minutes must be above 0, not {given.minutes}")
    return given


def main() -> int:
    """The day, or in a process of its own a part of it."""
    given = parsed()
    try:
        if given.part:
            work(given.part, Folder(given.out))
            return 0
        signal.signal(signal.SIGTERM, interrupted)
        return begin(given)
    except LeudaError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        say("stopped; the same command does what is missing")
        return 130


def begin(given: argparse.Namespace) -> int:
    """Look what is there, do the day, write JSON and page. 0 if nothing failed."""
    began = time.monotonic()
    kind = "gpu_day_dry_run" if given.dry_run else "gpu_day"
    day = Folder((given.out or ROOT / "runs" / kind).resolve())
    path: Path = given.results or (day.path / "gpu_day.json" if given.dry_run else RESULTS)
    setting = Setting(
        dry_run=given.dry_run,
        gpu=None if given.dry_run else gpu_name(),
        cohort=read_spec(given.cohort).name if given.cohort else None,
        method=given.method,
    )
    day_config(setting, setting.method)  # refused before any work, if it is none
    before = read_json(path, most=MAX_RESULTS_BYTES) if path.is_file() else {}
    if path.is_file():
        refuse_other(setting, before.get("setting", {}), path, "--results")
    page = path.with_suffix(".html")
    check_page(page)
    with one_at_a_time(day):
        day.write(setting, given.cohort)
        results = {"setting": asdict(setting), "sessions": [], "parts": {}, **before}
        results["sessions"].append(this_session(given.minutes))

        def save() -> None:
            write_json(path, results)
            write_day(page, results)

        save()
        do_day(results, setting, day, began + 60 * given.minutes, save)
    parts = results["parts"]
    bad = [name for name in parts if parts[name]["status"] in ("failed", "over time")]
    bad += [part.name for part in PARTS if part.name not in parts]
    say(f"results  {path}")
    say(f"look at  {page}")
    if bad:
        say(f"again    the same command does what failed or is missing: {', '.join(bad)}")
    return 1 if bad else 0


@contextmanager
def one_at_a_time(day: Folder) -> Iterator[None]:
    """Hold the folder. Raises InputError if another process does."""
    day.path.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(day.path / ".lock", timeout=0):
            yield
    except Timeout as error:
        raise InputError(f"another gpu_day works in {day.path}; choose another --out") from error


def interrupted(number: int, frame: FrameType | None) -> None:
    """SIGTERM is as Ctrl-C."""
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
