"""many damaged inputs -> a table of targets, what was found, and a test of each finding.

    PYTHONPATH=.:tests python -m fuzz.nightly --inputs 200000 --save FILE

Half of the inputs of a target are its sound one with seeded changes (`inputs.py`); the others come
from atheris, which follows the branches that the code takes, where atheris is installed. An input
ends in a result or in one LeudaError, within 10 s of a processor and 512 MB. What does not is
written into `corpus/TARGET/`, where `test_fuzz.py` tries it at every run.

Inputs are tried in processes of their own, a chunk each. FILE holds what was done so far: killed
and started again, the work goes on with the next chunk.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

CORPUS = Path(__file__).parent / "corpus"
CHUNK = 2000
LIMIT_S = 10
LIMIT_BYTES = 512 << 20
ADDRESS_BYTES = 12 << 30  # of a child; a last wall before the machine's own memory
LAST = "last"  # the input that a child is at, in its folder
Row = dict[str, Any]


class TooSlow(BaseException):
    """No Exception: nothing in the product may take it for one of its own."""


def main() -> int:
    """Try the inputs that are still missing; print the table. 1: something was found."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--inputs", type=int, default=200_000, help="of all targets together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--target", action="append", help="only this one (again and again)")
    parser.add_argument("--save", type=Path, help="what was done, JSON; it is gone on with")
    parser.add_argument("--child", nargs=5, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        target, way, seed, count, folder = args.child
        return _child(target, way, int(seed), int(count), Path(folder))
    from fuzz.targets import TARGETS

    unknown = set(args.target or ()) - set(TARGETS)
    if unknown:
        parser.error(f"no target {', '.join(sorted(unknown))}; there are {', '.join(TARGETS)}")
    ways = ("changed", "guided") if find_spec("atheris") else ("changed",)
    done = _earlier(args.save, args.seed, ways)
    each = -(-args.inputs // (len(TARGETS) * len(ways)))
    while todo := _next_chunk(done["targets"], args.target or list(TARGETS), ways, each):
        target, way, count = todo
        row = done["targets"].setdefault(target, {}).setdefault(way, _nothing())
        began = time.monotonic()
        _run_chunk(target, way, args.seed + row["chunks"], count, row)
        row["chunks"] += 1
        row["inputs"] += count
        row["seconds"] = round(row["seconds"] + time.monotonic() - began, 1)
        if args.save:
            part = args.save.with_suffix(".part")
            part.write_text(json.dumps(done, indent=1) + "\n")
            part.replace(args.save)
    _show(done)
    return int(any(row["findings"] for rows in done["targets"].values() for row in rows.values()))


def _nothing() -> Row:
    return {"inputs": 0, "seconds": 0.0, "chunks": 0, "findings": []}


def _earlier(save: Path | None, seed: int, ways: tuple[str, ...]) -> dict[str, Any]:
    """What was done before with this seed, or nothing."""
    here = {
        "command": "make fuzz",
        "seed": seed,
        "ways": list(ways),
        "limit_s": LIMIT_S,
        "limit_mb": LIMIT_BYTES >> 20,
        "versions": {
            "python": sys.version.partition(" ")[0],
            **{name: metadata.version(name) for name in ("hypothesis", "nibabel", "pydicom")},
            **({"atheris": metadata.version("atheris")} if "guided" in ways else {}),
        },
    }
    if save is None or not save.is_file():
        return {**here, "targets": {}}
    found: dict[str, Any] = json.loads(save.read_text())
    if found["seed"] != seed:
        sys.exit(f"{save} was made with seed {found['seed']}; give it, or another --save")
    return {**here, "targets": found["targets"]}


def _next_chunk(
    done: dict[str, dict[str, Row]], targets: list[str], ways: tuple[str, ...], each: int
) -> tuple[str, str, int] | None:
    """Of the target that had the fewest inputs so far: all grow together."""
    open_ones = [
        (done.get(target, {}).get(way, _nothing())["inputs"], target, way)
        for target in targets
        for way in ways
    ]
    fewest, target, way = min(open_ones)
    return (target, way, min(CHUNK, each - fewest)) if fewest < each else None


def _run_chunk(target: str, way: str, seed: int, count: int, row: Row) -> None:
    """A chunk in a child. One that dies is a finding itself: the input it was at is kept."""
    with tempfile.TemporaryDirectory(prefix="leuda-fuzz-") as name:
        folder = Path(name)
        command = [sys.executable, "-m", "fuzz.nightly", "--child"]
        command += [target, way, str(seed), str(count), name]
        ended = subprocess.run(
            command, check=False, capture_output=True, text=True, errors="replace"
        )
        found = folder / "found.jsonl"
        for line in found.read_text().splitlines() if found.is_file() else ():
            row["findings"].append({"seed": seed, **json.loads(line)})
        if ended.returncode:
            last = folder / LAST
            content = last.read_bytes() if last.is_file() else b""
            said = ended.stderr.strip().splitlines()[-1:] or ["nothing"]
            case = _keep(target, content) if content else None
            ends = f"the process ended with {ended.returncode}: {said[0][:200]}"
            row["findings"].append({"seed": seed, "case": case, "what": ends})


def _keep(target: str, content: bytes) -> str:
    """Write a case into the corpus, for `test_fuzz.py`."""
    name = hashlib.sha256(content).hexdigest()[:12]
    (CORPUS / target).mkdir(parents=True, exist_ok=True)
    (CORPUS / target / name).write_bytes(content)
    return f"{target}/{name}"


def _child(target: str, way: str, seed: int, count: int, folder: Path) -> int:
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_BYTES, ADDRESS_BYTES))
    signal.signal(signal.SIGPROF, _too_slow)
    with Path(os.devnull).open("w") as nowhere:
        os.dup2(nowhere.fileno(), 1)  # what libraries print of damaged files
    if way == "guided":
        return _guided(target, seed, count, folder)
    from fuzz.inputs import KINDS, changed
    from fuzz.targets import TARGETS

    sound, feed = TARGETS[target].sound(), _watched(target, folder)
    chance = random.Random(f"{target} {seed}")
    for _ in range(count):
        todo = [
            (chance.choice(KINDS), chance.random(), chance.randrange(2**16))
            for _ in range(chance.randint(1, 5))
        ]
        content = changed(sound, todo)
        if what := feed(content):
            _write_down(folder, _keep(target, _smallest(sound, todo, what, feed)), what)
    return 0


