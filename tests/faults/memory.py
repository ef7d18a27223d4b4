"""kinds of scans and models -> what `leuda infer` said it would take, and what it took at most.

    PYTHONPATH=.:tests python -m faults.memory --save FILE

Each combination is a process of its own: told a budget that is too small, it names the least that
would do; it is run within that. What is measured is the most
that the system has seen the process hold (VmHWM), from its start to its end, files and pictures
included. Exit code 1 if a budget was passed, or a prediction is more than a quarter off.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import onnx
from faults.scans import (
    Write,
    enhanced,
    frames,
    holes,
    mha,
    nifti,
    nrrd,
    outlier,
    series,
    two_files,
)
from onnx import TensorProto, helper, numpy_helper

OFF_BY = 0.25
TRIED = "10M"  # no process is so small
# what the process held at most, written behind all else
PRELUDE = """
import atexit, os, sys
from pathlib import Path
atexit.register(lambda: Path(os.environ["PEAK_FILE"]).write_text(
    Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]))
from leuda_train.cli import main
main()
"""


@dataclass(frozen=True, kw_only=True)
class Net:
    """A network of two convolutions, and how scans are prepared for it."""

    channels: int = 1
    classes: int = 3
    spacing_mm: tuple[float, float] | str = "native"
    window: tuple[int, int] = (128, 128)
    slices: int | None = None
    slice_mm: float | str = "native"
    axis: str = "superior"
    regions: bool = False
    whole: bool = False

    def write(self, folder: Path) -> Path:
        """As a model file."""
        from support.makers import make_card

        from leuda_deploy.model.card import GraphOptions, Structure
        from leuda_deploy.model.model_file import write_model
        from leuda_deploy.model.tiling import Tiling
        from leuda_deploy.scans.recipe import Depth, Recipe

        folder.mkdir(parents=True)
        count = self.classes - (not self.regions)
        card = make_card(
            recipe=Recipe(
                slice_axis=self.axis,
                spacing_mm=self.spacing_mm,
                window=self.window,
                clip_percentiles=(0.5, 99.5),
                normalisation="minmax",
                outside="zero" if self.channels > 1 else "floor",
            ),
            structures=tuple(
                Structure(name=f"s{k}", value=k, colour=(k, 100, 200)) for k in range(1, count + 1)
            ),
            channels=tuple(f"C{k}" for k in range(self.channels)) if self.channels > 1 else (),
            options=GraphOptions(regions=self.regions),
            depth=Depth(slices=self.slices, spacing_mm=self.slice_mm) if self.slices else None,
            tiling=Tiling(),
        )
        path = folder / "model.onnx"
        write_model(self._graph(), card, path)
        return path

    def _graph(self) -> onnx.ModelProto:
        rng, sides = np.random.default_rng(0), 3 if self.slices else 2
        features = 2 if self.slices else 8
        widths, nodes, weights, name = (self.channels, features, self.classes), [], [], "windows"
        for k, (width, wider) in enumerate(pairwise(widths)):
            values = rng.normal(size=(wider, width, *(3,) * sides)) / np.sqrt(9 * width)
            weights.append(numpy_helper.from_array(values.astype(np.float32), f"w{k}"))
            after = "logits" if k else "features"
            nodes.append(helper.make_node("Conv", [name, f"w{k}"], [after], pads=[1] * 2 * sides))
            name = after
        ends = [
            helper.make_tensor_value_info(end, TensorProto.FLOAT, ["batch", count, *[None] * sides])
            for end, count in (("windows", self.channels), ("logits", self.classes))
        ]
        graph = helper.make_graph(nodes, "net", ends[:1], ends[1:], weights)
        opset = [helper.make_opsetid("", 20)]
        return helper.make_model(graph, opset_imports=opset, ir_version=10)


@dataclass(frozen=True, kw_only=True)
class Combination:
    """A scan, a model, and what is asked for besides."""

    scan: Write
    net: Net = field(default_factory=Net)
    options: tuple[str, ...] = ()


RLE = "1.2.840.10008.1.2.5"
COARSE = Net(spacing_mm=(1.6, 1.6))
FINE = Net(spacing_mm=(0.4, 0.4))
DEEP = Net(slices=16, window=(96, 96))
INT16 = nifti(np.int16)
SAGITTAL = np.diag([2.0, -0.8, 0.8, 1.0])
COMBINATIONS: dict[str, Combination] = {
    "int16": Combination(scan=INT16),
    "int16, compressed": Combination(scan=nifti(np.int16, "a.nii.gz")),
    "int16, scaled": Combination(scan=nifti(np.int16, slope=1.7)),
    "uint8": Combination(scan=nifti(np.uint8)),
    "uint16": Combination(scan=nifti(np.uint16)),
    "int32": Combination(scan=nifti(np.int32)),
    "int32 with an outlier": Combination(scan=nifti(np.int32, change=outlier)),
    "int64": Combination(scan=nifti(np.int64)),
    "float32": Combination(scan=nifti(np.float32)),
    "float32, compressed": Combination(scan=nifti(np.float32, "a.nii.gz")),
    "float32 with NaN": Combination(scan=nifti(np.float32, change=holes)),
    "float64": Combination(scan=nifti(np.float64)),
    "float64, compressed": Combination(scan=nifti(np.float64, "a.nii.gz")),
    "big endian": Combination(scan=nifti(">i2")),
    "NIfTI 2": Combination(scan=nifti(np.int16, image=nib.Nifti2Image)),
    ".hdr and .img": Combination(scan=nifti(np.int16, "a.img", image=nib.Nifti1Pair)),
    "MGZ": Combination(scan=nifti(np.int16, "a.mgz", image=nib.MGHImage)),
    "NRRD, compressed": Combination(scan=nrrd),
    "MetaImage, compressed": Combination(scan=mha),
    "DICOM": Combination(scan=series()),
    "DICOM in a zip": Combination(scan=series(zipped=True)),
    "DICOM, RLE": Combination(scan=series(RLE)),
    "DICOM, one file": Combination(scan=enhanced),
    "DICOM, tilted": Combination(scan=series(tilt=12.0)),
    "DICOM with SEG": Combination(scan=series(), options=("--dicom-seg", "OUT/s.dcm")),
    "a frame of 4D": Combination(scan=frames("a.nii"), options=("--frame", "2")),
    "a frame of 4D, compressed": Combination(scan=frames("a.nii.gz"), options=("--frame", "2")),
    "4D as channels": Combination(scan=frames("a.nii", 2), net=Net(channels=2)),
    "two files": Combination(scan=two_files, net=Net(channels=2)),
    "resampled to coarse": Combination(scan=INT16, net=COARSE),
    "resampled to fine": Combination(scan=INT16, net=FINE),
    "resampled, float64": Combination(scan=nifti(np.float64), net=COARSE),
    "sagittal": Combination(
        scan=nifti(np.int16, affine=SAGITTAL, shape=(100, 320, 320)), net=Net(axis="right")
    ),
    "3D windows": Combination(scan=INT16, net=DEEP),
    "3D windows, resampled": Combination(
        scan=nifti(np.float32),
        net=Net(slices=16, window=(96, 96), spacing_mm=(1.6, 1.6), slice_mm=3.0),
    ),
    "3D windows, many classes": Combination(
        scan=INT16, net=Net(slices=32, window=(96, 96), classes=9)
    ),
    "3D windows, deeper than the scan": Combination(
        scan=nifti(np.int16, shape=(320, 320, 20)), net=Net(slices=48, window=(96, 96), classes=9)
    ),
    "3D windows of channels": Combination(
        scan=two_files, net=Net(slices=16, window=(96, 96), channels=2)
    ),
    "30 classes": Combination(scan=INT16, net=Net(classes=31)),
    "regions": Combination(scan=INT16, net=Net(regions=True), options=("--regions", "OUT/regions")),
    "entropy map": Combination(scan=INT16, options=("--uncertainty", "OUT/u.nii.gz")),
    "batch of 8": Combination(scan=INT16, net=COARSE, options=("--batch", "8")),
}


def measure(name: str, folder: Path) -> dict[str, Any]:
    """Least budget, predicted and largest MB."""
    what = COMBINATIONS[name]
    (folder / "scan").mkdir()
    scan, model = what.scan(folder / "scan"), what.net.write(folder / "model")
    said, _ = run(what, scan, model, folder, "refused", "--max-memory", TRIED)
    found = re.search(r"--max-memory (\d+)M", said)
    if found is None:
        return {"findings": [f"names no budget: {said[-300:]}"]}
    least = int(found[1])
    said, peak = run(what, scan, model, folder, "done", "--max-memory", f"{least}M")
    report = folder / "done" / "l.json"
    if not report.is_file():
        return {"least_mb": least, "findings": [said[-300:]]}
    predicted = float(json.loads(report.read_text())["predicted_peak_mb"])
    findings = [f"took {peak:.0f} MB, told {least}"] if peak > least else []
    if abs(predicted - peak) > OFF_BY * peak:
        findings.append(f"took {peak:.0f} MB of {predicted:.0f}")
    parts = {k: int(v) for k, v in re.findall(r"(\w+) (\d+) MB", said.partition("peak ")[2])}
    return {
        "least_mb": least,
        "predicted_mb": round(predicted, 1),
        "peak_mb": round(peak, 1),
        "parts_mb": parts,
        "findings": findings,
    }


def run(
    what: Combination, scan: Path, model: Path, folder: Path, way: str, *more: str
) -> tuple[str, float]:
    """What it said, and the most MB (10^6 bytes) that it held."""
    out, peak_file = folder / way, folder / "peak"
    out.mkdir()
    peak_file.unlink(missing_ok=True)
    options = [option.replace("OUT", str(out)) for option in what.options]
    line = [sys.executable, "-c", PRELUDE, "infer", str(scan), "--model", str(model), *options]
    line += ["-o", str(out / "l.nii.gz"), "--engine", "ort-cpu", "--threads", "1", *more]
    done = subprocess.run(
        line,
        capture_output=True,
        text=True,
        check=False,
        env={
            **os.environ,
            **{"LEUDA_CACHE": str(folder / "cache"), "PEAK_FILE": str(peak_file)},
        },
    )
    peak = int(peak_file.read_text()) * 1024 / 1e6 if peak_file.is_file() else float("nan")
    return done.stderr, peak


def main() -> int:
    """Measure all combinations, print a table. 1: something was found."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", action="append", help="this combination (again and again)")
    parser.add_argument("--save", type=Path, help="results, JSON; gone on with")
    args = parser.parse_args()
    if args.save:
        args.save.parent.mkdir(parents=True, exist_ok=True)
    rows: dict[str, Any] = {}
    if args.save and args.save.is_file():
        rows = json.loads(args.save.read_text())["combinations"]
    for name in args.only or [name for name in COMBINATIONS if name not in rows]:
        with tempfile.TemporaryDirectory() as folder:
            row = rows[name] = measure(name, Path(folder))
        figures = ", ".join(f"{k} {v}" for k, v in row.items() if k != "findings")
        print(f"{name:26} {figures}", flush=True)
        for finding in row["findings"]:
            print(f"    {finding}", flush=True)
        if args.save:
            said = {"command": "python -m faults.memory", "combinations": rows}
            args.save.write_text(json.dumps(said, indent=1) + "\n")
    return int(any(row["findings"] for row in rows.values()))


if __name__ == "__main__":
    sys.exit(main())
