"""`leuda infer` beside a MONAI pipeline; peak memory by scan length and classes; time by stage.

    python benchmarks/runtime.py [--rounds 2] [--slices 300]

One U-Net (32 to 512 channels) is fitted to a made CT with four structures, so that its labels mean
something, and saved for both: as a leuda model file and as torch weights. Then, in
turn and each in a process of its own: the `leuda` command, and MONAI's transforms with PyTorch
(LoadImage, Orientation, Spacing, SliceInferer = sliding_window_inference for a 2D network, inverse,
save), on the same .nii.gz. Writes benchmarks/results/runtime.json and runtime.png.
Needs: pip install 'leuda[train,openvino,dev]' monai
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

from leuda_deploy.memory import peak_bytes

RESULTS = Path(__file__).parent / "results"
WINDOW, SPACING_MM, PIXEL_MM = 256, 1.5, 0.75
PACKAGES = ("leuda", "torch", "monai", "openvino", "onnxruntime-gpu", "numpy", "nibabel", "isal")
NARROW = (8, 16, 32, 64, 128)  # for the memory runs, where the network's time is of no interest
WIDTHS = (32, 64, 128, 256, 512)
STRUCTURES = ("liver", "spleen", "kidney", "vertebra")
# centre (x, y) and radius as shares of the plane, and Hounsfield units, of body and structures
DISCS = (
    (0.50, 0.50, 0.42, 20.0),
    (0.36, 0.42, 0.14, 110.0),
    (0.68, 0.40, 0.09, 160.0),
    (0.60, 0.64, 0.06, 220.0),
    (0.48, 0.70, 0.05, 400.0),
)


# --- what both are given


def ct_slice(
    z: float, size: int, rng: np.random.Generator, noise: float = 20.0
) -> tuple[np.ndarray, np.ndarray]:
    """One axial slice (size, size) in Hounsfield units, and its labels; z goes round at 1."""
    y, x = np.mgrid[:size, :size] / size
    image, labels = np.full((size, size), -1000.0), np.zeros((size, size), np.uint8)
    for k, (cx, cy, radius, value) in enumerate(DISCS):
        swell = 1 + 0.25 * np.sin(2 * np.pi * (z + 0.17 * k)) * (k > 0)
        wave = 1 + 0.12 * np.sin(5 * np.arctan2(y - cy, x - cx) + 6.3 * z + k)
        inside = np.hypot(x - cx, y - cy) < radius * swell * wave
        image[inside], labels[inside] = value, k
    return image + rng.normal(0, noise, image.shape), labels


def write_scan(path: Path, slices: int) -> None:
    """A CT of 512 x 512 x slices int16, axial, as scanners store it (LPS)."""
    rng = np.random.default_rng(0)
    voxels = np.empty((512, 512, slices), np.int16, order="F")
    for k in range(slices):
        voxels[:, :, k] = ct_slice(k / 150, 512, rng)[0].T.round()
    affine = np.diag([-PIXEL_MM, -PIXEL_MM, 1.0, 1.0])
    nib.save(nib.Nifti1Image(voxels, affine), path)


def fit_network(classes: int, widths: tuple[int, ...], slices: int) -> Any:
    """A U-Net of random weights whose output layer is fitted to the structures (slices > 0).

    Least squares on the last decoder features: labels that mean something, in seconds, at the cost
    of a trained network of this size.
    """
    import torch

    from leuda_train.unet import UNet

    torch.manual_seed(0)
    network, rng = UNet(classes, widths, (0.0,) * 5), np.random.default_rng(1)
    if slices == 0:
        return network.eval()
    # slices as the recipe makes them: averaged 2 x 2 pixels have half the noise; -1 to 1
    pairs = [ct_slice(k / slices, WINDOW, rng, noise=10.0) for k in range(slices)]
    images = np.stack([(np.clip(image, -1040, 420) + 310) / 730 for image, _ in pairs])
    norms = [layer for layer in network.modules() if isinstance(layer, torch.nn.BatchNorm2d)]
    with torch.no_grad():
        for layer in norms:
            layer.momentum = None  # a plain mean over the slices
            layer.bias.uniform_(-1.5, 1.5)  # kinks all over the range of intensities
        for image in images:
            network(torch.from_numpy(image).float()[None, None])
        network.eval()
        normal = torch.zeros(9 * widths[0] + 1, 9 * widths[0] + 1, dtype=torch.float64)
        wanted = torch.zeros(9 * widths[0] + 1, classes, dtype=torch.float64)
        for image, (_, labels) in zip(images, pairs, strict=True):
            _, features = network(torch.from_numpy(image).float()[None, None])
            patches = torch.nn.functional.unfold(features[-1], 3, padding=1)[0].T.double()
            patches = torch.cat([patches, torch.ones(len(patches), 1, dtype=torch.float64)], 1)
            truth = torch.nn.functional.one_hot(
                torch.from_numpy(labels).long().ravel(), classes
            ).double()
            weight = 1 / (truth @ (truth.sum(0) + 100))[:, None]  # classes count alike
            normal += patches.T @ (weight * patches)
            wanted += patches.T @ (weight * truth)
        ridge = 1e-6 * torch.eye(len(normal), dtype=torch.float64) * normal.diagonal().mean()
        solution = 20 * torch.linalg.solve(normal + ridge, wanted)
        network.output.weight.copy_(solution[:-1].T.reshape(classes, widths[0], 3, 3))
        network.output.bias.copy_(solution[-1])
    return network


def write_model(folder: Path, classes: int, widths: tuple[int, ...], slices: int) -> None:
    """The same weights as a leuda model file and as torch.save writes them."""
    import torch

    from leuda_deploy.card import PALETTE, ModelCard, Provenance, Structure
    from leuda_deploy.model_file import MODEL_FILE
    from leuda_deploy.recipe import Recipe
    from leuda_deploy.to_onnx import to_onnx
    from leuda_train.product import Product

    network = fit_network(classes, widths, slices)
    names = STRUCTURES if classes == 5 else tuple(f"structure {k}" for k in range(1, classes))
    card = ModelCard(
        name=folder.name,
        modality="CT",
        recipe=Recipe(
            slice_axis="superior",
            spacing_mm=(SPACING_MM, SPACING_MM),
            window=(WINDOW, WINDOW),
            clip_percentiles=(0.5, 99.5),
            normalisation="minmax",
        ),
        structures=tuple(
            Structure(name=name, value=k, colour=PALETTE[k % len(PALETTE)])
            for k, name in enumerate(names, start=1)
        ),
        feed="target",
        opset=20,
        licence="MIT",
        sha256="",
        provenance=Provenance(
            method="benchmark",
            network="unet",
            cohort="made",
            cohort_sha256="",
            config={},
            seed=0,
            steps=0,
            created="",
            versions={},
        ),
    )
    to_onnx(Product(network, None), card, folder / MODEL_FILE)
    torch.save(network.state_dict(), folder / "network.pt")


# --- the two ways


def run_leuda(scan: Path, model: Path, out: Path, engine: str) -> dict[str, Any]:
    """The `leuda infer` command as users call it."""
    command = [sys.executable, "-m", "leuda_deploy", "infer", scan, "--model", model, "-o", out]
    return measured([*command, "--engine", engine, "--no-overlay", "--json"])


def run_monai(scan: Path, model: Path, out: Path) -> dict[str, Any]:
    """The pipeline below, in a process of its own."""
    return measured([sys.executable, __file__, "--monai", scan, model, out])


def measured(command: list[Any]) -> dict[str, Any]:
    """The last JSON that a command prints, with its wall time and peak memory."""
    began = time.perf_counter()
    said = subprocess.run(
        [str(part) for part in command], stdout=subprocess.PIPE, text=True, check=True
    ).stdout
    wall = time.perf_counter() - began
    report = json.loads(said[said.index("{") :])
    return {
        "process_seconds": round(wall, 2),
        "total_seconds": round(report["total_seconds"], 2),
        "peak_mb": round(report["peak_memory_mb"]),
        "seconds": {name: round(s, 3) for name, s in report["seconds"].items()},
        "engine": report["engine"],
        "predicted_peak_mb": report.get("predicted_peak_mb"),
    }


def monai_pipeline(scan: Path, model: Path, out: Path) -> None:
    """What a MONAI bundle does: transforms, PyTorch, inverse of the scores, argmax, save."""
    import monai.transforms as mt
    import torch
    from monai.data import decollate_batch
    from monai.inferers import SliceInferer

    from leuda_train.unet import UNet

    network = UNet(5, WIDTHS, (0.0,) * 5)
    network.load_state_dict(torch.load(model / "network.pt", weights_only=True))
    network.eval()
    seconds: dict[str, float] = {}
    began = last = time.perf_counter()

    def lap(name: str) -> None:
        nonlocal last
        seconds[name] = time.perf_counter() - last
        last = time.perf_counter()

    data = mt.LoadImaged("image", ensure_channel_first=True)({"image": scan})
    lap("read")
    prepare = mt.Compose(
        [
            mt.Orientationd("image", axcodes="LPS"),
            mt.ScaleIntensityRangePercentilesd("image", 0.5, 99.5, -1, 1, clip=True),
            mt.Spacingd("image", pixdim=(SPACING_MM, SPACING_MM, -1), mode="bilinear"),
        ]
    )
    data = prepare(data)
    lap("prepare")
    # the network reads rows down and columns across; MONAI's arrays are x first
    inferer = SliceInferer(spatial_dim=2, roi_size=(WINDOW, WINDOW), sw_batch_size=8, overlap=0.5)
    with torch.no_grad():
        batch = data["image"][None]
        batched = inferer(batch, lambda x: network(x.transpose(-1, -2))[0].transpose(-1, -2))
    data["pred"] = decollate_batch(batched)[0]
    lap("network")
    finish = mt.Compose(
        [
            mt.Invertd("pred", prepare, orig_keys="image", nearest_interp=False),
            mt.AsDiscreted("pred", argmax=True),
        ]
    )
    data = finish(data)
    lap("inverse")
    folder = out.parent / out.name.removesuffix(".nii.gz")
    mt.SaveImage(
        folder, output_postfix="", separate_folder=False, output_dtype=np.uint8, print_log=False
    )(data["pred"])
    lap("write")
    next(folder.iterdir()).rename(out)
    total = time.perf_counter() - began
    engine = f"MONAI {metadata.version('monai')}, PyTorch eager fp32"
    peak = (peak_bytes() or 0) / 1e6
    said = {"total_seconds": total, "seconds": seconds, "engine": engine, "peak_memory_mb": peak}
    print(json.dumps(said))


# --- the study


def agreement(a: Path, b: Path) -> dict[str, Any]:
    """Share of voxels with the same label, and where the others lie."""
    one, other = (np.asarray(nib.load(path).dataobj).reshape(512, 512, -1) for path in (a, b))
    differ = one != other
    rim = np.zeros_like(differ)
    for axis in (0, 1):  # within two pixels of a border between labels
        for shift in (-2, -1, 1, 2):
            rim |= np.roll(one, shift, axis) != one
    return {
        "agree": float(1 - differ.mean()),
        "of_those_that_differ_within_2_pixels_of_a_border": float(rim[differ].mean()),
        "labels_seen": np.unique(one).tolist(),
    }


def accuracy(path: Path) -> float:
    """Share of voxels whose label is the made scan's own."""
    rng, labels = np.random.default_rng(0), np.asarray(nib.load(path).dataobj)
    some = range(0, labels.shape[2], 30)
    return float(
        np.mean(
            [
                (labels[:, :, k].reshape(512, 512) == ct_slice(k / 150, 512, rng)[1].T).mean()
                for k in some
            ]
        )
    )