def _guided(target: str, seed: int, count: int, folder: Path) -> int:
    import atheris

    with atheris.instrument_imports(include=["leuda_deploy", "leuda_train"]):
        from fuzz.targets import TARGETS
    sound, watched = TARGETS[target].sound(), _watched(target, folder)
    seen: set[str] = set()

    def feed(content: bytes) -> None:
        what = watched(content)
        if what and what not in seen:
            seen.add(what)
            _write_down(folder, _keep(target, content), what)

    grown = folder / "grown"
    grown.mkdir()
    (grown / "sound").write_bytes(sound)
    longest = max(4096, 2 * len(sound))
    options = [f"-atheris_runs={count}", f"-seed={seed + 1}", f"-max_len={longest}", "-timeout=600"]
    options += [f"-artifact_prefix={folder}/", "-rss_limit_mb=0", "-verbosity=0"]
    atheris.Setup([sys.argv[0], *options, str(grown)], feed)
    atheris.Fuzz()  # ends the process
    return 0


def _watched(target: str, folder: Path) -> Callable[[bytes], str | None]:
    """A target's feed -> the same, that says what went wrong: a line, or None."""
    from fuzz.test_fuzz import end

    inputs = folder / "inputs"
    inputs.mkdir()
    last = (folder / LAST).open("wb", buffering=0)  # open as long as the process

    def feed(content: bytes) -> str | None:
        last.seek(0)
        last.truncate()
        last.write(content)
        before = _peak_bytes(reset=True)
        signal.setitimer(signal.ITIMER_PROF, LIMIT_S)
        try:
            end(target, content, inputs)
        except TooSlow:
            return f"takes more than {LIMIT_S} s"
        except BaseException as error:  # noqa: BLE001  (whatever it is, it is a finding)
            where = traceback.extract_tb(error.__traceback__)[-1]
            place = f"{Path(where.filename).name}:{where.lineno}"
            return f"{type(error).__name__} at {place}: {str(error)[:200]}"
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
        grown = _peak_bytes() - before
        return f"takes {grown >> 20} MB" if grown > LIMIT_BYTES else None

    return feed


def _too_slow(*_: object) -> None:
    raise TooSlow


def _peak_bytes(*, reset: bool = False) -> int:
    """The largest the process has been since the last reset; 0 where the OS does not say."""
    try:
        if reset:
            Path("/proc/self/clear_refs").write_text("5")
        status = Path("/proc/self/status").read_text()
    except OSError:
        return 0
    return int(status.partition("VmHWM:")[2].split()[0]) << 10


def _smallest(
    sound: bytes, todo: list[Any], what: str, feed: Callable[[bytes], str | None]
) -> bytes:
    """The input with the fewest of its changes that still ends so."""
    from fuzz.inputs import changed

    for change in list(todo):
        fewer = [other for other in todo if other is not change]
        if fewer and feed(changed(sound, fewer)) == what:
            todo = fewer
    return changed(sound, todo)


def _write_down(folder: Path, case: str, what: str) -> None:
    with (folder / "found.jsonl").open("a") as file:
        file.write(json.dumps({"case": case, "what": what}) + "\n")


def _show(done: dict[str, Any]) -> None:
    print(f"{'target':16} {'way':8} {'inputs':>8} {'seconds':>8} {'findings':>8} seeds")
    total, seconds, findings = 0, 0.0, 0
    for target, rows in done["targets"].items():
        for way, row in rows.items():
            seeds = f"{done['seed']} to {done['seed'] + row['chunks'] - 1}"
            print(
                f"{target:16} {way:8} {row['inputs']:8} {row['seconds']:8.1f} "
                f"{len(row['findings']):8} {seeds}"
            )
            total, seconds = total + row["inputs"], seconds + row["seconds"]
            findings += len(row["findings"])
    print(f"{'all':25} {total:8} {seconds:8.1f} {findings:8}")


if __name__ == "__main__":
    sys.exit(main())
