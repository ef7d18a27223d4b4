"""`leuda infer` with a search beside a full pass, MONAI and nnU-Net: time, memory, labels.

    python benchmarks/find_first.py speed [--slices 300] [--rounds 2]
    python benchmarks/find_first.py avx2 [--slices 300] [--rounds 1]
    python benchmarks/find_first.py trial limited sizes
    python benchmarks/find_first.py real --run RUN --model EXPORT
    python benchmarks/find_first.py odd --scans FOLDER --extent-mm 60 --model EXPORT

One U-Net (32 to 512 channels, weights set by hand: made_ct.set_by_hand) and made CT of 512 x 512
pixels and 300 mm, on which structures fill a third of the slices, or all. The search, and slices
that are scored whole, are proven as `leuda export` proves them, on made scans of another seed. Each
way in a process of its own, in turn:

counts   slices that a search scores, by slice thickness and share that is filled; nothing is run
speed    leuda with the search and in full (fp32, the engine that `auto` takes), MONAI, nnU-Net
avx2     speed with OpenVINO and PyTorch held to AVX2, as on a processor that has no more
trial    the first scan of a model on a machine, its trials included, and the second
limited  in a control group of one core: the default beside --threads 1 and 2 (Linux, as root)
real     what an export of --run, --model, proves on its target scans, and what it refuses
odd      the labels of a search beside those of a full pass, on any scans, though nothing is proven:
         the sparsest pace that an export of structures of --extent-mm tries
sizes    pixels that are scored of a slice in windows and whole, by its size; nothing is run

Seconds are those of the whole process. On a busy machine wall times say little: processor seconds
are beside them, and ratios are of these. Each part goes into benchmarks/results/find_first.json.
Needs: pip install 'leuda[train,openvino]' monai nnunetv2
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
import uuid
from functools import partial
from importlib import metadata
from itertools import product
from math import prod
from pathlib import Path
from statistics import median
from typing import Any

import nibabel as nib
import numpy as np
from made_ct import ROWS, STRUCTURES, WIDTHS, WINDOW, scales_at, write_model, write_scan
from runtime import RESULTS, machine, say

from leuda_deploy.engines.open_engine import reference_engine
from leuda_deploy.inference.find_first import find_in, scored_by
from leuda_deploy.inference.segment import segment
from leuda_deploy.inference.slabs import scoring_of
from leuda_deploy.inference.sliding_window import window_counts
from leuda_deploy.machine.outside import read_json
from leuda_deploy.model.model_file import ModelFile
from leuda_deploy.model.model_file import write_model as write_model_file
from leuda_deploy.proof.processor import INSTRUCTIONS
from leuda_deploy.scans.stack import Stack
from leuda_deploy.scans.volume import count_frames, read_volume
from leuda_train.export.shortcuts.extents import extents_mm
from leuda_train.export.shortcuts.prove_search import MARGINS, STEPS, missed_by, prove_search
from leuda_train.export.shortcuts.prove_tiling import with_tiling
from leuda_train.export.shortcuts.whole_scans import label_in_full, target_scans

LENGTH_MM, THIRD_MM = 300.0, (100.0, 200.0)
PROOF_SLICES, PROOF_SCANS = 60, 3
THREADS = 2
WAYS, FILLED = ("find", "full", "monai", "nnunet"), ("third", "every")


# --- what is given to all


def model_of(folder: Path) -> Path:
    """The model, with the shortcuts that are proven, as `leuda export` does; made once."""
    made = folder / "model"
    if (made / "model.onnx").is_file():
        return made
    made.mkdir(parents=True, exist_ok=True)
    write_model(made, 1 + len(STRUCTURES), WIDTHS, 0, by_hand=True)
    scans = []
    for seed in range(1, 1 + PROOF_SCANS):
        path, spacing_mm = folder / f"proof_{seed}.nii.gz", LENGTH_MM / PROOF_SLICES
        start = 8 * seed
        filled = range(start, start + PROOF_SLICES // 3)
        write_scan(path, PROOF_SLICES, filled=filled, spacing_mm=spacing_mm, seed=seed)
        scans.append((path.name, partial(opened, path, ModelFile.open(made))))
    model = ModelFile.open(made)
    engine, scoring = reference_engine(model), scoring_of(model.card)
    passes = label_in_full(scans, engine, scoring, classes=1 + len(STRUCTURES))
    model, tried = with_tiling(model, engine, passes)
    say(f"tiling: {model.card.tiling}, of {tried}")
    long_mm = THIRD_MM[1] - THIRD_MM[0]
    extents = {
        name: long_mm * (last - first) for name, (first, last) in zip(STRUCTURES, ROWS, strict=True)
    }
    search, _ = prove_search(passes, engine, scoring, extents, STRUCTURES)
    say(f"search: {search}")
    card = model.card.model_copy(update={"search": search})
    write_model_file(model.graph(), card, model.path)
    return made


def opened(path: Path, model: ModelFile) -> Stack:
    """A scan as the model has it."""
    return Stack(read_volume(path), model.card.recipe)


def scan_of(folder: Path, name: str, slices: int) -> Path:
    """A scan of 300 mm, made once; structures in its middle third, or in all of it."""
    path, spacing_mm = folder / f"{name}_{slices}.nii.gz", LENGTH_MM / slices
    if not path.is_file():
        first, last = THIRD_MM if name == "third" else (0.0, LENGTH_MM)
        filled = range(round(first / spacing_mm), round(last / spacing_mm))
        write_scan(path, slices, filled=filled, spacing_mm=spacing_mm)
    return path


# --- the ways


def leuda(scan: Path, model: Path, out: Path, *options: str) -> list[Any]:
    """The command as users call it, on as many threads as the others have."""
    command = [sys.executable, "-m", "leuda_deploy", "infer", scan, "--model", model, "-o", out]
    return [*command, "--precision", "fp32", "--no-overlay", "--json", "--force", *options]


def other(way: str, scan: Path, model: Path, out: Path) -> list[Any]:
    """Another pipeline."""
    script = Path(__file__).with_name("other_ways.py")
    more = ["--percentiles", "0", "100"] if way == "monai" else []
    return [sys.executable, "-W", "ignore", script, way, scan, model, out, *more]


def measured(command: list[Any], **popen: Any) -> dict[str, Any]:
    """Wall and processor seconds of a command, with its children, and what it reports."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    environment = os.environ | {"OMP_NUM_THREADS": str(THREADS)}
    done = subprocess.run(
        [str(part) for part in command],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        env=environment,
        **popen,
    )
    wall, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    report = json.loads(done.stdout[done.stdout.index("{") :])
    return {
        "wall_seconds": round(wall, 2),
        "cpu_seconds": round(
            after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, 2
        ),
        "peak_mb": round(report["peak_memory_mb"]),
        "engine": report["engine"],
        "threads": report.get("threads"),
        "slices": report.get("slices"),
    }