def prepare(folder: Path, slices: int) -> dict[int, Path]:
    """Models and scans, made once; the scans by their number of slices."""
    models = (
        ("five", 5, WIDTHS, 6),
        ("narrow_5", 5, NARROW, 0),
        ("narrow_100", 100, NARROW, 0),
    )
    for name, classes, widths, count in models:
        if not (folder / name / "network.pt").is_file():
            (folder / name).mkdir(parents=True, exist_ok=True)
            write_model(folder / name, classes, widths, count)
    scans = {}
    for count in sorted({100, slices, 300, 900}):
        scans[count] = folder / f"ct_{count}.nii.gz"
        if not scans[count].is_file():
            write_scan(scans[count], count)
    os.environ["LEUDA_CACHE"] = str(folder / "cache")
    for name, engine in (
        ("five", "openvino"), ("five", "ort-cpu"), ("narrow_5", "openvino"),
        ("narrow_100", "openvino"),
    ):  # fmt: skip
        # the trials of this machine, once, beforehand
        run_leuda(scans[100], folder / name, folder / "warm.nii.gz", engine)
    return scans


def memory(folder: Path, scans: dict[int, Path]) -> list[dict[str, Any]]:
    """Peak memory by length of the scan and number of classes."""
    rows = []
    for count in (100, 300, 900):
        for classes in (5, 100):
            model, out = folder / f"narrow_{classes}", folder / "m.nii.gz"
            run = run_leuda(scans[count], model, out, "openvino")
            rows.append({"slices": count, "classes": classes, **run})
            print(f"memory {count} {classes}: {rows[-1]}", file=sys.stderr)
    return rows


