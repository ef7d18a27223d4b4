"""every command of `leuda`, asked to stop at several moments -> how long it took, what it left.

    PYTHONPATH=.:tests python -m faults.stop --save FILE

Each command works on phantoms. It runs undisturbed once (one that serves, or trains for long, for
some seconds). Then it is started again and sent SIGTERM, as a container or `kill` does, or SIGINT
together with its children, as a terminal does at Ctrl-C: at even shares of that time, counted from
the start of Python. What is measured is the time until the last of its processes has ended. One
that takes longer than two seconds is tried again, twice: others use the machine, too. Exit code 1
if it stays so, or if a process, a half-written file or a traceback is left.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from faults.commands import CONFIG, Command, commands

LIMIT_S, GIVE_UP_S = 2.0, 30.0
TRIES = 3
SIGNALS = (signal.SIGINT, signal.SIGTERM)
Row = dict[str, Any]


def prepare(data: Path) -> None:
    """Phantoms, a short run, its export, a larger scan and a DICOM series."""
    import nibabel as nib
    import numpy as np
    from support.dicom_series import even, make_slices, smooth, write_images

    terms = '["source", "source_cycled"]'
    for name, steps, epochs in (("long", 300, 20), ("short", 20, 2)):
        text = CONFIG.format(steps=steps, epochs=epochs, supervised_on=terms)
        (data / f"{name}.toml").write_text(text)
    cohort, scan = data / "ph" / "cohort.toml", data / "ph" / "ct_test" / "ct_2501_image.nii.gz"
    short = ("--config", data / "short.toml", "--cache", data / "c")
    for arguments in (
        ("phantom", data / "ph"),
        ("train", cohort, "--out", data / "run", *short, "--method", "le-uda"),
        ("train", cohort, "--out", data / "own", *short, "--method", "style"),
        ("export", data / "run", "-o", data / "export"),
        ("infer", scan, "--model", data / "export", "-o", data / "labels.nii.gz"),
    ):
        code, said = _undisturbed(Command(lambda _, a=arguments: list(a)), data, 600)
        if code:
            sys.exit(f"leuda {arguments[0]}: {said}")
    values = smooth((100, 256, 256)).transpose(2, 1, 0)
    nib.save(nib.Nifti1Image(values, np.diag([-0.8, -0.8, 2.0, 1.0])), data / "large.nii")
    write_images(data / "series", make_slices(smooth((60, 256, 256)), even(60)))


def measure(name: str, command: Command, shares: list[float]) -> Row:
    """Stop a command at these shares of its time, with each signal."""
    with tempfile.TemporaryDirectory() as folder:
        began = time.monotonic()
        code, said = _undisturbed(command, Path(folder), command.at_most or 600)
        undisturbed = time.monotonic() - began
    row: Row = {"undisturbed_s": round(undisturbed, 2), "stops": [], "findings": []}
    if code not in (0, None):
        row["findings"].append(f"undisturbed it ended with {code}: {said}")
    for share in shares:
        for number in SIGNALS:
            for _ in range(TRIES):
                stop = stopped(command, share * undisturbed, number)
                if stop is None or (stop["seconds"] <= LIMIT_S and not stop["findings"]):
                    break
            if stop is None:  # it had ended
                continue
            row["stops"].append({k: v for k, v in stop.items() if k != "findings"})
            about = f"{number.name} after {stop['after_s']} s"
            row["findings"] += [f"{about}: {finding}" for finding in stop["findings"]]
            if stop["seconds"] > LIMIT_S:
                row["findings"].append(f"{about}: took {stop['seconds']} s")
    print(f"{name:24} {_summary(row)}", flush=True)
    for finding in row["findings"]:
        print(f"    {finding}", flush=True)
    return row


def stopped(command: Command, after_s: float, number: signal.Signals) -> Row | None:
    """Start a command and stop it; None if it had ended before."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        process = _start(command, folder)
        with suppress(subprocess.TimeoutExpired):
            process.wait(after_s)
            return None
        every = family(process.pid)
        began = time.monotonic()
        if number == signal.SIGINT:
            os.killpg(process.pid, number)
        else:
            os.kill(process.pid, number)
        findings = []
        try:
            process.wait(GIVE_UP_S)
        except subprocess.TimeoutExpired:
            findings.append("did not end")
        alone = time.monotonic() - began
        while (left := every & running()) and time.monotonic() - began < GIVE_UP_S / 2:
            time.sleep(0.02)
        seconds = time.monotonic() - began
        if left:
            findings.append(f"processes left: {sorted(left)}")
            for each in left:
                with suppress(ProcessLookupError):
                    os.kill(each, signal.SIGKILL)
        said = (folder / "said").read_text(errors="replace")
        if "Traceback" in said or 'File "' in said:
            findings.append(f"traceback: ...{said.strip().splitlines()[-1][:150]}")
        halves = [p for p in (folder / "out").rglob("*") if p.name.startswith((".tmp", ".old"))]
        halves += [p for p in (folder / "tmp").iterdir() if not p.name.startswith("torch")]
        findings += [f"left {path.relative_to(folder)}" for path in halves]
        findings += [f"broken: {path}" for path in _broken(folder / "out")]
        return {
            "signal": number.name,
            "after_s": round(after_s, 2),
            "seconds": round(seconds, 2),
            "alone_s": round(alone, 2),
            "status": process.returncode,
            "findings": findings,
        }


