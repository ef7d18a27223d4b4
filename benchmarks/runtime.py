"""`leuda infer` beside a MONAI pipeline: time, memory, and where their labels differ and why.

    python benchmarks/runtime.py speed [--slices 300]    # about 9 minutes on 2 cores
    python benchmarks/runtime.py memory agreement        # about 6 minutes

One U-Net (32 to 512 channels) is trained on slices of a made CT (made_ct.py, two minutes, kept) and
saved for both: as a leuda model file and as torch weights. On the same .nii.gz, each in a process
of its own, in turn:

speed      leuda in int8 and in bf16 (OpenVINO), MONAI (other_ways.py), leuda with ONNX Runtime, all
           twice; and how many times what memory or gzip alone would take each stage takes
memory     peak memory of leuda by length of the scan and number of classes, a narrow network
agreement  24 slices; one thing is changed at a time, so that each cause has its share

Each part is written into benchmarks/results/runtime.json as soon as it is done, with the machine
and its load; runtime.png shows speed and memory. Needs: pip install 'leuda[train,openvino]' monai
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from made_ct import (
    PIXEL_MM,
    SPACING_MM,
    STEPS,
    WIDTHS,
    anatomy,
    place,
    recipe,
    write_int8,
    write_model,
    write_scan,
)

from leuda_deploy.bench.machine_floor import least_seconds
from leuda_deploy.scans.stack import Stack
from leuda_deploy.scans.volume import read_volume

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("leuda", "torch", "monai", "openvino", "onnxruntime-gpu", "numpy", "nibabel", "isal")
NARROW = (8, 16, 32, 64, 128)  # for the memory runs, where the network's time is of no interest
MODELS = {"five": (5, WIDTHS, STEPS), "narrow_5": (5, NARROW, 0), "narrow_100": (100, NARROW, 0)}
LENGTHS = (100, 300, 900)
AGREEMENT_SLICES = 24
# the name of a way -> model and engine; MONAI runs the first model's weights
WAYS = {
    "leuda int8": ("five_int8", "openvino"),
    "leuda bf16": ("five", "openvino"),
    "leuda fp32": ("five", "ort-cpu"),
}
ORDER = ("leuda int8", "leuda bf16", "monai", "leuda fp32") * 2
# what is changed -> the two results that differ in it alone
CAUSES = {
    "int8 instead of fp32": ("leuda int8", "leuda ort-cpu"),
    "bf16 instead of fp32": ("leuda openvino bf16", "leuda ort-cpu"),
    "OpenVINO instead of ONNX Runtime, fp32": ("leuda openvino fp32", "leuda ort-cpu"),
    "the way back from scores to labels": ("leuda ort-cpu", "monai on leuda's slices"),
    "resampling: area filter instead of linear interpolation": ("monai on leuda's slices", "monai"),
    "MONAI's default grid, a quarter of a pixel off": ("monai, default grid", "monai"),
}


# --- the ways


def run_leuda(scan: Path, model: Path, out: Path, *options: str) -> dict[str, Any]:
    """The `leuda infer` command as users call it."""
    command = [sys.executable, "-m", "leuda_deploy", "infer", scan, "--model", model, "-o", out]
    return measured([*command, "--engine", *options, "--no-overlay", "--json"])


def run_monai(scan: Path, model: Path, out: Path, *options: Any) -> dict[str, Any]:
    """MONAI's pipeline, in a process of its own."""
    script = Path(__file__).with_name("other_ways.py")
    return measured([sys.executable, "-W", "ignore", script, "monai", scan, model, out, *options])


def measured(command: list[Any]) -> dict[str, Any]:
    """The last JSON that a command prints, with its wall time and peak memory."""
    began = time.perf_counter()
    done = subprocess.run(
        [str(part) for part in command], stdout=subprocess.PIPE, text=True, check=True
    )
    wall = time.perf_counter() - began
    report = json.loads(done.stdout[done.stdout.index("{") :])
    return {
        "process_seconds": round(wall, 2),
        "total_seconds": round(report["total_seconds"], 2),
        "peak_mb": round(report["peak_memory_mb"]),
        "seconds": {name: round(s, 3) for name, s in report["seconds"].items()},
        "engine": report["engine"],
        "predicted_peak_mb": report.get("predicted_peak_mb"),
        "batch": report.get("batch"),
    }


# --- what both are given


def model_of(folder: Path, name: str) -> Path:
    """A model, made once."""
    made = folder / name
    if not (made / "model.onnx").is_file():
        made.mkdir(parents=True, exist_ok=True)
        if name.endswith("_int8"):
            write_int8(model_of(folder, name.removesuffix("_int8")), made)
        else:
            write_model(made, *MODELS[name])
    return made