# --- the parts


def speed(asked: argparse.Namespace, *options: str) -> dict[str, Any]:
    """Every way on both scans, in turn; `options` are leuda's."""
    folder, model, found = asked.folder, model_of(asked.folder), {}
    for name in asked.filled:
        scan = scan_of(folder, name, asked.slices)
        out = {way: folder / f"{name}_{way}.nii.gz" for way in ("find", "full", "monai", "nnunet")}
        ways = {
            "find": leuda(scan, model, out["find"], *options),
            "full": leuda(scan, model, out["full"], *options, "--search", "full"),
            "monai": other("monai", scan, model, out["monai"]),
            "nnunet": other("nnunet", scan, model, out["nnunet"]),
        }
        ways = {way: command for way, command in ways.items() if way in asked.ways}
        if "find" in ways:  # the trials of this machine are made, as at any second scan
            measured(ways["find"])
        before = asked.before.get(name, {})  # what other calls measured of this scan
        same = before.get("shape") == [512, 512, asked.slices]
        runs: dict[str, list[dict[str, Any]]] = before["runs"] if same else {}
        runs = runs | {way: [] for way in ways if way not in runs}
        for turn in range(asked.rounds):
            for way, command in ways.items():
                runs[way].append(measured(command))
                say(f"{name}, round {turn + 1}, {way}: {runs[way][-1]}")
        middle = {
            way: {
                key: median(run[key] for run in of_way)
                for key in ("wall_seconds", "cpu_seconds", "peak_mb")
            }
            for way, of_way in runs.items()
        }
        found[name] = {
            "shape": [512, 512, asked.slices],
            "runs": runs,
            "median": middle,
            "times_as_fast_as": {
                way: {
                    key: round(middle[way][key] / middle["find"][key], 2)
                    for key in ("wall_seconds", "cpu_seconds", "peak_mb")
                }
                for way in middle
                if way != "find" and "find" in middle
            },
            "labels_of_find_beside": {
                way: compare(out["find"], out[way])
                for way in runs
                if way != "find" and out["find"].is_file() and out[way].is_file()
            },
            "load_average_after": os.getloadavg(),
        }
    return asked.before | found


def avx2(asked: argparse.Namespace) -> dict[str, Any]:
    """Speed as if this processor had AVX2 alone. ONNX Runtime cannot be held, so OpenVINO it is."""
    asked.before = asked.result.get("avx2", {})
    with tempfile.TemporaryDirectory() as cache:  # trials made so hold nowhere else
        held = {"LEUDA_CACHE": cache, "ATEN_CPU_CAPABILITY": "avx2", INSTRUCTIONS: "AVX2"}
        os.environ.update(held)
        found = speed(asked, "--engine", "openvino")
        for name in held:
            del os.environ[name]
    return found | {"held_to": "AVX2"}