def compare(folder: Path, scan: Path, rounds: int) -> dict[str, Any]:
    """leuda and MONAI in turn, on the same scan with the same weights."""
    model = folder / "five"
    before = os.getloadavg()
    runs: dict[str, list[dict[str, Any]]] = {"leuda openvino": [], "leuda ort-cpu": [], "monai": []}
    for turn in range(rounds):
        for name in runs:
            if name == "leuda ort-cpu" and turn > 0:
                continue  # for comparison only
            out = folder / f"{name.replace(' ', '_')}.nii.gz"
            if name == "monai":
                runs[name].append(run_monai(scan, model, out))
            else:
                runs[name].append(run_leuda(scan, model, out, name.split()[1]))
            print(f"round {turn} {name}: {runs[name][-1]}", file=sys.stderr)
    best = {name: min(done, key=lambda run: run["total_seconds"]) for name, done in runs.items()}
    ours, theirs = best["leuda openvino"], best["monai"]
    labels = {name: folder / f"{name.replace(' ', '_')}.nii.gz" for name in runs}
    pairs = (
        ("leuda openvino", "monai"),
        ("leuda ort-cpu", "monai"),
        ("leuda openvino", "leuda ort-cpu"),
    )
    return {
        "times_faster_than_monai": round(theirs["total_seconds"] / ours["total_seconds"], 2),
        "peak_memory_ratio_to_monai": round(ours["peak_mb"] / theirs["peak_mb"], 3),
        "share_not_network": round(1 - ours["seconds"]["network"] / ours["total_seconds"], 3),
        "accuracy": {name: accuracy(path) for name, path in labels.items()},
        "agreement": {f"{a} / {b}": agreement(labels[a], labels[b]) for a, b in pairs},
        "runs": runs,
        "scan": f"{scan.name}: 512 x 512, {PIXEL_MM} mm pixels, network at {SPACING_MM} mm",
        "machine": {
            "processor": processor(),
            "cores": os.cpu_count(),
            "load_average_before": before,
            "python": platform.python_version(),
        },
        "versions": {package: metadata.version(package) for package in PACKAGES},
    }