def scan_of(folder: Path, slices: int) -> Path:
    """A scan, made once."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"ct_{slices}.nii.gz"
    if not path.is_file():
        write_scan(path, slices)
    return path


def warm(folder: Path, model: str, *engines: str) -> None:
    """The trials of this machine, once, beforehand."""
    os.environ["LEUDA_CACHE"] = str(folder / "cache")
    for engine in engines:
        scan, out = scan_of(folder, AGREEMENT_SLICES), folder / "warm.nii.gz"
        run_leuda(scan, model_of(folder, model), out, engine)


# --- the parts


def speed(folder: Path, slices: int) -> dict[str, Any]:
    """leuda and MONAI in turn, on the same scan with the same weights; the better of two rounds."""
    scan = scan_of(folder, slices)
    for model, engine in WAYS.values():
        warm(folder, model, engine)
    runs: dict[str, list[dict[str, Any]]] = {}
    for name in ORDER:
        out = folder / f"{name.replace(' ', '_')}.nii.gz"
        if name == "monai":
            done = run_monai(scan, model_of(folder, "five"), out)
        else:
            done = run_leuda(scan, model_of(folder, WAYS[name][0]), out, WAYS[name][1])
        runs.setdefault(name, []).append(done)
        say(f"speed, {name}: {done}")
    best = {name: min(done, key=lambda run: run["total_seconds"]) for name, done in runs.items()}
    theirs = best["monai"]
    labels = {name: read(folder / f"{name.replace(' ', '_')}.nii.gz") for name in best}
    stack = Stack(read_volume(scan), recipe())
    least = least_seconds(scan, stack, labels["leuda bf16"], MODELS["five"][0])
    return {
        "scan": f"512 x 512 x {slices} int16, {PIXEL_MM} mm pixels, network at {SPACING_MM} mm",
        "beside_monai": {
            name: {
                "times_faster": ratio(theirs, ours, "total_seconds"),
                "times_faster_with_process_start": ratio(theirs, ours, "process_seconds"),
                "peak_memory_ratio": round(ours["peak_mb"] / theirs["peak_mb"], 3),
                "labels": agreement(labels[name], labels["monai"]),
                "share_not_network": round(
                    1 - ours["seconds"]["network"] / ours["total_seconds"], 3
                ),
                "times_what_memory_or_gzip_alone_would_take": {
                    stage: round(ours["seconds"][stage] / seconds, 1)
                    for stage, seconds in least.items()
                },
            }
            for name, ours in best.items()
            if name != "monai"
        },
        "accuracy": {name: accuracy(found) for name, found in labels.items()},
        "runs": runs,
    }


def ratio(theirs: dict[str, Any], ours: dict[str, Any], figure: str) -> float:
    """How many times as much."""
    return round(theirs[figure] / ours[figure], 2)


def memory(folder: Path, _: int) -> list[dict[str, Any]]:
    """Peak memory by length of the scan and number of classes."""
    rows = []
    for classes in (5, 100):
        warm(folder, f"narrow_{classes}", "openvino")
        for count in LENGTHS:
            model, out = model_of(folder, f"narrow_{classes}"), folder / "m.nii.gz"
            run = run_leuda(scan_of(folder, count), model, out, "openvino")
            rows.append({"slices": count, "classes": classes, **run})
            say(f"memory, {count} slices, {classes} classes: {run}")
    return rows


def agree(folder: Path, _: int) -> dict[str, Any]:
    """One thing changed at a time."""
    model, scan = model_of(folder, "five"), scan_of(folder, AGREEMENT_SLICES)
    for name, engine in WAYS.values():
        warm(folder, name, engine)
    stack, slices = Stack(read_volume(scan), recipe()), folder / "slices.npy"
    np.save(slices, stack.images(0, stack.depth))
    ways: dict[str, tuple[Any, tuple[Any, ...]]] = {
        "leuda ort-cpu": (run_leuda, ("ort-cpu",)),
        "leuda openvino fp32": (run_leuda, ("openvino", "--precision", "fp32")),
        "leuda openvino bf16": (run_leuda, ("openvino",)),
        "leuda int8": (run_leuda, ("openvino",)),
        "monai": (run_monai, ()),
        "monai on leuda's slices": (run_monai, ("--images", slices)),
        "monai, default grid": (run_monai, ("--default-grid",)),
    }
    labels = {}
    for name, (way, options) in ways.items():
        given = model_of(folder, "five_int8") if name == "leuda int8" else model
        way(scan, given, folder / "agree.nii.gz", *options)
        labels[name] = read(folder / "agree.nii.gz")
        say(f"agreement, {name}: done")
    pairs = {"all, fp32": ("leuda ort-cpu", "monai"), "all": ("leuda openvino bf16", "monai")}
    return {
        "slices": AGREEMENT_SLICES,
        "by_cause": {
            cause: {"between": [a, b], **agreement(labels[a], labels[b])}
            for cause, (a, b) in (pairs | CAUSES).items()
        },
        "accuracy": {name: accuracy(found) for name, found in labels.items()},
    }


def read(path: Path) -> np.ndarray:
    """Labels (512, 512, D)."""
    return np.asarray(nib.load(path).dataobj).reshape(512, 512, -1)


def agreement(one: np.ndarray, other: np.ndarray) -> dict[str, float | None]:
    """Share of voxels with the same label, and where the others lie."""
    differ = one != other
    rim = np.zeros_like(differ)
    for axis in (0, 1):
        for shift in (-1, 1):
            rim |= np.roll(one, shift, axis) != one
    return {
        "agree": round(float(1 - differ.mean()), 6),
        "of_those_that_differ_beside_a_border": round(float(rim[differ].mean()), 4)
        if differ.any()
        else None,
        "voxels_beside_a_border": round(float(rim.mean()), 5),
    }


def accuracy(labels: np.ndarray) -> float:
    """Share of voxels whose label is the made scan's own, of every 8th slice."""
    same = [
        (labels[:, :, k] == anatomy(place(k), 512)[1].T).mean()
        for k in range(0, labels.shape[2], 8)
    ]
    return round(float(np.mean(same)), 5)