def compare(one: Path, other: Path) -> dict[str, Any]:
    """Share of voxels with the same label, and Dice by structure."""
    a, b = (np.asarray(nib.load(path).dataobj) for path in (one, other))
    dice = {}
    for number, name in enumerate(STRUCTURES, start=1):
        size = np.count_nonzero(a == number) + np.count_nonzero(b == number)
        both = np.count_nonzero((a == number) & (b == number))
        dice[name] = round(2 * both / size, 5) if size else None
    return {"same_labels": round(float((a == b).mean()), 6), "dice": dice}


def trial(asked: argparse.Namespace) -> dict[str, Any]:
    """The first scan on a machine that knows nothing of the model, and the second."""
    model, scan = model_of(asked.folder), scan_of(asked.folder, "third", asked.slices)
    rows = {}
    with tempfile.TemporaryDirectory() as cache:
        os.environ["LEUDA_CACHE"] = cache
        for row in ("first", "second"):
            rows[row] = measured(leuda(scan, model, asked.folder / "trial.nii.gz"))
            say(f"{row}: {rows[row]}")
        kept = [json.loads(path.read_text()) for path in Path(cache).glob("*.json")]
        del os.environ["LEUDA_CACHE"]
    tried = {one["engine"]: {k: one[k] for k in ("window_ms", "compared")} for one in kept}
    return rows | {"shape": [512, 512, asked.slices], "tried": tried}


def limited(asked: argparse.Namespace) -> dict[str, Any]:
    """In a control group of one core's time: the default beside one thread, and two."""
    model, scan = model_of(asked.folder), scan_of(asked.folder, "third", asked.slices)
    group = Path(f"/sys/fs/cgroup/cpu/leuda-benchmark-{uuid.uuid4().hex}")
    group.mkdir()
    (group / "cpu.cfs_period_us").write_text("100000")
    (group / "cpu.cfs_quota_us").write_text("100000")

    def join() -> None:
        (group / "cgroup.procs").write_text(str(os.getpid()))

    ways = {"default": (), "threads 1": ("--threads", "1"), "threads 2": ("--threads", "2")}
    runs: dict[str, list[dict[str, Any]]] = {way: [] for way in ways}
    try:
        for turn in range(1 + asked.rounds):
            for way, options in ways.items():
                command = leuda(scan, model, asked.folder / "limited.nii.gz", *options)
                run = measured(command, preexec_fn=join)
                if turn:  # the first holds the trials
                    runs[way].append(run)
                say(f"limited, round {turn}, {way}: {run}")
    finally:
        group.rmdir()
    return {"shape": [512, 512, asked.slices], "cores": 1, "runs": runs}


def real(asked: argparse.Namespace) -> dict[str, Any]:
    """What the export of a run proves on its unlabelled target scans, and what it refuses and why.

    For a run of an earlier leuda, which does not say how long structures are: that is read from its
    labelled source scans, whose values are taken for class numbers.
    """
    model, rows = ModelFile.open(asked.model), read_json(asked.run / "scans.json")["scans"]
    card, engine = model.card, reference_engine(model)
    names = {structure.name: structure.value for structure in card.structures}
    labelled = [
        Stack(read_volume(Path(row["label"])), card.recipe)
        for row in rows
        if row["role"] == "source labelled"
    ]
    extents = extents_mm(labelled, names)
    scans = target_scans(asked.run, card.recipe)
    passes = label_in_full(scans, engine, scoring_of(card), classes=1 + len(names))
    found: dict[str, Any] = {
        "extents_mm": extents,
        "scans": {
            one.name: {"slices": len(one.counts), "filled": int(one.holds.sum())} for one in passes
        },
        "paces": [],
    }
    for step, margin in product(STEPS, MARGINS):
        pace = step * min(extents.values()), margin * min(extents.values())
        missed = missed_by(passes, pace, [*names])
        found["paces"].append(
            {
                "step_mm": pace[0],
                "margin_mm": pace[1],
                "scored": round(missed.work, 4),
                "dice": min(missed.dice.values()),
                "worst": {"scan": missed.worst.scan, "other_labels": missed.worst.disagreement},
            }
        )
    _, tried = with_tiling(model, engine, passes)
    return asked.result.get("real", {}) | {model.card.name: found | {"tilings": tried}}