def processor() -> str:
    """The processor's name and what of it matters here."""
    text = Path("/proc/cpuinfo").read_text()
    name = next(line.split(":")[1].strip() for line in text.splitlines() if "model name" in line)
    return name + "".join(f" {flag}" for flag in ("avx512_bf16", "amx_bf16") if flag in text)


def draw(result: dict[str, Any], path: Path) -> None:
    """Seconds by stage for each way, and peak memory by length of the scan."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(13, 4.5), constrained_layout=True)
    for row, runs in enumerate(result["runs"].values()):
        best, x = min(runs, key=lambda run: run["total_seconds"]), 0.0
        for stage, seconds in best["seconds"].items():
            known = left.get_legend_handles_labels()[1]
            label = stage if stage not in known else None
            left.barh(row, seconds, left=x, color=f"C{colour(stage)}", label=label)
            x += seconds
        left.plot([best["total_seconds"]] * 2, [row - 0.4, row + 0.4], "k", lw=2)
        left.text(best["total_seconds"], row + 0.42, f"{best['total_seconds']:.1f} s", ha="center")
    left.set_yticks(range(len(result["runs"])), list(result["runs"]))
    left.set_xlabel("busy seconds by stage; black: end to end (stages of leuda overlap)")
    left.legend(fontsize=8)
    for classes in (5, 100):
        rows = [row for row in result["memory"] if row["classes"] == classes]
        right.plot(
            [r["slices"] for r in rows],
            [r["peak_mb"] for r in rows],
            "o-",
            label=f"{classes} classes, measured",
        )
    least = [512 * 512 * 3 * row["slices"] / 1e6 for row in rows]
    right.plot([row["slices"] for row in rows], least, "k--", label="scan and labels alone")
    right.set(xlabel="slices of 512 x 512", ylabel="peak MB", ylim=(0, None))
    right.legend(fontsize=8)
    figure.savefig(path, dpi=110)


def colour(stage: str) -> int:
    """The same colour for the same stage in every bar."""
    order = ("read", "normalise", "resample", "prepare", "network", "labels", "inverse", "write")
    return order.index(stage) if stage in order else 9


def main() -> None:
    """Parse, run, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--monai", nargs=3, type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--slices", type=int, default=300)
    parser.add_argument("--folder", type=Path, default=Path("runs/benchmark_runtime"))
    asked = parser.parse_args()
    if asked.monai:
        monai_pipeline(*asked.monai)
        return
    scans = prepare(asked.folder, asked.slices)
    result = compare(asked.folder, scans[asked.slices], asked.rounds)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "runtime.json").write_text(json.dumps(result, indent=1) + "\n")
    result["memory"] = memory(asked.folder, scans)
    (RESULTS / "runtime.json").write_text(json.dumps(result, indent=1) + "\n")
    draw(result, RESULTS / "runtime.png")
    print(json.dumps({k: v for k, v in result.items() if k not in ("runs", "memory")}, indent=1))


if __name__ == "__main__":
    main()
