"""a made scan of 512 x 512 x 600 -> how long `leuda view` takes to open and to scroll it.

The page measures itself: `leuda:open` from the request to the finished picture, `leuda:step` from
a key or wheel to the finished picture. Beside these stand the seconds of processor time that server
and browser took, which other work on the machine hardly changes. Needs what `make test-browser`
installs.

    python tools/view_speed.py FOLDER [--rounds 3] [--json view.json]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from tour import LEUDA, chromium, served

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
from made_ct import (  # type: ignore[import-not-found]  # of the benchmarks
    SIZE,
    affine,
    anatomy,
    place,
    scales_at,
    write_scan,
)

SLICES, FILLED = 600, range(150, 450)
STEPS, ARROW_UP, SECONDS = 60, "\ue013", 180.0
MEASURES = (
    "return performance.getEntriesByName(arguments[0]).map((one) => Math.round(one.duration))"
)
# a picture that comes late: the longest time between two of them while somebody scrolls
FRAMES = """
window.frames = []; let last = performance.now();
const look = (now) => { window.frames.push(now - last); last = now; requestAnimationFrame(look); };
requestAnimationFrame(look);
"""


def write_case(folder: Path) -> Path:
    """The scan and its labels, if they are not there yet."""
    scan, labels = folder / "large.nii.gz", folder / "large_labels.nii.gz"
    folder.mkdir(parents=True, exist_ok=True)
    if not scan.exists():
        write_scan(scan, SLICES, filled=FILLED)
    if not labels.exists():
        found = np.zeros((SIZE, SIZE, SLICES), np.uint8, order="F")
        for k in FILLED:
            found[:, :, k] = anatomy(place(k), SIZE, scales_at(k, FILLED))[1].T
        nib.save(nib.Nifti1Image(found, affine(SLICES)), labels)
    return scan


def processor_seconds() -> float:
    """What this process's children, and theirs, have used of the processors so far."""
    parents, used = {}, {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            text = path.read_text()
        except OSError:  # it has ended
            continue
        words = text.rpartition(")")[2].split()
        parents[int(path.parent.name)] = int(words[1])
        used[int(path.parent.name)] = (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")
    own = {os.getpid()}
    while more := {one for one, parent in parents.items() if parent in own} - own:
        own |= more
    return sum(used[one] for one in own - {os.getpid()})


def measure(browser: Any, url: str) -> dict[str, Any]:
    """Open the page, scroll, and ask it how long that took."""
    before = processor_seconds()
    browser.get(url)
    ends = time.monotonic() + SECONDS
    while not (opened := browser.execute_script(MEASURES, "leuda:open")):
        if time.monotonic() > ends:
            raise SystemExit(f"not opened in {SECONDS:.0f} s")
        time.sleep(0.2)
    shown = browser.execute_script("return [drawnBy(), state.every, $('layout').value]")
    opened_at = processor_seconds()
    browser.execute_script(FRAMES)
    body = browser.find_element("tag name", "body")
    for _ in range(STEPS):
        body.send_keys(ARROW_UP)
        time.sleep(0.05)
    count = 0
    while count != (count := len(browser.execute_script(MEASURES, "leuda:step"))):
        time.sleep(3.0)  # until the last picture is there
    scrolled_at = processor_seconds()
    steps = sorted(browser.execute_script(MEASURES, "leuda:step"))
    return {
        "open_ms": opened[0],
        "open_processor_s": round(opened_at - before, 2),
        "drawn_by": shown[0],
        "one_voxel_in": shown[1],
        "layout": shown[2],
        "steps": len(steps),
        "step_ms": {"median": statistics.median(steps), "most": steps[-1]},
        "step_processor_ms": round(1000 * (scrolled_at - opened_at) / len(steps)),
        "stall_ms": round(max(browser.execute_script("return window.frames"))),
    }


def main() -> None:
    """Measure some rounds, each in a server of its own."""
    said = argparse.ArgumentParser(description=__doc__)
    said.add_argument("folder", type=Path)
    said.add_argument("--rounds", type=int, default=3)
    said.add_argument("--json", type=Path)
    asked = said.parse_args()
    scan = write_case(asked.folder).resolve()
    rounds = []
    for _ in range(asked.rounds):
        command = [str(LEUDA), "view", str(scan), "--no-browser"]
        with chromium() as browser, served(command, scan.parent) as url:
            found = measure(browser, url)
        rounds.append({"load": round(os.getloadavg()[0], 2), **found})
        print(json.dumps(rounds[-1]), flush=True)
    if asked.json is not None:
        asked.json.write_text(
            json.dumps({"shape": [SIZE, SIZE, SLICES], "rounds": rounds}, indent=2)
        )


if __name__ == "__main__":
    main()