def odd(asked: argparse.Namespace) -> dict[str, Any]:
    """Full pass beside search, scan by scan; of a 4D file the first frame. The worst is named."""
    model = ModelFile.open(asked.model)
    engine, scoring = reference_engine(model, threads=1), scoring_of(model.card)
    step_mm, margin_mm = STEPS[0] * asked.extent_mm, MARGINS[0] * asked.extent_mm
    rows: dict[str, Any] = {}
    for path in sorted(asked.scans.glob("*.nii*")):
        frame = 0 if count_frames(path) > 1 else None
        stack = Stack(read_volume(path, frame=frame), model.card.recipe)
        find = find_in(step_mm, margin_mm, stack.slice_spacing_mm)
        full = segment(stack, engine, scoring)
        found = segment(stack, engine, scoring, find=find)
        both = [
            2 * float((same & (full.labels == k)).sum()) / size
            for k in range(1, 1 + len(model.card.structures))
            if (size := int((full.labels == k).sum() + (found.labels == k).sum()))
            for same in [full.labels == found.labels]
        ]
        rows[path.name] = {
            "slices": stack.depth,
            "spacing_mm": round(stack.slice_spacing_mm, 2),
            "filled": int((stack.of_scan(full.labels) > 0).any(axis=(1, 2)).sum()),
            "scored": found.scored,
            "other_labels": round(float((full.labels != found.labels).mean()), 6),
            "smallest_dice": round(min(both), 5) if both else None,
        }
        say(f"{path.name}: {rows[path.name]}")
    worst = max(rows, key=lambda name: rows[name]["other_labels"])
    pace = {"step_mm": step_mm, "margin_mm": margin_mm, "worst": worst, "scans": rows}
    return asked.result.get("odd", {}) | {model.card.modality: pace}


def sizes(asked: argparse.Namespace) -> dict[str, Any]:
    """Pixels that a network scores of a slice, by its size: in windows of 256, and whole.

    Nothing is run: windows are laid with half of each in common, whole slices padded to 16.
    """
    rows = []
    for side in (192, 256, 320, 384, 448, 512, 640, 768):
        windows = prod(window_counts((side, side), (WINDOW, WINDOW)))
        whole = (-(-side // 16) * 16) ** 2
        rows.append(
            {
                "side": side,
                "windows": windows,
                "pixels_in_windows": windows * WINDOW**2,
                "pixels_whole": whole,
                "times_fewer": round(windows * WINDOW**2 / whole, 2),
            }
        )
    return {"window": WINDOW, "rows": rows}


def counts(asked: argparse.Namespace) -> dict[str, Any]:
    """Slices that a search scores of 300 mm, by slice thickness and share that is filled.

    No network is run: what each slice holds is known of made scans, and the pace is that of the
    smallest extent in them, as `prove_search` takes it first.
    """
    smallest = min(last - first for first, last in ROWS) * (THIRD_MM[1] - THIRD_MM[0])
    step_mm, margin_mm = STEPS[0] * smallest, MARGINS[0] * smallest
    rows = []
    for spacing_mm in (1.0, 2.5, 5.0):
        depth = round(LENGTH_MM / spacing_mm)
        for share in (0.0, 1 / 6, 1 / 3, 1 / 2, 1.0):
            long = round(share * depth)
            first = (depth - long) // 2
            holds = np.zeros(depth, dtype=bool)
            for k in range(first, first + long):
                holds[k] = any(scales_at(k, range(first, first + long)))
            find = find_in(step_mm, margin_mm, spacing_mm)
            assert find is not None
            scored = int(scored_by(holds, find).sum())
            rows.append(
                {
                    "spacing_mm": spacing_mm,
                    "slices": depth,
                    "filled": int(holds.sum()),
                    "scored": scored,
                    "times_fewer": round(depth / scored, 2),
                }
            )
    return {"step_mm": step_mm, "margin_mm": margin_mm, "rows": rows}


PARTS = {f.__name__: f for f in (counts, sizes, speed, avx2, trial, limited, real, odd)}


def main() -> None:
    """Parse, run, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("parts", nargs="+", choices=PARTS)
    parser.add_argument("--slices", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--ways", nargs="*", default=WAYS, choices=WAYS)
    parser.add_argument("--filled", nargs="*", default=FILLED, choices=FILLED)
    parser.add_argument("--model", type=Path, help="of real: an export of the run; of odd: any")
    parser.add_argument("--run", type=Path, help="of real")
    parser.add_argument("--scans", type=Path, help="of odd: a folder of NIfTI files")
    parser.add_argument("--extent-mm", type=float, help="of odd: the shortest structure")
    parser.add_argument("--folder", type=Path, default=Path("runs/benchmark_find_first"))
    asked = parser.parse_args()
    asked.folder.mkdir(parents=True, exist_ok=True)
    path = RESULTS / "find_first.json"
    result = json.loads(path.read_text()) if path.is_file() else {}
    asked.result, asked.before = result, result.get("speed", {})
    for part in asked.parts:
        before = machine()
        before["versions"]["nnunetv2"] = metadata.version("nnunetv2")
        result[part] = PARTS[part](asked) | {"machine": before}
        path.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
