"""runs -> how exports agree with PyTorch, their size and speed, by precision and engine.

    python benchmarks/export_matrix.py --run "teacher through translator=runs/le-uda" \
        --run "edge-sized=runs/edge" --cohort COHORT.toml

Every export goes through the gate of `leuda export`; one that is refused stands there with the
gate's line. By engine: what the gate found between it and PyTorch fp32, and latency beside PyTorch
fp32, all engines taking turns in the same process so that a busy machine slows them alike. With a
cohort, Dice on its test scans. About two minutes a run on two idle cores. Writes
benchmarks/results/export_matrix.json and prints one line of JSON last.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch

from leuda_deploy.engines.onnx_runtime import OnnxEngine
from leuda_deploy.engines.openvino import OpenVinoEngine
from leuda_deploy.errors import LeudaError
from leuda_deploy.inference.segment import segment
from leuda_deploy.inference.slabs import Scoring
from leuda_deploy.machine.files import atomic_path
from leuda_deploy.model.card import Precision
from leuda_deploy.model.export_folder import MODEL_FILE
from leuda_deploy.model.model_file import ModelFile
from leuda_deploy.scans.nifti import write_labels
from leuda_deploy.scans.stack import Stack
from leuda_deploy.scans.volume import read_volume
from leuda_train.data.cohort import Cohort, read_cohort
from leuda_train.evaluation.label_files import evaluate_pairs
from leuda_train.export.export_run import export_run, run_probes
from leuda_train.export.product_file import load_product
from leuda_train.loop.hardware import Hardware
from leuda_train.networks.product import TorchEngine

RESULT = Path(__file__).parent / "results" / "export_matrix.json"
FIGURES = ("max_abs", "mean_abs", "disagreement", "class_dice")
ENGINES: dict[str, Callable[[Path, int], Any]] = {
    "ONNX Runtime CPU": lambda folder, threads: OnnxEngine(ModelFile.open(folder), threads=threads),
    # "fp32" leaves the graph its own precision
    "OpenVINO CPU": lambda folder, threads: OpenVinoEngine(
        ModelFile.open(folder), precision="fp32", threads=threads
    ),
}


def measure(name: str, run: Path, cohort: Cohort | None, rounds: int, batch: int) -> dict[str, Any]:
    """All precisions and engines of one run."""
    product, facts, _ = load_product(run)
    reference = TorchEngine(product, Hardware(torch.device("cpu"), "fp32"))
    probes = run_probes(run)
    rows: dict[str, dict[str, Any]] = {}
    engines: dict[tuple[str, str], Any] = {}
    with tempfile.TemporaryDirectory() as temporary:
        for precision in get_args(Precision):
            say(f"{name}: {precision}")
            folder = Path(temporary) / precision
            try:
                export_run(run, folder, precision=precision)
            except LeudaError as error:
                rows[precision] = {"refused": str(error)}
                continue
            proof = json.loads((folder / "parity.json").read_text())
            rows[precision] = {
                "file_mb": round((folder / MODEL_FILE).stat().st_size / 1e6, 3),
                "int8_layers": len(proof.get("int8_layers", [])),
                "lifted_layers": proof.get("lifted_layers", []),
                "engines": {},
            }
            for title, open_one in ENGINES.items():
                try:
                    engine = engines[precision, title] = open_one(folder, torch.get_num_threads())
                except LeudaError as error:
                    refusal = str(error).replace(str(folder), "the model")
                    rows[precision]["engines"][title] = {"refused": refusal}
                    continue
                row = proven(proof, f"{title} {precision}")
                if cohort is not None:
                    row["test_dice"] = test_dice(engine, cohort)
                rows[precision]["engines"][title] = row
    say(f"{name}: latency")
    windows = np.ascontiguousarray(
        np.concatenate([probes.windows[: probes.real]] * 8)[:batch], dtype=np.float32
    )
    times = interleaved({("torch", "fp32"): reference, **engines}, windows, rounds)
    torch_ms = times["torch", "fp32"]
    for (precision, title), found in times.items():
        if precision != "torch":
            row, base = rows[precision]["engines"][title], rows["fp32"]["engines"][title]
            row |= {"latency_ms": found, "times_pytorch": round(torch_ms["p50"] / found["p50"], 3)}
            row["times_fp32_same_engine"] = round(times["fp32", title]["p50"] / found["p50"], 3)
            if cohort is not None:
                row["dice_lost"] = round(base["test_dice"] - row["test_dice"], 5)
    return {
        "model": name,
        "feed": facts.feed,
        "network": f"{facts.network} of {facts.method}",
        "widths": facts.widths,
        "parameters": sum(p.numel() for p in product.parameters()),
        "window": facts.recipe.window,
        "batch": batch,
        "pytorch_fp32_ms": torch_ms,
        "precisions": rows,
    }


def proven(proof: dict[str, Any], engine: str) -> dict[str, Any]:
    """What the gate found between this engine and PyTorch fp32."""
    (stage,) = [stage for stage in proof["stages"] if stage["stage"].endswith(engine)]
    return {key: stage[key] for key in FIGURES}


def say(line: str) -> None:
    """Progress, for people."""
    print(line, file=sys.stderr, flush=True)


def test_dice(engine: Any, cohort: Cohort) -> float:
    """Mean Dice over the structures on the cohort's labelled target test scans."""
    names = {number: name for name, number in cohort.structures.items()}
    pairs, spacing_mm = {}, {}
    with tempfile.TemporaryDirectory() as temporary:
        for scan in cohort.role("target test"):
            assert scan.label is not None
            volume, recipe = read_volume(scan.image), engine.card.recipe
            stack = Stack(volume, recipe, pixel_spacing_mm=scan.pixel_spacing_mm)
            labels = segment(stack, engine, Scoring(tiling=engine.card.tiling)).labels
            path = Path(temporary) / f"{scan.subject}.nii.gz"
            write_labels(path, labels, volume, names)
            pairs[scan.subject] = path, scan.label
            spacing_mm[scan.subject] = stack.voxel_spacing_mm
        report = evaluate_pairs(
            pairs,
            structures=cohort.structures,
            map_true=cohort.spec.class_of_raw("target"),
            spacing_mm=spacing_mm,
        )
    return round(float(report["summary"]["as_predicted"]["mean"]["dice"]), 5)