def _start(command: Command, folder: Path) -> subprocess.Popen[bytes]:
    for name in ("out", "tmp"):
        (folder / name).mkdir(exist_ok=True)
    line = [sys.executable, *command.start, *map(str, command.arguments(folder / "out"))]
    cache = {"TMPDIR": str(folder / "tmp"), "LEUDA_CACHE": str(folder / "cache")}
    with (folder / "said").open("wb") as said:
        return subprocess.Popen(
            line,
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=said,
            start_new_session=True,
            env={**os.environ, **cache},
        )


def _undisturbed(command: Command, folder: Path, at_most: float) -> tuple[int | None, str]:
    """Its exit code, None if it was killed when its time was over; and its last line."""
    process = _start(command, folder)
    try:
        code: int | None = process.wait(at_most)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        code = None
    said = (folder / "said").read_text(errors="replace").strip().splitlines()
    return code, said[-1][:200] if said else ""


def family(first: int) -> set[int]:
    """A process and all below it."""
    parents = {pid: int(stat[1]) for pid in running() if (stat := _stat(pid))}
    found, new = set[int](), {first}
    while new:
        found |= new
        new = {pid for pid, parent in parents.items() if parent in new} - found
    return found


def running() -> set[int]:
    """All processes of this machine that have not ended."""
    every = {int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()}
    return {pid for pid in every if _stat(pid)[:1] not in ([], ["Z"])}


def _stat(pid: int) -> list[str]:
    """State, parent, group, session, ...; nothing of a process that has gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def _broken(folder: Path) -> list[str]:
    """Files that cannot be read as what their names say."""
    import nibabel as nib
    import numpy as np

    def read(path: Path) -> object:
        if path.suffix == ".json":
            return json.loads(path.read_text())
        if path.suffix == ".npy":
            return np.load(path)
        if path.name.endswith(".nii.gz"):
            return np.asanyarray(nib.load(path).dataobj)
        if path.suffix == ".pt":
            import torch

            return torch.load(path, weights_only=True)
        return path.stat().st_size

    broken = []
    for path in (p for p in folder.rglob("*") if p.is_file() and not p.name.startswith(".tmp")):
        try:
            read(path)
        except Exception as error:  # noqa: BLE001  (whatever it is, it is the finding)
            broken.append(f"{path.relative_to(folder)}: {error}")
    return broken


def _summary(row: Row) -> str:
    text = f"{row['undisturbed_s']:7.1f} s"
    for number in SIGNALS:
        found = [stop for stop in row["stops"] if stop["signal"] == number.name]
        worst = max((stop["seconds"] for stop in found), default=0.0)
        codes = sorted({stop["status"] for stop in found}, key=str)
        text += f"  {number.name} {len(found)} times, {worst:.2f} s at most, status {codes}"
    return text


def main() -> int:
    """Stop all commands, print the table. 1: something was found."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--moments", type=int, default=6, help="of each command and signal")
    parser.add_argument("--only", action="append", help="this command (again and again)")
    parser.add_argument("--data", type=Path, help="keep what is prepared here")
    parser.add_argument("--save", type=Path, help="results, JSON")
    args = parser.parse_args()
    if args.save:
        args.save.parent.mkdir(parents=True, exist_ok=True)
    os.environ["PYTHONPATH"] = str(Path.cwd())
    shares = [(n + 0.5) / args.moments for n in range(args.moments)]
    with tempfile.TemporaryDirectory() as name:
        data = args.data or Path(name)
        if not (data / "series").is_dir():
            data.mkdir(exist_ok=True)
            prepare(data)
        every = commands(data)
        rows = {name: measure(name, every[name], shares) for name in args.only or every}
    if args.save:
        earlier = json.loads(args.save.read_text())["commands"] if args.save.is_file() else {}
        said = {"command": "python -m faults.stop", "load": os.getloadavg()[0]}
        args.save.write_text(json.dumps({**said, "commands": {**earlier, **rows}}, indent=1) + "\n")
    return int(any(row["findings"] for row in rows.values()))


if __name__ == "__main__":
    sys.exit(main())
