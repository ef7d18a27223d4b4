"""A network that nnU-Net plans and trains on phantoms -> its labels there and in leuda, beside.

    python benchmarks/neighbours/nnunet.py benchmarks/results/nnunet.json

nnU-Net takes its fingerprint, plans and preprocesses by itself; then its windows and networks are
made smaller, so that two cores train them in minutes, and its own trainer runs for some iterations.
`leuda export --from-nnunet` takes the model folder over. Held-out phantoms are labelled by
nnU-Net's predictor, and by the export in ONNX Runtime and OpenVINO, in float32.

nnU-Net's predictor sums the scores of windows in float16. So it is also asked to sum in float32:
how far it is from itself says how much of a difference is its rounding. What is in --folder already
is not made again, and with --only the other networks of the file of results stay in it.

Needs: pip install 'leuda[train,nnunet]' nnunetv2
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch

from leuda_deploy import Segmenter, Settings
from leuda_deploy.machine.files import write_json
from leuda_train.data.phantom.phantom_cohort import write_cohort

NAMES = {"MYO": 205, "LAC": 420, "LVC": 500, "AA": 820}
# data set -> its images and labels for training, and images held out
DATASETS = {
    ("Dataset901_PhantomCT", "CT"): ("ct_upper_bound", "ct_unlabelled", "ct_test"),
    ("Dataset902_PhantomMR", "MR"): ("mr_labelled", "mr_labelled", "mr_unlabelled"),
}
WINDOWS = {"2d": [64, 64], "3d_fullres": [16, 48, 48]}
ENGINES = ("ort-cpu", "openvino")
WIDTHS = [8, 16, 32, 64, 64, 64, 64]


def write_dataset(phantoms: Path, raw: Path, key: tuple[str, str]) -> list[Path]:
    """A raw data set of nnU-Net; the paths of its scans for a test."""
    name, modality = key
    labels, images, held_out = DATASETS[key]
    folder = raw / name
    if (folder / "dataset.json").is_file():
        return sorted((folder / "imagesTs").iterdir())
    for part in ("imagesTr", "labelsTr", "imagesTs"):
        (folder / part).mkdir(parents=True)
    cases = sorted((phantoms / labels).glob("*_label.nii.gz"))
    for path in cases:
        case = path.name.removesuffix("_label.nii.gz")
        image = phantoms / images / f"{case}_image.nii.gz"
        shutil.copy(image, folder / "imagesTr" / f"{case}_0000.nii.gz")
        label = nib.load(path)
        stored = np.asarray(label.dataobj)
        classes = np.zeros(stored.shape, np.uint8)
        for number, value in enumerate(NAMES.values(), start=1):
            classes[stored == value] = number
        nib.save(nib.Nifti1Image(classes, label.affine), folder / "labelsTr" / f"{case}.nii.gz")
    tests = []
    for path in sorted((phantoms / held_out).glob("*_image.nii.gz")):
        tests.append(folder / "imagesTs" / path.name.replace("_image", "_0000"))
        shutil.copy(path, tests[-1])
    dataset = {
        "channel_names": {"0": modality},
        "labels": {"background": 0, **{name: k for k, name in enumerate(NAMES, start=1)}},
        "numTraining": len(cases),
        "file_ending": ".nii.gz",
    }
    (folder / "dataset.json").write_text(json.dumps(dataset))
    return tests


def plan_and_preprocess(names: list[str], preprocessed: Path) -> None:
    """What nnU-Net does before training; then smaller windows and networks."""
    from nnunetv2.experiment_planning.plan_and_preprocess_api import (
        extract_fingerprints,
        plan_experiments,
        preprocess,
    )

    numbers = [int(name[7:10]) for name in names]
    extract_fingerprints(numbers, num_processes=1, check_dataset_integrity=True, clean=True)
    plan_experiments(numbers, gpu_memory_target_in_gb=1)
    preprocess(numbers, configurations=tuple(WINDOWS), num_processes=(1, 1))
    for name in names:
        path = preprocessed / name / "nnUNetPlans.json"
        plans = json.loads(path.read_text())
        for key, window in WINDOWS.items():
            plan = plans["configurations"][key]
            plan["patch_size"], plan["batch_size"] = window, 8 if key == "2d" else 2
            network = plan["architecture"]["arch_kwargs"]
            stages = network["n_stages"] = min(4, network["n_stages"])
            network["features_per_stage"] = WIDTHS[:stages]
            for part in ("kernel_sizes", "strides", "n_conv_per_stage"):
                network[part] = network[part][:stages]
            network["n_conv_per_stage_decoder"] = network["n_conv_per_stage_decoder"][: stages - 1]
        path.write_text(json.dumps(plans))


def train(name: str, key: str, preprocessed: Path, raw: Path, iterations: int) -> Path:
    """The model folder that nnU-Net's trainer leaves."""
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    plans = json.loads((preprocessed / name / "nnUNetPlans.json").read_text())
    dataset = json.loads((raw / name / "dataset.json").read_text())
    plans["continue_training"] = False
    os.environ |= {"nnUNet_n_proc_DA": "0"}  # its planner wants one at least
    trainer = nnUNetTrainer(plans, key, "all", dataset, device=torch.device("cpu"))
    trainer.num_epochs, trainer.num_val_iterations_per_epoch = 1, 1
    trainer.num_iterations_per_epoch = iterations
    if not (Path(trainer.output_folder) / "checkpoint_final.pth").is_file():
        trainer.run_training()
    return Path(trainer.output_folder_base)


