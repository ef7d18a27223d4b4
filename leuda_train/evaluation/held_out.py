"""product + test scans -> their labels and scores, and what an oracle would have chosen.

The labels of the test scans are read here alone, when all that is trained and chosen is done.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from leuda_deploy.inference.segment import segment
from leuda_deploy.machine.progress import Progress
from leuda_deploy.scans.nifti import write_labels
from leuda_deploy.scans.recipe import Recipe
from leuda_deploy.scans.stack import Stack
from leuda_deploy.scans.volume import read_volume
from leuda_train.data.cohort import Cohort
from leuda_train.evaluation.scores import evaluate_pairs
from leuda_train.loop.hardware import Hardware
from leuda_train.networks.product import DeployedNetwork, TorchEngine


def evaluate_product(
    product: DeployedNetwork,
    cohort: Cohort,
    recipe: Recipe,
    hardware: Hardware,
    out: Path,
    progress: Progress,
) -> dict[str, Any]:
    """Every test scan through the runtime's own pipeline, with the module as its engine.

    Writes out/predictions/SUBJECT_label.nii.gz; returns what `evaluate_pairs` does.
    """
    engine = TorchEngine(product, hardware)
    names = {number: name for name, number in cohort.structures.items()}
    scans = cohort.role("target test")
    pairs, spacing_mm = {}, {}
    for done, scan in enumerate(scans, start=1):
        assert scan.label is not None
        volume = read_volume(scan.image)
        stack = Stack(volume, recipe, pixel_spacing_mm=scan.pixel_spacing_mm)
        found = segment(stack, engine).labels
        path = out / "predictions" / f"{scan.subject}_label.nii.gz"
        write_labels(path, found, volume, names)
        pairs[scan.subject], spacing_mm[scan.subject] = (path, scan.label), stack.voxel_spacing_mm
        progress(done, len(scans), scan.subject)
    return evaluate_pairs(
        pairs,
        structures=cohort.structures,
        map_true=cohort.spec.class_of_raw("target"),
        spacing_mm=spacing_mm,
    )


def oracle(
    products: Mapping[str, DeployedNetwork],
    evaluation: Mapping[str, Any],
    cohort: Cohort,
    recipe: Recipe,
    hardware: Hardware,
    out: Path,
    progress: Progress,
) -> dict[str, Any]:
    """What a choice by test labels would have been: the price of choosing without them.

    Among what was chosen and every network in use after the last epoch. Only ever reported.
    """
    dice = {"chosen": evaluation["summary"]["as_predicted"]["mean"]["dice"]}
    for name, product in products.items():
        found = evaluate_product(product, cohort, recipe, hardware, out / "oracle" / name, progress)
        dice[name] = found["summary"]["as_predicted"]["mean"]["dice"]
    shutil.rmtree(out / "oracle")
    # no Dice at all where no test scan has a structure, nor a prediction
    best = max(dice, key=lambda name: -1.0 if dice[name] is None else dice[name])
    return {"network": best, "dice": dice[best], "all": dice}