def interleaved(
    engines: dict[tuple[str, str], Any], windows: np.ndarray, rounds: int
) -> dict[tuple[str, str], dict[str, float]]:
    """Milliseconds a call, p10, p50 and p90; engines take turns, three warm-up rounds first."""
    taken: dict[tuple[str, str], list[float]] = {key: [] for key in engines}
    for turn in range(rounds + 3):
        for key, engine in engines.items():
            began = time.perf_counter()
            engine(windows)
            if turn >= 3:
                taken[key].append(1e3 * (time.perf_counter() - began))
    return {
        key: {f"p{q}": round(float(np.percentile(values, q)), 2) for q in (10, 50, 90)}
        for key, values in taken.items()
    }


def machine() -> dict[str, Any]:
    """What the figures were measured on and with."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    cpu = next((x.split(":")[1].strip() for x in lines if x.startswith("model name")), "")
    packages = ("torch", "onnxruntime-gpu", "onnxruntime", "openvino", "onnx")
    versions = {}
    for package in packages:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    threads = torch.get_num_threads()
    return {
        "cpu": cpu or platform.processor(),
        "cores": os.cpu_count(),
        "threads": threads,
        "load_average": [round(value, 2) for value in os.getloadavg()],
        "date": time.strftime("%Y-%m-%d"),
        "versions": versions,
    }


def main() -> None:
    """Parse, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", action="append", required=True, metavar="NAME=RUN")
    parser.add_argument("--cohort", type=Path, help="cohort.toml with target test scans")
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1, help="of every engine and of PyTorch")
    parser.add_argument("--out", type=Path, default=RESULT)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    cohort = read_cohort(given.cohort) if given.cohort else None
    result: dict[str, Any] = {"machine": machine(), "rounds": given.rounds, "models": []}
    if cohort is not None:
        result["cohort"] = {"name": cohort.spec.name, "scans": len(cohort.role("target test"))}
    for text in given.run:
        name, _, run = text.partition("=")
        result["models"].append(measure(name, Path(run), cohort, given.rounds, given.batch))
    with atomic_path(given.out) as temporary:
        temporary.write_text(json.dumps(result, indent=1, allow_nan=False))
    print(json.dumps({"wrote": str(given.out), "models": len(result["models"])}))


if __name__ == "__main__":
    main()