# --- the file


def machine() -> dict[str, Any]:
    """What the figures depend on."""
    text = Path("/proc/cpuinfo").read_text()
    name = next(line.split(":")[1].strip() for line in text.splitlines() if "model name" in line)
    flags = "".join(f" {flag}" for flag in ("avx512_bf16", "amx_bf16") if flag in text)
    return {
        "processor": name + flags,
        "cores": os.cpu_count(),
        "load_average_before": os.getloadavg(),
        "python": platform.python_version(),
        "versions": {package: metadata.version(package) for package in PACKAGES},
    }


def draw(result: dict[str, Any], path: Path) -> None:
    """Seconds by stage for each way, and peak memory by length of the scan."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(13, 4.5), constrained_layout=True)
    for row, (name, runs) in enumerate(result["speed"]["runs"].items()):
        best, x = min(runs, key=lambda run: run["total_seconds"]), 0.0
        for stage, seconds in best["seconds"].items():
            known = left.get_legend_handles_labels()[1]
            label = stage if stage not in known else None
            left.barh(row, seconds, left=x, color=f"C{colour(stage)}", label=label)
            x += seconds
        left.plot([best["total_seconds"]] * 2, [row - 0.4, row + 0.4], "k", lw=2)
        left.text(0, row + 0.42, f"{name}: {best['total_seconds']:.1f} s, {best['peak_mb']} MB")
    left.set_yticks([])
    left.set_xlabel("busy seconds by stage; black: end to end (stages of leuda overlap)")
    left.legend(fontsize=8)
    for classes in (5, 100):
        rows = [row for row in result["memory"] if row["classes"] == classes]
        lengths = [row["slices"] for row in rows]
        label = f"{classes} classes, measured"
        right.plot(lengths, [row["peak_mb"] for row in rows], "o-", label=label)
    least = [512 * 512 * 3 * count / 1e6 for count in lengths]
    right.plot(lengths, least, "k--", label="scan and labels alone")
    right.set(xlabel="slices of 512 x 512", ylabel="peak MB", ylim=(0, None))
    right.legend(fontsize=8)
    figure.savefig(path, dpi=110)


def colour(stage: str) -> int:
    """The same colour for the same stage in every bar."""
    order = ("read", "normalise", "resample", "prepare", "network", "labels", "inverse", "write")
    return order.index(stage) if stage in order else 9


def say(line: str) -> None:
    """Progress, on stderr."""
    print(line, file=sys.stderr, flush=True)


PARTS = {"speed": speed, "memory": memory, "agreement": agree}


def main() -> None:
    """Parse, run, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("parts", nargs="+", choices=PARTS)
    parser.add_argument("--slices", type=int, default=300)
    parser.add_argument("--folder", type=Path, default=Path("runs/benchmark_runtime"))
    asked = parser.parse_args()
    path = RESULTS / "runtime.json"
    result = json.loads(path.read_text()) if path.is_file() else {}
    result = {name: part for name, part in result.items() if name in (*PARTS, "machine")}
    for name in asked.parts:
        before = machine()
        result[name] = PARTS[name](asked.folder, asked.slices)
        result.setdefault("machine", {})[name] = before
        path.write_text(json.dumps(result, indent=1) + "\n")
    if {"speed", "memory"} <= result.keys():
        draw(result, RESULTS / "runtime.png")
    if "speed" in asked.parts:
        say(json.dumps({k: v for k, v in result["speed"].items() if k != "runs"}, indent=1))


if __name__ == "__main__":
    main()
