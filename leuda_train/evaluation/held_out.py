"""products + test scans -> their labels and scores, and what an oracle would have chosen.

The labels of the test scans are read here alone, when all that is trained and chosen is done.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from leuda_deploy.inference.segment import segment
from leuda_deploy.inference.slabs import Scoring
from leuda_deploy.machine.progress import Progress
from leuda_deploy.model.card import Pieces
from leuda_deploy.model.refine import AS_PREDICTED, Refine
from leuda_deploy.scans.nifti import write_labels
from leuda_deploy.scans.recipe import Recipe
from leuda_deploy.scans.stack import Stack
from leuda_deploy.scans.volume import read_volume
from leuda_train.data.cohort import Cohort
from leuda_train.evaluation.label_files import evaluate_pairs
from leuda_train.loop.hardware import Hardware
from leuda_train.networks.product import DeployedNetwork, TorchEngine

Row = dict[str, Any]
MEANS = ("dice", "assd_mm", "paper_assd_voxels")


@dataclass(frozen=True)
class HeldOut:
    """The test scans of a cohort, and how they are scored."""

    cohort: Cohort
    recipe: Recipe
    hardware: Hardware
    refine: Refine = AS_PREDICTED  # what is done to probabilities before labels are taken

    def evaluate(
        self,
        network: DeployedNetwork,
        predictions: Path,
        progress: Progress,
        clean_up: Mapping[int, Pieces] | None = None,
    ) -> dict[str, Any]:
        """Every test scan through the runtime's own pipeline, with the module as its engine.

        Writes PREDICTIONS/SUBJECT_label.nii.gz; returns what `evaluate_pairs` does.
        """
        engine = TorchEngine(network, self.hardware)
        names = {number: name for name, number in self.cohort.structures.items()}
        scans = self.cohort.role("target test")
        pairs: dict[str, tuple[Path, Path]] = {}
        spacing_mm = {}
        for done, scan in enumerate(scans, start=1):
            assert scan.label is not None
            volume = read_volume(scan.image)
            stack = Stack(volume, self.recipe, pixel_spacing_mm=scan.pixel_spacing_mm)
            found = segment(stack, engine, Scoring(refine=self.refine)).labels
            path = predictions / f"{scan.subject}_label.nii.gz"
            write_labels(path, found, volume, names)
            pairs[scan.subject] = (path, scan.label)
            spacing_mm[scan.subject] = stack.voxel_spacing_mm
            progress(done, len(scans), scan.subject)
        return evaluate_pairs(
            pairs,
            structures=self.cohort.structures,
            map_true=self.cohort.spec.class_of_raw("target"),
            spacing_mm=spacing_mm,
            clean_up=clean_up,
        )

    def score(self, network: DeployedNetwork, folder: Path, progress: Progress) -> Row:
        """Means over the structures, as predicted, and each structure's Dice; no labels are kept.

        The folder holds them meanwhile.
        """
        try:
            summary = self.evaluate(network, folder, progress)["summary"]["as_predicted"]
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        mean = summary["mean"]
        structures = {name: row["dice"] for name, row in summary["structures"].items()}
        return {**{key: mean[key] for key in MEANS}, "structures": structures}


def oracle(chosen_dice: float | None, rows: Sequence[Row]) -> Row:
    """What a choice by test labels would have been: the price of choosing without them.

    Among what was chosen and every network on every feed after the last epoch. Only ever reported.
    """
    dice = {"chosen": chosen_dice}
    dice |= {f"{row['network']} on {row['feed']}": row["dice"] for row in rows}
    # no Dice at all where no test scan has a structure, nor a prediction
    best = max(dice, key=lambda name: -1.0 if (value := dice[name]) is None else value)
    return {"network": best, "dice": dice[best], "all": dice}