def predictor_of(folder: Path) -> Any:
    """nnU-Net's own."""
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    predictor = nnUNetPredictor(use_mirroring=False, device=torch.device("cpu"), allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(folder), use_folds=("all",))
    return predictor


def predicted(predictor: Any, scan: Path, *, halves: bool = True) -> Any:
    """Labels (X, Y, Z) of nnU-Net's predictor."""
    from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

    image, properties = SimpleITKIO().read_images([str(scan)])
    kept = torch.half
    torch.half = kept if halves else torch.float32
    try:
        labels = predictor.predict_single_npy_array(image, properties)
    finally:
        torch.half = kept
    return np.asarray(labels).transpose(2, 1, 0)


def compare(folder: Path, scans: list[Path], export: Path) -> list[dict[str, Any]]:
    """A row for each scan. Nothing is mirrored: that takes both eight times as long in 3D."""
    prove = [word for scan in scans[:2] for word in ("--prove", str(scan))]
    command = [*(sys.executable, "-m", "leuda_train", "export"), "--from-nnunet", str(folder)]
    if not export.is_dir():
        subprocess.run([*command, "-o", str(export), *prove], check=True)
    predictor = predictor_of(folder)
    ways = {
        engine: Segmenter(export, Settings(engine=engine, precision="fp32", threads=1))
        for engine in ENGINES
    }
    rows = []
    for scan in scans:
        began = time.perf_counter()
        theirs = predicted(predictor, scan)
        seconds = {"nnunet": time.perf_counter() - began}
        in_float32 = predicted(predictor, scan, halves=False)
        row: dict[str, Any] = {
            "scan": scan.name,
            "voxels": theirs.size,
            "labelled": float((theirs > 0).mean()),
            "nnunet_beside_itself_in_float32": float((theirs == in_float32).mean()),
        }
        for engine, segmenter in ways.items():
            began = time.perf_counter()
            ours = segmenter(scan).labels
            seconds[engine] = time.perf_counter() - began
            row[engine] = {
                "as_nnunet": float((ours == theirs).mean()),
                "as_nnunet_in_float32": float((ours == in_float32).mean()),
            }
        rows.append({**row, "seconds": {way: round(took, 2) for way, took in seconds.items()}})
        print(json.dumps(rows[-1]), flush=True)
    return rows


def measure(
    folder: Path, iterations: int, only: str, found: dict[str, Any]
) -> Iterator[dict[str, Any]]:
    """Train and compare each configuration of each data set; what is known after each.

    only   of which models, as part of their name
    found  of models that were measured before
    """
    raw, preprocessed, results = (folder / part for part in ("raw", "pre", "results"))
    os.environ |= {
        "nnUNet_raw": str(raw),
        "nnUNet_preprocessed": str(preprocessed),
        "nnUNet_results": str(results),
        "nnUNet_n_proc_DA": "1",
        "nnUNet_compile": "f",
    }
    phantoms = folder / "phantoms"
    if not phantoms.is_dir():
        write_cohort(
            phantoms, source_labelled=4, source_unlabelled=2, target_unlabelled=4, target_test=2
        )
    scans = {name: write_dataset(phantoms, raw, (name, kind)) for name, kind in DATASETS}
    if not list(preprocessed.glob("*/nnUNetPlans.json")):
        plan_and_preprocess([*scans], preprocessed)
    for name, tests in scans.items():
        for key in WINDOWS:
            if only not in f"{name} {key}":
                continue
            began = time.perf_counter()
            model = train(name, key, preprocessed, raw, iterations)
            took = time.perf_counter() - began
            rows = compare(model, tests, folder / "exports" / f"{name}_{key}")
            found[f"{name} {key}"] = {
                "iterations": iterations,
                "train_seconds": round(took, 1),
                "scans": rows,
            }
            found = dict(sorted(found.items()))
            yield {"least": least_alike(found), "models": found}


def least_alike(models: dict[str, Any]) -> dict[str, float]:
    """The smallest share of voxels that have the same label, over all scans and engines."""
    rows = [row for model in models.values() for row in model["scans"]]
    beside_itself = "nnunet_beside_itself_in_float32"
    return {
        what: min(row[engine][what] for row in rows for engine in ENGINES)
        for what in ("as_nnunet", "as_nnunet_in_float32")
    } | {beside_itself: min(row[beside_itself] for row in rows)}


def main() -> None:
    """Measure and keep."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--iterations", type=int, default=100)
    parser.add_argument("--note", default="", help="what else is to be known of the machine")
    parser.add_argument("--folder", type=Path, help="keep all files here")
    parser.add_argument("--only", default="", help='networks whose name has this, e.g. "CT 3d"')
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    packages = ("leuda", "torch", "nnunetv2", "onnxruntime-gpu", "openvino")
    head = {
        "command": f"python benchmarks/neighbours/nnunet.py {args.out}",
        "machine": f"{os.cpu_count()} cores, {args.note}".rstrip(", "),
        "versions": {name: version(name) for name in packages},
    }
    before = json.loads(args.out.read_text()) if args.only and args.out.is_file() else {}
    if before and before["versions"] != head["versions"]:
        parser.error(f"{args.out} is of other versions: name another file, or leave --only out")
    with tempfile.TemporaryDirectory(prefix="leuda-nnunet-") as temporary:
        folder, models = args.folder or Path(temporary), before.get("models", {})
        for found in measure(folder, args.iterations, args.only, models):
            write_json(args.out, {**head, **found})
    print(json.dumps(found["least"], indent=1))


if __name__ == "__main__":
    main()
